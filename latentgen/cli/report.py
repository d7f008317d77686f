"""`latentgen report`: a run folder as one page of HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli.console import Console
from latentgen.cli.options import WORDS
from latentgen.errors import InputError


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A training run's folder, finished or in progress.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Default: report.html in the run's folder.")
    ] = None,
    json_events: Annotated[
        bool, typer.Option("--json", rich_help_panel=WORDS, help="Results as JSON on stdout, one event a line.")
    ] = False,
) -> None:
    """Write a run's report: curves, samples over time, settings, data and history in one file.

    latentgen report runs/unet

    latentgen report runs/unet -o unet.html
    """
    from latentgen.jsonfile import write_text
    from latentgen.training.report import REPORT, render
    from latentgen.training.run_story import read_story

    story = read_story(run)
    path = run / REPORT if output is None else output
    if path.is_dir():
        raise InputError(f"{path} is a folder", hint="name a file: --output FILE.html")
    try:
        write_text(path, render(story))
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}", hint="choose another --output") from None
    console = Console(json_events=json_events)
    if json_events:
        console.event("report", path=str(path), state=story.state, step=story.step)
    else:
        console.result(path)

"""What `generate` is told about pictures that differ: wildcards, sweeps, and the sheet that shows them together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli.options import DRAWING, FILES


@dataclass(frozen=True, kw_only=True)
class WildcardOptions:
    """`__animal__` and `{red|green}` in prompts."""

    wildcards: Annotated[
        Path | None,
        typer.Option(
            "--wildcards",
            metavar="FOLDER",
            rich_help_panel=DRAWING,
            help="Where __animal__ in a prompt is looked up: a line of animal.txt, chosen by the picture's seed, as"
            " one of {red|blue} is. Default: wildcards/ beside the prompt file, here, or in the data folder.",
        ),
    ] = None
    combinatorial: Annotated[
        bool,
        typer.Option(
            "--combinatorial",
            rich_help_panel=DRAWING,
            help="Draw every combination of a prompt's wildcards and {red|blue}, instead of one by the seed.",
        ),
    ] = False


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """Many pictures that differ in stated ways."""

    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="FLAG=VALUES",
            rich_help_panel=DRAWING,
            help="Draw every value: guidance=3:12:3, steps=10,20, sampler=euler,ddim; several make a table. What was"
            " drawn is kept: the same command again draws what is missing.",
        ),
    ] = None
    grid: Annotated[
        bool,
        typer.Option("--grid", rich_help_panel=FILES, help="Also one labelled sheet of all pictures of this run."),
    ] = False

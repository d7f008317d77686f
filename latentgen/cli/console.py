"""Where a command's words go: results to stdout, everything else to stderr, a progress bar to a terminal only."""

from __future__ import annotations

import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TextIO

from latentgen.cli.boundary import escape, write_line

STDOUT = "-"
"""A picture's path where its bytes went to stdout."""


class Progress(Protocol):
    def __call__(self, done: float, total: float, label: str, /, *figures: str) -> None: ...


@dataclass(frozen=True, slots=True)
class Console:
    quiet: bool = False
    verbose: bool = False
    json_events: bool = False
    progress_bar: bool = True

    def result(self, path: Path, kind: str = "picture", /, **event: Any) -> None:
        """A file that was made: its path on stdout, or with --json an event of one line."""
        if self.json_events:
            self.event(kind, path=str(path), **event)
        elif str(path) != STDOUT:
            write_line(sys.stdout, escape(str(path)) if _is_terminal(sys.stdout) else str(path))

    def event(self, name: str, **fields: Any) -> None:
        """One line of JSON on stdout; nothing without --json."""
        if self.json_events:
            write_line(sys.stdout, json.dumps({"event": name, **fields}))

    def note(self, text: str) -> None:
        if not self.quiet:
            write_line(sys.stderr, escape(text))

    def detail(self, text: str) -> None:
        if self.verbose:
            self.note(text)

    def warn(self, text: str) -> None:
        """Shown also with --quiet: it says that the result is not quite what was asked for."""
        write_line(sys.stderr, f"warning: {escape(text)}")

    @property
    def has_bar(self) -> bool:
        """Whether progress is shown as a bar: on a terminal, if nobody asked for less."""
        return not (self.quiet or self.json_events) and self.progress_bar and _is_terminal(sys.stderr)

    @contextmanager
    def progress(self, *, with_figures: bool = False) -> Generator[Progress]:
        """A function to report progress to: a bar on a terminal, nothing elsewhere. NO_COLOR is rich's own business.

        with_figures: beside the bar stand the figures that each report gives, instead of a count and rich's own guess
        at the time left.
        """
        if not self.has_bar:
            yield lambda done, total, label, *figures: None
            return
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        count: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TimeRemainingColumn())
        if with_figures:
            count = (TextColumn("{task.fields[figures]}", markup=False),)
        columns = (TextColumn("{task.description}", markup=False), BarColumn(20 if with_figures else 40), *count)
        # On one terminal rich must print the paths, above its bar; into a pipe they go as they are.
        redirect = _is_terminal(sys.stdout)
        with RichProgress(*columns, console=RichConsole(stderr=True), transient=True, redirect_stdout=redirect) as bar:
            task = bar.add_task("", figures="")

            def update(done: float, total: float, label: str, /, *figures: str) -> None:
                shown = escape("  ".join(figures))
                bar.update(task, completed=done, total=total, description=escape(label), figures=shown)

            yield update


def _is_terminal(stream: TextIO | None) -> bool:
    """A stream that the caller closed is None."""
    return stream is not None and stream.isatty()

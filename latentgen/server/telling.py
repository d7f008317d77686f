"""What the operator is told of each request: never at the price of an answer."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

from latentgen.cli.console import Console

if TYPE_CHECKING:
    from latentgen.pipeline import GenerationResult

MAX_LINES: Final = 1000
_ENDS_WITHIN_S: Final = 0.5
_SEEDS_SHOWN: Final = 4


class Teller:
    """A console behind a thread: where nobody reads its lines, they are dropped, and the server goes on."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._lines: queue.Queue[Callable[[], None] | None] = queue.Queue(MAX_LINES)
        self._thread = threading.Thread(target=self._run, name="latentgen telling", daemon=True)
        self._thread.start()

    def drawn(self, path: str, results: Sequence[GenerationResult], seconds: float) -> None:
        """A request was answered with these pictures."""
        seeds = [result.seed for result in results]
        shown = ", ".join(map(str, seeds[:_SEEDS_SHOWN])) + (" …" if len(seeds) > _SEEDS_SHOWN else "")
        pictures = f"{len(seeds)} picture{'' if len(seeds) == 1 else 's'}"
        line = f"{path}: {pictures} in {seconds:.2f} s{f', seed {shown}' if seeds else ''}"
        self._say(line, "drawn", path=path, pictures=len(seeds), seeds=seeds, draw_s=round(seconds, 4))

    def failed(self, path: str, status: int, message: str) -> None:
        """A request was answered with an error."""
        self._say(f"{path}: {status}: {message}", "failed", path=path, status=status, error=message)

    def close(self) -> None:
        """Write what is there, if somebody reads it."""
        self._put(None)
        self._thread.join(_ENDS_WITHIN_S)

    def _say(self, line: str, event: str, **fields: Any) -> None:
        """With --json the event, else the line."""
        if self._console.json_events:
            self._put(lambda: self._console.event(event, **fields))
        else:
            self._put(lambda: self._console.note(line))

    def _put(self, tell: Callable[[], None] | None) -> None:
        with contextlib.suppress(queue.Full):
            self._lines.put_nowait(tell)

    def _run(self) -> None:
        while (tell := self._lines.get()) is not None:
            with contextlib.suppress(OSError, ValueError):  # nobody reads any more; the stream is closed
                tell()

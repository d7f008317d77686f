"""What a run folder tells, read for people: of any age, finished or in progress, with whatever is missing left out."""

from __future__ import annotations

import fcntl
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from latentgen.checkpoints.header import read_header
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError
from latentgen.training.charts import Curve
from latentgen.training.run_lock import LOCK

State = Literal["finished", "running", "interrupted", "failed", "unfinished"]

KINDS = ("start", "end", "failed", "interrupted", "override")
"""Log lines with one of these are about the run, the others about a step."""
BESIDE_FIGURES = frozenset({"step", "images_seen", "elapsed_s", "validation"})


@dataclass(frozen=True, slots=True)
class Part:
    """A network that the run has written."""

    name: str
    parameters: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Story:
    """A run as it is told."""

    name: str
    """Of its folder."""
    config: Mapping[str, Any]
    data: Mapping[str, Any]
    """OUT/data.json."""
    training: Mapping[str, Curve]
    """Figures of training steps by name: loss, lr, grad_norm, samples_per_s and the objective's own."""
    validation: Mapping[str, Curve]
    history: tuple[Mapping[str, Any], ...]
    """Starts, ends, interruptions, failures and settings that were overridden, in the order they happened."""
    state: State
    step: int
    images_seen: int
    elapsed_s: float
    """Of all starts together, as far as it is logged."""
    sheets: tuple[tuple[int, Path], ...]
    """Sample pictures and texts, by step."""
    prompts: tuple[str, ...]
    """What the sample pictures show, if it is known."""
    parts: tuple[Part, ...]
    checkpoints: tuple[int, ...]
    """Steps of the checkpoints that are kept."""


def read_story(folder: Path) -> Story:
    """Read a run folder.

    Raises ModelNotFoundError where there is no folder, InputError where it holds neither config.json nor log.jsonl.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"there is no run folder {folder}", hint="a run folder is what train-* --out made")
    if not (folder / "config.json").exists() and not (folder / "log.jsonl").exists():
        raise InputError(f"{folder} holds no run: neither config.json nor log.jsonl", hint="name a run's --out folder")
    log = _Log()
    for line in _text(folder / "log.jsonl").splitlines():
        log.take(_object(line))
    return Story(
        name=folder.resolve().name,
        config=_object(_text(folder / "config.json")),
        data=_object(_text(folder / "data.json")),
        training=log.curves(log.lines),
        validation=log.curves(log.validations),
        history=tuple(log.history),
        state=_state(folder, log),
        step=log.step,
        images_seen=log.images_seen,
        elapsed_s=sum(log.elapsed_s),
        sheets=_sheets(folder / "samples"),
        prompts=tuple(_text(folder / "samples" / "prompts.txt").splitlines()),
        parts=_parts(folder / "model"),
        checkpoints=tuple(
            sorted(int(path.name[5:]) for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit())
        ),
    )


class _Log:
    """log.jsonl, line by line: a later line about a step replaces an earlier one, and the first step after a start
    forgets what came after it before. A start that makes no step, which writes an older model, forgets nothing.
    """

    def __init__(self) -> None:
        self.lines: dict[int, Mapping[str, Any]] = {}
        self.validations: dict[int, Mapping[str, Any]] = {}
        self.history: list[Mapping[str, Any]] = []
        self.elapsed_s: list[float] = []
        """The last word of each start."""
        self.step = 0
        self.images_seen = 0
        self.last_kind: str | None = None
        self._forgets_after: int | None = None

    def take(self, line: Mapping[str, Any]) -> None:
        step = line.get("step")
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            return
        self.last_kind = next((kind for kind in KINDS if line.get(kind)), None)
        if self.last_kind is not None:
            self.history.append(line)
        if self.last_kind == "start":
            self.elapsed_s.append(0.0)
            self._forgets_after = step
        elif self.last_kind != "failed" and self._forgets_after is not None and step > self._forgets_after:
            for kept in (self.lines, self.validations):
                for later in [each for each in kept if each > self._forgets_after]:
                    del kept[later]
            self._forgets_after = None
        if self.last_kind == "failed":
            return  # that step was not made
        self.step = step
        self.images_seen = _whole(line.get("images_seen"), self.images_seen if step else 0)
        elapsed_s = _finite(line.get("elapsed_s"))
        if elapsed_s is not None:
            # An older log may lack the line of a start: there the clock begins again.
            if not self.elapsed_s or elapsed_s < self.elapsed_s[-1]:
                self.elapsed_s.append(0.0)
            self.elapsed_s[-1] = elapsed_s
        if self.last_kind is None:
            (self.validations if line.get("validation") else self.lines)[step] = line

    @staticmethod
    def curves(lines: Mapping[int, Mapping[str, Any]]) -> dict[str, Curve]:
        points: dict[str, list[tuple[int, float]]] = {}
        for step in sorted(lines):
            for name, value in lines[step].items():
                number = _finite(value)
                if name not in BESIDE_FIGURES and number is not None:
                    points.setdefault(name, []).append((step, number))
        return {name: Curve(*zip(*pairs, strict=True)) for name, pairs in points.items()}


def _state(folder: Path, log: _Log) -> State:
    if _is_held(folder / LOCK):
        return "running"
    last = log.last_kind
    return "finished" if last == "end" else last if last in ("interrupted", "failed") else "unfinished"


def _is_held(lock: Path) -> bool:
    """Whether a process is training there: it holds the lock for as long as it lives."""
    try:
        with lock.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _object(text: str) -> dict[str, Any]:
    """The JSON object, or an empty one: a line may be half written, a file of another age or torn."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _whole(value: object, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _sheets(folder: Path) -> tuple[tuple[int, Path], ...]:
    found = [
        (int(path.stem[5:]), path)
        for path in folder.glob("step_*")
        if path.suffix in (".png", ".txt") and path.stem[5:].isdigit()
    ]
    return tuple(sorted(found))


def _parts(folder: Path) -> tuple[Part, ...]:
    parts: list[Part] = []
    for path in sorted(folder.rglob("*.safetensors")):
        try:
            size = path.stat().st_size
            with path.open("rb") as file:
                header = read_header(file, size, path)
        except (OSError, ModelLoadError):
            continue
        name = path.parent.name if path.parent != folder else path.stem
        parts.append(Part(name, sum(math.prod(entry.shape) for entry in header.entries), size))
    return tuple(parts)

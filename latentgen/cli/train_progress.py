"""A training run as it goes by: a bar on a terminal, lines elsewhere, events with --json."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from latentgen.cli.console import Console, Progress
from latentgen.config import TrainConfig

WINDOW_STEPS = 100
"""The pace is that of the last so many steps, with whatever pauses for samples and checkpoints fell among them."""
SMOOTHING = 0.98
"""Of the loss shown in the bar: the weight of what came before, corrected for the start (as Adam's moments are)."""


class Pace:
    """How fast a run goes and how far it has to go, by its steps or its minutes, whichever end it meets first."""

    def __init__(self, config: TrainConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self.config, self._clock = config, clock
        self._started = clock()
        self._seen: deque[tuple[float, int, int]] = deque(maxlen=WINDOW_STEPS + 1)
        self._loss, self._weight = 0.0, 0.0

    def start(self, step: int, images_seen: int) -> None:
        """The run begins, or goes on, after `step` steps."""
        self._started = self._clock()
        self._seen.append((self._started, step, images_seen))

    def step(self, step: int, images_seen: int, loss: float) -> None:
        self._seen.append((self._clock(), step, images_seen))
        self._loss = SMOOTHING * self._loss + (1 - SMOOTHING) * loss
        self._weight = SMOOTHING * self._weight + (1 - SMOOTHING)

    @property
    def smoothed_loss(self) -> float:
        return self._loss / self._weight if self._weight else math.nan

    @property
    def samples_per_s(self) -> float:
        return self._rate(2)

    @property
    def left_s(self) -> float:
        """Seconds until the run ends; infinite while the pace is unknown."""
        return min(self._steps_left_s(), self._minutes_left_s())

    @property
    def done(self) -> float:
        """Share of the run that is behind, 0 to 1."""
        by_steps = self._seen[-1][1] / self.config.max_steps if self.config.max_steps and self._seen else 0.0
        minutes = self.config.max_minutes
        by_time = (self._clock() - self._started) / (60 * minutes) if minutes else 0.0
        return min(1.0, max(by_steps, by_time))

    def _rate(self, field: int) -> float:
        """Of steps (1) or samples (2) a second."""
        if len(self._seen) < 2:
            return 0.0
        first, last = self._seen[0], self._seen[-1]
        return (last[field] - first[field]) / max(last[0] - first[0], 1e-9)

    def _steps_left_s(self) -> float:
        rate = self._rate(1)
        if self.config.max_steps is None or not rate:
            return math.inf
        return (self.config.max_steps - self._seen[-1][1]) / rate

    def _minutes_left_s(self) -> float:
        if self.config.max_minutes is None:
            return math.inf
        return max(0.0, 60 * self.config.max_minutes - (self._clock() - self._started))


class TrainingWatch:
    """What `fit` reports, put before people: give an instance as its `report`."""

    def __init__(self, console: Console, config: TrainConfig, bar: Progress) -> None:
        self.console, self.config, self._bar = console, config, bar
        self.pace = Pace(config)
        self._validation = ""

    def __call__(self, event: Mapping[str, Any]) -> None:
        if event.get("told") == "step":
            self.pace.step(event["step"], event["images_seen"], event["loss"])
            self._draw_bar(event["step"])
            return
        self.console.event(_kind(event), **_plain(event))
        if event.get("start"):
            self.pace.start(event["step"], event["images_seen"])
        elif event.get("validation"):
            self._validation = figures_of(event)
            self.console.note(f"{self._counted(event)}  validation  {self._validation}")
        elif "told" not in event and not self.console.has_bar:
            self.console.note(f"{self._counted(event)}  {figures_of(event)}{_elapsed(event)}")

    def _draw_bar(self, step: int) -> None:
        pace = self.pace
        figures = [f"loss {pace.smoothed_loss:.4g}", f"{pace.samples_per_s:.3g} samples/s"]
        if math.isfinite(pace.left_s):
            figures.append(f"{duration(pace.left_s)} left")
        if self._validation:
            figures.append(f"validation {self._validation}")
        self._bar(pace.done, 1.0, self._counted({"step": step}), *figures)

    def _counted(self, event: Mapping[str, Any]) -> str:
        return f"step {event['step']}" + ("" if self.config.max_steps is None else f"/{self.config.max_steps}")


def figures_of(event: Mapping[str, Any]) -> str:
    """The measured figures of an event, to four digits."""
    return "  ".join(f"{k} {v:.4g}" for k, v in event.items() if k != "elapsed_s" and isinstance(v, float))


def duration(seconds: float) -> str:
    """`42 s`, `3:07`, `1:03:07`."""
    whole = round(seconds)
    minutes, second = divmod(whole, 60)
    hours, minute = divmod(minutes, 60)
    if hours:
        return f"{hours}:{minute:02}:{second:02}"
    return f"{minute}:{second:02}" if minutes else f"{second} s"


def _elapsed(event: Mapping[str, Any]) -> str:
    return f"  {event['elapsed_s'] / 60:.1f} min" if "elapsed_s" in event else ""


def _kind(event: Mapping[str, Any]) -> str:
    """What an event is called among those of --json."""
    told = event.get("told")
    if told is not None:
        return told
    return next((name for name in ("start", "validation") if event.get(name)), "step")


def _plain(event: Mapping[str, Any]) -> dict[str, Any]:
    """An event without the words that say what it is; numbers that JSON has no word for are strings, as in the log."""
    return {
        key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in event.items()
        if key not in ("told", "start", "validation")
    }

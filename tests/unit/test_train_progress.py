"""The figures beside a training run's bar, against a clock that is told what time it is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pytest

from latentgen.cli.console import Console
from latentgen.cli.train_progress import SMOOTHING, WINDOW_STEPS, Pace, TrainingWatch, duration
from latentgen.config import TrainConfig


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def config(**changes: Any) -> TrainConfig:
    return TrainConfig(lr=1e-3, batch_size=4, **changes)


def run(pace: Pace, clock: Clock, steps: int, *, seconds: float, first: int = 1) -> None:
    for step in range(first, first + steps):
        clock.now += seconds
        pace.step(step, 4 * step, 0.5)


def test_samples_a_second_and_the_time_left() -> None:
    clock = Clock()
    pace = Pace(config(max_steps=100), clock)
    pace.start(0, 0)
    assert pace.samples_per_s == 0
    assert pace.left_s == math.inf
    run(pace, clock, 10, seconds=2.0)
    assert pace.samples_per_s == pytest.approx(2.0)
    assert pace.left_s == pytest.approx(180.0)
    assert pace.done == pytest.approx(0.1)


def test_a_resumed_run_counts_from_where_it_goes_on() -> None:
    clock = Clock()
    pace = Pace(config(max_steps=100), clock)
    pace.start(60, 240)
    run(pace, clock, 10, seconds=1.0, first=61)
    assert pace.left_s == pytest.approx(30.0)
    assert pace.samples_per_s == pytest.approx(4.0)


def test_the_end_that_comes_first_counts() -> None:
    clock = Clock()
    pace = Pace(config(max_steps=1000, max_minutes=1.0), clock)
    pace.start(0, 0)
    run(pace, clock, 15, seconds=1.0)
    assert pace.left_s == pytest.approx(45.0)
    assert pace.done == pytest.approx(0.25)
    clock.now += 100
    assert (pace.left_s, pace.done) == (0.0, 1.0)


def test_the_pace_is_that_of_the_last_steps() -> None:
    clock = Clock()
    pace = Pace(config(max_steps=10_000), clock)
    pace.start(0, 0)
    run(pace, clock, 50, seconds=10.0)
    run(pace, clock, WINDOW_STEPS, seconds=0.5, first=51)
    assert pace.samples_per_s == pytest.approx(8.0)


def test_the_smoothed_loss_is_a_corrected_average() -> None:
    pace = Pace(config(max_steps=10), Clock())
    assert math.isnan(pace.smoothed_loss)
    losses = [3.0, 1.0, 2.0]
    for step, loss in enumerate(losses, 1):
        pace.step(step, step, loss)
    weights = [SMOOTHING**2, SMOOTHING, 1.0]
    expected = sum(w * loss for w, loss in zip(weights, losses, strict=True)) / sum(weights)
    assert pace.smoothed_loss == pytest.approx(expected)


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (42, "42 s"), (59.7, "1:00"), (187, "3:07"), (3787, "1:03:07")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_the_bar_is_given_all_figures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Each step moves the bar; log lines are not printed beside it, validations are."""
    reports: list[tuple[Any, ...]] = []
    monkeypatch.setattr("latentgen.cli.console._is_terminal", lambda stream: True)
    watch = TrainingWatch(Console(), config(max_steps=4), lambda *report: reports.append(report))
    events: list[Mapping[str, Any]] = [
        {"start": True, "step": 0, "images_seen": 0},
        {"told": "step", "step": 1, "images_seen": 4, "loss": 0.75},
        {"step": 1, "images_seen": 4, "loss": 0.75, "elapsed_s": 60.0},
        {"step": 1, "validation": True, "images_seen": 4, "val_loss": 0.5},
        {"told": "checkpoint", "step": 1, "images_seen": 4},
        {"told": "step", "step": 2, "images_seen": 8, "loss": 0.25},
    ]
    for event in events:
        watch(event)
    assert [report[:3] for report in reports] == [(0.25, 1.0, "step 1/4"), (0.5, 1.0, "step 2/4")]
    assert reports[0][3] == "loss 0.75"
    assert reports[0][4].endswith(" samples/s")
    assert reports[0][5].endswith(" left")
    assert reports[1][-1] == "validation val_loss 0.5"
    assert capsys.readouterr().err == "step 1/4  validation  val_loss 0.5\n"


def test_elsewhere_each_log_line_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    watch = TrainingWatch(Console(), config(max_steps=4), lambda *report: None)
    watch({"told": "step", "step": 1, "images_seen": 4, "loss": 0.75})
    watch({"step": 1, "images_seen": 4, "loss": 0.75, "elapsed_s": 90.0})
    assert capsys.readouterr().err == "step 1/4  loss 0.75  1.5 min\n"

"""A picture step by step: nothing runs ahead, nothing is left running."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable

import pytest
import torch

from latentgen.errors import InputError, RuntimeFailure
from latentgen.images.pixels import pixels_sha256
from latentgen.pipeline import TextToImage
from latentgen.pipeline.drawing import Drawing
from latentgen.request import InitPicture, RequestFields
from latentgen.samplers.step import OnStep, Step
from tests.tiny_bundle import tiny_bundle

X = torch.zeros(1, 4, 8, 8)


def counting(total: int, done: list[int], *, fail_at: int | None = None) -> Callable[[OnStep], str]:
    def compute(on_step: OnStep) -> str:
        for index in range(total):
            done.append(index)
            if index == fail_at:
                raise InputError("no")
            on_step(Step(index, total, 1.0, X, X))
        return "drawn"

    return compute


def drawing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "latentgen drawing"]


def test_steps_come_one_at_a_time_and_then_the_result() -> None:
    done: list[int] = []
    drawing = Drawing(counting(3, done))
    assert done == []
    for step in drawing:
        time.sleep(0.02)
        assert done == list(range(step.index + 1)), "it ran ahead"
    assert (drawing.result, drawing.result) == ("drawn", "drawn")
    assert list(drawing) == []
    assert drawing_threads() == []


def test_the_result_draws_what_nobody_watched() -> None:
    done: list[int] = []
    drawing = Drawing(counting(5, done))
    assert next(drawing).index == 0
    assert drawing.result == "drawn"
    assert done == [0, 1, 2, 3, 4]


def test_what_fails_inside_fails_outside_once() -> None:
    drawing = Drawing(counting(3, [], fail_at=1))
    next(drawing)
    with pytest.raises(InputError):
        next(drawing)
    assert list(drawing) == []
    with pytest.raises(RuntimeFailure, match="stopped"):
        _ = drawing.result


def test_leaving_it_stops_the_computation() -> None:
    done: list[int] = []
    with Drawing(counting(3, done)) as drawing:
        next(drawing)
    assert (done, drawing_threads()) == ([0], [])
    assert list(drawing) == []


def test_dropping_it_stops_the_computation() -> None:
    done: list[int] = []
    drawing = Drawing(counting(3, done))
    next(drawing)
    del drawing
    gc.collect()
    assert (done, drawing_threads()) == ([0], [])


def test_a_watched_picture_is_the_drawn_one() -> None:
    model = TextToImage(tiny_bundle())
    watched = model.steps("a boat", seed=3, steps=4)
    estimates = [step.denoised for step in watched]
    (drawn,) = model.draw("a boat", seed=3, steps=4)
    assert len(estimates) == 4
    assert all(torch.isfinite(estimate).all() for estimate in estimates)
    assert watched.result.metadata == drawn.metadata


@pytest.mark.parametrize(
    ("asked", "sampler", "schedule"),
    [
        ({}, "dpmpp_2m", "karras"),
        ({"sampler": "Euler a"}, "euler_a", "uniform"),
        ({"sampler": "Euler a Karras"}, "euler_a", "karras"),
        ({"sampler": "ddim", "schedule": "SGM Uniform"}, "ddim", "sgm_uniform"),
    ],
)
def test_samplers_are_named_as_on_the_command_line(asked: RequestFields, sampler: str, schedule: str) -> None:
    model = TextToImage(tiny_bundle())
    (drawn,) = model.draw("a boat", seed=3, steps=2, **asked)
    watched = model.steps("a boat", seed=3, steps=2, **asked)
    assert [(each.metadata.request.sampler, each.metadata.request.schedule) for each in (drawn, watched.result)] == [
        (sampler, schedule)
    ] * 2


def test_a_watched_picture_may_start_from_another() -> None:
    model = TextToImage(tiny_bundle())
    (start,) = model.draw("a boat", seed=3, steps=1)
    sha256 = pixels_sha256(start.pixels)
    pictures, init = {sha256: start.pixels}, InitPicture(sha256=sha256, strength=0.5)
    watched = model.steps("a house", seed=4, steps=4, init=init, pictures=pictures)
    (drawn,) = model.draw("a house", seed=4, steps=4, init=init, pictures=pictures)
    assert len(list(watched)) == 2
    assert watched.result.metadata == drawn.metadata

"""How many threads are left for a computation while other processes use the cores."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from latentgen.kernels import crowding
from latentgen.kernels.crowding import Crowding, Look, make_room, room_for_others, seconds_busy
from latentgen.pipeline import TextToImage
from tests.tiny_bundle import tiny_bundle

STEP_S = 0.2
"""Between two looks: more than a window."""


class Machine:
    """Cores that others use as much of as they are told to, looked at every `STEP_S`."""

    def __init__(self, others: float = 0.0) -> None:
        self.at, self.seconds, self.others = 100.0, 5.0, others

    def now(self) -> Look:
        return Look(self.at, self.seconds)

    def threads_of(self, crowd: Crowding, looks: int = 1) -> list[int]:
        """At each of so many looks."""
        found: list[int] = []
        for _ in range(looks):
            self.at += STEP_S
            self.seconds += self.others * STEP_S
            found.append(crowd.look(self.at))
        return found


def crowding_on(machine: Machine, threads: int, cores: int | None = None) -> Crowding:
    return Crowding(threads, cores or threads, now=machine.now)


@pytest.mark.parametrize(
    ("threads", "cores", "others", "expected"),
    [
        (2, 2, 0.0, 2),
        (2, 2, 0.3, 2),  # one that is away a third of the time costs less than to do without it
        (2, 2, 0.7, 1),
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),  # never none
        (16, 16, 0.0, 16),
        (16, 16, 0.5, 15),
        (16, 16, 8.0, 8),
        (16, 16, 40.0, 1),
        (4, 16, 11.0, 4),  # there is room beside them
        (4, 16, 14.0, 2),
        (8, 4, 0.0, 4),
    ],
)
def test_as_many_threads_as_cores_are_free(threads: int, cores: int, others: float, expected: int) -> None:
    machine = Machine(others)
    assert machine.threads_of(crowding_on(machine, threads, cores)) == [expected]


def test_the_first_window_is_believed_and_later_ones_if_two_agree() -> None:
    machine = Machine(1.0)
    crowd = crowding_on(machine, 2)
    assert machine.threads_of(crowd, 3) == [1, 1, 1]
    machine.others = 0.0
    assert machine.threads_of(crowd, 3) == [1, 2, 2]
    machine.others = 1.0
    assert machine.threads_of(crowd) == [2]
    machine.others = 0.0
    assert machine.threads_of(crowd, 4) == [2] * 4, "something short"
    machine.others = 1.0
    assert machine.threads_of(crowd, 2) == [2, 1]


def test_between_windows_nothing_is_looked_at() -> None:
    machine = Machine(1.0)
    crowd = crowding_on(machine, 2)
    with patch.object(machine, "now", side_effect=AssertionError("looked")):
        assert crowd.look(machine.at + 0.01) == 2


def test_threads_that_are_given_in_vain_are_given_ever_more_seldom() -> None:
    """Others that take what is free, and are not seen while they are stopped by our own threads, say."""
    machine = Machine(1.0)
    crowd = crowding_on(machine, 2)
    counts = []
    for _ in range(400):
        counts += machine.threads_of(crowd)
        machine.others = 0.0 if counts[-1] == 1 else 1.0
    changes = [k for k in range(1, len(counts)) if counts[k] > counts[k - 1]]
    waits = np.diff(changes)
    assert waits[0] * STEP_S < 2
    assert list(waits) == sorted(waits)
    assert waits[-1] * STEP_S > 20
    assert counts.count(2) < 40


def test_a_pause_is_forgotten() -> None:
    """What others did while nothing was computed says little of now."""
    machine = Machine(1.0)
    crowd = crowding_on(machine, 2)
    assert machine.threads_of(crowd, 2) == [1, 1]
    machine.at += 60
    machine.others = 0.0
    assert machine.threads_of(crowd, 2) == [1, 2], "the first window after it is believed"


def test_where_nobody_tells_all_threads_go_on() -> None:
    times = iter(range(100, 200))
    crowd = Crowding(4, 4, now=lambda: Look(next(times), None))
    assert [crowd.look(at) for at in (101.5, 103.0)] == [4, 4]


def test_busy_seconds_are_those_of_the_cores_that_may_be_used(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  9999 9999 9999 9999 0 0 0 0 0 0\n"
        "cpu0 100 7 20 5000 300 1 2 50 40 0\ncpu1 1000 0 0 0 0 0 0 0 0 0\ncpu2 10 0 0 0 0 0 0 0 0 0\nintr 5\n"
    )
    ticks = os.sysconf("SC_CLK_TCK")
    with patch.object(crowding, "_STAT", str(stat)), patch("os.sched_getaffinity", lambda _: {0, 2}, create=True):
        with patch("os.nice", lambda _: 0):
            assert seconds_busy() == pytest.approx((100 + 20 + 1 + 2 + 10) / ticks)
        with patch("os.nice", lambda _: 5):
            assert seconds_busy() == pytest.approx((100 + 7 + 20 + 1 + 2 + 10) / ticks)
        stat.write_text("cpu0 words\n")
        assert seconds_busy() is None
        stat.unlink()
        assert seconds_busy() is None


@pytest.mark.skipif(sys.platform != "linux", reason="the counts are Linux's")
def test_this_process_is_not_one_of_the_others() -> None:
    """Of two seconds that it computes itself, less than one is put down to others by an idle machine, or a busy one."""
    before, busy_before, ends = Look.now(), seconds_busy(), time.process_time() + 0.5
    while time.process_time() < ends:
        pass
    after, busy_after = Look.now(), seconds_busy()
    assert before.others is not None
    assert after.others is not None
    assert busy_before is not None
    assert busy_after is not None
    assert busy_after - busy_before >= 0.4
    assert after.others - before.others == pytest.approx(busy_after - busy_before - 0.5, abs=0.1)


@pytest.fixture
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_two_threads")
def test_room_is_made_inside_only() -> None:
    with patch.object(Crowding, "look", lambda *_: 1):
        make_room()
        assert torch.get_num_threads() == 2
        with room_for_others():
            assert torch.get_num_threads() == 1
            with room_for_others():
                make_room()
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), room_for_others():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_picture_is_the_same_however_its_threads_change(dtype: torch.dtype) -> None:
    bundle = tiny_bundle()
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.to(dtype)
    pipeline = TextToImage(bundle)
    (alone,) = pipeline.draw("a lighthouse", seed=3, steps=4)
    counts: list[int] = []

    def every_other_time(_: Crowding, at: float) -> int:
        counts.append(1 + len(counts) % 2)
        return counts[-1]

    with patch.object(Crowding, "look", every_other_time):
        (crowded,) = pipeline.draw("a lighthouse", seed=3, steps=4)
    assert len(counts) >= 6, "an encoding, four steps and a decoding"
    assert np.array_equal(alone.pixels, crowded.pixels)
    assert crowded.metadata.computation.threads == 2
    assert torch.get_num_threads() == 2

"""How many threads are left for a computation while other processes use the cores."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from latentgen.kernels import crowding
from latentgen.kernels.crowding import WINDOW_S, Crowding, Look, make_room, room_for_others, seconds_busy
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
        (2, 2, 0.4, 2),  # one that is away two fifths of the time costs less than to do without it
        (2, 2, 0.7, 1),
        (2, 2, 1.0, 1),
        (2, 2, 2.0, 1),  # never none
        (4, 4, 1.0, 2),
        (16, 16, 0.2, 16),
        (16, 16, 0.7, 8),
        (16, 16, 8.0, 8),
        (16, 16, 9.0, 4),
        (16, 16, 40.0, 1),
        (12, 12, 1.0, 6),
        (64, 64, 0.9, 32),
        (4, 16, 11.0, 4),  # there is room beside them
        (4, 16, 14.0, 2),
        (8, 4, 0.0, 4),  # more than there are cores
    ],
)
def test_as_many_threads_as_are_fastest(threads: int, cores: int, others: float, expected: int) -> None:
    machine = Machine(others)
    assert machine.threads_of(crowding_on(machine, threads, cores)) == [expected]


def test_two_on_four_cores_come_to_share_them() -> None:
    """The first, which had all, gives way to one that begins with what is left."""
    machines = [Machine(), Machine(4.0)]
    first, second = (crowding_on(machine, 4) for machine in machines)
    for _ in range(20):
        for crowd, machine in zip((first, second), machines, strict=True):
            machine.threads_of(crowd)
        machines[0].others, machines[1].others = second.threads, first.threads
    assert (first.threads, second.threads) == (2, 2)


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


def test_windows_that_say_opposite_things_say_nothing() -> None:
    machine = Machine(2.0)
    crowd = crowding_on(machine, 4)
    assert machine.threads_of(crowd, 2) == [2, 2]
    seen = []
    for _ in range(6):
        for machine.others in (3.0, 0.0):
            seen += machine.threads_of(crowd)
    assert seen == [2] * 12


def test_a_look_from_before_is_something_to_begin_with() -> None:
    machine = Machine(1.0)
    since = machine.now()
    machine.at, machine.seconds = machine.at + 1.2, machine.seconds + 1.2
    assert Crowding(2, 2, since, now=machine.now).threads == 1
    assert Crowding(2, 2, machine.now(), now=machine.now).threads == 2, "too short ago"


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
    """What others did while nothing was computed says little of now; nor does a slow look that is no pause."""
    machine = Machine(1.0)
    crowd = crowding_on(machine, 2)
    assert machine.threads_of(crowd, 2) == [1, 1]
    machine.at += 60
    crowd.begin()
    machine.others = 0.0
    assert machine.threads_of(crowd, 2) == [2, 2], "the first window after it is believed"
    machine.others, machine.at, machine.seconds = 1.0, machine.at + 60, machine.seconds + 60
    assert machine.threads_of(crowd, 2) == [2, 1]


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
    """Of half a second that it computes itself nothing is put down to others, whatever they do."""
    earliest, before, latest = seconds_busy(), Look.now(), seconds_busy()
    ends = time.process_time() + 0.5
    while time.process_time() < ends:
        pass
    own = time.process_time()
    first, after, last = seconds_busy(), Look.now(), seconds_busy()
    own = time.process_time() - own + 0.5
    assert None not in (earliest, latest, first, last, before.others, after.others)
    assert first - latest - own - 0.1 <= after.others - before.others <= last - earliest - 0.5 + 0.1


@pytest.fixture
def _two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(crowding._here, "crowding", None)
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
def test_a_thread_that_is_begun_inside_has_the_threads_outside() -> None:
    """torch gives it those of a room that is open elsewhere."""
    counts: list[int] = []

    def work() -> None:
        counts.append(torch.get_num_threads())
        with room_for_others():
            pass
        counts.append(torch.get_num_threads())

    with patch.object(crowding, "usable_cores", lambda: {0, 1}), patch.object(Look, "now", others_take_one):
        with room_for_others():
            time.sleep(1.5 * WINDOW_S)
            make_room()
            assert torch.get_num_threads() == 1
            (thread := threading.Thread(target=work)).start()
            thread.join()
        assert counts == [1, 2]
        assert torch.get_num_threads() == 2


def others_take_one() -> Look:
    """Of the cores, all the time."""
    return Look(time.monotonic(), time.monotonic())


@pytest.mark.usefixtures("_two_threads")
def test_a_number_that_a_user_asked_for_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with patch.object(Crowding, "look", lambda *_: 1), room_for_others():
        make_room()
        assert torch.get_num_threads() == 2


def pipeline_of(dtype: torch.dtype) -> TextToImage:
    bundle = tiny_bundle()
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.to(dtype)
    return TextToImage(bundle)


class EveryOtherTime:
    """In the place of `Crowding.look`."""

    def __init__(self) -> None:
        self.counts: list[int] = []

    def __call__(self, at: float) -> int:
        self.counts.append(1 + len(self.counts) % 2)
        return self.counts[-1]


@pytest.mark.usefixtures("_two_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_picture_is_the_same_however_its_threads_change(dtype: torch.dtype) -> None:
    pipeline = pipeline_of(dtype)
    (alone,) = pipeline.draw("a lighthouse", seed=3, steps=4)
    with patch.object(Crowding, "look", looks := EveryOtherTime()):
        (crowded,) = pipeline.draw("a lighthouse", seed=3, steps=4)
    if dtype == torch.float32 or pipeline.fast_form.ignores_threads:
        assert len(looks.counts) >= 6, "an encoding, four steps and a decoding"
    assert np.array_equal(alone.pixels, crowded.pixels)
    assert crowded.metadata.computation.threads == 2
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("_two_threads")
def test_room_is_made_only_where_no_picture_depends_on_it() -> None:
    def looks(pipeline: TextToImage) -> int:
        with patch.object(Crowding, "look", found := EveryOtherTime()):
            list(pipeline.draw("a lighthouse", seed=3, steps=1))
        return len(found.counts)

    assert looks(pipeline_of(torch.float32)) > 0
    asked_for = pipeline_of(torch.float32)
    asked_for.makes_room = False
    assert looks(asked_for) == 0
    inexact = pipeline_of(torch.bfloat16)
    inexact.fast_form.is_possible = False
    assert looks(inexact) == 0
    torch.set_num_threads(12)
    assert looks(pipeline_of(torch.float32)) == 0, "exact for up to eight threads"

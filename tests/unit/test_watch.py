"""When a run counts as hanging; that processes find each other's deaths is in tests/faults."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

from latentgen.errors import InputError
from latentgen.training.watch import FIRST_STALL_S, STALL_VARIABLE, Pace, Sign, Stall, Watch, stall_limit_s


def signs(*advances: int, alone: int | None = None) -> dict[int, Sign]:
    """Of processes that came past `advance` so often; one may be out of the loop."""
    return {
        index: Sign(
            "host",
            "",
            1,
            beats=7,
            advances=count,
            in_loop=index != alone,
            left=False,
            failure="",
            stalled=[],
            stall_s=0,
        )
        for index, count in enumerate(advances)
    }


def started(limit_s: float, at: float) -> Pace:
    """The pace of a run that has made ten advances by now."""
    pace = Pace(limit_s)
    assert pace.stalled(signs(10, 10), at) == []
    return pace


def test_the_process_that_came_on_least_is_the_one_that_hangs() -> None:
    pace = started(5, at=0)
    assert pace.stalled(signs(12, 11), 0.1) == []
    assert pace.stalled(signs(12, 11), 5.0) == []
    assert pace.stalled(signs(12, 11), 5.2) == [1]
    assert started(5, at=0).stalled(signs(10, 10), 6) == [0, 1], "none came on: nobody knows which it is"


def test_any_advance_of_any_process_is_life() -> None:
    pace = started(5, at=0)
    for second in range(1, 50):
        assert pace.stalled(signs(10 + second // 4, 10), second) == []


def test_what_one_does_alone_has_no_limit() -> None:
    pace = started(5, at=0)
    for second in range(1, 1000, 10):
        assert pace.stalled(signs(11, 11, alone=0), second) == []
    assert pace.stalled(signs(12, 12), 1000) == []
    assert pace.stalled(signs(12, 12), 1004) == [], "and its time does not count as that of a step"
    assert pace.stalled(signs(12, 12), 1006) == [0, 1]


def test_long_steps_raise_the_limit() -> None:
    pace = started(5, at=0)
    assert pace.stalled(signs(11, 11), 4) == []
    assert pace.stalled(signs(11, 11), 4 + 39) == []
    assert pace.stalled(signs(11, 11), 4 + 41) == [0, 1]


def test_the_first_steps_may_compile() -> None:
    pace = Pace(5)
    assert pace.stalled(signs(1, 0), 0) == []
    assert pace.stalled(signs(1, 0), FIRST_STALL_S - 1) == []
    assert pace.stalled(signs(1, 0), FIRST_STALL_S + 1) == [1]


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_a_limit_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STALL_VARIABLE, text)
    with pytest.raises(InputError, match=f"{STALL_VARIABLE}={text} is not a number of seconds"):
        stall_limit_s()


def test_the_limit_is_two_minutes_unless_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(STALL_VARIABLE, raising=False)
    assert stall_limit_s() == 120
    monkeypatch.setenv(STALL_VARIABLE, "7.5")
    assert stall_limit_s() == 7.5


def test_nobody_hangs_where_nobody_is_known() -> None:
    """The store can be gone before its first answer."""
    pace = Pace(1.0)
    assert [pace.stalled({}, now) for now in (0.0, 2.0, 4.0)] == [[], [], []]


def test_who_finds_the_connection_gone_says_what_the_other_had_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that hangs may judge itself and end before a slower one has judged it."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=60))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv(STALL_VARIABLE, "7")
    monkeypatch.setattr("latentgen.training.watch.BEAT_S", 1000.0)
    second: list[Watch] = []
    joining = threading.Thread(target=lambda: second.append(Watch(1, 2)))  # each waits for the other
    joining.start()
    first = Watch(0, 2)
    joining.join()
    second[0].judge_stalled(Stall([1], 9.0))
    failure = first.explain()
    assert failure is not None
    assert str(failure).startswith("process 1 of 2 hangs: no step for 9 s")
    first.close()
    second[0].close()

"""Fewer threads while other processes want the same cores.

Threads that compute one operation wait for each other at its end, and spin: the last one is microseconds away, unless
another process has its core, whose threads spin too. Two processes that each take all cores so stop each other almost
wholly. Measured on two cores, eight pictures of the embedded model: one command alone takes 5 seconds; of two at once
each had three pictures after 30. With no more threads than there are cores free, both are done after 6.5.

The kernel tells how long each core was busy (`/proc/stat`); what this process did not use was others'. Elsewhere than
on Linux nothing is done, nor where a user has said how many threads there are to be (`--threads`, OMP_NUM_THREADS).
Only for computations whose results do not depend on the number of threads.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

WINDOW_S = 0.15
"""How long is looked at before something is said of it: some of the scheduler's turns, and of its clock's ticks."""
WINDOWS = 2
"""So many in a row that speak for more threads, or for fewer; one alone may be something short."""
EXACT_THREADS = 8
"""Up to which float32 is exact; the fast form with compiled kernels is for any number."""
STALE_S = 2.0
"""After which a look is too long ago to say how it is now."""
PATIENCE_S, MOST_PATIENCE_S = 0.5, 30.0
"""Before more threads are given again: at first, and at most, for it doubles each time that it was in vain."""

_STAT = "/proc/stat"


def usable_cores() -> set[int] | None:
    """Those that this process may run on; None where nobody tells."""
    try:
        return os.sched_getaffinity(0)
    except (AttributeError, OSError):
        return None


def seconds_busy() -> float | None:
    """How long the cores that this process may use were busy, in all, since the machine started; None if nobody tells.

    With what is niced only where this process is too: others give way to it.
    """
    usable = {f"cpu{number}" for number in usable_cores() or ()}
    ticks = 0
    try:
        with open(_STAT, encoding="ascii") as file:
            for line in file:
                name, *counts = line.split()
                if name in usable:
                    user, nice, system, _idle, _iowait, irq, softirq = map(int, counts[:7])
                    ticks += user + system + irq + softirq + (nice if os.nice(0) > 0 else 0)
        return ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None


@dataclass(frozen=True, slots=True)
class Look:
    """At the machine, at one moment."""

    at: float
    """As of `time.monotonic`."""
    others: float | None
    """Seconds of its cores that others have used; None where nobody tells."""

    @classmethod
    def now(cls) -> Look:
        busy = seconds_busy()
        return cls(time.monotonic(), None if busy is None else busy - time.process_time())

    def used_since(self, before: Look) -> float | None:
        """Cores that others used on average; None where nobody tells, or where it is too short ago."""
        if before.others is None or self.others is None or self.at - before.at < WINDOW_S:
            return None
        return (self.others - before.others) / (self.at - before.at)


class Crowding:
    """How many threads one thread's operations are given, of those that it had."""

    def __init__(
        self, threads: int, cores: int, since: Look | None = None, *, now: Callable[[], Look] | None = None
    ) -> None:
        """cores: how many this process may use; since: a look from before, so that there is something to begin with."""
        self.all = self.threads = threads
        self.cores = cores
        self._counts = [threads >> halvings for halvings in range(threads.bit_length())]
        self._now = Look.now if now is None else now
        self._last = self._now()
        self._is_first, self._speaking = True, 0
        self._patience = PATIENCE_S
        self._changed = self._tried = float("-inf")
        if since is not None and (others := self._last.used_since(since)) is not None:
            self.threads, self._is_first = self._fastest(others), False

    def begin(self) -> None:
        """A computation begins: what was seen a while ago is forgotten, and the first window is believed."""
        now = self._now()
        if now.at - self._last.at > STALE_S:
            self._last = now
            self._is_first, self._speaking = True, 0
            self._patience = PATIENCE_S

    def look(self, at: float) -> int:
        """How many threads to go on with. Cheap: most calls see that it is too early, and look at nothing.

        at: the time now, as of `time.monotonic`.
        """
        if at - self._last.at < WINDOW_S or self.all == 1:
            return self.threads
        before, self._last = self._last, self._now()
        others = self._last.used_since(before)
        if others is None:
            return self.threads
        fastest = self._fastest(others)
        direction = (fastest > self.threads) - (fastest < self.threads)
        self._speaking = self._speaking + direction if self._speaking * direction > 0 else direction
        if abs(self._speaking) >= WINDOWS or (direction and self._is_first):
            self._change_to(fastest, self._last.at)
        self._is_first = False
        return self.threads

    def _fastest(self, others: float) -> int:
        """The number of threads that compute fastest while others use so many cores on average.

        While one of them has no core all of them wait: of t threads so much as there is too little room for.
        """

        def speed(threads: int) -> float:
            return threads * max(0.0, 1 - max(0.0, threads + others - self.cores))

        return max(self._counts, key=lambda threads: (speed(threads), -threads))

    def _change_to(self, threads: int, at: float) -> None:
        if threads > self.threads:
            if at - self._changed < self._patience:
                return
            self._tried = at
        else:
            in_vain = at - self._tried < 2 * self._patience
            self._patience = min(2 * self._patience, MOST_PATIENCE_S) if in_vain else PATIENCE_S
        self.threads, self._changed, self._speaking = threads, at, 0


class _OfThread(threading.local):
    """torch's number of threads is one of the thread that asks, and so is all this."""

    since: Look | None = None
    crowding: Crowding | None = None
    is_on: bool = False


_here = _OfThread()
_open: list[Crowding] = []
"""Of all threads."""


def expect_others() -> None:
    """Look at the machine, so that this thread's first `room_for_others` begins with what it knows since."""
    if _here.crowding is None and _here.since is None:
        _here.since = Look.now()


@contextmanager
def room_for_others() -> Generator[None]:
    """Inside, `make_room` gives this thread's operations fewer threads while the cores are wanted by others.

    The number of threads outside is the most there are, and is put back at the end. One within another changes nothing.
    """
    import torch

    if _here.is_on or "OMP_NUM_THREADS" in os.environ:
        yield
        return
    threads = torch.get_num_threads()
    if _here.crowding is None:
        # torch gives a thread that is begun now as many as there are inside of a room elsewhere.
        threads = next((each.all for each in _open if each.threads == threads), threads)
    if _here.crowding is None or _here.crowding.all != threads:
        _here.crowding = Crowding(threads, len(usable_cores() or range(threads)), _here.since)
        _here.since = None
    _here.is_on = True
    _open.append(_here.crowding)
    try:
        _here.crowding.begin()
        make_room()
        yield
    finally:
        _here.is_on = False
        _open.remove(_here.crowding)
        _set_threads(threads)


def make_room() -> None:
    """To be called often while something is computed; outside of `room_for_others` it does nothing."""
    if _here.is_on and _here.crowding is not None:
        _set_threads(_here.crowding.look(time.monotonic()))


def _set_threads(threads: int) -> None:
    import torch

    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)

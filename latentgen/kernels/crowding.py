"""Fewer threads while other processes want the same cores.

Threads that compute one operation wait for each other at its end, and spin: the last one is microseconds away, unless
another process has its core, whose threads spin too. Two processes that each take all cores so stop each other almost
wholly. Measured on two cores, eight pictures of the embedded model: one command alone takes 6 seconds; of two at once
each had three pictures after 30. With no more threads than there are cores free, both are done after 8.

The kernel tells how long each core was busy (`/proc/stat`); what this process did not use was others'. Elsewhere than
on Linux nothing is done. Pictures do not depend on the number of threads, so only the speed changes.
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
"""So many that say the same in a row; one alone may be something short."""
SLACK = 0.8
"""Of the loss: with t threads one that shares its core may be away 1 / t of the time before one less is faster."""
STALE_S = 2.0
"""After which a look is too long ago to say how it is now."""
PATIENCE_S, MOST_PATIENCE_S = 0.5, 30.0
"""Before more threads are given again: at first, and at most, for it doubles each time that it was in vain."""

_STAT = "/proc/stat"


def seconds_busy() -> float | None:
    """How long the cores that this process may use were busy, in all, since the machine started.

    With what is niced only where this process is too: others give way to it.
    """
    usable = {f"cpu{number}" for number in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else set()
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
    others: float | None
    """Seconds of its cores that others have used; None where nobody tells."""

    @classmethod
    def now(
        cls,
        busy: Callable[[], float | None] = seconds_busy,
        own: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> Look:
        """busy: seconds of the cores that this process may use, of which it has used `own`."""
        at, seconds = clock(), busy()
        return cls(at, None if seconds is None else seconds - own())


class Crowding:
    """How many threads one thread's operations are given, of those that it had."""

    def __init__(
        self, threads: int, cores: int, since: Look | None = None, *, now: Callable[[], Look] = Look.now
    ) -> None:
        """cores: how many this process may use; since: when it was looked at first."""
        self.all = self.threads = threads
        self.cores = cores
        self._now = now
        self._patience = PATIENCE_S
        self._changed = self._tried = float("-inf")
        self.begin(since)

    def begin(self, since: Look | None = None) -> None:
        """Look from now on, or from then, and believe the first window: there was none before."""
        self._is_first, self._windows = True, 0
        self._last = self._now() if since is None else since

    def look(self, at: float) -> int:
        """How many threads to go on with. Cheap: most calls see that it is too early, and look at nothing.

        at: the time now, as of `time.monotonic`.
        """
        if at - self._last.at < WINDOW_S or self.all == 1:
            return self.threads
        if not self._is_first and at - self._last.at > STALE_S:
            self.begin()
            return self.threads
        before, self._last = self._last, self._now()
        if before.others is None or self._last.others is None:
            return self.threads
        fitting = self._fitting((self._last.others - before.others) / (self._last.at - before.at))
        self._windows = 0 if fitting == self.threads else self._windows + 1
        if self._windows >= WINDOWS or (self._windows and self._is_first):
            self._change_to(fitting, self._last.at)
        self._is_first = False
        return self.threads

    def _fitting(self, others: float) -> int:
        """The most threads that are not slower than one less, while others use so many cores on average."""
        return next((t for t in range(self.all, 1, -1) if others <= self.cores - t + SLACK / t), 1)

    def _change_to(self, threads: int, now: float) -> None:
        if threads > self.threads:
            if now - self._changed < self._patience:
                return
            self._tried = now
        elif threads < self.threads:
            in_vain = now - self._tried < 2 * self._patience
            self._patience = min(2 * self._patience, MOST_PATIENCE_S) if in_vain else PATIENCE_S
        self.threads, self._changed, self._windows = threads, now, 0


class _OfThread(threading.local):
    """torch's number of threads is one of the thread that asks, and so is all this."""

    since: Look | None = None
    crowding: Crowding | None = None
    is_on: bool = False


_here = _OfThread()


def expect_others() -> None:
    """Look at the machine, so that `room_for_others` knows at its begin what came since. Not twice in a thread."""
    if _here.since is None:
        _here.since = Look.now()


@contextmanager
def room_for_others() -> Generator[None]:
    """Inside, `make_room` gives this thread's operations fewer threads while the cores are wanted by others.

    The number of threads outside is the most there are, and is put back at the end. One within another changes nothing.
    """
    import torch

    if _here.is_on:
        yield
        return
    threads = torch.get_num_threads()
    if _here.crowding is None or _here.crowding.all != threads:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else threads
        _here.crowding = Crowding(threads, max(cores, threads), _here.since)
    _here.is_on = True
    make_room()
    try:
        yield
    finally:
        _here.is_on = False
        _set_threads(threads)


def make_room() -> None:
    """To be called often while something is computed; outside of `room_for_others` it does nothing."""
    if _here.is_on and _here.crowding is not None:
        _set_threads(_here.crowding.look(time.monotonic()))


def _set_threads(threads: int) -> None:
    import torch

    if threads != torch.get_num_threads():
        torch.set_num_threads(threads)

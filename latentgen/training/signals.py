"""SIGINT and SIGTERM while training: the first ends the run with a checkpoint, the second ends the process at once.

Python runs a signal's handler between two bytecodes of the main thread, so a main thread that waits inside C++ (a
backward pass, a collective whose partner is dead) would keep a signal to itself. A second thread reads the signals too,
from `signal.set_wakeup_fd`, and ends a process that does not come back.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from types import FrameType

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)
STUCK_S = 2.0
"""How long a process that was told to end at once may take for it before it is ended."""
LOADING_S = 8.0
"""The same before the training begins, where a cache may have to be taken away again (`train_guard`)."""


class StopNow(BaseException):
    """The first signal came while nothing was computed that a checkpoint holds: sample pictures, validation."""


class Stop:
    """What has been asked for. Within `noted()` the first signal asks for an end after the step."""

    signal_number: int | None = None
    _breaks = False

    def note(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        if self.signal_number is not None:
            raise KeyboardInterrupt
        self.signal_number = number
        print("stopping after this step, then saving (again to stop at once)", file=sys.stderr, flush=True)
        if self._breaks:
            raise StopNow

    @contextmanager
    def breaking(self) -> Generator[None]:
        """A block that the first signal breaks off with StopNow; at once, if it has already come."""
        self._breaks = True
        try:
            if self.signal_number is not None:
                raise StopNow
            yield
        finally:
            self._breaks = False


@contextmanager
def noted() -> Generator[Stop]:
    """Within the block signals are noted; only the main thread of a program may ask for that."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, stop.note) for number in STOP_SIGNALS}
    try:
        with ended_if_stuck(signals_before=1):
            yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def ended_if_stuck(*, signals_before: int, stuck_s: float = STUCK_S) -> Generator[None]:
    """Within the block the process ends `stuck_s` after a stop signal that follows `signals_before` others.

    The exit code is 128 and the signal's number, as of one that ended by itself. Only the main thread of a program may
    ask for that; elsewhere nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(
        target=_end_if_stuck, args=(ours, signals_before, stuck_s), name="stop-signals", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        theirs.close()
        thread.join()


def _end_if_stuck(signals: socket.socket, allowed: int, stuck_s: float) -> None:
    """Read signal numbers until the other side closes; end the process if it does not close in time after the last."""
    number = 0
    with signals:
        while True:
            try:
                received = signals.recv(1)
            except TimeoutError:
                os._exit(128 + number)
            if not received:
                return
            if received[0] in STOP_SIGNALS:
                number = received[0]
                allowed -= 1
                if allowed < 0:
                    signals.settimeout(stuck_s)

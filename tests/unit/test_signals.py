from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from latentgen.training.signals import StopNow, noted


def exit_code(work: Callable[[], None]) -> tuple[int, float]:
    """Of a forked process that does this, with the seconds it took."""
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
            code = 0
        except KeyboardInterrupt:
            code = 99
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), time.monotonic() - started


def wait_in_c() -> None:
    """Wait where no bytecode is run, as in a collective whose partner is dead: for a lock that one holds oneself."""
    import ctypes

    mutex = ctypes.create_string_buffer(128)  # all zero: PTHREAD_MUTEX_INITIALIZER
    libc = ctypes.CDLL(None)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def test_the_second_signal_ends_a_process_that_waits_in_c() -> None:
    def work() -> None:
        with noted():
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
            wait_in_c()

    def work_once() -> None:
        with noted() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal_number == signal.SIGTERM

    code, _ = exit_code(work)
    assert code in (99, 128 + signal.SIGTERM)
    assert exit_code(work_once)[0] == 0


def test_a_process_stuck_in_c_is_ended() -> None:
    def work() -> None:
        parent = os.getpid()
        with noted():
            if os.fork() == 0:
                for _ in range(2):
                    time.sleep(0.3)
                    os.kill(parent, signal.SIGINT)
                os._exit(0)
            wait_in_c()

    code, seconds = exit_code(work)
    assert code == 128 + signal.SIGINT
    assert seconds < 10


def test_the_first_signal_breaks_off_what_no_checkpoint_holds() -> None:
    with noted() as stop:
        with pytest.raises(StopNow), stop.breaking():
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(StopNow), stop.breaking():
            raise AssertionError("it has been signalled before")
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal_number == signal.SIGINT


def test_handlers_are_given_back() -> None:
    before = signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)
    with noted():
        assert signal.getsignal(signal.SIGINT) != before[0]
    assert (signal.getsignal(signal.SIGINT), signal.set_wakeup_fd(-1)) == before

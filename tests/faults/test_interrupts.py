"""SIGINT and SIGTERM through the command line, and a second run in the folder. RELIABILITY (d), rows 4, 5 and 21."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from latentgen.errors import InputError
from latentgen.training.run_lock import check_free
from tests.faults.interrupts import LONG, TINY, interrupt, start
from tests.training.tiny_runs import log_events, write_pictures


@pytest.mark.parametrize(("number", "code", "limit_s"), [(signal.SIGINT, 130, 10), (signal.SIGTERM, 143, 20)])
def test_the_first_signal_saves(number: signal.Signals, code: int, limit_s: float, tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 4)
    outcome = interrupt(tmp_path, number)
    assert outcome.code == code, outcome.stderr
    assert outcome.seconds < limit_s
    assert outcome.step is not None
    assert outcome.step >= 3
    assert f"saved step {outcome.step}; the same command with --resume latest goes on from it" in outcome.stderr
    assert max(event["step"] for event in log_events(tmp_path / "run")) == outcome.step, "the step in progress is saved"


def test_the_second_signal_ends_at_once(tmp_path: Path) -> None:
    """In the midst of a step that takes far longer; nothing is saved, and nothing is left half-written."""
    write_pictures(tmp_path / "data", 4)
    outcome = interrupt(tmp_path, signal.SIGINT, sizes=LONG, after_log='"step": 1', again_after_s=0.2)
    assert outcome.code == 130, outcome.stderr
    assert outcome.seconds < 10
    assert outcome.step is None
    assert not list((tmp_path / "run").glob(".tmp-*"))


@pytest.mark.parametrize("after_s", [0.4, 1.5])
def test_a_signal_while_everything_is_loaded(after_s: float, tmp_path: Path) -> None:
    """Imports take seconds, and some swallow what is raised in them."""
    write_pictures(tmp_path / "data", 4)
    outcome = interrupt(tmp_path, signal.SIGINT, after_log=None, after_s=after_s)
    assert outcome.code == 130, outcome.stderr
    assert outcome.seconds < 10
    assert "Traceback" not in outcome.stderr


def test_a_second_run_is_refused_and_a_killed_one_lets_go(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", 4)
    first = start(tmp_path, TINY)
    try:
        log = tmp_path / "run" / "log.jsonl"
        while not (log.exists() and '"step": 1' in log.read_text()):
            assert first.poll() is None, first.communicate()[1]
            time.sleep(0.05)
        second = start(tmp_path, TINY, "--resume", "auto")
        _, stderr = second.communicate(timeout=60)
        assert second.returncode == 2
        assert stderr.startswith(f"error: another process (pid {first.pid}) is training in run"), stderr
        with pytest.raises(InputError, match=f"pid {first.pid}"):
            check_free(tmp_path / "run")
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    check_free(tmp_path / "run")
    third = start(tmp_path, TINY, "--resume", "auto")
    while log.read_text().count('"start": true') < 2:
        assert third.poll() is None, third.communicate()[1]
        time.sleep(0.05)
    third.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        third.communicate(timeout=0.0)
    third.communicate(timeout=60)
    assert third.returncode == 143

"""Two processes, of which one dies, fails or hangs: both end, in seconds, and the line says which it was.

RELIABILITY (d), rows 8 to 14.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from latentgen.checkpoints.io import is_finite
from latentgen.training.run_dir import RunDir
from tests.training.tiny_runs import log_events

ROOT = Path(__file__).parents[2]
CASES = ("killed", "first_killed", "raised", "left", "hung", "patient", "nan", "nan_everywhere", "killed_launcher")
FAULTY_STEP = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.ranks", str(folder), *CASES],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}


def latest_step(run: Path) -> int:
    checkpoint = RunDir(run).latest()
    assert checkpoint is not None
    for tensors in (checkpoint.model, checkpoint.ema, checkpoint.optimizer):
        assert all(is_finite(value) for value in tensors.values())
    return checkpoint.step


@pytest.mark.parametrize(
    ("case", "codes", "says"),
    [
        ("killed", [1, -9], [["error: process 1 of 2 has ended"], []]),
        ("first_killed", [-9, 1], [[], ["error: process 0 of 2 has ended"]]),
        ("left", [1, 0], [["error: process 1 of 2 has ended"], []]),
        (
            "raised",
            [1, 1],
            [["error: process 1 of 2 failed: ZeroDivisionError"], ["error: this is a bug in latentgen"]],
        ),
        ("hung", [1, 1], [["error: process 1 of 2 hangs: no step for "], []]),
        ("nan", [1, 1], [["error: the loss became nan at step 4"], []]),
        ("nan_everywhere", [1, 1], [["error: the loss became nan at step 4"], []]),
    ],
)
def test_one_of_two_fails(
    case: str, codes: list[int], says: list[list[str]], results: dict[str, Any], folder: Path
) -> None:
    """Both processes end by themselves, one of them says why, and the last checkpoint is whole.

    How many seconds that takes `benchmarks/faults.py` measures.
    """
    row = results[case]
    assert row["codes"] == codes, row
    assert row["tracebacks"] == 0
    for lines, beginnings in zip(row["errors"], says, strict=True):
        assert len(lines) == len(beginnings), row
        assert all(line.startswith(beginning) for line, beginning in zip(lines, beginnings, strict=True)), row
    assert latest_step(folder / case / "run") == FAULTY_STEP - 1
    if case.startswith("nan"):
        failed = [event for event in log_events(folder / case / "run") if event.get("failed")]
        assert [event["step"] for event in failed] == [FAULTY_STEP]


def test_what_one_process_does_alone_is_no_hang(results: dict[str, Any], folder: Path) -> None:
    """Four seconds of validation under a limit of three."""
    assert results["patient"]["codes"] == [0, 0], results["patient"]
    assert latest_step(folder / "patient" / "run") == 8


def test_the_processes_end_with_their_launcher(results: dict[str, Any]) -> None:
    assert results["killed_launcher"]["orphans"] == 0

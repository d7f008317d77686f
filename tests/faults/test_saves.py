"""A save that is killed or refused at any point leaves the checkpoint before it, or its own."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Generator
from pathlib import Path

import pytest

from latentgen.checkpoints.io import read_tensors
from latentgen.errors import RuntimeFailure
from tests.faults.saves import (
    IO_ERROR,
    NO_SPACE,
    checkpoint,
    die,
    fresh,
    kill_at_random,
    stop_at_each_operation,
    stop_at_each_size,
    usable_step,
)
from tests.training.tiny_runs import TinyData, build, log_events, state_hashes, train, train_until_killed

FILE_BYTES = 80_200
"""About what the largest file of a checkpoint holds."""


@pytest.fixture
def folder() -> Generator[Path]:
    """In memory: there fsync is quick, and a kill falls into the work between rather than into the waiting."""
    path = Path(f"/dev/shm/latentgen-saves-{os.getpid()}")
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.mark.parametrize("keep", [1, 3])
def test_killed_at_random(folder: Path, keep: int) -> None:
    """What was saved is found again, or what came after it."""
    outcomes = list(kill_at_random(folder, 25, keep=keep))
    assert all(found >= saved for saved, found in outcomes), outcomes
    assert outcomes[-1][0] > 25


def test_killed_at_each_operation(folder: Path) -> None:
    steps: list[int | None] = []
    for code, run in stop_at_each_operation(folder, die):
        assert code == -signal.SIGKILL
        steps.append(usable_step(run))
        run.save(checkpoint(3), keep=1)
        assert {path.name for path in folder.iterdir()} == {"step_00000003"}, "nothing is left over"
    assert steps == sorted(steps, key=str)
    assert set(steps) == {1, 2}
    assert len(steps) > 20


def test_killed_within_each_write(folder: Path) -> None:
    codes: set[int] = set()
    for code, run in stop_at_each_size(folder, range(0, FILE_BYTES, 2048), kill=True):
        codes.add(code)
        assert usable_step(run) == 1
        run.save(checkpoint(3), keep=1)
        assert {path.name for path in folder.iterdir()} == {"step_00000003"}, "nothing is left over"
    assert codes == {-signal.SIGXFSZ}


def test_killed_often_and_resumed_is_never_killed(tiny_data: TinyData, tmp_path: Path) -> None:
    """Killed ten times, within an accumulation each, it ends with the same weights, averages and optimizer state."""
    train(build(tiny_data, "vae"), tmp_path / "whole", max_steps=12)
    for _ in range(10):
        train_until_killed(build(tiny_data, "vae"), tmp_path / "killed", 3, max_steps=12, resume="auto")
    assert train(build(tiny_data, "vae"), tmp_path / "killed", max_steps=12, resume="latest").step == 12
    assert state_hashes(tmp_path / "killed", 12) == state_hashes(tmp_path / "whole", 12)
    starts = [event["step"] for event in log_events(tmp_path / "killed") if event.get("start")]
    assert starts == list(range(11))


@pytest.mark.parametrize("error", [NO_SPACE, IO_ERROR], ids=["ENOSPC", "EIO"])
def test_refused_at_each_operation(folder: Path, error: object) -> None:
    """The error is ours, the checkpoint before is sound or the new one is, and nothing is left over."""
    refused = 0
    for code, run in stop_at_each_operation(folder, error):  # pyright: ignore[reportArgumentType]
        found = usable_step(run)
        assert (code, found) in {(7, 1), (7, 2), (0, 2)}
        refused += code == 7
        run.save(checkpoint(3), keep=1)
        assert {path.name for path in folder.iterdir()} == {"step_00000003"}
    assert refused > 10


def test_refused_within_each_write(folder: Path) -> None:
    for code, run in stop_at_each_size(folder, range(0, FILE_BYTES, 4096), kill=False):
        assert (code, usable_step(run)) == (7, 1)
        assert [path.name for path in folder.iterdir()] == ["step_00000001"], "nothing is left over at once"


def test_an_fsync_that_fails_publishes_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fresh(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: IO_ERROR())
        with pytest.raises(RuntimeFailure, match="Input/output error"):
            run.save(checkpoint(2), keep=1)
    assert [path.name for path in folder.iterdir()] == ["step_00000001"]


def test_what_does_not_read_back_replaces_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that takes the bytes and gives back others: the older checkpoint is kept, and the run told."""
    run = fresh(folder)
    rename = Path.rename

    def rename_and_spoil(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if Path(target).name == "step_00000002":
            file = Path(target) / "model.safetensors"
            file.write_bytes(file.read_bytes()[:-1] + b"\x07")
        return moved

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", rename_and_spoil)
        with pytest.raises(RuntimeFailure, match="step_00000002 does not read back as it was written"):
            run.save(checkpoint(2), keep=1)
    assert usable_step(run) == 1
    assert read_tensors(folder / "step_00000001" / "model.safetensors")["a"][0] == 1

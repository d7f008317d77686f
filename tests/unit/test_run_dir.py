"""Checkpoints are whole or absent: killed at every moment, damaged, on a full disk, under two processes."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Generator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.training.run_dir import Checkpoint, RunDir
from tests.limits import file_size_limit

CONFIG: dict[str, Any] = {"lr": 0.1, "seed": 0, "max_steps": 10, "lr_scheduler": "constant", "widths": (1, 2)}


def checkpoint(step: int, size: int = 64) -> Checkpoint:
    """Every number in it is its step."""
    tensors = {"a": torch.full((size,), float(step)), "b": torch.full((3, 3), step)}
    return Checkpoint(step, 8 * step, tensors, dict(tensors), dict(tensors))


def assert_whole(run: RunDir) -> int:
    """The newest checkpoint is there and all of one step; that step."""
    latest = run.latest()
    assert latest is not None
    assert latest.images_seen == 8 * latest.step
    for tensors in (latest.model, latest.ema, latest.optimizer):
        assert all(bool((value == latest.step).all()) for value in tensors.values())
    return latest.step


@pytest.fixture
def run() -> Generator[RunDir]:
    """In memory: there fsync is quick, and a kill falls into the work between rather than into the waiting."""
    path = Path(f"/dev/shm/latentgen-test-{os.getpid()}")
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    try:
        yield RunDir(path)
    finally:
        shutil.rmtree(path)


def in_child(work: Callable[[], None]) -> int:
    """Fork a process for `work`; its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    return child


def save_forever(run: RunDir, first: int, keep: int) -> None:
    step = first
    while True:
        run.save(checkpoint(step, size=20_000), keep=keep)
        step += 1


@pytest.mark.parametrize("keep", [1, 2])
def test_killed_while_saving(run: RunDir, keep: int) -> None:
    """Ten kills of a process that does nothing but save: never an unusable folder, never a step back."""
    run.save(checkpoint(1), keep=keep)
    newest = 1
    for kill in range(10):
        child = in_child(partial(save_forever, run, newest + 1, keep))
        time.sleep(random.Random(kill).uniform(0.005, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        found = assert_whole(run)
        assert found >= newest
        newest = found
    run.save(checkpoint(newest + 1), keep=keep)
    assert len(run.checkpoint_folders()) == min(keep, newest + 1)
    assert not list(run.path.glob(".tmp-*")), "what the killed ones left is cleaned up"


def test_killed_at_every_operation_on_files(run: RunDir) -> None:
    """The process ends just before the n-th fsync, rename, removal or folder made of one save, for every n."""
    steps: list[int] = []
    for n in range(1, 100):
        shutil.rmtree(run.path)
        run.path.mkdir()
        run.save(checkpoint(1), keep=1)
        child = in_child(partial(save_and_die, run, n))
        _, status = os.waitpid(child, 0)
        if os.waitstatus_to_exitcode(status) == 0:  # it had fewer operations than n
            break
        assert os.waitstatus_to_exitcode(status) == 9
        steps.append(assert_whole(run))
    assert steps == sorted(steps)
    assert set(steps) == {1, 2}
    assert len(steps) > 12


def save_and_die(run: RunDir, n: int) -> None:
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                os._exit(9)
            return operation(*arguments, **options)

        return wrapper

    for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir")):
        setattr(module, name, counted(getattr(module, name)))
    run.save(checkpoint(2), keep=1)
    os._exit(0)


def damage(folder: Path, file: str = "model.safetensors") -> None:
    data = bytearray((folder / file).read_bytes())
    data[-1] ^= 1
    (folder / file).write_bytes(data)


def test_what_a_killed_process_left_half_done_is_removed(run: RunDir) -> None:
    nobody = 2**22 + 1  # beyond the largest number of a process
    leftovers = [run.path / ".log.1.tmp", run.path / "cache" / f".latents-1.npy.{nobody}.tmp"]
    for each in leftovers:
        each.parent.mkdir(parents=True, exist_ok=True)
        each.write_bytes(b"half")
    kept = [run.path / "cache" / "latents-1.npy", run.path / "cache" / f".latents-2.npy.{os.getpid()}.tmp"]
    for each in kept:
        each.write_bytes(b"whole, or being written by a run that shares this cache")
    run.start({"a": 1}, resume=None)
    assert [each.exists() for each in (*leftovers, *kept)] == [False, False, True, True]


@pytest.mark.parametrize("file", ["model.safetensors", "ema.safetensors", "optimizer.safetensors"])
def test_a_flipped_bit_falls_back_with_a_warning(run: RunDir, file: str, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        run.save(checkpoint(step), keep=2)
    damage(run.path / "step_00000002", file)
    assert assert_whole(run) == 1
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "step_00000002" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"step": 2, "images_seen": 16, "files": {}}', "\x00"])
def test_a_manifest_that_says_nothing_is_damage(run: RunDir, text: str) -> None:
    for step in (1, 2):
        run.save(checkpoint(step), keep=2)
    (run.path / "step_00000002" / "manifest.json").write_text(text)
    assert assert_whole(run) == 1


def test_all_damaged_is_an_error_and_not_a_fresh_start(run: RunDir) -> None:
    run.start(CONFIG, resume=None)
    for step in (1, 2):
        run.save(checkpoint(step), keep=2)
        damage(run.path / f"step_{step:08d}")
    for resume in ("latest", "auto"):
        with pytest.raises(RuntimeFailure, match=r"every checkpoint in .* is damaged"):
            run.start(CONFIG, resume=resume)


def test_after_a_step_back_the_sound_checkpoints_are_kept(run: RunDir) -> None:
    """The damaged checkpoint of step 4 is newer than what follows from step 2; it must not push that out."""
    for step in (2, 4):
        run.save(checkpoint(step), keep=2)
    damage(run.path / "step_00000004")
    assert assert_whole(run) == 2
    run.save(checkpoint(3), keep=1)
    assert assert_whole(run) == 3
    assert [folder.name for folder in run.checkpoint_folders()] == ["step_00000003"]


def test_a_damaged_checkpoint_is_written_again_and_a_sound_one_is_not(run: RunDir) -> None:
    place = run.save(checkpoint(1), keep=1)
    before = place.stat().st_ino
    assert run.save(checkpoint(1), keep=1) == place
    assert place.stat().st_ino == before
    damage(place)
    run.save(checkpoint(1), keep=1)
    assert assert_whole(run) == 1


def test_retention_counts_by_step_and_not_by_time(run: RunDir) -> None:
    for step in (9, 10, 100):
        run.save(checkpoint(step), keep=2)
        os.utime(run.path / f"step_{step:08d}", (1e9 - step, 1e9 - step))
    assert [folder.name for folder in run.checkpoint_folders()] == ["step_00000010", "step_00000100"]
    assert assert_whole(run) == 100
    run.save(checkpoint(100_000_000), keep=2)  # nine digits
    assert assert_whole(run) == 100_000_000


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.save(checkpoint(1), keep=1)
    with (
        file_size_limit(10_000),
        pytest.raises(RuntimeFailure, match=r"cannot write .*model.safetensors: File too large"),
    ):
        run.save(checkpoint(2, size=20_000), keep=1)
    assert assert_whole(run) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000001"], "nothing is left over"


@pytest.mark.parametrize("operation", ["fsync", "rename"])
def test_a_disk_that_fails_is_one_line(run: RunDir, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save(checkpoint(1), keep=1)

    def fails(*_: Any, **__: Any) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patched:
        patched.setattr(os, operation, fails)
        with pytest.raises(RuntimeFailure, match="Input/output error"):
            run.save(checkpoint(2), keep=1)
    assert assert_whole(run) == 1


def test_the_lock_refuses_a_second_run_and_dies_with_its_holder(run: RunDir) -> None:
    ready, report = os.pipe()

    def hold() -> None:
        with run.locked():
            os.write(report, b"x")
            time.sleep(60)

    child = in_child(hold)
    os.read(ready, 1)
    with pytest.raises(InputError, match=rf"another process \(pid {child}\) is training in"), run.locked():
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with run.locked():
        assert (run.path / ".lock").read_text() == f"pid {os.getpid()}"


def test_out_that_cannot_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write to"), RunDir(tmp_path / "file").locked():
        pass


# Starting


def test_changed_settings_are_named_key_by_key(run: RunDir) -> None:
    run.start(CONFIG, resume=None)
    run.save(checkpoint(3), keep=1)
    same = run.start({**CONFIG, "max_steps": 20}, resume="latest")  # and a tuple is read back as a list
    assert same is not None
    assert same.step == 3
    with pytest.raises(InputError) as error:
        run.start({**CONFIG, "lr": 0.2, "widths": (1, 3), "new": True}, resume="auto")
    for difference in ("lr: 0.1 then, 0.2 now", "widths: [1, 2] then, [1, 3] now", "new: None then, True now"):
        assert difference in error.value.message
    assert "seed" not in error.value.message


def test_a_cosine_schedule_keeps_its_end(run: RunDir) -> None:
    cosine = {**CONFIG, "lr_scheduler": "cosine"}
    run.start(cosine, resume=None)
    run.save(checkpoint(3), keep=1)
    with pytest.raises(InputError, match="max_steps: 10 then, 20 now"):
        run.start({**cosine, "max_steps": 20}, resume="latest")


@pytest.mark.parametrize("resume", ["latest", "auto"])
def test_a_run_without_a_checkpoint_begins_again(run: RunDir, resume: str) -> None:
    """It was stopped before the first; nothing was computed, so its settings may change."""
    run.start(CONFIG, resume=None)
    with pytest.raises(InputError, match="already holds a run"):
        run.start(CONFIG, resume=None)
    assert run.start({**CONFIG, "lr": 0.2}, resume=resume) is None
    assert json.loads((run.path / "config.json").read_text())["lr"] == 0.2


def test_nothing_to_resume(run: RunDir) -> None:
    with pytest.raises(ModelNotFoundError, match="holds no run to resume"):
        run.start(CONFIG, resume="latest")
    assert run.start(CONFIG, resume="auto") is None


def test_checkpoints_without_their_settings_are_no_fresh_start(run: RunDir) -> None:
    run.start(CONFIG, resume=None)
    run.save(checkpoint(3), keep=1)
    (run.path / "config.json").write_text("{")
    with pytest.raises(RuntimeFailure, match=r"config.json cannot be read"):
        run.start(CONFIG, resume="latest")
    (run.path / "config.json").unlink()
    with pytest.raises(RuntimeFailure, match=r"config.json cannot be read"):
        run.start(CONFIG, resume="auto")
    with pytest.raises(InputError, match="already holds a run"):
        run.start(CONFIG, resume=None)


def test_log_is_strict_json(run: RunDir) -> None:
    run.log({"step": 1, "loss": float("nan"), "grad_norm": float("inf")})
    run.log({"step": 2, "loss": 0.5})

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    lines = [json.loads(line, parse_constant=refuse) for line in (run.path / "log.jsonl").read_text().splitlines()]
    assert lines == [{"step": 1, "loss": "nan", "grad_norm": "inf"}, {"step": 2, "loss": 0.5}]

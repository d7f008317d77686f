"""Processes that die, or are refused, while they save a checkpoint; what they leave, the caller looks at."""

from __future__ import annotations

import errno
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from latentgen.errors import RuntimeFailure
from latentgen.training.run_dir import Checkpoint, RunDir

OPERATIONS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir", "open", "truncate")
"""Of the module os, through which Python's file functions go, but for the writing itself."""


DONE = 8
"""Exit code of a process that had fewer operations than asked for."""


def checkpoint(step: int, size: int = 20_000) -> Checkpoint:
    """Every number in it is its step."""
    tensors = {"a": torch.full((size,), float(step)), "b": torch.full((3, 3), step)}
    return Checkpoint(step, 8 * step, tensors, dict(tensors), dict(tensors))


def usable_step(run: RunDir) -> int | None:
    """The newest checkpoint's step, if all in it is of one step; None where there is none that can be used."""
    try:
        latest = run.latest()
    except RuntimeFailure:
        return None
    if latest is None or latest.images_seen != 8 * latest.step:
        return None
    whole = all(
        bool((value == latest.step).all())
        for tensors in (latest.model, latest.ema, latest.optimizer)
        for value in tensors.values()
    )
    return latest.step if whole else None


def in_child(work: Callable[[], None]) -> int:
    """Fork a process for `work`; its id. Its exit code is 0 when it came to its end, 7 when it was refused."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except RuntimeFailure:
            code = 7
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def fresh(folder: Path) -> RunDir:
    """A run with a checkpoint of step 1."""
    shutil.rmtree(folder, ignore_errors=True)
    run = RunDir(folder)
    run.save(checkpoint(1), keep=1)
    return run


def kill_at_random(folder: Path, kills: int, *, keep: int) -> Iterator[tuple[int, int]]:
    """Kill a process that does nothing but save, again and again: the step that was saved last, and what is found."""
    run, newest = fresh(folder), 1
    for kill in range(kills):
        started, told = os.pipe()

        def save_forever(first: int = newest + 1, told: int = told) -> None:
            for step in range(first, first + 100_000):
                run.save(checkpoint(step), keep=keep)
                os.write(told, step.to_bytes(4, "little"))

        child = in_child(save_forever)
        os.close(told)
        time.sleep(random.Random(kill).uniform(0.005, 0.1))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        with open(started, "rb") as pipe:
            said = pipe.read()
        saved = int.from_bytes(said[-4:], "little") if said else newest
        found = usable_step(run)
        yield saved, found
        assert found is not None, f"kill {kill} left nothing usable in {folder}"
        newest = found


def at_operation(n: int, action: Callable[[], None]) -> Callable[[], bool]:
    """Have the n-th operation of this process on files do something else first; whether it came to it."""
    count = 0

    def counted(operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            if count == n:
                action()
            return operation(*arguments, **options)

        return wrapper

    for name in OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    return lambda: count >= n


def refuse(number: int) -> None:
    raise OSError(number, os.strerror(number))


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stop_at_each_operation(folder: Path, action: Callable[[], None]) -> Iterator[tuple[int, RunDir]]:
    """Exit code and folder of a save whose n-th operation on files kills it, or is refused, for every n."""

    def save(run: RunDir, n: int) -> None:
        came_to_it = at_operation(n, action)
        run.save(checkpoint(2), keep=1)
        if not came_to_it():
            os._exit(DONE)

    for n in range(1, 1000):
        run = fresh(folder)
        code = exit_code(in_child(partial(save, run, n)))
        if code == DONE:
            return
        yield code, run


def stop_at_each_size(folder: Path, sizes: range, *, kill: bool) -> Iterator[tuple[int, RunDir]]:
    """Exit code and folder of a save that the system stops where a file reaches a size: killed there, or told EFBIG."""

    def save(run: RunDir, size: int) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill else signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        run.save(checkpoint(2), keep=1)

    for size in sizes:
        run = fresh(folder)
        yield exit_code(in_child(partial(save, run, size))), run


NO_SPACE = partial(refuse, errno.ENOSPC)
IO_ERROR = partial(refuse, errno.EIO)

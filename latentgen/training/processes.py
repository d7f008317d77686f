"""The processes that train together: how they find each other, and that none outlives the others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.training.signals import ended_if_stuck
from latentgen.training.watch import Watch

LONGEST_WAIT = timedelta(days=1)
"""How long a collective waits for its partners: the first process may decode a large data set alone. What is dead or
hangs is found by `watch`, and much sooner."""
PR_SET_PDEATHSIG = 1

_watch: Watch | None = None


def join_processes() -> PartialState:
    """This process among those that a launcher started, and its device; safe to call again.

    On a machine without a GPU accelerate must be told so, or the processes of `torchrun` would each train alone, all
    in the same run folder, and nobody would say it. From here on the processes watch each other, and end with their
    launcher.
    Raises InputError when there are not as many processes as the launcher was asked for.
    """
    global _watch
    cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if launched > 1:
        end_with_parent()
        with ended_if_stuck(signals_before=0):
            process = PartialState(cpu=cpu, timeout=LONGEST_WAIT)
    else:
        process = PartialState(cpu=cpu)
    # `accelerate launch --cpu --num_processes 2` starts one process, and sets an address for two.
    alone = "WORLD_SIZE" not in os.environ and {"ACCELERATE_MIXED_PRECISION", "MASTER_ADDR"} <= os.environ.keys()
    if process.num_processes != launched or alone:
        found = f"but {process.num_processes} train together"
        raise InputError(
            f"accelerate was asked for several processes, {found}"
            if alone
            else f"the launcher started {launched} processes, {found}",
            hint="launch with torchrun --nproc_per_node N -m latentgen …",
        )
    if launched > 1 and (_watch is None or _watch.closed):
        _watch = Watch(process.process_index, process.num_processes)
    return process


def device_of(process: PartialState) -> torch.device:
    return torch.device(process.device or "cpu")


def current_watch() -> Watch | None:
    """The watch over the other processes; None where there are none."""
    return _watch if _watch is not None and not _watch.closed else None


@contextmanager
def failures_told() -> Generator[None]:
    """A block of work that all processes share: when one of them fails, the others learn which, and why."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  all are raised again
        raise told(error) from error.__cause__


def told(error: Exception) -> BaseException:
    """What to raise for an error of this process, of which the others are told.

    The error itself; but for a collective that broke off, the failure of the process behind it, or a silent end where
    another process of this machine says it.
    """
    watch = current_watch()
    if watch is None:
        return error
    if _is_broken_collective(error):
        return watch.explain() or SystemExit(RuntimeFailure.exit_code)
    watch.fail(error.message if isinstance(error, LatentgenError) else f"{type(error).__name__}: {error}")
    return error


def end_with_parent() -> None:
    """Have this process killed when its parent dies: a launcher that is killed leaves no orphans.

    Linux does it (prctl(2), PR_SET_PDEATHSIG); elsewhere the watch looks after the parent each second.
    """
    parent = os.getppid()
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def _is_broken_collective(error: Exception) -> bool:
    """A collective whose partner has gone: torch has an error class for NCCL's, and gloo raises a RuntimeError."""
    if isinstance(error, torch.distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)

"""The processes that train together."""

from __future__ import annotations

import os

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from latentgen.errors import InputError


def join_processes() -> PartialState:
    """This process among those that a launcher started, and its device; safe to call again.

    On a machine without a GPU accelerate must be told so, or the processes of `torchrun` would each train alone, all
    in the same run folder, and nobody would say it.
    Raises InputError when there are not as many processes as the launcher started.
    """
    cpu = not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")
    process = PartialState(cpu=cpu)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if process.num_processes != launched:
        raise InputError(
            f"the launcher started {launched} processes, but {process.num_processes} train together",
            hint="launch with torchrun --nproc_per_node N -m latentgen …",
        )
    return process


def device_of(process: PartialState) -> torch.device:
    return torch.device(process.device or "cpu")

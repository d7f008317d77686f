"""Weights, gradients, averages and optimizer state spread over the processes: FSDP2, torch's `fully_shard`.

It is asked for in accelerate's way (`accelerate launch` with an FSDP config, or ACCELERATE_USE_FSDP=true before
torchrun) and done by torch itself: accelerate shards on GPUs only, and what cannot run on a CPU cannot be tested
everywhere. A checkpoint holds whole tensors under the same names as any other.
Source: PyTorch FSDP, arXiv:2304.11277; the per-parameter form is torch.distributed.fsdp.fully_shard.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from accelerate.utils import parse_flag_from_env
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from latentgen.config import TrainConfig
from latentgen.errors import InputError
from latentgen.training.discriminator import PatchDiscriminator

SWITCH = "ACCELERATE_USE_FSDP"
SMALLEST_UNIT = 0.01
"""Share of the parameters from which a block is gathered by itself."""


def is_sharding_asked() -> bool:
    """Whether the launch asks for FSDP. Raises InputError for the kinds of it that are not here."""
    if not parse_flag_from_env(SWITCH):
        return False
    if os.environ.get("FSDP_VERSION", "2") != "2":
        raise InputError("weights are sharded by FSDP 2 only", hint="fsdp_version: 2 in the accelerate config")
    if parse_flag_from_env("FSDP_OFFLOAD_PARAMS"):
        raise InputError("sharded weights stay on their device", hint="fsdp_offload_params: false")
    return True


def check_can_shard(network: nn.Module, config: TrainConfig) -> None:
    """Raise InputError for a network or a precision that FSDP has no way for."""
    if config.mixed_precision == "fp16":
        raise InputError("--mixed-precision fp16 is not for sharded weights", hint="bf16 is")
    if any(isinstance(module, PatchDiscriminator) for module in network.modules()):
        # FSDP's hooks would put back the weights that `VAENetwork` holds as constants.
        hint = "launch without FSDP: data-parallel"
        raise InputError("the discriminator of --disc-weight cannot be sharded", hint=hint)
    if scalars := [name for name, parameter in network.named_parameters() if parameter.ndim == 0]:
        raise InputError(
            f"{scalars[0]} is a single number, which FSDP cannot shard", hint="launch without FSDP: data-parallel"
        )


def shard(network: nn.Module, device: torch.device, processes: int) -> None:
    """Spread the network's parameters over all processes, in place; names stay, and the forward gathers them.

    Gathered by themselves are the innermost blocks of lists (a U-Net's residual blocks and transformers) that hold at
    least `SMALLEST_UNIT` of the parameters; the rest is gathered with the network.
    """
    # An in-place operation on a unit's output would lose its gradient hook; that there is none is tested against DDP.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    mesh = init_device_mesh(device.type, (processes,))
    smallest = SMALLEST_UNIT * sum(parameter.numel() for parameter in network.parameters())
    units: list[nn.Module] = []
    for module in reversed(list(network.modules())):  # inner ones before outer ones
        if not isinstance(module, nn.ModuleList | nn.Sequential):
            continue
        for block in module:
            holds_unit = any(inner is unit for unit in units for inner in block.modules())
            if not holds_unit and sum(parameter.numel() for parameter in block.parameters()) >= smallest:
                fully_shard(block, mesh=mesh)
                units.append(block)
    fully_shard(network, mesh=mesh)


@contextmanager
def unsharded(network: nn.Module) -> Generator[None]:
    """Within the block every process holds whole weights, so that parts of the network can be called by themselves."""
    units = [module for module in network.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not network, recurse=False)
            unit.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor with all its parts; every process must ask for it. A tensor that is not sharded is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def parted_like(tensor: Tensor, model: Tensor) -> Tensor:
    """This process's part of a whole tensor, sharded and placed as `model` is."""
    if not isinstance(model, DTensor):
        return tensor.to(model.device)
    placed = tensor.to(model.device)
    return distribute_tensor(placed, model.device_mesh, model.placements, src_data_rank=None)

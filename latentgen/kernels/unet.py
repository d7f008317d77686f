"""A U-Net drawn with on a CPU in bfloat16: its layers exchanged for fast ones, and back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import nn

from latentgen.kernels.layers import (
    FastGroupNorm,
    FastResnetBlock,
    FastTransformerBlock,
    PackedConv2d,
    PackedLinear,
    PackedPointwiseConv2d,
)
from latentgen.kernels.library import why_unavailable
from latentgen.models.attention import TransformerBlock
from latentgen.models.layers import PointwiseConv2d, ResnetBlock
from latentgen.models.unet import UNet

Kernels = Literal["none", "oneDNN", "compiled"]
FAST = (
    PackedLinear,
    PackedConv2d,
    PackedPointwiseConv2d,
    FastGroupNorm,
    FastResnetBlock,
    FastTransformerBlock,
)


class FastForm:
    """The fast form of a U-Net, taken up before it is called and left before its weights are touched."""

    def __init__(self, unet: UNet, *, wanted: bool = True) -> None:
        self.unet = unet
        self.is_possible = wanted and why_not_fast(unet) is None
        self.is_taken_up = False

    @property
    def kernels(self) -> Kernels:
        """What computes: torch alone, with oneDNN's prepacked weights, or with the compiled kernels too."""
        if not self.is_possible:
            return "none"
        return "compiled" if why_unavailable() is None else "oneDNN"

    def take_up(self) -> None:
        if self.is_possible and not self.is_taken_up:
            speed_up(self.unet)
            self.is_taken_up = True

    def leave(self) -> None:
        if self.is_taken_up:
            slow_down(self.unet)
            self.is_taken_up = False


def why_not_fast(unet: UNet) -> str | None:
    """Why `speed_up` is not for this network on this machine; None if it is."""
    parameter = next(unet.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.bfloat16:
        return "it is for bfloat16 on a CPU"
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return "this torch has no oneDNN"
    return None


def speed_up(unet: UNet) -> None:
    """Exchange the layers for fast ones, in place; weights are converted one layer at a time, so memory stays as it is.

    The network can then be called without gradients only, and has no state dict of its own until `slow_down`.
    """
    assert why_not_fast(unet) is None, why_not_fast(unet)
    with torch.no_grad():
        _exchange(unet, _fast)


def slow_down(unet: UNet) -> None:
    """Undo `speed_up`: the layers and, to the bit, the weights that were there before."""
    with torch.no_grad():
        _exchange(unet, _plain)


def _exchange(module: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> None:
    for name, child in module.named_children():
        replacement = other(child)
        if replacement is None:
            _exchange(child, other)
        else:
            module.register_module(name, replacement)


def _fast(layer: nn.Module) -> nn.Module | None:
    """The fast form of a layer; None if it has none of its own."""
    match layer:
        case TransformerBlock():
            return FastTransformerBlock(layer)
        case ResnetBlock():
            return FastResnetBlock(layer)
        case nn.GroupNorm():
            return FastGroupNorm(layer)
        case PointwiseConv2d():
            return PackedPointwiseConv2d(layer)
        case nn.Conv2d():
            return PackedConv2d(layer)
        case nn.Linear():
            return PackedLinear(layer)
        case _:
            return None


def _plain(layer: nn.Module) -> nn.Module | None:
    if not isinstance(layer, FAST):
        return None
    plain = layer.plain()
    return plain[0] if isinstance(plain, list) else plain

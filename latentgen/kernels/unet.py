"""A U-Net drawn with on a CPU in bfloat16: its layers exchanged for fast ones, and back."""

from __future__ import annotations

from typing import Literal

import torch
from torch import nn

from latentgen.errors import InputError
from latentgen.kernels.int8 import Int8Conv2d, Int8GEGLU, Int8Linear, why_not_int8
from latentgen.kernels.layers import (
    FastCrossAttention,
    FastGEGLU,
    FastGroupNorm,
    FastResnetBlock,
    FastTransformerBlock,
    PackedConv2d,
    PackedLinear,
    PackedPointwiseConv2d,
    exchange,
    why_no_onednn,
)
from latentgen.kernels.library import has_amx, why_unavailable
from latentgen.kernels.memory import large_tensors_mapped
from latentgen.kernels.upsampling import FastUpsample, WinogradUpsample, fast_upsample
from latentgen.models.attention import TransformerBlock
from latentgen.models.embeddings import TimeEmbedding
from latentgen.models.layers import PointwiseConv2d, ResnetBlock, Upsample
from latentgen.models.unet import UNet

Kernels = Literal["none", "oneDNN", "compiled", "Winograd", "oneDNN int8", "compiled int8", "Winograd int8"]
FAST = (
    PackedLinear,
    PackedConv2d,
    PackedPointwiseConv2d,
    FastGroupNorm,
    FastResnetBlock,
    FastTransformerBlock,
    FastUpsample,
    WinogradUpsample,
)


class FastForm:
    """The fast form of a U-Net, taken up before it is called and left before its weights are touched."""

    def __init__(self, unet: UNet, *, wanted: bool = True, int8: bool = False) -> None:
        """int8: with 8-bit integers where that is faster; another picture, and half as much memory again.

        Raises InputError where this network or this machine cannot do so.
        """
        reason = (why_not_fast(unet) if wanted else "the fast form is off") or why_not_int8() if int8 else None
        if reason is not None:
            raise InputError(f"--int8 is not possible: {reason}", hint="leave it out")
        self.int8 = int8
        self.unet: UNet | None = unet
        self.is_possible = wanted and why_not_fast(unet) is None
        self.is_taken_up = False

    @property
    def kernels(self) -> Kernels:
        """What computes, with the autoencoder's fast form beside it: torch alone, with oneDNN's prepacked weights, with
        the compiled kernels too, or also with that for convolutions.
        """
        if not self.is_possible:
            return "none"
        if why_unavailable() is not None:
            return "oneDNN int8" if self.int8 else "oneDNN"
        if has_amx():
            return "compiled int8" if self.int8 else "compiled"
        return "Winograd int8" if self.int8 else "Winograd"

    @property
    def ignores_batch(self) -> bool:
        """Whether now, to the bit, a picture does not depend on how many go through the U-Net with it."""
        return self.is_taken_up and why_unavailable() is None

    @property
    def ignores_threads(self) -> bool:
        """Whether, to the bit, what is drawn does not depend on the number of threads, however many there are."""
        return self.is_possible and why_unavailable() is None

    def take_up(self) -> None:
        if self.is_possible and not self.is_taken_up:
            assert self.unet is not None, "the U-Net is not in memory"
            with large_tensors_mapped():
                speed_up(self.unet)
                if self.int8:
                    quantize(self.unet)
            self.is_taken_up = True

    def leave(self) -> None:
        if self.is_taken_up:
            assert self.unet is not None, "the U-Net is not in memory"
            with large_tensors_mapped():
                if self.int8:
                    dequantize(self.unet)
                slow_down(self.unet)
            self.is_taken_up = False

    def exchange(self, unet: UNet | None) -> None:
        """Go on with another U-Net of the same kind, in its plain form; None lets go of the one there was."""
        self.unet, self.is_taken_up = unet, False


def why_not_fast(unet: UNet) -> str | None:
    """Why `speed_up` is not for this network on this machine; None if it is."""
    parameter = next(unet.parameters())
    if parameter.device.type != "cpu" or parameter.dtype != torch.bfloat16:
        return "it is for bfloat16 on a CPU"
    return why_no_onednn()


def speed_up(unet: UNet) -> None:
    """Exchange the layers for fast ones, in place; weights are converted one layer at a time, those of convolutions at
    the first call, so memory stays as it is, but for upsampling layers where they go by oneDNN: they take 2.3 times as
    much, 89 MB more of SD 1.5's U-Net.

    The network can then be called without gradients only, and has no state dict of its own until `slow_down`.
    """
    assert why_not_fast(unet) is None, why_not_fast(unet)
    exchange(unet, _fast)


def slow_down(unet: UNet) -> None:
    """Undo `speed_up`: the layers and, to the bit, the weights that were there before."""
    exchange(unet, _plain)


def quantize(unet: UNet) -> None:
    """Exchange layers of the fast form for 8-bit ones, in place. The exact ones are kept within them.

    Not those that decide most and cost least: the first and the last convolution, and what sees the timestep; nor the
    text's keys and values, which are made once a picture.
    """
    assert why_not_int8() is None, why_not_int8()
    kept = {id(unet.conv_in), id(unet.conv_out)}
    for module in unet.modules():
        if isinstance(module, TimeEmbedding):
            kept |= {id(layer) for layer in module.children()}
        elif isinstance(module, FastResnetBlock):
            kept.add(id(module.time_emb_proj))
        elif isinstance(module, FastCrossAttention):
            kept.add(id(module.to_kv))

    def in_8_bits(layer: nn.Module) -> nn.Module | None:
        if isinstance(layer, FastGEGLU):
            return Int8GEGLU(layer)
        if isinstance(layer, PackedLinear):
            return layer if id(layer) in kept else Int8Linear(layer)
        if isinstance(layer, PackedConv2d):
            return layer if id(layer) in kept else Int8Conv2d(layer)
        return None

    exchange(unet, in_8_bits)


def dequantize(unet: UNet) -> None:
    """Undo `quantize`."""
    exchange(unet, lambda layer: layer.exact if isinstance(layer, Int8Linear | Int8GEGLU | Int8Conv2d) else None)


def _fast(layer: nn.Module) -> nn.Module | None:
    """The fast form of a layer; None if it has none of its own."""
    match layer:
        case TransformerBlock():
            return FastTransformerBlock(layer)
        case ResnetBlock():
            return FastResnetBlock(layer)
        case Upsample():
            return fast_upsample(layer)
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

"""Convolutional building blocks that the U-Net and the autoencoder share."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)

_EVENLY_SPLIT = 32 * math.lcm(*range(1, 9))
"""Values that 1 to 8 threads share in pieces of whole vectors, of 16 floats each and two at a time; fewer than this are
computed by one thread (torch's grain size is 32768)."""


def zero_init(module: _ModuleT) -> _ModuleT:
    """Set a layer's parameters to zero, so that a residual branch ending in it starts as the identity.

    Source: CompVis `ldm/modules/diffusionmodules/openaimodel.py` (`zero_module`), after ADM, arXiv:2105.05233.
    The U-Net of SD starts so; its autoencoder does not.
    """
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def recomputed(layer: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """`layer(*inputs)`, keeping only the inputs for the backward pass, which computes the layer once more.

    Gradient checkpointing (arXiv:1604.06174, section 3): memory of one layer instead of all of them for one more
    forward pass. The gradients are the same bit for bit, because the layers draw no random numbers.
    """
    if not torch.is_grad_enabled():
        return layer(*inputs)
    result = checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
    assert isinstance(result, Tensor), "a layer gives one tensor"
    return result


def is_drawing_on_cpu(x: Tensor) -> bool:
    """Whether nothing is trained and x lies in a CPU's memory: there a picture must not depend on the threads."""
    return x.device.type == "cpu" and not torch.is_grad_enabled()


def silu_(x: Tensor) -> Tensor:
    """x * sigmoid(x); in place where nothing is trained on a CPU. Any shape.

    torch computes a piece of x on each thread, by vectors, and the rest of a piece that is no whole vector with another
    exp. So that every piece is whole vectors on 1 to 8 threads, the last few thousand values are a piece of their own.
    """
    if not is_drawing_on_cpu(x):
        return F.silu(x)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        values = x.permute(0, 2, 3, 1).view(-1)
    elif x.is_contiguous():
        values = x.view(-1)
    else:
        return F.silu(x)
    whole = len(values) - len(values) % _EVENLY_SPLIT
    F.silu(values[:whole], inplace=True)
    F.silu(values[whole:], inplace=True)
    return x


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; on a CPU, where nothing is trained, computed as the matrix product that it is.

    oneDNN's 1x1 convolution sums over the channels in an order that depends on the number of threads; the product does
    not, so a picture is the same to the last bit on any number of them (`benchmarks/exact.py`), and takes as long.
    Training keeps the convolution, with its backward pass.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, input: Tensor) -> Tensor:
        """(B, Cin, h, w) -> (B, Cout, h, w)."""
        if not is_drawing_on_cpu(input):
            return super().forward(input)
        assert self.bias is not None, "these networks' 1x1 convolutions have one"
        weight = self.weight.flatten(1)  # (Cout, Cin)
        if not input.is_contiguous():  # pixel by pixel, as tokens are: the channels of one beside each other
            return F.linear(input.movedim(1, -1), weight, self.bias).movedim(-1, 1)
        columns = input.flatten(2)  # (B, Cin, h * w)
        product = torch.baddbmm(self.bias[:, None], weight.expand(len(input), -1, -1), columns)
        return product.unflatten(2, input.shape[-2:])


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection; the timestep enters as a per-channel shift between them.

    Source: DDPM, arXiv:2006.11239, appendix B (pre-activation residual blocks with group normalisation).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_groups: int,
        norm_eps: float,
        time_embed_dim: int | None = None,
    ) -> None:
        """`time_embed_dim` is None in the autoencoder, which has no timestep."""
        super().__init__()
        self.norm1 = nn.GroupNorm(num_groups, in_channels, eps=norm_eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None if time_embed_dim is None else nn.Linear(time_embed_dim, out_channels)
        self.norm2 = nn.GroupNorm(num_groups, out_channels, eps=norm_eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = None if in_channels == out_channels else PointwiseConv2d(in_channels, out_channels)

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """x (B, Cin, h, w), time_emb (B, time_embed_dim) -> (B, Cout, h, w)."""
        h = self.conv1(silu_(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert time_emb is not None, "this residual block was built with a timestep embedding"
            h = h + self.time_emb_proj(F.silu(time_emb))[:, :, None, None]
        h = self.conv2(silu_(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Halve both sides with a strided 3x3 convolution."""

    def __init__(self, channels: int, *, pad_all_sides: bool) -> None:
        """`pad_all_sides`: the U-Net pads by one on every side; the autoencoder pads right and bottom only."""
        super().__init__()
        self.pad_all_sides = pad_all_sides
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=1 if pad_all_sides else 0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h/2, w/2); h and w even."""
        if not self.pad_all_sides:
            x = F.pad(x, (0, 1, 0, 1))  # left, right, top, bottom
        return self.conv(x)


class Upsample(nn.Module):
    """Double both sides: nearest neighbour, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

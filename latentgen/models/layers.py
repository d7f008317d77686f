"""Convolutional building blocks that the U-Net and the autoencoder share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_ModuleT = TypeVar("_ModuleT", bound=nn.Module)


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
        self.conv_shortcut = None if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """x (B, Cin, h, w), time_emb (B, time_embed_dim) -> (B, Cout, h, w)."""
        h = self.conv1(F.silu(self.norm1(x)))
        if self.time_emb_proj is not None:
            assert time_emb is not None, "this residual block was built with a timestep embedding"
            h = h + self.time_emb_proj(F.silu(time_emb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
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

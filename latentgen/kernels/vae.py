"""An autoencoder used on a CPU in bfloat16: a pixel's channels beside each other, SiLU and norm in one pass.

Its maps are large: what counts is Winograd's way to convolve them, in the layout that it and oneDNN want, and how often
a map goes through memory. torch's own norm of that layout sums in an order that depends on the threads, so the form
needs the compiled kernels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latentgen.kernels.crowding import make_room
from latentgen.kernels.gpu import wants_channels_last
from latentgen.kernels.layers import FastGroupNorm, PackedConv2d, exchange, why_no_onednn
from latentgen.kernels.library import LANES, why_unavailable
from latentgen.kernels.upsampling import fast_upsample
from latentgen.models.layers import ResnetBlock, Upsample
from latentgen.models.vae import AutoencoderKL


class FastVAEResnetBlock(nn.Module):
    """The autoencoder's residual block, each SiLU within the norm before it. What goes in is written over."""

    def __init__(self, layer: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = FastGroupNorm(layer.norm1), FastGroupNorm(layer.norm2)
        self.conv1, self.conv2 = PackedConv2d(layer.conv1), PackedConv2d(layer.conv2)
        self.conv_shortcut = layer.conv_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, h, w) -> (B, Cout, h, w)."""
        make_room()
        shortcut = self.conv_shortcut
        residual = x if shortcut is None else shortcut(x)
        h = self.conv1(self.norm1(x, silu=True, in_place=shortcut is not None))
        h = self.norm2(h, silu=True, in_place=True)
        return self.conv2.plus(h, residual, in_place=True)


def is_fast(vae: AutoencoderKL) -> bool:
    """Whether `speed_up_vae` has been there."""
    return any(isinstance(module, FastVAEResnetBlock) for module in vae.modules())


def why_not_fast_vae(vae: AutoencoderKL, dtype: torch.dtype | None = None) -> str | None:
    """Why `speed_up_vae` leaves this autoencoder as it is; None if it does not. dtype: as if it were of this one."""
    parameter = next(vae.parameters())
    if parameter.device.type != "cpu" or (dtype or parameter.dtype) != torch.bfloat16:
        return "it is for bfloat16 on a CPU"
    norms = [module for module in vae.modules() if isinstance(module, nn.GroupNorm)]
    if any(norm.num_channels % LANES for norm in norms):
        return f"its channels are no multiples of {LANES}"
    return why_no_onednn() or why_unavailable()


def speed_up_vae(vae: AutoencoderKL) -> None:
    """Take up the fast form where there is one, in place and for good.

    It can then be called without gradients only. It has no state dict of diffusers' names any more: the convolutions'
    weights are no parameters.
    """
    if is_fast(vae) or why_not_fast_vae(vae) is not None:
        return
    exchange(vae, _fast)
    lay_out(vae, torch.bfloat16)


def lay_out(vae: AutoencoderKL, dtype: torch.dtype) -> None:
    """Parameters of this precision, in place, in the layout of its form: in float32 the fast form computes as the plain
    one does, of packed weights that stay in bfloat16. Not in inference mode, where parameters that can never be trained
    would be made.
    """
    fast = is_fast(vae) and dtype == torch.bfloat16
    on_gpu = wants_channels_last(next(vae.parameters()).device, dtype)
    layout = torch.channels_last if fast or on_gpu else torch.contiguous_format
    with torch.inference_mode(False):
        vae.to(dtype=dtype, memory_format=layout)  # pyright: ignore[reportCallIssue]  missing in torch's overloads


def _fast(layer: nn.Module) -> nn.Module | None:
    match layer:
        case ResnetBlock():
            return FastVAEResnetBlock(layer)
        case Upsample():
            return fast_upsample(layer)
        case nn.GroupNorm():
            return FastGroupNorm(layer)
        case _:
            return None

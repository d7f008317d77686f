"""Timestep embedding: sinusoids of the timestep, then a two-layer MLP."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def timestep_embedding(t: Tensor, dim: int) -> Tensor:
    """Sinusoidal embedding of timesteps, cosines first, at frequencies 10000^(-k / (dim/2)), k = 0 .. dim/2 - 1.

    Shapes: t (B,) int or float, in timesteps, not scaled to [0, 1]; returns (B, dim) float32, dim even.
    Source: DDPM, arXiv:2006.11239, section 4, after "Attention is all you need", arXiv:1706.03762, section 3.5. SD
    divides the exponent by dim/2 (not dim/2 - 1) and puts the cosines before the sines; diffusers calls these
    `downscale_freq_shift=0` and `flip_sin_to_cos=True`.
    """
    assert dim % 2 == 0, f"timestep embedding: width {dim} is odd"
    half = dim // 2
    # float32 whatever the network's dtype: bf16 cannot tell timestep 997 from 1000. The order of operations is that of
    # the published networks, because a last-bit difference in a frequency is multiplied by t.
    exponents = -math.log(10000.0) * torch.arange(half, device=t.device, dtype=torch.float32) / half
    angles = t.float()[:, None] * exponents.exp()  # (B, dim/2)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimeEmbedding(nn.Module):
    """The MLP on top of the sinusoids: linear, SiLU, linear."""

    def __init__(self, in_dim: int, time_embed_dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(in_dim, time_embed_dim)
        self.linear_2 = nn.Linear(time_embed_dim, time_embed_dim)

    def forward(self, sinusoids: Tensor) -> Tensor:
        """(B, in_dim) -> (B, time_embed_dim)."""
        return self.linear_2(F.silu(self.linear_1(sinusoids)))

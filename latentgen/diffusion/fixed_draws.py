"""The U-Net's error on pictures that it is not trained on, at the same noise every time: a curve that can be compared.

The training loss of two steps differs by the pictures, timesteps and noise they drew, more than by what was learned in
between. Here all three are fixed, and the timesteps stratified.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentgen.diffusion.seeds import generator_for

TIMESTEPS_A_PICTURE = 8
"""Two in each quarter of the schedule."""
QUARTERS = 4


def fixed_timesteps(picture: int, num_timesteps: int) -> Tensor:
    """(8,) int64 ascending, one in each eighth of 0 .. T-1; where in its eighth differs from picture to picture."""
    offsets = torch.rand(TIMESTEPS_A_PICTURE, generator=generator_for(0, "validation timesteps", picture))
    eighths = (torch.arange(TIMESTEPS_A_PICTURE) + offsets) / TIMESTEPS_A_PICTURE
    return (eighths * num_timesteps).long().clamp(max=num_timesteps - 1)


def fixed_noise(picture: int, shape: Sequence[int]) -> Tensor:
    """(8, *shape) standard normal, for the timesteps above."""
    return torch.randn(TIMESTEPS_A_PICTURE, *shape, generator=generator_for(0, "validation noise", picture))


def summarise(errors: Tensor) -> dict[str, float]:
    """Errors (K, 8) in the order of the timesteps as figures: their mean, and the means by quarter of the schedule."""
    quarters = errors.unflatten(1, (QUARTERS, -1)).mean(dim=(0, 2)).tolist()
    return {
        "val_loss": float(errors.mean()),
        **{f"val_loss_t{number}": value for number, value in enumerate(quarters, 1)},
    }

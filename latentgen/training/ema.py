"""Exponential moving average of the weights: what sampling and export use."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from latentgen.training.sharding import parted_like


class EMA:
    """avg <- d * avg + (1 - d) * weights, with d = min(decay, (1 + step) / (10 + step)).

    The ramp keeps the random first weights from lingering (the same ramp as in TensorFlow's and LDM's EMA).
    Kept beside the weights, in their dtype and on their device; what is not a fraction is copied, not averaged.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay {decay} must lie in (0, 1)")
        self.decay = decay
        self.shadow: dict[str, Tensor] = {name: value.detach().clone() for name, value in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Take in the weights after optimizer step `step` (1 for the first)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        current = module.state_dict()
        for name, value in self.shadow.items():
            if value.is_floating_point():
                value.lerp_(current[name].detach(), 1 - decay)
            else:
                value.copy_(current[name])

    @torch.no_grad()
    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the averages of a checkpoint."""
        for name, value in self.shadow.items():
            value.copy_(parted_like(tensors[name], value))

"""Classifier-free guidance (arXiv:2207.12598) as a denoiser around a network that takes text.

The clean estimate is affine in the network's output, so guiding clean estimates is guiding eps or v, and no sampler
mentions guidance. The scale is the field's: 1 is off, uncond + g (cond - uncond) (g = 1 + w in the paper's eq. 6).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from latentgen.config import PredictionType
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.schedule import NoiseSchedule

TextNetwork = Callable[[Tensor, Tensor, Tensor], Tensor]
"""network(x_t (B, C, h, w), t (B,), context (B, L, D)) -> prediction (B, C, h, w)."""


def guide(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """uncond + g (cond - uncond), any shape."""
    return uncond + guidance * (cond - uncond)


class GuidedDenoiser:
    """(x, sigma) -> guided x_0. Two estimates from one batched pass; at g = 1 or g = 0 the one that counts, alone.

    What would shape the guidance (an interval of sigma, a rescale) wraps `estimates` and `guide`, or this denoiser.
    """

    def __init__(
        self,
        network: TextNetwork,
        schedule: NoiseSchedule,
        prediction_type: PredictionType,
        cond: Tensor,
        uncond: Tensor | None,
        guidance: float,
    ) -> None:
        """cond (B, L, D) for B pictures; uncond (B, L, D) or (1, L, D), None only where guidance is 1."""
        assert guidance == 1 or uncond is not None, f"guidance {guidance} needs an unconditional context"
        assert uncond is None or uncond.shape[1:] == cond.shape[1:], "cond and uncond differ in length or width"
        self.network = network
        self.schedule = schedule
        self.prediction_type: PredictionType = prediction_type
        self.cond = cond
        self.uncond = None if uncond is None else uncond.expand_as(cond)
        self.guidance = guidance

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        if self.uncond is None or self.guidance == 1:
            return self.estimate(x, sigma, self.cond)
        if self.guidance == 0:
            return self.estimate(x, sigma, self.uncond)
        return guide(*self.estimates(x, sigma), self.guidance)

    def estimate(self, x: Tensor, sigma: Tensor, context: Tensor) -> Tensor:
        """x_0 (B, C, h, w) under one context (B, L, D)."""
        denoise = make_denoiser(lambda x_t, t: self.network(x_t, t, context), self.schedule, self.prediction_type)
        return denoise(x, sigma)

    def estimates(self, x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 with and without the text, from one pass over a batch of 2B."""
        assert self.uncond is not None, "no unconditional context was given"
        both = torch.cat([self.cond, self.uncond])
        cond, uncond = self.estimate(torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
        return cond, uncond

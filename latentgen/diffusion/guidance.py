"""Classifier-free guidance (arXiv:2207.12598): a denoiser around a network that takes text.

Predictions with and without the text are combined as eps, v or x_0, whatever the network says, and then turned into a
clean estimate; that map is affine, so guiding clean estimates would be the same. No sampler mentions guidance. The
scale is the field's: 1 is off, uncond + g (cond - uncond) (g = 1 + w in the paper's eq. 6).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from latentgen.config import PredictionType
from latentgen.diffusion.denoiser import Network, make_denoiser
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.diffusion.strength import guided_steps

TextNetwork = Callable[[Tensor, Tensor, Tensor], Tensor]
"""network(x_t (B, C, h, w), t (B,), context (k B, L, D)) -> prediction (k B, C, h, w): x_t and t count k times."""

SigmaInterval = tuple[float, float]
"""The noise levels (low, high] that are guided: low itself is not, high is."""

EVERYWHERE: SigmaInterval = (0.0, math.inf)


def guide(cond: Tensor, uncond: Tensor, guidance: float) -> Tensor:
    """uncond + g (cond - uncond), any shape."""
    return uncond + guidance * (cond - uncond)


def rescale_guided(guided: Tensor, cond: Tensor, rescale: float) -> Tensor:
    """The guided prediction (B, C, h, w) with its spread brought towards that of the conditional one.

    arXiv:2305.08891, section 3.4: eq. 15 gives the guided prediction the standard deviation of `cond`, each picture for
    itself; eq. 16 mixes that with the guided one by `rescale` (phi), 0 .. 1. The paper takes 0.7. It is the network's
    own prediction that is rescaled, eps or v, not the clean estimate: for the two the results differ.
    """
    axes = tuple(range(1, guided.ndim))
    ratio = cond.std(dim=axes, keepdim=True) / guided.std(dim=axes, keepdim=True)
    return guided * (rescale * ratio + (1 - rescale))


def guided_sigmas(sigmas: Tensor, start: float, end: float) -> SigmaInterval:
    """The levels at which a run over sigmas (n+1,) is guided from the fraction `start` to the fraction `end` of it.

    The steps are `guided_steps`. As noise levels this is the interval of arXiv:2404.07724, section 3, (sigma_lo,
    sigma_hi], and a sampler that looks at levels between two steps, or twice at one, is guided there by the same rule.
    """
    assert 0 <= start <= end <= 1, f"the guided part {start} to {end} is not within 0 and 1"
    steps = guided_steps(len(sigmas) - 1, start, end)
    return float(sigmas[steps.stop]), float(sigmas[steps.start])


class GuidedDenoiser:
    """(x, sigma) -> guided x_0. Two predictions from one batched pass; where only one counts, that one alone."""

    def __init__(
        self,
        network: TextNetwork,
        schedule: NoiseSchedule,
        prediction_type: PredictionType,
        cond: Tensor,
        uncond: Tensor | None,
        guidance: float,
        *,
        rescale: float = 0.0,
        interval: SigmaInterval = EVERYWHERE,
    ) -> None:
        """cond (B, L, D) for B pictures; uncond (B, L, D) or (1, L, D), None only where guidance is 1.

        `rescale` is phi of `rescale_guided`; it acts where both predictions are made. Outside `interval`, which
        `guided_sigmas` makes for a run, the guidance is 1.
        """
        assert guidance == 1 or uncond is not None, f"guidance {guidance} needs an unconditional context"
        assert uncond is None or uncond.shape[1:] == cond.shape[1:], "cond and uncond differ in length or width"
        assert 0 <= rescale <= 1, f"rescale {rescale} is outside 0..1"
        self.network = network
        self.schedule = schedule
        self.prediction_type: PredictionType = prediction_type
        self.cond = cond
        self.uncond = None if uncond is None else uncond.expand_as(cond)
        self._both: Tensor | None = None
        """One tensor for all steps: a network may keep what it computes of it."""
        self.guidance = guidance
        self.rescale = rescale
        self.interval = interval

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return make_denoiser(self._network_at(sigma), self.schedule, self.prediction_type)(x, sigma)

    def _network_at(self, sigma: Tensor) -> Network:
        """The network with its text bound in, as the noise levels sigma (B,) call for it."""
        if self.uncond is None or self.guidance == 1 or not self._is_guided(sigma):
            return lambda x_t, t: self.network(x_t, t, self.cond)
        if self.guidance == 0:
            uncond = self.uncond
            return lambda x_t, t: self.network(x_t, t, uncond)
        if self._both is None:
            self._both = torch.cat([self.cond, self.uncond])
        both = self._both
        return lambda x_t, t: self._guided(x_t, t, both)

    def _guided(self, x_t: Tensor, t: Tensor, both: Tensor) -> Tensor:
        """The guided prediction (B, C, h, w), in x_t's dtype, from one pass over 2B contexts (2B, L, D)."""
        predictions = self.network(x_t, t, both)
        # Before the difference of the two is multiplied: half precision would lose its digits.
        cond, uncond = predictions.to(x_t.dtype).chunk(2)
        guided = guide(cond, uncond, self.guidance)
        return guided if self.rescale == 0 else rescale_guided(guided, cond, self.rescale)

    def _is_guided(self, sigma: Tensor) -> bool:
        low, high = self.interval
        inside = (sigma > low) & (sigma <= high)
        assert bool(inside.all() == inside.any()), "a batch has one noise level, inside the interval or outside"
        return bool(inside.all())

"""UniPC-2 (arXiv:2302.04867), predicting x_0 with B_2(h) = e^h - 1, in sigma coordinates.

The predictor is UniP-2, which is `dpmpp_2m`'s step. When the network has been asked at the predicted point, that answer
first corrects the step that led there (UniC-2): the clean estimate over the step becomes the parabola through its
values there, at the step's start and one step before, integrated exactly against the kernel e^-(lambda_end - lambda).
The correction costs no evaluation, and raises the order to three. The corrector's first use knows two values; the
predictor's first step and the step to 0 are first order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


@dataclass(frozen=True, slots=True, eq=False)
class _Taken:
    """A step that has been predicted, to be corrected once the estimate at its end is known."""

    x: Tensor
    """Where it started."""
    ratio: float
    """e^-h."""
    h: float
    denoised: Tensor
    """The estimate at its start."""
    denoised_last: Tensor | None
    """The estimate one step before, if there was one."""
    r: float
    """How far before, in units of h."""


def unipc(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Deterministic: draws no noise."""
    taken: _Taken | None = None
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if taken is not None:
            x = _corrected(taken, denoised)
        if at.sigma_next == 0:
            x = denoised
            continue
        ratio = at.sigma_next / at.sigma
        h = -math.log(ratio)
        denoised_last, r = (None, 0.0) if taken is None else (taken.denoised, taken.h / h)
        taken = _Taken(x, ratio, h, denoised, denoised_last, r)
        # UniP-2: the line through two estimates, in the middle of the step
        target = denoised if denoised_last is None else denoised + (denoised - denoised_last) / (2 * r)
        x = ratio * x + (1 - ratio) * target
    return x


def _corrected(step: _Taken, denoised_end: Tensor) -> Tensor:
    """Where the step ends, now that the estimate at its (predicted) end is known: UniC."""
    if step.denoised_last is None:
        target = (step.denoised + denoised_end) / 2
    else:
        # Means of tau and tau^2 over the step, tau from 0 to 1, under the kernel e^-(1 - tau)h
        mean = 1 / (1 - step.ratio) - 1 / step.h
        mean_square = 1 / (1 - step.ratio) - 2 * mean / step.h
        # The parabola a tau + b tau^2 that has the known values at tau = 1 and tau = -r, in those values' terms
        weight_last = (mean_square - mean) / (step.r * (1 + step.r))
        weight_end = mean + step.r * weight_last
        before, end = step.denoised_last - step.denoised, denoised_end - step.denoised
        target = step.denoised + weight_last * before + weight_end * end
    return step.ratio * step.x + (1 - step.ratio) * target

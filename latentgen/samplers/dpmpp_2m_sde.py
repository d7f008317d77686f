"""SDE-DPM-Solver++(2M) of arXiv:2211.01095 in sigma coordinates, in the form k-diffusion calls "midpoint".

`dpmpp_2m` for the reverse SDE: the same linear extrapolation of the clean estimate to the middle of the step, and twice
the pull towards it, e^-2h in place of e^-h, with as much noise added as the pull has taken away. The first step and a
step to 0 are first order.
"""

from __future__ import annotations

import math

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def dpmpp_2m_sde(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None
) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0."""
    previous: tuple[Tensor, float] | None = None  # the last estimate, and the last step's length in lambda
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if at.sigma_next == 0:
            x = denoised
            continue
        h = math.log(at.sigma / at.sigma_next)
        target = denoised
        if previous is not None:
            denoised_last, h_last = previous
            target = denoised + (denoised - denoised_last) * h / (2 * h_last)
        kept = (at.sigma_next / at.sigma) ** 2  # e^-2h
        x = kept * x + (1 - kept) * target + at.sigma_next * (1 - kept) ** 0.5 * noise()
        previous = (denoised, h)
    return x

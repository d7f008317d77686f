"""DPM-Solver++(2M): arXiv:2211.01095, algorithm 2, in sigma coordinates.

The paper's half-log-SNR is lambda = log(alpha / sigma), here -log sigma, and dividing its x_t by alpha_t turns the
update into (sigma_next / sigma) x + (1 - e^-h) D. D, here `target`, is the clean estimate carried linearly in lambda
from the last two estimates to the middle of the step. The first step and a step to 0 (h infinite) are first order.
"""

from __future__ import annotations

import math

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def dpmpp_2m(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Deterministic: draws no noise."""
    previous: tuple[Tensor, float] | None = None  # the last estimate, and the last step's length in lambda
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        ratio = at.sigma_next / at.sigma  # e^-h
        h = -math.log(ratio) if ratio > 0 else math.inf
        if previous is None or math.isinf(h):
            target = denoised
        else:
            denoised_last, h_last = previous
            r = h_last / h
            target = (1 + 1 / (2 * r)) * denoised - 1 / (2 * r) * denoised_last
        x = ratio * x + (1 - ratio) * target
        previous = (denoised, h)
    return x

"""DPM-Solver++(3M) for the diffusion SDE ("DPM++ 3M SDE"): k-diffusion's `sample_dpmpp_3m_sde`.

`dpmpp_2m_sde` with a parabola through the last three estimates. The weights of its slope and bend are the integrals of
the SDE's exponential kernel (the phi functions of arXiv:2211.01095, for a step of 2h). As in the published codes the
bend is half the second derivative and yet meets the weight of the whole, so the order is two. The first step is first
order, the second one second, and a step to 0 first.
"""

from __future__ import annotations

import math

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def dpmpp_3m_sde(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None
) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0."""
    past: list[tuple[Tensor, float]] = []  # up to two: an estimate, and the length in lambda of the step from it
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if at.sigma_next == 0:
            x = denoised
            continue
        h = math.log(at.sigma / at.sigma_next)
        kept = (at.sigma_next / at.sigma) ** 2  # e^-2h
        phi_2 = 1 - (1 - kept) / (2 * h)
        x = kept * x + (1 - kept) * denoised
        if len(past) == 1:
            ((denoised_1, h_1),) = past
            x = x + phi_2 * (denoised - denoised_1) * h / h_1
        elif len(past) == 2:
            (denoised_1, h_1), (denoised_2, h_2) = past
            slope_1, slope_2 = (denoised - denoised_1) * h / h_1, (denoised_1 - denoised_2) * h / h_2
            bend = (slope_1 - slope_2) * h / (h_1 + h_2)
            slope = slope_1 + bend * h_1 / h
            x = x + phi_2 * slope - (phi_2 / (2 * h) - 1 / 2) * bend
        x = x + at.sigma_next * (1 - kept) ** 0.5 * noise()
        past = [(denoised, h), *past[:1]]
    return x

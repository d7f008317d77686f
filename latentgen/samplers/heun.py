"""Heun's method on the probability-flow ODE: EDM (arXiv:2206.00364), algorithm 1, without churn."""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NOTHING_VISIBLE, NoiseFn, OnStep, estimate, look, transitions


def heun(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Deterministic: draws no noise.

    Looks twice a step, but for one to 0, where the slope has no meaning, and for those from above sigma 80: 2n - 1
    network evaluations with Stable Diffusion's noise levels.
    """
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        d = (x - denoised) / at.sigma
        x_next = denoised + at.sigma_next * d
        if at.sigma_next > 0 and at.sigma <= NOTHING_VISIBLE:
            # Line 8: the mean of the slopes at both ends, in place of the first
            d_next = (x_next - look(denoise, x_next, at.sigma_next)) / at.sigma_next
            x_next = x_next + (at.sigma_next - at.sigma) * (d_next - d) / 2
        x = x_next
    return x

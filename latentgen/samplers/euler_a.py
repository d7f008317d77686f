"""Euler ancestral ("Euler a"): an Euler step below the next level, then fresh noise up to it.

k-diffusion's `sample_euler_ancestral`. The split of the next level into sigma_down and sigma_up is DDPM's posterior
written in sigma coordinates, so with the same noise this is `ddpm`, and `ddim` with eta 1, computed another way.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, down_and_up, estimate, transitions


def euler_a(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0."""
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        d = (x - denoised) / at.sigma
        sigma_down, sigma_up = down_and_up(at.sigma, at.sigma_next)
        x = denoised + sigma_down * d
        if sigma_up > 0:
            x = x + sigma_up * noise()
    return x

"""Multistep sampling of a latent consistency model (arXiv:2310.04378; arXiv:2303.01469, algorithm 1).

Each step takes the clean estimate at its word and noises it anew to the next level. Only for networks (or LoRAs)
distilled for it, in 4 to 8 steps with little or no guidance; others give blurred pictures. The published boundary
condition, which keeps c_skip of x, is left out: c_skip is 1 / (20 t)^2 at timestep t, below 1e-7 where four even steps
look.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def lcm(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0."""
    for at in transitions(sigmas):
        x = estimate(denoise, x, at, on_step)
        if at.sigma_next > 0:
            x = x + at.sigma_next * noise()
    return x

"""Denoising diffusion implicit models (arXiv:2010.02502), eq. 12, in sigma coordinates.

eta scales the noise of a step (eq. 16): 0 is deterministic and equal to Euler's method, 1 is DDPM.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def ddim(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseFn,
    on_step: OnStep | None = None,
    eta: float = 0.0,
) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise only where eta > 0."""
    assert 0 <= eta <= 1, f"eta {eta} is outside 0..1"
    for at in transitions(sigmas):
        predicted_x_0 = estimate(denoise, x, at, on_step)
        eps = (x - predicted_x_0) / at.sigma
        # Eq. 16 divided by sqrt(abar_s): sqrt((1 - abar_s) / (1 - abar_t)) sqrt(1 - abar_t / abar_s) in sigmas
        random_std = eta * at.sigma_next * (1 - (at.sigma_next / at.sigma) ** 2) ** 0.5
        # Eq. 12: predicted x_0, direction pointing to x_t, random noise
        x = predicted_x_0 + (at.sigma_next**2 - random_std**2) ** 0.5 * eps
        if random_std > 0:
            x = x + random_std * noise()
    return x

"""DDPM's ancestral sampling (arXiv:2006.11239, algorithm 2) in sigma coordinates, over any descending levels.

Dividing x_t by sqrt(abar_t) turns the forward process into x_0 plus Gaussian noise that grows from sigma_s to sigma_t
in independent increments. Its posterior (eqs. 6 and 7) is then, for s < t,

    x_s | x_t, x_0  ~  N( x_0 + (sigma_s^2 / sigma_t^2) (x_t - x_0),  sigma_s^2 (1 - sigma_s^2 / sigma_t^2) )

and a step draws from it with the estimate in x_0's place. With every timestep as a level it is algorithm 2 itself;
with fewer it is the same posterior over longer strides.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def ddpm(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0."""
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        kept = (at.sigma_next / at.sigma) ** 2
        x = denoised + kept * (x - denoised)
        if at.sigma_next > 0:
            posterior_std = at.sigma_next * (1 - kept) ** 0.5
            x = x + posterior_std * noise()
    return x

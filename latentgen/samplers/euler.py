"""Euler's method on the probability-flow ODE: EDM (arXiv:2206.00364), algorithm 1 without its second-order correction.

In sigma coordinates it is also DDIM with eta 0 (arXiv:2010.02502, section 4.3).
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions


def euler(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Deterministic: draws no noise."""
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        # dx/dsigma, which is the predicted eps (eq. 3)
        d = (x - denoised) / at.sigma
        # x + (sigma_next - sigma) d, without subtracting two large numbers where sigma is in the thousands
        x = denoised + at.sigma_next * d
    return x

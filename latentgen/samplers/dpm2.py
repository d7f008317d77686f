"""DPM-Solver-2 (arXiv:2206.00927, algorithm 1, r_1 = 1/2) in sigma coordinates.

The middle of a step in half-log-SNR, where the solver looks a second time, is the geometric mean of its two levels; and
with x_t divided by alpha_t the paper's updates are Euler steps, to the middle, then from the start with the middle's
slope. k-diffusion calls it `sample_dpm_2`.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, look, transitions


def dpm2(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Deterministic: draws no noise.

    Looks twice a step, but for one to 0, whose middle would be 0 too: 2n - 1 network evaluations.
    """
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if at.sigma_next == 0:
            x = denoised
            continue
        d = (x - denoised) / at.sigma
        sigma_mid = (at.sigma * at.sigma_next) ** 0.5
        x_mid = denoised + sigma_mid * d
        d_mid = (x_mid - look(denoise, x_mid, sigma_mid)) / sigma_mid
        x = x + (at.sigma_next - at.sigma) * d_mid
    return x

"""DPM-Solver-2 ancestral ("DPM2 a"): a `dpm2` step below the next level, then fresh noise up to it.

k-diffusion's `sample_dpm_2_ancestral`. The middle is that of the step down, sqrt(sigma sigma_down), and as sigma_down
is sigma_next^2 / sigma this is the next level itself.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NOTHING_VISIBLE, NoiseFn, OnStep, down_and_up, estimate, look, transitions


def dpm2_a(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0.

    Looks twice a step, but for one to 0, and for those from above sigma 80: 2n - 1 network evaluations with Stable
    Diffusion's noise levels.
    """
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if at.sigma_next == 0:
            x = denoised
            continue
        d = (x - denoised) / at.sigma
        sigma_down, sigma_up = down_and_up(at.sigma, at.sigma_next)
        x_down = denoised + sigma_down * d
        if at.sigma <= NOTHING_VISIBLE:
            x_mid = denoised + at.sigma_next * d
            d_mid = (x_mid - look(denoise, x_mid, at.sigma_next)) / at.sigma_next
            x_down = x_down + (sigma_down - at.sigma) * (d_mid - d)
        x = x_down + sigma_up * noise()
    return x

"""DPM-Solver++(2S) ancestral ("DPM++ 2S a"): a step below the next level, then fresh noise up to it.

The step is DPM-Solver++(2S), arXiv:2211.01095, algorithm 1 with r = 1/2: in sigma coordinates its middle is the
geometric mean of its two levels, and the estimate made there carries the whole step. The split into a step down and
noise is k-diffusion's `sample_dpmpp_2s_ancestral`. As sigma_down is sigma_next^2 / sigma, the middle is the next level.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, down_and_up, estimate, look, transitions


def dpmpp_2s_a(
    denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None
) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise at every step but one to 0.

    Looks twice a step, but for one to 0: 2n - 1 network evaluations.
    """
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if at.sigma_next == 0:
            x = denoised
            continue
        sigma_down, sigma_up = down_and_up(at.sigma, at.sigma_next)
        # Each ratio of levels is the paper's e^-h over that stretch
        to_mid, to_down = at.sigma_next / at.sigma, sigma_down / at.sigma
        x_mid = to_mid * x + (1 - to_mid) * denoised
        x = to_down * x + (1 - to_down) * look(denoise, x_mid, at.sigma_next)
        x = x + sigma_up * noise()
    return x

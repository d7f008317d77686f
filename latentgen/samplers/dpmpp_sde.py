"""DPM-Solver++ for the diffusion SDE, single step ("DPM++ SDE"): k-diffusion's `sample_dpmpp_sde` with r = 1/2.

The exponential integrator of DPM-Solver++ (arXiv:2211.01095) on the reverse SDE: an ancestral step to the
geometric mean of the two levels, then one over the whole step with the estimate made there.

Both steps of a pair are driven by one path of a Brownian motion whose clock is sigma, as in k-diffusion: the noise of
the whole step holds the noise of its first part. With z_1 and z_2 independent, the first part's is z_1 and the whole
step's is sqrt(p) z_1 + sqrt(1 - p) z_2, p being the first part's share of the way in sigma: the law of k-diffusion's
Brownian tree. It matters: drawn apart, the two would leave a method of first order, where this is of second. The tree
also makes runs of different numbers of steps share one path, which a picture's own stream of noise does not.
"""

from __future__ import annotations

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, down_and_up, estimate, look, transitions


def dpmpp_sde(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Draws noise twice a step, but for one to 0.

    Looks twice a step, but for one to 0: 2n - 1 network evaluations.
    """
    for at in transitions(sigmas):
        denoised = estimate(denoise, x, at, on_step)
        if at.sigma_next == 0:
            x = denoised
            continue
        sigma_mid = (at.sigma * at.sigma_next) ** 0.5
        first_part = (at.sigma - sigma_mid) / (at.sigma - at.sigma_next)
        noise_mid = noise()
        noise_whole = first_part**0.5 * noise_mid + (1 - first_part) ** 0.5 * noise()
        # To the middle
        sigma_down, sigma_up = down_and_up(at.sigma, sigma_mid)
        ratio = sigma_down / at.sigma
        x_mid = ratio * x + (1 - ratio) * denoised + sigma_up * noise_mid
        # The whole step
        sigma_down, sigma_up = down_and_up(at.sigma, at.sigma_next)
        ratio = sigma_down / at.sigma
        x = ratio * x + (1 - ratio) * look(denoise, x_mid, sigma_mid) + sigma_up * noise_whole
    return x

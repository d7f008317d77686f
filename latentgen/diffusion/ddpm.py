"""Denoising diffusion probabilistic models (arXiv:2006.11239), equation by equation, in the paper's own coordinates.

The samplers work in sigma coordinates; these are the formulas they are held against. Timesteps here are 0 .. T-1 where
the paper has 1 .. T, so "t - 1" of t = 0 is the clean picture, abar = 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from latentgen.diffusion.denoiser import Network
from latentgen.diffusion.losses import diffusion_loss
from latentgen.diffusion.schedule import NoiseSchedule


def forward_process(schedule: NoiseSchedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """q(x_t | x_0) in closed form (eq. 4): x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, at timesteps t (B,)."""
    return schedule.add_noise(x_0, eps, t)


def simple_objective(network: Network, schedule: NoiseSchedule, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
    """L_simple (eq. 14): E || eps - eps_theta(x_t, t) ||^2 for one draw of t (B,) and eps, as a mean; a scalar."""
    x_t = forward_process(schedule, x_0, t, eps)
    return diffusion_loss(network(x_t, t), eps).mean()


def posterior(schedule: NoiseSchedule, x_0: Tensor, x_t: Tensor, t: int) -> tuple[Tensor, float]:
    """q(x_{t-1} | x_t, x_0): its mean mu~_t (eq. 7, left) and its variance beta~_t (eq. 7, right)."""
    beta, abar, abar_prev = _at(schedule, t)
    of_x_0 = abar_prev**0.5 * beta / (1 - abar)
    of_x_t = (1 - beta) ** 0.5 * (1 - abar_prev) / (1 - abar)
    return of_x_0 * x_0 + of_x_t * x_t, (1 - abar_prev) / (1 - abar) * beta


def reverse_step(schedule: NoiseSchedule, x_t: Tensor, eps: Tensor, t: int, z: Tensor) -> Tensor:
    """One ancestral step (algorithm 2, line 4) with sigma_t^2 = beta~_t; z is standard normal noise, unused at t = 0.

    x_{t-1} = (x_t - beta_t / sqrt(1 - abar_t) eps_theta(x_t, t)) / sqrt(alpha_t) + sigma_t z
    """
    beta, abar, abar_prev = _at(schedule, t)
    variance = (1 - abar_prev) / (1 - abar) * beta
    return (x_t - beta / (1 - abar) ** 0.5 * eps) / (1 - beta) ** 0.5 + variance**0.5 * z


def sample(network: Network, schedule: NoiseSchedule, x_T: Tensor, noise: Tensor) -> Tensor:
    """Algorithm 2 over all T steps: x_T (B, ...) standard normal, noise (T, B, ...) indexed by timestep; gives x_0."""
    x = x_T
    for t in reversed(range(schedule.num_timesteps)):
        eps = network(x, torch.full((len(x),), float(t), device=x.device))
        x = reverse_step(schedule, x, eps, t, noise[t])
    return x


def _at(schedule: NoiseSchedule, t: int) -> tuple[float, float, float]:
    """beta_t, abar_t and abar_{t-1}."""
    assert 0 <= t < schedule.num_timesteps, f"timestep {t} of {schedule.num_timesteps}"
    abar_prev = float(schedule.alphas_cumprod[t - 1]) if t > 0 else 1.0
    return float(schedule.betas[t]), float(schedule.alphas_cumprod[t]), abar_prev

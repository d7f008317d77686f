"""DDPM's equations against what they are derived from (equation numbers of arXiv:2006.11239)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from latentgen.config import DiffusionConfig
from latentgen.diffusion import ddpm
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.noise import starting_point
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.samplers.registry import get_sampler

T = 40


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    # DDPM's own betas, 1e-4 .. 0.02 over 1000 steps (section 4), with fewer and larger steps.
    config = DiffusionConfig(num_train_timesteps=T, beta_schedule="linear", beta_start=1e-3, beta_end=0.3)
    return NoiseSchedule.from_config(config)


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(len(shape)))


def test_closed_form_is_the_chain_of_single_steps(schedule: NoiseSchedule) -> None:
    """Eq. 4 from eq. 2, x_t = sqrt(1 - beta_t) x_{t-1} + sqrt(beta_t) eps: the same mean and variance at every t."""
    ones = torch.ones(T, 1, dtype=torch.float64)
    zeros = torch.zeros_like(ones)
    t = torch.arange(T)
    mean = ddpm.forward_process(schedule, ones, t, zeros).flatten()
    variance = ddpm.forward_process(schedule, zeros, t, ones).flatten() ** 2
    m, v = 1.0, 0.0
    for step, beta in enumerate(schedule.betas.tolist()):
        m, v = (1 - beta) ** 0.5 * m, (1 - beta) * v + beta
        assert mean[step].item() == pytest.approx(m, rel=1e-12)
        assert variance[step].item() == pytest.approx(v, rel=1e-12)


@pytest.mark.parametrize("t", [1, 2, 20, T - 1])
def test_posterior_is_bayes_rule(schedule: NoiseSchedule, t: int) -> None:
    """Eqs. 6, 7: q(x_{t-1} | x_t, x_0) is the normalised product of q(x_t | x_{t-1}) and q(x_{t-1} | x_0)."""
    x_0, x_t = drawn(2, 5)
    mean, variance = ddpm.posterior(schedule, x_0, x_t, t)
    beta = float(schedule.betas[t])
    prior_mean, prior_variance = float(schedule.alphas_cumprod[t - 1]) ** 0.5 * x_0, 1 - schedule.alphas_cumprod[t - 1]
    precision = (1 - beta) / beta + 1 / prior_variance
    wanted = ((1 - beta) ** 0.5 * x_t / beta + prior_mean / prior_variance) / precision
    assert variance == pytest.approx(float(1 / precision), rel=1e-10)
    torch.testing.assert_close(mean, wanted, rtol=0, atol=1e-12)


def test_posterior_of_the_first_step_is_the_picture(schedule: NoiseSchedule) -> None:
    x_0, x_t = drawn(2, 5)
    mean, variance = ddpm.posterior(schedule, x_0, x_t, 0)
    torch.testing.assert_close(mean, x_0, rtol=0, atol=1e-12)
    assert variance == 0


@pytest.mark.parametrize("t", [0, 1, 20, T - 1])
def test_reverse_step_is_the_posterior_at_the_predicted_picture(schedule: NoiseSchedule, t: int) -> None:
    """Eq. 11 is eq. 7 with eq. 4 solved for x_0."""
    x_t, eps, z = drawn(3, 5)
    abar = schedule.alphas_cumprod[t]
    x_0 = (x_t - (1 - abar).sqrt() * eps) / abar.sqrt()
    mean, variance = ddpm.posterior(schedule, x_0, x_t, t)
    step = ddpm.reverse_step(schedule, x_t, eps, t, z)
    torch.testing.assert_close(step, mean + variance**0.5 * z, rtol=0, atol=1e-12)


def test_simple_objective_is_the_eps_error_at_x_t(schedule: NoiseSchedule) -> None:
    x_0, eps = drawn(2, 6, 3)
    t = torch.tensor([0, 1, 5, 10, 20, T - 1])
    loss = ddpm.simple_objective(lambda x_t, at: x_t * at.view(-1, 1) / T, schedule, x_0, t, eps)
    abar = schedule.alphas_cumprod[t].view(-1, 1)
    wrong = eps - (abar.sqrt() * x_0 + (1 - abar).sqrt() * eps) * t.view(-1, 1) / T
    assert loss.item() == pytest.approx((wrong**2).mean().item(), rel=1e-6)  # the loss is float32
    assert ddpm.simple_objective(lambda _x, _t: eps, schedule, x_0, t, eps) == 0


def test_the_ddpm_sampler_over_every_timestep_is_algorithm_2(schedule: NoiseSchedule) -> None:
    weights = drawn(5, 5) / 3

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x @ weights + t.to(x.dtype).view(-1, 1) / T)

    x_T, noise = drawn(2, 5), drawn(T, 2, 5)
    wanted = ddpm.sample(network, schedule, x_T, noise)
    sigmas = torch.cat([schedule.sigmas.flip(0), torch.zeros(1, dtype=torch.float64)])
    remaining = iter(noise.flip(0))
    result = get_sampler("ddpm")(
        make_denoiser(network, schedule, "epsilon"),
        starting_point(x_T, float(sigmas[0])),
        sigmas,
        noise=lambda: next(remaining),
    )
    # Both in float64, values up to 1 / sqrt(abar_T) = 30.
    torch.testing.assert_close(result, wanted, rtol=0, atol=1e-10)

"""Every sampler against diffusers' scheduler of the same algorithm: the state before each step, and the result.

Both sides start from the same noise, are fed the same noise at each stochastic step, and ask the same small random
network. diffusers' DDPM, DDIM and DPM-Solver++ keep x variance-preserving, its Euler schedulers keep it
variance-exploding; everything is compared variance-preserving, x / sqrt(1 + sigma^2), where values are of order 1.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from torch import Tensor

from latentgen.config import BetaSchedule, DiffusionConfig, PredictionType
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.samplers.registry import get_sampler
from latentgen.samplers.step import Step

BETAS: tuple[BetaSchedule, ...] = get_args(BetaSchedule)
PREDICTIONS: tuple[PredictionType, ...] = get_args(PredictionType)
STEPS = 10  # divides 1000: diffusers' DDPM and DDIM take T // n as the stride, whatever the timesteps are
SHAPE = (2, 4, 6, 6)

TIGHT = 2e-5
"""diffusers' tables and coefficients are float32 (about 1e-6 off ours, which are float64), carried through ten steps of
the network. 8e-6 was measured."""
COSINE = 5e-4
"""The cosine schedule starts at sigma 20291, where float32 resolves x to 2e-3. diffusers' Euler schedulers subtract two
such numbers in their first step, down to sigma 6: 2e-3 / 6 = 3e-4 (2.8e-4 was measured, 7e-5 for the others)."""
CLAMPED = 5e-4
"""Of abar = 0 at 2**-24: sqrt(2**-24) = 2.4e-4 of the start noise counts as picture (2.5e-4 was measured)."""


def tiny_network() -> Callable[[Tensor, Tensor], Tensor]:
    """A fixed smooth random function of x and t with values of order 1, in float64."""
    generator = torch.Generator().manual_seed(7)
    inner = torch.randn(8, 4, 3, 3, generator=generator, dtype=torch.float64) / 6
    outer = torch.randn(4, 8, 3, 3, generator=generator, dtype=torch.float64) / 6
    phase = torch.randn(8, generator=generator, dtype=torch.float64)

    def network(x: Tensor, t: Tensor) -> Tensor:
        angle = t.to(torch.float64).view(-1, 1) / 150 + phase
        hidden = torch.tanh(torch.conv2d(x.to(torch.float64), inner, padding=1) + angle.sin()[:, :, None, None])
        return torch.conv2d(hidden, outer, padding=1)

    return network


def config(
    betas: BetaSchedule, prediction: PredictionType, spacing: str = "leading", *, zero_snr: bool = False
) -> DiffusionConfig:
    return DiffusionConfig(
        beta_schedule=betas,
        prediction_type=prediction,
        timestep_spacing=spacing,  # pyright: ignore[reportArgumentType]
        rescale_betas_zero_snr=zero_snr,
    )


def published(scheduler: Callable[..., Any], settings: DiffusionConfig, **more: Any) -> Any:
    """diffusers' scheduler with our settings."""
    return scheduler(
        num_train_timesteps=settings.num_train_timesteps,
        beta_schedule=settings.beta_schedule,
        beta_start=settings.beta_start,
        beta_end=settings.beta_end,
        prediction_type=settings.prediction_type,
        timestep_spacing=settings.timestep_spacing,
        steps_offset=settings.steps_offset,
        rescale_betas_zero_snr=settings.rescale_betas_zero_snr,
        **more,
    )


def drawn(seeds: tuple[int, ...] = (1, 2)) -> tuple[Tensor, list[Tensor]]:
    """Start noise and the noise of each step, float64."""
    source = NoiseSource(seeds)
    start, *rest = (source.draw(SHAPE[1:]).double() for _ in range(STEPS + 1))
    return start, rest


def variance_preserving(x: Tensor, sigma: float) -> Tensor:
    return x / (1 + sigma**2) ** 0.5


def our_states(
    sampler: str, settings: DiffusionConfig, schedule_name: str, **options: float
) -> tuple[list[Tensor], list[float]]:
    """x, variance-preserving, before each step and at the end; and the timesteps the network was asked."""
    schedule = NoiseSchedule.from_config(settings)
    sigmas = schedule.inference_sigmas(STEPS, schedule_name)
    start, rest = drawn()
    network = tiny_network()
    asked: list[float] = []
    states: list[Tensor] = []

    def watched(x: Tensor, t: Tensor) -> Tensor:
        asked.append(float(t[0]))
        return network(x, t)

    def record(step: Step) -> None:
        states.append(variance_preserving(step.x, step.sigma))

    result = get_sampler(sampler)(
        make_denoiser(watched, schedule, settings.prediction_type),
        starting_point(start, float(sigmas[0])),
        sigmas,
        noise=functools.partial(next, iter(rest)),
        on_step=record,
        **options,
    )
    return [*states, result], asked


def their_states(
    scheduler: Any,
    *,
    exploding: bool,
    monkeypatch: pytest.MonkeyPatch,
    sample_as_eps: bool = False,
    **options: float,
) -> tuple[list[Tensor], list[float]]:
    """The same from a diffusers scheduler whose timesteps are set.

    `exploding`: its x is x_0 + sigma eps. `sample_as_eps`: the network says x_0 and the scheduler is told the eps
    that this x_0 means, for schedulers that do not know sample prediction.
    """
    start, rest = drawn()
    noise: Iterator[Tensor] = iter(rest)
    monkeypatch.setitem(type(scheduler).step.__globals__, "randn_tensor", lambda *_args, **_kwargs: next(noise))
    network = tiny_network()
    x = starting_point(start, float(scheduler.sigmas[0])) if exploding else start
    states: list[Tensor] = []
    for index, t in enumerate(scheduler.timesteps):
        states.append(variance_preserving(x, float(scheduler.sigmas[index])) if exploding else x)
        prediction = network(scheduler.scale_model_input(x, t), t.expand(len(x)))
        if sample_as_eps:
            prediction = (x - prediction) / scheduler.sigmas[index].double()
        x = scheduler.step(prediction, t, x, **options).prev_sample
    return [*states, x], scheduler.timesteps.tolist()


def assert_same_walk(
    ours: tuple[list[Tensor], list[float]], theirs: tuple[list[Tensor], list[float]], tolerance: float
) -> None:
    (our_x, our_t), (their_x, their_t) = ours, theirs
    assert our_t == pytest.approx(their_t, abs=1e-2)  # exact but for karras, whose t are fractions
    assert len(our_x) == len(their_x) == STEPS + 1
    for step, (mine, reference) in enumerate(zip(our_x, their_x, strict=True)):
        # Relative to the largest value: eps prediction divides by sqrt(abar), so its states reach the tens and more.
        error = ((mine - reference).abs().max() / reference.abs().max()).item()
        assert error < tolerance, f"step {step} of {STEPS}: {error:.2e} apart, {tolerance:.0e} allowed"


def tolerance_for(settings: DiffusionConfig) -> float:
    return COSINE if settings.beta_schedule == "squaredcos_cap_v2" else TIGHT


def on_levels_of(scheduler: Any, settings: DiffusionConfig, schedule_name: str) -> Any:
    """The scheduler with the noise levels of diffusers' own EulerDiscreteScheduler, which knows every spacing."""
    karras = schedule_name == "karras"
    euler = published(EulerDiscreteScheduler, settings, use_karras_sigmas=karras)
    euler.set_timesteps(STEPS)
    scheduler.set_timesteps(STEPS)
    scheduler.sigmas, scheduler.timesteps = euler.sigmas, euler.timesteps
    return scheduler


def ancestral(settings: DiffusionConfig) -> Any:
    """diffusers' ancestral Euler; it has no sample prediction, which `sample_as_eps` then turns into eps."""
    scheduler = published(EulerAncestralDiscreteScheduler, settings)
    if settings.prediction_type == "sample":
        scheduler.register_to_config(prediction_type="epsilon")
    return scheduler


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddpm_is_ddpm_scheduler(
    betas: BetaSchedule, prediction: PredictionType, spacing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(betas, prediction, spacing)
    scheduler = published(DDPMScheduler, settings, clip_sample=False)
    scheduler.set_timesteps(STEPS)
    theirs = their_states(scheduler, exploding=False, monkeypatch=monkeypatch)
    assert_same_walk(our_states("ddpm", settings, spacing), theirs, tolerance_for(settings))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_ddim_scheduler(
    betas: BetaSchedule, prediction: PredictionType, spacing: str, eta: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(betas, prediction, spacing)
    # set_alpha_to_one: the last step goes to the clean estimate, as ours does.
    scheduler = published(DDIMScheduler, settings, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    theirs = their_states(scheduler, exploding=False, monkeypatch=monkeypatch, eta=eta)
    assert_same_walk(our_states("ddim", settings, spacing, eta=eta), theirs, tolerance_for(settings))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", ["leading", "trailing", "linspace", "karras"])
def test_euler_is_euler_discrete_scheduler(
    betas: BetaSchedule, prediction: PredictionType, schedule_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(betas, prediction, "leading" if schedule_name == "karras" else schedule_name)
    scheduler = published(EulerDiscreteScheduler, settings, use_karras_sigmas=schedule_name == "karras")
    scheduler.set_timesteps(STEPS)
    theirs = their_states(scheduler, exploding=True, monkeypatch=monkeypatch)
    assert_same_walk(our_states("euler", settings, schedule_name), theirs, tolerance_for(settings))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", ["leading", "trailing", "linspace", "karras"])
def test_euler_a_is_euler_ancestral_discrete_scheduler(
    betas: BetaSchedule, prediction: PredictionType, schedule_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(betas, prediction, "trailing" if schedule_name == "karras" else schedule_name)
    scheduler = on_levels_of(ancestral(settings), settings, schedule_name)
    theirs = their_states(
        scheduler, exploding=True, monkeypatch=monkeypatch, sample_as_eps=settings.prediction_type == "sample"
    )
    assert_same_walk(our_states("euler_a", settings, schedule_name), theirs, tolerance_for(settings))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule_name", ["leading", "trailing", "linspace", "karras"])
def test_dpmpp_2m_is_dpm_solver_multistep_scheduler(
    betas: BetaSchedule, prediction: PredictionType, schedule_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(betas, prediction, "trailing" if schedule_name == "karras" else schedule_name)
    scheduler = published(
        DPMSolverMultistepScheduler,
        settings,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="zero",  # the last step goes to the clean estimate at first order, as ours does
    )
    scheduler = on_levels_of(scheduler, settings, schedule_name)
    scheduler.set_begin_index(0)
    theirs = their_states(scheduler, exploding=False, monkeypatch=monkeypatch)
    assert_same_walk(our_states("dpmpp_2m", settings, schedule_name), theirs, tolerance_for(settings))


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
@pytest.mark.parametrize("sampler", ["euler", "euler_a"])
def test_zero_terminal_snr_starts_where_diffusers_euler_does(
    betas: BetaSchedule, prediction: PredictionType, sampler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The infinite sigma is clamped to the same finite one, 4096, at the same timestep, 999."""
    settings = config(betas, prediction, "trailing", zero_snr=True)
    scheduler = published(EulerDiscreteScheduler, settings) if sampler == "euler" else ancestral(settings)
    scheduler.set_timesteps(STEPS)
    theirs = their_states(
        scheduler,
        exploding=True,
        monkeypatch=monkeypatch,
        sample_as_eps=sampler == "euler_a" and prediction == "sample",
    )
    ours = our_states(sampler, settings, "trailing")
    assert ours[1][0] == 999
    # float32 resolves x at sigma 4096 to 5e-4; the first step goes down to sigma 6 or more.
    assert_same_walk(ours, theirs, 1e-4)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_close_to_diffusers_exact_ddim(
    betas: BetaSchedule, prediction: PredictionType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """diffusers' DDIM keeps abar = 0 at the last timestep, which sigma coordinates cannot."""
    settings = config(betas, prediction, "trailing", zero_snr=True)
    scheduler = published(DDIMScheduler, settings, clip_sample=False, set_alpha_to_one=True)
    scheduler.set_timesteps(STEPS)
    theirs = their_states(scheduler, exploding=False, monkeypatch=monkeypatch)
    assert_same_walk(our_states("ddim", settings, "trailing"), theirs, CLAMPED)

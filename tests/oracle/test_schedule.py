"""NoiseSchedule against diffusers' tables, timesteps and noise levels."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from diffusers.schedulers import AysSchedules

from latentgen.config import BetaSchedule, DiffusionConfig, TimestepSpacing
from latentgen.diffusion.guidance import guide, rescale_guided
from latentgen.diffusion.schedule import NoiseSchedule

BETAS = get_args(BetaSchedule)
SPACINGS = get_args(TimestepSpacing)
FLOAT32_TABLE = 5e-4
"""Theirs are float32: at t = 0 of the cosine schedule 1 - abar = 4e-5 is resolved to 3e-8, and sigma is its root."""


def both(scheduler: Any, **settings: Any) -> tuple[NoiseSchedule, Any]:
    """Ours and diffusers' of the same settings."""
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction", **settings}
    ours = {name: value for name, value in settings.items() if not name.startswith(("use_", "final_"))}
    return NoiseSchedule.from_config(DiffusionConfig(**ours)), scheduler(num_train_timesteps=1000, **settings)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_tables(betas: BetaSchedule, zero_snr: bool) -> None:
    ours, theirs = both(DDPMScheduler, beta_schedule=betas, rescale_betas_zero_snr=zero_snr)
    # Theirs are float32: up to 6e-8 a rounding; rescaling divides two rounded abar, near each other and near 0.
    torch.testing.assert_close(ours.betas, theirs.betas.double(), rtol=0, atol=1e-5 if zero_snr else 6e-8)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("offset", [0, 1])
def test_every_number_of_timesteps(spacing: TimestepSpacing, offset: int) -> None:
    """Exactly diffusers' for n = 1 .. 1000, but where those leave 0 .. 999, which is a fault there."""
    ours, theirs = both(DDIMScheduler, beta_schedule="linear", timestep_spacing=spacing, steps_offset=offset)
    for n in range(1, 1001):
        theirs.set_timesteps(n)
        wanted = theirs.timesteps
        if spacing == "trailing" and len(wanted) == n + 1:
            assert wanted[-1] == -1, "numpy.arange rounded its end up: one timestep too many"
            wanted = wanted[:-1]
        if spacing == "leading" and offset == 1 and n == 1000:
            assert wanted[0] == 1000, "the offset moved the first timestep out of the table"
            wanted = wanted - 1
        assert torch.equal(ours.timesteps(n, spacing), wanted), f"n = {n}"


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [2, 10, 28])
def test_sigmas_and_the_timesteps_they_belong_to(betas: BetaSchedule, spacing: TimestepSpacing, n: int) -> None:
    ours, theirs = both(
        EulerDiscreteScheduler,
        beta_schedule=betas,
        timestep_spacing=spacing,
        steps_offset=1 if spacing == "leading" else 0,
    )
    if spacing == "linspace":
        # diffusers' Euler takes fractional timesteps here; ours are the integers that its DDIM takes.
        wanted_t = torch.from_numpy(np.linspace(0, 999, n).round()[::-1].copy())
        table = ((1 - theirs.alphas_cumprod) / theirs.alphas_cumprod).sqrt()
        wanted_sigmas = torch.cat([table[wanted_t.long()], torch.zeros(1)])
    else:
        theirs.set_timesteps(n)
        wanted_sigmas, wanted_t = theirs.sigmas, theirs.timesteps.double()
    sigmas = ours.inference_sigmas(n, spacing)
    assert sigmas.dtype == torch.float32
    assert sigmas[-1] == 0
    torch.testing.assert_close(sigmas, wanted_sigmas, rtol=FLOAT32_TABLE, atol=0)
    assert torch.equal(ours.sigma_to_t(sigmas[:-1]), wanted_t)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("name", ["karras", "exponential"])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [2, 10, 28])
def test_karras_and_exponential(betas: BetaSchedule, name: str, spacing: TimestepSpacing, n: int) -> None:
    """Whatever the spacing, from one end of the table to the other, as in k-diffusion and here. Fractional timesteps
    are those of diffusers' Euler, whose levels have these ends when its timesteps do."""
    asked = {"beta_schedule": betas, f"use_{name}_sigmas": True}
    ours, theirs = both(DPMSolverMultistepScheduler, timestep_spacing=spacing, final_sigmas_type="zero", **asked)
    _, euler = both(EulerDiscreteScheduler, timestep_spacing="linspace", **asked)
    theirs.set_timesteps(n)
    euler.set_timesteps(n)
    sigmas = ours.inference_sigmas(n, name)
    torch.testing.assert_close(sigmas, theirs.sigmas, rtol=FLOAT32_TABLE, atol=0)
    torch.testing.assert_close(sigmas, euler.sigmas, rtol=FLOAT32_TABLE, atol=0)
    # Their sigma's error moves t by that over the slope of log sigma, at least 3e-3 a timestep.
    torch.testing.assert_close(ours.sigma_to_t(sigmas[:-1]), euler.timesteps.double(), rtol=0, atol=0.1)


@pytest.mark.parametrize("n", [2, 10, 28])
def test_uniform(n: int) -> None:
    """diffusers' Euler takes the same fractional timesteps, but interpolates sigma where k-diffusion does log sigma."""
    ours, theirs = both(EulerDiscreteScheduler, beta_schedule="scaled_linear", timestep_spacing="linspace")
    theirs.set_timesteps(n)
    sigmas = ours.inference_sigmas(n, "uniform")
    torch.testing.assert_close(ours.sigma_to_t(sigmas[:-1]), theirs.timesteps.double(), rtol=0, atol=1e-3)
    torch.testing.assert_close(sigmas, theirs.sigmas, rtol=1e-4, atol=0)


def test_align_your_steps() -> None:
    sigmas = NoiseSchedule.from_config(DiffusionConfig()).inference_sigmas(10, "align_your_steps")
    torch.testing.assert_close(sigmas, torch.tensor(AysSchedules["StableDiffusionSigmas"]))


@pytest.mark.parametrize("betas", BETAS)
def test_zero_terminal_snr_sigma(betas: BetaSchedule) -> None:
    """The infinite sigma is sampled where diffusers samples it, and still belongs to the last timestep."""
    ours, theirs = both(
        EulerDiscreteScheduler, beta_schedule=betas, timestep_spacing="trailing", rescale_betas_zero_snr=True
    )
    theirs.set_timesteps(10)
    sigmas = ours.inference_sigmas(10, "trailing")
    torch.testing.assert_close(sigmas, theirs.sigmas, rtol=1e-4, atol=0)
    assert torch.equal(ours.sigma_to_t(sigmas[:-1]), theirs.timesteps.double())


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("zero_snr", [False, True])
def test_forward_process_and_velocity(betas: BetaSchedule, zero_snr: bool) -> None:
    ours, theirs = both(DDPMScheduler, beta_schedule=betas, rescale_betas_zero_snr=zero_snr)
    generator = torch.Generator().manual_seed(0)
    latents, eps = torch.randn(2, 5, 3, 4, 4, generator=generator)
    t = torch.tensor([0, 1, 500, 998, 999])
    # Values up to 3, float32 tables: 1 - abar = 4e-5 at t = 0 is off by 6e-8, its root by 6e-8 / (2 sqrt(4e-5)) = 5e-6;
    # at t = 998 of a rescaled schedule sqrt(abar) is a small difference, off by 1e-5.
    torch.testing.assert_close(ours.add_noise(latents, eps, t), theirs.add_noise(latents, eps, t), rtol=0, atol=5e-5)
    torch.testing.assert_close(ours.velocity(latents, eps, t), theirs.get_velocity(latents, eps, t), rtol=0, atol=5e-5)


@pytest.mark.parametrize("n", [2, 10, 20, 30, 50])
def test_a_truncated_run_is_the_image_to_image_pipelines(n: int) -> None:
    """Every hundredth of strength: the levels of the timesteps that StableDiffusionImg2ImgPipeline runs."""
    ours, theirs = both(
        EulerDiscreteScheduler, beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
    )
    theirs.set_timesteps(n)
    pipeline = SimpleNamespace(scheduler=theirs)
    sigmas = ours.inference_sigmas(n, "leading")
    for hundredths in range(1, 101):
        timesteps, steps = StableDiffusionImg2ImgPipeline.get_timesteps(pipeline, n, hundredths / 100, "cpu")
        tail = ours.truncate(sigmas, hundredths / 100)
        if steps == 0:  # theirs then refuses; ours runs the last step
            assert len(tail) == 2
            continue
        assert len(tail) == steps + 1
        assert torch.equal(ours.sigma_to_t(tail[:-1]), timesteps.double())


def test_rescaled_guidance_is_rescale_noise_cfg() -> None:
    cond, uncond = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    guided = guide(cond, 0.5 * uncond + cond, 7.5)
    for phi in (0.0, 0.3, 0.7, 1.0):
        torch.testing.assert_close(rescale_guided(guided, cond, phi), rescale_noise_cfg(guided, cond, phi))

"""Training targets and min-SNR weights against diffusers' training code."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from latentgen.config import BetaSchedule, DiffusionConfig, PredictionType
from latentgen.diffusion.losses import diffusion_loss, min_snr_weights, training_target
from latentgen.diffusion.schedule import NoiseSchedule

BETAS = get_args(BetaSchedule)
GAMMA = 5.0


def both(betas: BetaSchedule) -> tuple[NoiseSchedule, DDPMScheduler]:
    ours = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=betas))
    return ours, DDPMScheduler(beta_schedule=betas, beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize("betas", BETAS)
def test_snr(betas: BetaSchedule) -> None:
    ours, theirs = both(betas)
    t = torch.arange(1000)
    # Theirs in float32: 1 - abar at t = 0 is 4e-5 for the cosine schedule, resolved to 6e-8 / 4e-5 = 1.5e-3.
    torch.testing.assert_close(ours.snr(t), compute_snr(theirs, t), rtol=3e-3, atol=0)


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("prediction", get_args(PredictionType))
def test_min_snr_loss(betas: BetaSchedule, prediction: PredictionType) -> None:
    """The weighted loss of diffusers' `train_text_to_image.py` for eps and v; for x_0 the paper's min(SNR, gamma)."""
    ours, theirs = both(betas)
    generator = torch.Generator().manual_seed(3)
    latents, eps, guess = torch.randn(3, 6, 4, 5, 5, generator=generator)
    t = torch.tensor([0, 10, 300, 600, 900, 999])

    snr = compute_snr(theirs, t)
    clipped = torch.stack([snr, GAMMA * torch.ones_like(t)], dim=1).min(dim=1)[0]
    target, weights = {
        "epsilon": (eps, clipped / snr),
        "v_prediction": (theirs.get_velocity(latents, eps, t), clipped / (snr + 1)),
        "sample": (latents, clipped),
    }[prediction]
    wanted = F.mse_loss(guess, target, reduction="none").mean(dim=(1, 2, 3)) * weights

    target = training_target(ours, prediction, latents, eps, t)
    loss = diffusion_loss(guess, target, min_snr_weights(ours, prediction, t, GAMMA))
    # As for the SNR itself, whose error at t = 0 the weight gamma / SNR carries over.
    torch.testing.assert_close(loss, wanted, rtol=3e-3, atol=0)

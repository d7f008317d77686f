"""What the U-Net learns to predict, and how wrong a prediction is."""

from __future__ import annotations

import torch
from torch import Tensor

from latentgen.config import PredictionType
from latentgen.diffusion.schedule import NoiseSchedule


def training_target(
    schedule: NoiseSchedule, prediction_type: PredictionType, latents: Tensor, eps: Tensor, t: Tensor
) -> Tensor:
    """What the network should answer to `schedule.add_noise(latents, eps, t)`; the shape of `latents` (B, ...)."""
    if prediction_type == "epsilon":
        return eps
    if prediction_type == "v_prediction":
        return schedule.velocity(latents, eps, t)
    return latents


def diffusion_loss(prediction: Tensor, target: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean squared error of each sample, (B,) float32, times its weight (B,) if given; its mean is the loss.

    With eps as the target and no weights the mean is DDPM's L_simple (arXiv:2006.11239, eq. 14). Always in float32:
    half precision loses the small errors of the nearly clean timesteps.
    """
    assert prediction.shape == target.shape, f"prediction {tuple(prediction.shape)} against {tuple(target.shape)}"
    per_sample = (prediction.float() - target.float()).square().flatten(1).mean(dim=1)
    return per_sample if weights is None else per_sample * weights.to(per_sample)


def min_snr_weights(schedule: NoiseSchedule, prediction_type: PredictionType, t: Tensor, gamma: float = 5.0) -> Tensor:
    """Min-SNR-gamma weights (B,) float32 for timesteps t (B,), arXiv:2303.09556 section 3.4.

    The paper weights the x_0 error by min(SNR, gamma). The eps error is SNR times the x_0 error and the v error SNR + 1
    times, so their weights are divided by that. gamma / max(SNR, gamma) is min(SNR, gamma) / SNR without its 0 / 0 at
    zero terminal SNR.
    """
    snr = schedule.snr(t)
    if prediction_type == "epsilon":
        return gamma / torch.clamp(snr, min=gamma)
    clipped = torch.clamp(snr, max=gamma)
    return clipped / (snr + 1.0) if prediction_type == "v_prediction" else clipped

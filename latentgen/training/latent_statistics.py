"""What the latents of a trained VAE are like, and how its weights or its config make them of unit size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from latentgen.config import VAEConfig
from latentgen.data.pixels import Pictures, to_float
from latentgen.errors import ConfigError
from latentgen.models.vae import AutoencoderKL


@torch.inference_mode()
def latent_statistics(vae: AutoencoderKL, pixels: Pictures, items: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Per-channel mean and standard deviation of the posterior mean over these pictures: two (C,) float32.

    The posterior's own variance is left out, as the U-Net learns from its mean: at rare places an unregularised
    log-variance runs off, and a few of them would outweigh a whole channel.
    """
    weight = next(vae.parameters())
    count = 0
    total = torch.zeros(vae.config.latent_channels, dtype=torch.float64)
    squares = torch.zeros_like(total)
    for item in items:
        mean = vae.encode(to_float(pixels.batch([item])).to(weight))[0].double().cpu()
        total += mean.sum(dim=(0, 2, 3))
        squares += mean.square().sum(dim=(0, 2, 3))
        count += mean[:, 0].numel()
    average = total / count
    return average.float(), (squares / count - average.square()).sqrt().float()


@torch.no_grad()
def fold_latent_statistics(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> VAEConfig:
    """Make every latent channel zero-mean and unit-variance, without changing what the autoencoder reconstructs.

    The published formats carry one scaling factor for all channels. A per-channel affine map z' = (z - mean) / std can
    instead be folded into the two 1x1 convolutions around the latent, exactly: quant_conv's rows are scaled and
    shifted, post_quant_conv's columns undo it. Returns the config with scaling_factor 1.
    Raises ConfigError for a VAE without quant_conv and post_quant_conv.
    """
    quant, post = vae.quant_conv, vae.post_quant_conv
    if quant is None or post is None:
        raise ConfigError("folding the latent statistics needs quant_conv and post_quant_conv")
    channels = vae.config.latent_channels
    mean, std = mean.to(quant.weight), std.to(quant.weight)
    # Rows [0, C) of quant_conv give the mean, rows [C, 2C) the log-variance.
    bias = bias_of(quant)
    quant.weight[:channels] /= std[:, None, None, None]
    bias[:channels] = (bias[:channels] - mean) / std
    bias[channels:] -= 2 * std.log()
    bias_of(post).add_((post.weight[:, :, 0, 0] * mean).sum(dim=1))
    post.weight *= std[None, :, None, None]
    return replace(vae.config, scaling_factor=1.0, shift_factor=0.0)


def measured_scaling(config: VAEConfig, mean: Tensor, std: Tensor) -> VAEConfig:
    """The config with one scaling factor, 1 / std over all channels and places; the weights stay as they are.

    Source: LDM, arXiv:2112.10752, appendix G ("rescaling the latents by their component-wise standard deviation"). Each
    channel has as many values, so the total variance is the mean of the variances and the variance of the means.
    """
    variance = std.double().square().mean() + mean.double().var(correction=0)
    return replace(config, scaling_factor=float(variance.rsqrt()), shift_factor=0.0)


def bias_of(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None, "the published convolutions have biases"
    return convolution.bias

"""What the latents of a trained VAE are like, and how its weights or its config make them of unit size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from latentgen.config import VAEConfig
from latentgen.data.pixels import Pictures, to_float
from latentgen.errors import ConfigError
from latentgen.models.vae import AutoencoderKL

PROBE_SPACING = 4
"""Places between two that are changed together: far enough for their effects to lie apart."""
PROBE_SIZE = 0.3
"""Of a change, in standard deviations."""
ENERGY_EXPONENT = 0.5
"""0 would be unit variance for all components, 1 the variance of the picture that they make."""
LEAST_ENERGY = 1e-7
"""Share of the energy that a component counts as having. None may vanish, but what cannot be predicted of a component
adds its standard deviation to the loss of v-prediction, so one that shows nothing is to be small: 0.05 on our VAE."""


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


def fold_latent_statistics(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> VAEConfig:
    """Make every latent channel zero-mean and unit-variance, without changing what the autoencoder reconstructs.

    The published formats carry one scaling factor for all channels. A per-channel affine map z' = (z - mean) / std can
    instead be folded into the two 1x1 convolutions around the latent, exactly: quant_conv's rows are scaled and
    shifted, post_quant_conv's columns undo it. Returns the config with scaling_factor 1.
    Raises ConfigError for a VAE without quant_conv and post_quant_conv.
    """
    quant, _ = _convolutions(vae)
    channels, std = vae.config.latent_channels, std.to(quant.weight)
    logvar_weight, logvar_bias = quant.weight[channels:].clone(), bias_of(quant)[channels:].clone()
    config = fold_latent_map(vae, mean, torch.diag(1 / std.double()), torch.zeros(channels))
    # A scale moves the log-variance, whatever the picture; this keeps it exact.
    with torch.no_grad():
        quant.weight[channels:] = logvar_weight
        bias_of(quant)[channels:] = logvar_bias - 2 * std.log()
    return config


@torch.no_grad()
def fold_latent_map(vae: AutoencoderKL, mean: Tensor, linear: Tensor, logvar: Tensor) -> VAEConfig:
    """Make the latents z' = linear (z - mean), without changing what the autoencoder reconstructs from their mean.

    mean (C,), linear (C, C) invertible, logvar (C,): what the posterior's log-variance is from now on, at every place;
    a variance along old axes has no exact form along new ones. Returns the config with scaling_factor 1.
    Raises ConfigError for a VAE without quant_conv and post_quant_conv.
    """
    quant, post = _convolutions(vae)
    channels = vae.config.latent_channels
    mean, linear = (each.to(quant.weight.device, torch.float64) for each in (mean, linear))  # were measured on the CPU
    bias = bias_of(quant)
    # Rows [0, C) of quant_conv give the mean, rows [C, 2C) the log-variance.
    quant.weight[:channels] = (linear @ quant.weight[:channels].flatten(1).double()).to(quant.weight)[..., None, None]
    bias[:channels] = (linear @ (bias[:channels].double() - mean)).to(bias)
    quant.weight[channels:] = 0
    bias[channels:] = logvar.to(bias)
    decoded = post.weight[:, :, 0, 0].double()
    bias_of(post).add_((decoded @ mean).to(bias))
    post.weight[:, :, 0, 0] = (decoded @ linear.inverse()).to(post.weight)
    return replace(vae.config, scaling_factor=1.0, shift_factor=0.0)


@dataclass(frozen=True, slots=True)
class LatentGeometry:
    """How latents vary, and what that does to pictures. float64."""

    mean: Tensor
    """(C,)"""
    covariance: Tensor
    """(C, C), of the posterior means over pictures and places."""
    metric: Tensor
    """(C, C): a small change d of the latents at one place changes the picture by d^T metric d, summed over pixels."""
    variance: Tensor
    """(C,): the posterior's own, on the (geometric) average."""


@torch.inference_mode()
def latent_geometry(vae: AutoencoderKL, pixels: Pictures, items: Sequence[int]) -> LatentGeometry:
    """Measured on these pictures; the metric by what the decoder makes of changes at every fourth place."""
    weight, channels = next(vae.parameters()), vae.config.latent_channels
    means: list[Tensor] = []
    logvars: list[Tensor] = []
    metric = torch.zeros(channels, channels, dtype=torch.float64)
    places = 0
    for item in items:
        mean, logvar = vae.encode(to_float(pixels.batch([item])).to(weight))
        columns = mean.movedim(1, -1).flatten(0, -2).double().cpu()
        means.append(columns)
        logvars.append(logvar.movedim(1, -1).flatten(0, -2).double().cpu())
        spots = torch.zeros_like(mean[:1, :1])
        spots[..., PROBE_SPACING // 2 :: PROBE_SPACING, PROBE_SPACING // 2 :: PROBE_SPACING] = 1
        size = PROBE_SIZE * columns.std(dim=0).clamp(min=1e-6)
        before = vae.decode(mean)
        rows = [
            ((vae.decode(mean + spots * _unit(mean, c) * float(size[c])) - before) / float(size[c])).flatten()
            for c in range(channels)
        ]
        responses = torch.stack(rows).double().cpu()
        metric += responses @ responses.T
        places += int(spots.sum())
    columns = torch.cat(means)
    return LatentGeometry(
        columns.mean(dim=0), torch.cov(columns.T).reshape(channels, channels), metric / places,
        torch.cat(logvars).mean(dim=0).exp(),
    )  # fmt: skip


def energy_map(geometry: LatentGeometry) -> tuple[Tensor, Tensor]:
    """A linear map (C, C) to latents that count as they show, and the log-variance (C,) of the posterior there.

    The new components are uncorrelated, and ordered by their energy: the mean squared change that they make in the
    picture. Their variance is the square root of their share of it, and 1 on average. Where all channels have unit
    variance, a diffusion model spends as much on one that the decoder ignores as on one that is the picture; measured
    on our VAE, 2 of 16 components had 84 % of the energy and 5 none, and channels were correlated by up to 0.84.
    """
    channels = len(geometry.mean)
    ridge = 1e-9 * geometry.covariance.diagonal().mean() * torch.eye(channels, dtype=torch.float64)
    root = torch.linalg.cholesky(geometry.covariance + ridge)
    energies, axes = torch.linalg.eigh(root.T @ geometry.metric @ root)
    energies, axes = energies.flip(0), axes.flip(1)
    variances = (energies / energies.sum()).clamp(min=LEAST_ENERGY) ** ENERGY_EXPONENT
    variances /= variances.mean()
    linear = variances.sqrt()[:, None] * axes.T @ torch.linalg.inv(root)
    return linear, (linear.square() @ geometry.variance).log()


def _unit(mean: Tensor, channel: int) -> Tensor:
    """(1, C, 1, 1), 1 in one channel."""
    unit = mean.new_zeros(1, mean.shape[1], 1, 1)
    unit[0, channel] = 1
    return unit


def _convolutions(vae: AutoencoderKL) -> tuple[nn.Conv2d, nn.Conv2d]:
    if vae.quant_conv is None or vae.post_quant_conv is None:
        raise ConfigError("folding the latent statistics needs quant_conv and post_quant_conv")
    return vae.quant_conv, vae.post_quant_conv


def measured_scaling(config: VAEConfig, mean: Tensor, std: Tensor) -> VAEConfig:
    """The config with one scaling factor, 1 / std over all channels and places; the weights stay as they are.

    Source: LDM, arXiv:2112.10752, appendix G ("rescaling the latents by their component-wise standard deviation"). Each
    channel has as many values, so the total variance is the mean of the variances and the variance of the means.
    """
    variance = std.double().square().mean() + mean.double().var(correction=0)
    return replace(config, scaling_factor=float(variance.rsqrt()), shift_factor=0.0)


def scale_latents(
    vae: AutoencoderKL, pixels: Pictures, items: Sequence[int], method: Literal["fold", "energy", "measured"]
) -> VAEConfig:
    """Bring the latents to unit size in one of these ways, as they are over some pictures; the new config."""
    if method == "energy":
        geometry = latent_geometry(vae, pixels, items[:: max(1, len(items) // 48)])
        linear, logvar = energy_map(geometry)
        return fold_latent_map(vae, geometry.mean, linear, logvar)
    mean, std = latent_statistics(vae, pixels, items)
    return fold_latent_statistics(vae, mean, std) if method == "fold" else measured_scaling(vae.config, mean, std)


def bias_of(convolution: nn.Conv2d) -> Tensor:
    assert convolution.bias is not None, "the published convolutions have biases"
    return convolution.bias

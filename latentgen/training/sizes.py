"""Picture sides that training can use, checked before anything is computed: no torch here."""

from __future__ import annotations

from collections.abc import Sequence

from latentgen.config import ModelConfig, VAEConfig
from latentgen.errors import ConfigError

DISCRIMINATOR_LAYERS = 3
"""Layers of the patch discriminator that halve the side (`training/discriminator.py`)."""
DISCRIMINATOR_WIDTH = 64
"""Channels of its first layer."""
DISCRIMINATOR_NORM_GROUPS = 8


LPIPS_LEAST_PX = 16
"""VGG16 halves the side four times before the last features that LPIPS compares."""


def check_vae_settings(
    config: VAEConfig,
    *,
    crop_px: int,
    side_px: int,
    discriminator: bool = False,
    lpips: bool = False,
    equivariance: bool = False,
) -> None:
    """Raise ConfigError for sides that the VAE cannot halve, or crops in which there is nothing to judge.

    equivariance: crops are decoded at half their side and more.
    """
    _check_multiple("--resolution", side_px, config.downscale, "this VAE halves them")
    _check_multiple("--crop", crop_px, config.downscale, "this VAE halves them")
    if crop_px > side_px:
        raise ConfigError(f"--crop {crop_px} is larger than the pictures, {side_px} px", hint="raise --resolution")
    if config.latent_channels > config.block_out_channels[-1]:
        raise ConfigError(
            f"{config.latent_channels} latent channels cannot come from {config.block_out_channels[-1]} features",
            hint="lower --latent-channels, or widen the last of --channels",
        )
    latent_side = crop_px // config.downscale
    decoded_px = config.downscale * (-(-latent_side // 2) if equivariance else latent_side)
    judged = f"--crop {crop_px}" + (
        f", made smaller by --equivariance down to {decoded_px} px," if equivariance else ""
    )
    least_px = 3 * 2**DISCRIMINATOR_LAYERS  # each of its last two convolutions takes one off three
    if discriminator and decoded_px < least_px:
        raise ConfigError(f"{judged} holds no patch for the discriminator: it takes at least {least_px} px")
    if lpips and decoded_px < LPIPS_LEAST_PX:
        raise ConfigError(f"{judged} is too small for LPIPS: it takes at least {LPIPS_LEAST_PX} px")


def check_crop_fits(crop_px: int, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise ConfigError when a picture of the set, (height, width) each, is too small for the crop."""
    least_px = min(min(shape) for shape in shapes)
    if crop_px > least_px:
        raise ConfigError(
            f"--crop {crop_px} is larger than the shortest side of the pictures, {least_px} px", hint="lower --crop"
        )


def check_patches(side_px: int, patch_px: int) -> None:
    """Raise ConfigError when pictures of this side do not split into whole patches."""
    _check_multiple("--resolution", side_px, patch_px, "the image tower cuts them into patches")


def check_unet_side(model: ModelConfig, side_px: int) -> None:
    """Raise ConfigError when the VAE and the U-Net together cannot halve pictures of this side."""
    _check_multiple("--resolution", side_px, model.size_multiple_px, "the VAE and the U-Net halve them")


def _check_multiple(option: str, side_px: int, multiple_px: int, why: str) -> None:
    if side_px < multiple_px or side_px % multiple_px:
        lower = max(side_px // multiple_px, 1) * multiple_px
        raise ConfigError(
            f"{option} {side_px}: sides are multiples of {multiple_px}, because {why}",
            hint=f"nearest: {lower}, {lower + multiple_px}",
        )

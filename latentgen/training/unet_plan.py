"""What a U-Net run will train, decided from config files alone, before torch is imported or a weight is read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

from latentgen.checkpoints.layout import find_defaults, read_diffusion, read_unet_part
from latentgen.config import (
    BetaSchedule,
    DiffusionConfig,
    ModelConfig,
    PredictionType,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from latentgen.errors import InputError
from latentgen.training.sizes import check_unet_side

BETA_ENDS: Final[dict[BetaSchedule, tuple[float, float]]] = {
    "linear": (1e-4, 0.02),
    "scaled_linear": (0.00085, 0.012),
}
"""First and last beta: DDPM's (arXiv:2006.11239, section 4), latent diffusion's; the cosine schedule has none."""


def plan_model(
    base: ModelConfig,
    init: Path | None,
    vae: VAEConfig,
    text: TextEncoderConfig,
    *,
    resolution: int | None,
    prediction_type: PredictionType | None,
    beta_schedule: BetaSchedule | None,
    zero_terminal_snr: bool,
) -> ModelConfig:
    """The model that training makes: of `init`'s shape and settings, or of `base`'s fitted to the VAE and the text.

    resolution: side of the pictures in pixels; None for that at which `init` or `base` draws. prediction_type and
    beta_schedule: None for those of `init` or `base`.
    Raises ModelNotFoundError or ModelLoadError for an `init` without a sound U-Net, InputError for one that cannot be
    trained or does not fit, ConfigError for a resolution that the networks cannot halve.
    """
    if init is None:
        unet = replace(
            base.unet,
            in_channels=vae.latent_channels,
            out_channels=vae.latent_channels,
            cross_attention_dim=text.hidden_size,
        )
        before, defaults = base.diffusion, base.defaults
    else:
        unet, before = _unet_of(init), read_diffusion(init)
        defaults = find_defaults(init, unet.sample_size * vae.downscale)
    resolution = defaults.width_px if resolution is None else resolution
    diffusion = _changed(before, prediction_type, beta_schedule, zero_terminal_snr)
    defaults = replace(defaults, width_px=resolution, height_px=resolution)
    if diffusion.usual_schedule != before.usual_schedule:
        defaults = replace(defaults, schedule=diffusion.usual_schedule)
    unet = replace(unet, sample_size=resolution // vae.downscale)
    model = ModelConfig(unet, vae, text, diffusion, defaults)
    check_unet_side(model, resolution)
    return model


def _unet_of(init: Path) -> UNetConfig:
    unet = read_unet_part(init)
    if unet.in_channels != unet.out_channels:
        raise InputError(
            f"--init {init}: its U-Net takes {unet.in_channels} channels and predicts {unet.out_channels}, as those "
            "for inpainting do",
            hint="train-unet trains text-to-image models",
        )
    return unet


def _changed(
    diffusion: DiffusionConfig,
    prediction_type: PredictionType | None,
    beta_schedule: BetaSchedule | None,
    zero_terminal_snr: bool,
) -> DiffusionConfig:
    """The forward process with what the options say otherwise."""
    prediction_type = diffusion.prediction_type if prediction_type is None else prediction_type
    zero_terminal_snr = zero_terminal_snr or diffusion.rescale_betas_zero_snr
    if zero_terminal_snr and prediction_type == "epsilon":
        raise InputError(
            "with zero terminal SNR the last step is all noise, from which eps tells nothing of the picture",
            hint="add --prediction-type v_prediction, or sample",
        )
    if beta_schedule is not None and beta_schedule != diffusion.beta_schedule:
        first, last = BETA_ENDS.get(beta_schedule, (diffusion.beta_start, diffusion.beta_end))
        diffusion = replace(diffusion, beta_schedule=beta_schedule, beta_start=first, beta_end=last)
        ends_in_noise = beta_schedule == "squaredcos_cap_v2"
    else:
        ends_in_noise = False
    if zero_terminal_snr or ends_in_noise:
        # The first step of drawing must be the last of training (arXiv:2305.08891, section 3.3).
        diffusion = replace(diffusion, timestep_spacing="trailing", steps_offset=0)
    # Both at once: eps with zero terminal SNR is refused at birth.
    return replace(diffusion, prediction_type=prediction_type, rescale_betas_zero_snr=zero_terminal_snr)

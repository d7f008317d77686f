"""What an autoencoder loses, measured on pictures it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from latentgen.data.pixels import to_float
from latentgen.images.pixels import Pixels, to_pixels
from latentgen.images.similarity import psnr_db, ssim
from latentgen.models.vae import AutoencoderKL

LOGVAR_LIMIT: Final = 0.0
"""Above it the posterior is wider than the prior: its variance has run off there, and sampled latents are noise."""


@dataclass(frozen=True, slots=True)
class AutoencoderFigures:
    """Means over the pictures, and how often the posterior's log-variance runs off."""

    pictures: int
    psnr_db: float
    psnr_db_lowest: float
    ssim: float
    overflow_pictures: int
    """Pictures with a log-variance above LOGVAR_LIMIT anywhere."""
    overflow_places: int
    """Such values in all."""
    logvar_max: float


@torch.inference_mode()
def measure_autoencoder(vae: AutoencoderKL, pictures: Iterable[Pixels]) -> AutoencoderFigures:
    """Encode to the posterior's mean, decode, compare bytes. `pictures` are (H, W, 3) on the model's grid.

    There must be at least one.
    """
    weight = next(vae.parameters())
    psnrs: list[float] = []
    ssims: list[float] = []
    overflows: list[int] = []
    highest = -float("inf")
    for picture in pictures:
        original = torch.from_numpy(picture.copy())
        mean, logvar = vae.encode(to_float(original[None]).to(weight))
        again = torch.from_numpy(to_pixels(vae.decode(mean)[0]))
        psnrs.append(psnr_db(original, again))
        ssims.append(ssim(original, again))
        overflows.append(int((logvar > LOGVAR_LIMIT).sum()))
        highest = max(highest, float(logvar.max()))
    return AutoencoderFigures(
        pictures=len(psnrs),
        psnr_db=round(sum(psnrs) / len(psnrs), 3),
        psnr_db_lowest=round(min(psnrs), 3),
        ssim=round(sum(ssims) / len(ssims), 5),
        overflow_pictures=sum(count > 0 for count in overflows),
        overflow_places=sum(overflows),
        logvar_max=round(highest, 3),
    )

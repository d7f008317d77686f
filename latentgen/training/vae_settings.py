"""What train-vae minimises, in numbers: checked before torch is imported."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from latentgen.errors import ConfigError


@dataclass(frozen=True, slots=True)
class VAELossWeights:
    """Terms of the loss, each a mean over its tensor's elements. Raises ConfigError for what is no weight."""

    reconstruction: Literal["l1", "l2"] = "l1"
    """Error of the pixels in [-1, 1], absolute or squared; its weight is 1."""
    gradient: float = 1.0
    """L1 between horizontal and vertical pixel differences: keeps edges sharp."""
    kl: float = 1e-6
    """KL(q(z|x) || N(0, 1)), summed over a picture and divided by its pixel count."""
    logvar: float = 1.0
    """By how much the posterior's log-variance lies above 0, that of the prior, before it is clamped.

    Neither of the other terms wants it there. A VAE trained on crops of 96 px leaves it in one whole picture of
    fifteen, and in none of its crops: the norms' statistics are those of a larger field. So it takes effect where
    `--crop` is the whole picture.
    """
    equivariance: float = 0.0
    """Share of the batches whose latents are made smaller before they are decoded, to the picture made smaller (EQ-VAE,
    arXiv:2502.09509). Such latents are smooth as pictures are, and a U-Net learns them sooner; 0.5 is the paper's."""
    latent_noise: float = 0.0
    """Largest spread of the Gaussian noise added to a kept encoder's latents before they are decoded, even from 0 for
    each picture, in the unit of what a U-Net sees (raw latents times the scaling factor): the decoder learns to draw
    well what a U-Net gets a little wrong ("noise-augmented decoding" of RAE, arXiv:2510.11690)."""
    perceptual: float = 1.0
    adversarial: float = 0.0
    """0: there is no discriminator. Multiplies the adaptive weight."""
    adversarial_from: int = 0
    """Optimizer steps made before the discriminator takes part."""

    def __post_init__(self) -> None:
        for option, weight in (
            ("--gradient-weight", self.gradient),
            ("--kl-weight", self.kl),
            ("--logvar-weight", self.logvar),
            ("--latent-noise", self.latent_noise),
            ("--perceptual-weight", self.perceptual),
            ("--disc-weight", self.adversarial),
        ):
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{option} {weight} must be a number, 0 or more")
        if not 0 <= self.equivariance <= 1:
            raise ConfigError(f"--equivariance {self.equivariance} is a share of the batches, between 0 and 1")
        if self.adversarial_from and not self.adversarial:
            raise ConfigError(f"--disc-start {self.adversarial_from} starts nothing", hint="give --disc-weight too")

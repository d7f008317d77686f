"""The space the diffusion runs in: how it is scaled against the VAE's raw output, and how large it is for a picture.

`z` is what the VAE encodes to and decodes from; `latents` are scaled to a standard deviation of about 1
(arXiv:2112.10752, appendix G). The two never share a name.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from latentgen.config import VAEConfig
from latentgen.errors import ShapeError


@dataclass(frozen=True, slots=True)
class LatentSpace:
    channels: int
    downscale: int
    """Pixels per latent pixel along one side."""
    scale: float
    shift: float = 0.0

    @classmethod
    def from_config(cls, config: VAEConfig) -> LatentSpace:
        return cls(config.latent_channels, config.downscale, config.scaling_factor, config.shift_factor)

    def normalize(self, z: Tensor) -> Tensor:
        """Raw z (B, C, h, w) to latents: scale (z - shift)."""
        return (z - self.shift) * self.scale

    def denormalize(self, latents: Tensor) -> Tensor:
        """Latents (B, C, h, w) back to raw z."""
        return latents / self.scale + self.shift

    def shape(self, height_px: int, width_px: int) -> tuple[int, int, int]:
        """(C, h, w) of the latents of one picture."""
        for name, side_px in (("height", height_px), ("width", width_px)):
            if side_px < 1 or side_px % self.downscale:
                lower = max(side_px // self.downscale, 1) * self.downscale
                raise ShapeError(
                    f"{name} {side_px} px does not fit this model: sizes must be multiples of {self.downscale}",
                    hint=f"nearest: {lower}, {lower + self.downscale}",
                )
        return self.channels, height_px // self.downscale, width_px // self.downscale

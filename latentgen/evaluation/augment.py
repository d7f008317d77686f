"""What is done to the probe's training pictures, so that it reads soft and slightly wrong ones too.

Drawn pictures are softer than rendered ones: an autoencoder and a U-Net each lose detail. Without this a probe trained
on renders would measure sharpness.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg, encode_jpeg

from latentgen.evaluation.targets import Targets

GROUPS: Final = 4
"""Parts of a batch that are softened, shifted and noised alike: one operation each instead of one a picture."""


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Ranges of the random changes; each is drawn evenly from its range."""

    flip_share: float = 0.5
    soft_share: float = 0.7
    max_softening: float = 3.5
    """Factor by which a picture is made smaller and enlarged again; a 28 dB autoencoder is like about 2 at 128 px."""
    max_noise: float = 0.10
    """Standard deviation, of pixels in [-1, 1]."""
    max_shift: float = 0.05
    """Of the picture's side."""
    max_tint: float = 0.08
    """Added to each colour channel, of pixels in [-1, 1]."""
    max_contrast: float = 0.15
    """Change of the contrast's factor 1."""
    jpeg_share: float = 0.1
    """Of the pictures that were made soft or noisy; quality 20 to 80."""


def augment(
    pictures: Tensor, targets: Targets, generator: torch.Generator, how: Augmentation
) -> tuple[Tensor, Targets]:
    """Pictures (B, 3, S, S) float32 in [-1, 1] and their targets, changed at random; the arguments stay as they are."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    flipped = torch.rand(len(pictures), generator=generator) < how.flip_share
    x = torch.where(flipped[:, None, None, None], pictures.flip(-1), pictures)
    parts: list[Tensor] = []
    for part in x.tensor_split(GROUPS):
        if not len(part):
            continue
        reach = how.max_shift * part.shape[-1]
        part = shifted(part, round(uniform(-reach, reach)), round(uniform(-reach, reach)))
        if uniform(0, 1) < how.soft_share:
            part = softened(part, uniform(1.0, how.max_softening))
        noise = torch.randn(part.shape, generator=generator) * uniform(0.0, how.max_noise)
        parts.append(part + noise)
    x = torch.cat(parts)
    tint = (torch.rand(len(x), 3, 1, 1, generator=generator) * 2 - 1) * how.max_tint
    contrast = 1 + (torch.rand(len(x), 1, 1, 1, generator=generator) * 2 - 1) * how.max_contrast
    x = (x * contrast + tint).clamp(-1.0, 1.0)
    for row in range(int(len(x) * how.jpeg_share)):
        x[row] = through_jpeg(x[row], int(uniform(20, 80)))
    return x, targets.mirrored(flipped)


def softened(pictures: Tensor, factor: float) -> Tensor:
    """Made smaller by the factor and enlarged to the old size: detail below `factor` pixels is gone."""
    size = pictures.shape[-2:]
    small = [max(1, round(side / factor)) for side in size]
    down = F.interpolate(pictures, small, mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(down, tuple(size), mode="bicubic", align_corners=False)


def shifted(pictures: Tensor, right: int, down: int) -> Tensor:
    """Moved by whole pixels; what comes in is the edge, repeated."""
    height, width = pictures.shape[-2:]
    reach = max(abs(right), abs(down))
    if not reach:
        return pictures
    padded = F.pad(pictures, (reach,) * 4, mode="replicate")
    return padded[..., reach - down : reach - down + height, reach - right : reach - right + width]


def through_jpeg(picture: Tensor, quality: int) -> Tensor:
    """One picture (3, H, W) in [-1, 1], written as a JPEG and read again."""
    data = ((picture + 1) * 127.5).round().clamp(0, 255).byte().contiguous()
    again = cast("Tensor", decode_jpeg(cast("Tensor", encode_jpeg(data, quality)), ImageReadMode.RGB))
    return again.float() / 127.5 - 1

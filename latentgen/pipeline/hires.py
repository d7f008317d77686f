"""The second pass at a larger size: what it starts from."""

from __future__ import annotations

from latentgen.images.inputs import fit
from latentgen.images.pixels import Pixels


def enlarge(pixels: Pixels, width_px: int, height_px: int) -> Pixels:
    """The first picture (H, W, 3) at the second pass' size, by Lanczos.

    Pixels, not latents: latents that are stretched decode to blur and speckles, which only a strength of 0.6 and more
    redraws. A picture stays a picture at any strength, so a low one keeps the composition and adds detail.
    """
    return fit(pixels, width_px, height_px)

"""Pictures and masks that drawing starts from, as their files show them, and how they are fitted to a size.

Any PNG, JPEG or WebP: turned as its EXIF data say, alpha over white, 16 bits scaled down. Nothing else of the file is
kept, so neither EXIF nor a place on the map can reach a picture that is written.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from latentgen.errors import InputError
from latentgen.exif import find_turn
from latentgen.images.files import open_picture
from latentgen.images.pixels import Pixels

MASKED = 128
"""From this brightness on a pixel of a mask is redrawn; darker ones are only blended."""
Mask = NDArray[np.uint8]
"""(H, W), 0 .. 255, C-contiguous; white is redrawn."""


def read_input(path: Path) -> Pixels:
    """A picture file's pixels (H, W, 3). Raises ModelNotFoundError if there is none, InputError if it is no picture."""
    with open_picture(path) as image:
        return np.ascontiguousarray(_over(_upright(image), "white").convert("RGB"))


def read_mask(path: Path) -> Mask:
    """A mask file's brightness (H, W); what is transparent counts as black. Raises as `read_input`."""
    with open_picture(path) as image:
        return np.ascontiguousarray(_over(_upright(image), "black").convert("L"))


def read_alpha_mask(path: Path) -> Mask:
    """A picture's own transparency as a mask (H, W): what is transparent is white. InputError if all is opaque."""
    with open_picture(path) as image:
        picture = _upright(image)
        if not picture.has_transparency_data:
            raise InputError(f"{path} has no transparent part that could be the mask", hint="--mask FILE")
        return 255 - np.ascontiguousarray(picture.convert("RGBA").getchannel("A"))


def fit(picture: NDArray[np.uint8], width_px: int, height_px: int) -> NDArray[np.uint8]:
    """A picture (H, W, 3) or mask (H, W) that covers width_px x height_px: resized, centre-cropped; a new array.

    One of that size already comes back byte for byte. Pictures are resized by Lanczos, masks, which must not ring,
    linearly.
    """
    if picture.shape[:2] == (height_px, width_px):
        return picture.copy()
    method = Image.Resampling.LANCZOS if picture.ndim == 3 else Image.Resampling.BILINEAR
    return np.array(ImageOps.fit(Image.fromarray(picture), (width_px, height_px), method=method))


def check_mask(picture: NDArray[np.uint8], mask: NDArray[np.uint8], *, invert: bool) -> None:
    """Raise InputError if a mask is not of its picture's size, or would leave everything as it is."""
    if mask.shape != picture.shape[:2]:
        sizes = " and ".join(f"{each.shape[1]}x{each.shape[0]}" for each in (mask, picture))
        raise InputError(f"the mask and the picture differ in size: {sizes}", hint="a mask is as large as its picture")
    if not ((mask < 256 - MASKED) if invert else (mask >= MASKED)).any():
        kind, way_out = ("white", "leave out --invert-mask") if invert else ("black", "white is redrawn; --invert-mask")
        raise InputError(f"the mask is all {kind}: nothing would be redrawn", hint=way_out)


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says, 8 bits a channel."""
    turn = find_turn(image)
    if turn is not None:
        image = image.transpose(turn)
    if image.mode.startswith("I"):  # 16 bits a pixel: convert would cut at 255 instead of scaling
        scaled = (np.asarray(image).astype(np.int64) >> 8).clip(0, 255)
        image = Image.fromarray(scaled.astype(np.uint8))
    return image


def _over(image: Image.Image, colour: str) -> Image.Image:
    if not image.has_transparency_data:
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, colour), rgba)

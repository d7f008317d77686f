"""Pictures to draw from as Python code has them, in the parts of a request: as the command line reads their files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentgen.config import ModelConfig
from latentgen.errors import InputError
from latentgen.exif import find_turn
from latentgen.images.inputs import Mask, check_mask, read_input, read_mask
from latentgen.images.pixels import Pixels, pixels_sha256
from latentgen.images.sizes import drawn_size
from latentgen.pipeline.init_picture import Pictures
from latentgen.request import MASK_BLUR_PX, STRENGTH, InitPicture, RequestFields

GivenPicture = Path | str | Image.Image | NDArray[np.uint8]
"""A file, Pillow's picture, or bytes: (H, W, 3) red green blue, of a mask (H, W), of which white is redrawn."""
EIGHT_BITS: Final = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
"""Pillow's modes that are taken; of the others it would cut off what is above 255."""


def start_from(
    config: ModelConfig,
    given: RequestFields,
    pictures: Pictures | None,
    *,
    init_image: GivenPicture | None,
    mask: GivenPicture | None,
    strength: float | None,
) -> tuple[RequestFields, Pictures]:
    """A request's fields and the pictures it names, with `init_image` and what belongs to it added to both.

    Raises InputError if it cannot be used, or if something that belongs to it is given alone; ModelNotFoundError if
    there is no such file.
    """
    if init_image is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise InputError(f"{name} is for init_image, which is not given")
        return given, pictures or {}
    if given.get("init") is not None:
        raise InputError("init and init_image contradict each other", hint="give one or the other")
    pixels = _read_picture(init_image)
    found = {(sha256 := pixels_sha256(pixels)): pixels}
    init = InitPicture(sha256=sha256, strength=STRENGTH if strength is None else strength)
    if mask is not None:
        masked = _read_mask(mask)
        check_mask(pixels, masked, invert=False)
        found[mask_sha256 := pixels_sha256(masked)] = masked
        init = replace(init, mask_sha256=mask_sha256, mask_blur_px=MASK_BLUR_PX)
    size = (pixels.shape[1], pixels.shape[0])
    width, height = drawn_size(size, given.get("width_px"), given.get("height_px"), config)
    return {**given, "init": init, "width_px": width, "height_px": height}, {**(pictures or {}), **found}


def _read_picture(given: GivenPicture) -> Pixels:
    if isinstance(given, Path | str):
        return read_input(Path(given))
    if isinstance(given, Image.Image):
        return np.array(_opaque(given, "white").convert("RGB"))
    if given.dtype != np.uint8 or given.ndim != 3 or given.shape[2] != 3:
        raise InputError(f"init_image must be bytes of (H, W, 3), not {given.dtype} of {given.shape}")
    return given.copy()


def _read_mask(given: GivenPicture) -> Mask:
    if isinstance(given, Path | str):
        return read_mask(Path(given))
    if isinstance(given, Image.Image):
        return np.array(_opaque(given, "black").convert("L"))
    if given.dtype != np.uint8 or given.ndim != 2:
        raise InputError(f"mask must be bytes of (H, W), not {given.dtype} of {given.shape}", hint="255 is redrawn")
    return given.copy()


def _opaque(image: Image.Image, behind: str) -> Image.Image:
    """Turned as EXIF says, over a colour."""
    if image.mode not in EIGHT_BITS:
        raise InputError(f"a picture of the mode {image.mode} cannot be drawn from", hint='image.convert("RGB")')
    turn = find_turn(image)
    upright = (image if turn is None else image.transpose(turn)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", upright.size, behind), upright)

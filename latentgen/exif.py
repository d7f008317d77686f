"""Which way up a picture is, by its EXIF; where that is damaged, a picture is as it lies in its file."""

from __future__ import annotations

import struct
import warnings

from PIL import Image

ORIENTATION = 0x0112
DAMAGED_EXIF = (
    SyntaxError, ValueError, LookupError, TypeError, AttributeError, OverflowError, struct.error, OSError,
)  # fmt: skip
"""What Pillow raises for it. It makes no picture unreadable."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation (EXIF 2.32, section 4.6.4) to what makes the picture upright."""
QUARTERS = (_TURNS[5], _TURNS[6], _TURNS[7], _TURNS[8])
"""Those after which a picture's width is its height."""


def find_turn(image: Image.Image) -> Image.Transpose | None:
    """What makes a picture upright, by its EXIF's orientation; None if nothing is said, or cannot be read.

    A PNG's EXIF may stand behind its pixels, so they are decoded. `ImageOps.exif_transpose` would also write all other
    tags anew, which fails where one of them is damaged.
    """
    image.load()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of every damaged tag
        return read_turn(image)


def read_turn(image: Image.Image) -> Image.Transpose | None:
    """The same of what Pillow has read, with Pillow's warnings: for threads, which share the filters of those."""
    try:
        turn: int = image.getexif().get(ORIENTATION, 1)
        return _TURNS.get(turn)
    except DAMAGED_EXIF:
        return None

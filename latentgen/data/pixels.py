"""Decoded pictures: uint8, one size, kept in one memory-mapped file so that every epoch after the first is a copy."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from latentgen.data.array_file import open_array, write_array
from latentgen.data.records import Record, fingerprint
from latentgen.errors import InputError, RuntimeFailure

FORMATS = ("PNG", "JPEG", "WEBP")
"""Only these are decoded: Pillow would otherwise hand a renamed EPS to Ghostscript."""

MAX_PICTURE_PX = 64_000_000
"""Refused above this, from the header alone: a small file can unpack to gigabytes."""

DECODE_CHUNK = 64
"""Pictures handed to a decoding process at a time."""
DECODE_AHEAD = 2048
"""Decoded pictures that may wait to be written: 0.4 GB at 256 px."""


def decode(record: Record, side_px: int) -> NDArray[np.uint8]:
    """A record's picture as (side, side, 3) uint8: EXIF-rotated, alpha over white, centre-cropped, resized (Lanczos).

    Raises InputError if it is not a single whole picture of `FORMATS`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit below is lower
            opened = Image.open(io.BytesIO(record.read()), formats=FORMATS)
        with opened:
            if opened.width * opened.height > MAX_PICTURE_PX:
                raise ValueError(f"{opened.width}x{opened.height} pixels are more than {MAX_PICTURE_PX}")
            # A phone's JPEG with a preview inside reads as MPO with two frames; its first is the picture.
            if opened.format != "MPO" and getattr(opened, "n_frames", 1) > 1:
                raise ValueError("it is an animation")
            picture = _as_rgb(ImageOps.exif_transpose(opened))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"picture {record.key} in {record.path.name} cannot be read: {reason}") from error
    if picture.size != (side_px, side_px):
        picture = ImageOps.fit(picture, (side_px, side_px), method=Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)


def to_float(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


class PixelCache:
    """All pictures of a data set at one size: `cache[i]` is (side, side, 3) uint8.

    Shapes: the file is (N, side, side, 3) uint8, 0.2 MB a picture at 256 px. It is named after the data's fingerprint,
    so another data set never meets it.
    Raises InputError if a picture cannot be read, RuntimeFailure if the disk refuses the file.
    """

    def __init__(self, records: list[Record], side_px: int, folder: Path, report: Callable[[str], None]) -> None:
        self.path = folder / f"pixels-{fingerprint(records)}-{side_px}.npy"
        self.side_px = side_px
        shape = (len(records), side_px, side_px, 3)
        if not self.path.exists():
            report(f"decoding {len(records)} pictures at {side_px} px")
            write_array(self.path, shape, np.uint8, (picture[None] for picture in _decode_all(records, side_px)))
        self._pixels: NDArray[np.uint8] = open_array(self.path, shape, np.uint8)

    def __len__(self) -> int:
        return len(self._pixels)

    def batch(self, items: list[int]) -> Tensor:
        """Whole pictures (B, side, side, 3) uint8."""
        return torch.from_numpy(np.stack([self._pixels[i] for i in items]))

    def crop(self, item: int, top: int, left: int, side_px: int) -> Tensor:
        """A window of one picture, (side_px, side_px, 3) uint8."""
        return torch.from_numpy(self._pixels[item, top : top + side_px, left : left + side_px].copy())


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: convert("RGB") would cut at 255 instead of scaling
        scaled = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255)
        picture = Image.fromarray(scaled.astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")


def _decode_all(records: list[Record], side_px: int) -> Iterator[NDArray[np.uint8]]:
    """Every picture in order, decoded on all cores where there are enough of them."""
    workers = min(os.cpu_count() or 1, -(-len(records) // DECODE_CHUNK))
    if workers == 1:
        yield from (decode(record, side_px) for record in records)
        return
    try:
        with ProcessPoolExecutor(max_workers=workers) as pool:
            for start in range(0, len(records), DECODE_AHEAD):
                yield from pool.map(
                    decode, records[start : start + DECODE_AHEAD], repeat(side_px), chunksize=DECODE_CHUNK
                )
    except BrokenProcessPool:
        raise RuntimeFailure("a decoding process was killed", hint="is the memory enough?") from None

"""Float pixels in [-1, 1], (3, H, W), to bytes, (H, W, 3), and what is asked of those."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Pixels = NDArray[np.uint8]
"""(H, W, 3), red green blue, 0 .. 255, C-contiguous."""


def to_pixels(picture: Tensor) -> Pixels:
    """One picture (3, H, W) in [-1, 1] to bytes: round((x + 1) 127.5), clipped. The picture must be finite."""
    assert picture.shape[:1] == (3,), f"one picture (3, H, W), not {tuple(picture.shape)}"
    scaled = ((picture.detach().float() + 1.0) * 127.5).round().clamp(0.0, 255.0)
    return np.ascontiguousarray(scaled.byte().permute(1, 2, 0).cpu().numpy())


def pixels_sha256(pixels: Pixels) -> str:
    """Hash of the bytes alone, so it does not change with the file format or the compressor."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def pixel_difference(first: Pixels, second: Pixels) -> tuple[int, float]:
    """Largest difference of two bytes, and the share of bytes that differ. The shapes must agree."""
    assert first.shape == second.shape, f"{first.shape} against {second.shape}"
    distance = np.abs(first.astype(np.int16) - second.astype(np.int16))
    return int(distance.max(initial=0)), float(np.count_nonzero(distance)) / max(distance.size, 1)

"""Aspect-ratio buckets: a few picture shapes of about the same area, so that no picture loses much to the crop."""

from __future__ import annotations

import math
from collections.abc import Iterable

MAX_BUCKET_ASPECT = 2.0
"""Longer side to shorter of the most elongated bucket."""
STEP_PX = 64
"""Sides of neighbouring buckets differ by this at 512 px and above, as usual in the field; by less below."""


def bucket_shapes(side_px: int, multiple_px: int) -> list[tuple[int, int]]:
    """The buckets (height, width) for pictures of about side_px squared: sides are multiples of `multiple_px`.

    The square is one of them; from it one side grows in steps, the other is the nearest that keeps the area.
    side_px must be a multiple of multiple_px.
    """
    assert side_px % multiple_px == 0, f"{side_px} px is not a multiple of {multiple_px}"
    step_px = -(-min(STEP_PX, side_px // 8) // multiple_px) * multiple_px
    shapes = {(side_px, side_px)}
    longer = side_px + step_px
    while True:
        shorter = round(side_px**2 / longer / step_px) * step_px
        if shorter == 0 or longer > MAX_BUCKET_ASPECT * shorter:
            return sorted(shapes)
        shapes |= {(shorter, longer), (longer, shorter)}
        longer += step_px


def assign_buckets(sizes_px: Iterable[tuple[int, int]], shapes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """The bucket (height, width) of every picture, given as (width, height): the one nearest in log aspect ratio."""

    def nearest(size_px: tuple[int, int]) -> tuple[int, int]:
        aspect = math.log(size_px[0] / size_px[1])
        return min(shapes, key=lambda shape: (abs(math.log(shape[1] / shape[0]) - aspect), shape))

    sizes = list(sizes_px)
    bucket = {size_px: nearest(size_px) for size_px in set(sizes)}
    return [bucket[size_px] for size_px in sizes]

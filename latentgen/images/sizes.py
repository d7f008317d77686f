"""The size that a picture is drawn at: as asked for, the starting picture's own, or the model's. Torch-free."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from latentgen.config import ModelConfig
from latentgen.request import GenerationRequest

OWN_SIZE: Final = (0.5, 2.0)
"""A picture is drawn at its own size if its area is so many times the model's; another is scaled to the model's area,
because far below or above what it learned at a model draws mush or the same thing twice."""
USUAL_SIZE: Final = (1 / 1.5**2, 1.5**2)
"""The same of a size that is asked for: beyond it that is told. Stable Diffusion of 512 px is usual up to 768x768."""


def drawn_size(
    picture: tuple[int, int], width_px: int | None, height_px: int | None, config: ModelConfig
) -> tuple[int, int]:
    """Width and height that drawing from a picture gives; a side that is not asked for follows from its proportions.

    Without either it is the picture's own size, see OWN_SIZE. Sides that are not asked for are cut to the grid.
    """
    width, height = picture
    if width_px is not None and height_px is not None:
        return width_px, height_px
    multiple, defaults = config.size_multiple_px, config.defaults
    if width_px is not None:
        return width_px, _on_grid(width_px * height / width, multiple)
    if height_px is not None:
        return _on_grid(height_px * width / height, multiple), height_px
    share = width * height / (defaults.width_px * defaults.height_px)
    scale = 1.0 if OWN_SIZE[0] <= share <= OWN_SIZE[1] else 1 / math.sqrt(share)
    return _on_grid(width * scale, multiple), _on_grid(height * scale, multiple)


def far_size(requests: Sequence[GenerationRequest], config: ModelConfig) -> GenerationRequest | None:
    """The first request beyond USUAL_SIZE. One that starts from a picture is none: what it shows is there already."""
    own = config.defaults.width_px * config.defaults.height_px
    for request in requests:
        share = request.width_px * request.height_px / own
        if request.init is None and not USUAL_SIZE[0] <= share <= USUAL_SIZE[1]:
            return request
    return None


def _on_grid(side: float, multiple_px: int) -> int:
    return max(round(side) // multiple_px, 1) * multiple_px

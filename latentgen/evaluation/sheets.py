"""The benchmark's pictures on labelled sheets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from latentgen.evaluation.prompts import CATEGORIES, Split
from latentgen.images.files import encode_picture
from latentgen.images.grid import Layout, draw_sheet
from latentgen.images.pixels import Pixels

if TYPE_CHECKING:
    from latentgen.evaluation.benchmark import Judged

SHOWN_PER_CATEGORY: Final = 6
PAIRS_SHOWN: Final = 12
PAIRS_PER_ROW: Final = 3


@dataclass(frozen=True, slots=True, eq=False)
class Pair:
    """A drawn picture and the training picture nearest to it."""

    drawn: Pixels
    trained: Pixels
    prompt: str
    caption: str
    """Of the training picture."""
    distance: float


def verdict_sheet(judged: Sequence[Judged], pictures: Sequence[Pixels], split: Split, title: str) -> bytes:
    """A PNG: a row for each category with the first pictures of a split, each under its verdict and its prompt."""
    numbers = {
        category: [k for k, each in enumerate(judged) if each.item.category == category and each.item.split == split][
            :SHOWN_PER_CATEGORY
        ]
        for category in CATEGORIES
    }
    rows = {category: found for category, found in numbers.items() if found}
    width = max(map(len, rows.values()))
    shown = [k for found in rows.values() for k in found]
    place = {k: index for index, k in enumerate(shown)}
    cells = tuple(tuple([*(place[k] for k in found), *[None] * (width - len(found))]) for found in rows.values())
    captions = tuple(f"{'right' if judged[k].verdict.is_right else 'WRONG'}: {judged[k].item.prompt}" for k in shown)
    layout = Layout(cells, tuple(rows), (), captions, title)
    return encode_picture(draw_sheet([pictures[k] for k in shown], layout), "PNG", None)


def pair_sheet(pairs: Sequence[Pair], title: str) -> bytes:
    """A PNG: drawn pictures, each with the nearest training picture on its right"""
    pictures = [picture for pair in pairs for picture in (pair.drawn, pair.trained)]
    captions = [
        text
        for pair in pairs
        for text in (f"drawn: {pair.prompt}", f"nearest, {pair.distance:.3f} away: {pair.caption}")
    ]
    width = 2 * min(PAIRS_PER_ROW, len(pairs))
    padded = [*range(len(pictures)), *[None] * (-len(pictures) % width)]
    cells = tuple(tuple(padded[first : first + width]) for first in range(0, len(padded), width))
    return encode_picture(draw_sheet(pictures, Layout(cells, (), (), tuple(captions), title)), "PNG", None)

"""The benchmark itself: what a probe says of drawn pictures, beside what it says of renders of the same scenes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from latentgen.evaluation.judging import Reading, is_right, read_pictures
from latentgen.evaluation.labelled import RENDER_PX, OnProgress
from latentgen.evaluation.probe import Probe
from latentgen.evaluation.prompts import Item
from latentgen.evaluation.scores import Share, Verdict
from latentgen.images.pixels import Pixels

RENDER_SEEDS: Final = 2**42
"""Distance between the seeds of a scene and of its renders: they share no random number with any corpus."""


@dataclass(frozen=True, slots=True, eq=False)
class Drawn:
    """What was drawn, and what a perfect model would have drawn."""

    items: Sequence[Item]
    pictures: Sequence[Pixels]
    """One per item."""
    renders: Sequence[Sequence[Pixels]]
    """Sets of one render per item; there may be none."""
    series: Sequence[Sequence[Pixels]]
    """Pictures of one prompt that differ in their seed alone, for some prompts."""
    series_renders: Sequence[Sequence[Pixels]]
    """Sets of one render per prompt of `series`, as many as it has pictures; there may be none."""


@dataclass(frozen=True, slots=True, eq=False)
class Judged:
    """An item with what the probe saw in its picture."""

    item: Item
    verdict: Verdict
    seen: Reading


def judge(probe: Probe, drawn: Drawn) -> list[Judged]:
    """One verdict per item, with the probe's verdicts on the renders of its scene beside it."""
    of_renders = [read_pictures(probe, each) for each in drawn.renders]
    judged: list[Judged] = []
    for k, (item, seen) in enumerate(zip(drawn.items, read_pictures(probe, drawn.pictures), strict=True)):
        right = [is_right(item.category, item.scene, readings[k]) for readings in of_renders]
        ceiling = Share(sum(right), len(right))
        verdict = Verdict(item.category, item.split, is_right(item.category, item.scene, seen), ceiling)
        judged.append(Judged(item, verdict, seen))
    return judged


def corpus_version() -> int:
    """Of the renders: a probe should be trained on the same. Needs the `corpus` extra."""
    from latentgen.corpus.render import CORPUS_VERSION

    return CORPUS_VERSION


def render_items(items: Sequence[Item], sets: int, on_progress: OnProgress | None = None) -> list[list[Pixels]]:
    """Fresh renders of the items' scenes: `sets` lists of one picture per item.

    Needs the `corpus` extra, unless `sets` is 0.
    """
    total = sets * len(items)
    if not total:
        return []
    from latentgen.corpus.compose import render_scene  # Skia loads only where something is rendered

    rendered: list[Pixels] = []
    for number in range(total):
        item = items[number % len(items)]
        seed = item.scene_seed + RENDER_SEEDS * (1 + number // len(items))
        rendered.append(render_scene(item.scene, seed, RENDER_PX))
        if on_progress is not None:
            on_progress(number + 1, total)
    return [rendered[first : first + len(items)] for first in range(0, total, len(items))]

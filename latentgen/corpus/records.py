"""One record of the corpus: a seed becomes a scene, its captions, its labels and its picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

from latentgen.corpus.captions import Templates, caption
from latentgen.corpus.hero_scenes import (
    HEROES,
    HEROES_20,
    anywhere,
    in_any_colour,
    sample_hero20_scene,
    sample_hero_scene,
)
from latentgen.corpus.sampling import sample_scene
from latentgen.corpus.scene import SceneSpec
from latentgen.corpus.splits import held_out_pairs
from latentgen.errors import InputError

VocabularyName = Literal["full", "heroes", "heroes20"]
Colours = Literal["usual", "any"]
"""Each noun in its own colours, or in all of the heroes'."""
Settings = Literal["usual", "any"]
"""Each noun in its own settings, or in all of the heroes' that have room for it."""
_COLOURS_DRAW = 0xC0_10
"""Beside a scene's seed: a generator of its own, so that all but the colours stays as it is."""


@dataclass(frozen=True, slots=True)
class SceneSource:
    """A vocabulary: how its scenes are drawn, and whether artwork is needed for that."""

    sample: Callable[[np.random.Generator], SceneSpec]
    needs_artwork: bool
    sample_anywhere: Callable[[np.random.Generator], SceneSpec] | None = None
    """With things in any setting; None where each has its own only."""


SCENE_SOURCES: dict[VocabularyName, SceneSource] = {
    "full": SceneSource(sample_scene, needs_artwork=True),
    "heroes": SceneSource(
        sample_hero_scene, needs_artwork=False, sample_anywhere=partial(sample_hero_scene, heroes=anywhere(HEROES))
    ),
    "heroes20": SceneSource(
        sample_hero20_scene, needs_artwork=False, sample_anywhere=partial(sample_hero_scene, heroes=anywhere(HEROES_20))
    ),
}


@dataclass(frozen=True, slots=True)
class Record:
    """What a seed stands for, short of its pixels."""

    seed: int
    scene: SceneSpec
    captions: tuple[str, ...]

    def labels(self) -> dict[str, Any]:
        """What is stored beside the picture: seed, captions, reserved pairs (none: may be trained on), scene."""
        return {
            "seed": self.seed,
            "captions": list(self.captions),
            "held_out": list(held_out_pairs(self.scene)),
            **self.scene.to_json(),
        }


def make_record(
    vocabulary: VocabularyName,
    seed: int,
    captions_per_image: int,
    templates: Templates = "train",
    colours: Colours = "usual",
    settings: Settings = "usual",
) -> Record:
    """Scene and captions of a seed. Caption k depends on the seed, k and the choice of templates alone."""
    scene = scene_of(vocabulary, seed, colours, settings)
    generators = (np.random.default_rng([seed, k]) for k in range(captions_per_image))
    return Record(seed, scene, tuple(caption(scene, rng, templates) for rng in generators))


def scene_of(
    vocabulary: VocabularyName, seed: int, colours: Colours = "usual", settings: Settings = "usual"
) -> SceneSpec:
    """The scene that a seed stands for. Raises InputError for any settings of things that have none but their own."""
    source = SCENE_SOURCES[vocabulary]
    sample = source.sample if settings == "usual" else source.sample_anywhere
    if sample is None:
        raise InputError(f"corpus: the things of the {vocabulary} vocabulary have no settings but their own")
    scene = sample(np.random.default_rng(seed))
    return scene if colours == "usual" else in_any_colour(np.random.default_rng([seed, _COLOURS_DRAW]), scene)

"""A probe's answers as words, and whether they are what a benchmark item asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentgen.corpus.scene import SceneSpec
from latentgen.data.pixels import to_float
from latentgen.errors import InputError
from latentgen.evaluation.labelled import smaller
from latentgen.evaluation.labels import GLOBAL_FACTORS, POSITIONS, LabelSet
from latentgen.evaluation.probe import Answers, Probe
from latentgen.evaluation.prompts import Category
from latentgen.images.pixels import Pixels

JUDGED_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class SeenNoun:
    """What the probe says of one noun, whether or not it is there."""

    count: int
    """0: it is not there."""
    colour: str
    position: str


@dataclass(frozen=True, slots=True)
class Reading:
    """What the probe sees in a picture."""

    nouns: Mapping[str, SeenNoun]
    setting: str
    time: str
    weather: str
    style: str

    def count(self, noun: str) -> int:
        return self.nouns[noun].count

    def in_words(self) -> dict[str, Any]:
        """The nouns that are there and the four factors, for a manifest."""
        return {
            "nouns": {
                name: {"count": each.count, "colour": each.colour, "position": each.position}
                for name, each in self.nouns.items()
                if each.count
            },
            **{factor: getattr(self, factor) for factor in GLOBAL_FACTORS},
        }


def check_vocabulary(labels: LabelSet, scenes: Iterable[SceneSpec]) -> None:
    """Raise InputError if a scene shows something that the probe was not taught."""
    nouns = {subject.noun.name for scene in scenes for subject in scene.subjects}
    settings: set[str] = {scene.setting for scene in scenes}
    unknown = sorted(nouns - set(labels.nouns)) + sorted(settings - set(labels.settings))
    if unknown:
        raise InputError(
            f"the probe does not know {', '.join(unknown[:5])}",
            hint="take the probe of this vocabulary, or make one: latentgen evaluate train-probe",
        )


@torch.inference_mode()
def read_pictures(probe: Probe, pictures: Sequence[Pixels]) -> list[Reading]:
    """The probe's readings of pictures (H, W, 3)."""
    readings: list[Reading] = []
    device = next(probe.parameters()).device
    for first in range(0, len(pictures), JUDGED_AT_ONCE):
        part = [smaller(each, probe.config.size_px) for each in pictures[first : first + JUDGED_AT_ONCE]]
        x = to_float(torch.from_numpy(np.stack(part))).to(device, memory_format=torch.channels_last)
        readings.extend(_in_words(probe(x), probe.config.labels))
    return readings


def is_right(category: Category, scene: SceneSpec, seen: Reading) -> bool:
    """Whether a picture shows what its category asks about; all else about it is left open."""
    present = all(seen.count(subject.noun.name) > 0 for subject in scene.subjects)
    match category:
        case "single object" | "two objects":
            return present
        case "counting":
            return all(seen.count(subject.noun.name) == subject.count for subject in scene.subjects)
        case "colour" | "attribute binding":
            return present and all(
                seen.nouns[subject.noun.name].colour == subject.colour
                for subject in scene.subjects
                if subject.colour is not None
            )
        case "position":
            wanted = {subject.noun.name: scene.position(index) for index, subject in enumerate(scene.subjects)}
            return present and all(seen.nouns[noun].position == place for noun, place in wanted.items())
        case "setting" | "time" | "weather" | "style":
            return getattr(seen, category) == getattr(scene, category)


def _in_words(answers: Answers, labels: LabelSet) -> list[Reading]:
    count, colour, position = (_best(each) for each in (answers.count, answers.colour, answers.position))
    factors = [_best(each) for each in answers.factors]
    readings: list[Reading] = []
    for row in range(len(count)):
        nouns = {
            noun: SeenNoun(count[row][n], labels.colours[colour[row][n]], POSITIONS[position[row][n]])
            for n, noun in enumerate(labels.nouns)
        }
        words = {
            factor: labels.answers(factor)[best[row]] for factor, best in zip(GLOBAL_FACTORS, factors, strict=True)
        }
        readings.append(Reading(nouns, **words))
    return readings


def _best(logits: Tensor) -> list[Any]:
    return logits.argmax(dim=-1).tolist()

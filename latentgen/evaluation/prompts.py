"""The prompts of the benchmark: a fixed list by category, in the manner of GenEval (arXiv:2310.11513).

Scenes are sampled as training scenes are, from seeds that no corpus reaches; each is put into words that name what its
category asks about. Three splits: compositions and wordings as in training; compositions that training never sees
(`corpus/splits.py`); wordings that it never sees (`corpus/wordings.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal, get_args

import numpy as np

from latentgen.corpus import wordings
from latentgen.corpus.captions import Templates, caption
from latentgen.corpus.records import SCENE_SOURCES, VocabularyName
from latentgen.corpus.scene import SceneSpec
from latentgen.corpus.splits import held_out_pairs
from latentgen.evaluation.labels import COLOURLESS_STYLES

Category = Literal[
    "single object", "two objects", "counting", "colour", "position", "attribute binding",
    "setting", "time", "weather", "style",
]  # fmt: skip
Split = Literal["seen", "held-out composition", "held-out phrasing"]
CATEGORIES: Final[tuple[Category, ...]] = get_args(Category)
SPLITS: Final[tuple[Split, ...]] = get_args(Split)

FIRST_SEED: Final = 2**40
"""Of the scenes that prompts are made of; a corpus counts its seeds up from a number far below."""
SEEDS_PER_LIST: Final = 200_000
"""Scenes looked at for one list; a category that finds too few in them has fewer prompts."""
WORDINGS_TRIED: Final = 24
"""Captions of a scene that are tried until one says what is asked."""


@dataclass(frozen=True, slots=True)
class Item:
    """One prompt, and what its picture must show."""

    category: Category
    split: Split
    number: int
    """From 0, within its category and split."""
    prompt: str
    scene: SceneSpec
    scene_seed: int
    """Fixes the scene; renders of it take other seeds."""
    drawing_seed: int
    """Of the picture: 0 to 2^32 - 1."""

    @property
    def name(self) -> str:
        """A file name without its ending."""
        return f"{self.category}-{self.split}-{self.number:03}".replace(" ", "-")

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "category": self.category,
            "split": self.split,
            "prompt": self.prompt,
            "seed": self.drawing_seed,
            "scene_seed": self.scene_seed,
            "scene": self.scene.to_json(),
        }


def make_items(vocabulary: VocabularyName, per_category: int, seed: int = 0) -> list[Item]:
    """The list: at most `per_category` items for each category and split; the same arguments give the same list.

    A longer list begins with the shorter one of the same seed, category by category.
    """
    found: dict[tuple[Category, Split], list[Item]] = {
        (category, split): [] for category in CATEGORIES for split in SPLITS
    }
    first = FIRST_SEED + seed * SEEDS_PER_LIST
    for scene_seed in range(first, first + SEEDS_PER_LIST):
        # Each scene has its turn in one category, so that a list does not depend on how full the others are.
        category = CATEGORIES[scene_seed % len(CATEGORIES)]
        scene = SCENE_SOURCES[vocabulary].sample(np.random.default_rng(scene_seed))
        if not _asks(category, scene):
            continue
        for split in _splits_of(category, scene, scene_seed):
            items = found[category, split]
            prompt = None if len(items) >= per_category else _worded(category, split, scene, scene_seed)
            if prompt is not None and all(prompt != item.prompt for item in items):
                items.append(Item(category, split, len(items), prompt, scene, scene_seed, scene_seed % 2**32))
        if all(len(items) >= per_category for items in found.values()):
            break
    return [item for items in found.values() for item in items]


def _splits_of(category: Category, scene: SceneSpec, scene_seed: int) -> tuple[Split, ...]:
    reserved = held_out_pairs(scene)
    if reserved:
        wanted = _RESERVED.get(category)
        return ("held-out composition",) if wanted is None or set(reserved) & wanted else ()
    # A scene is in one split only: the same scene in both would be counted twice.
    return ("seen",) if (scene_seed // len(CATEGORIES)) % 2 else ("held-out phrasing",)


_RESERVED: Final[dict[Category, set[str]]] = {
    "two objects": {"noun-pair", "noun-setting"},
    "counting": {"noun-count"},
    "colour": {"noun-colour"},
    "attribute binding": {"noun-colour", "noun-pair"},
    "setting": {"noun-setting", "setting-time-weather"},
    "time": {"setting-time-weather"},
    "weather": {"setting-time-weather"},
    "style": {"noun-style"},
}
"""Kinds of reserved pairs that make a composition new in what a category asks about; others take any."""


def _asks(category: Category, scene: SceneSpec) -> bool:
    """Whether a scene has what the category asks about."""
    first, *others = scene.subjects
    coloured = scene.style not in COLOURLESS_STYLES
    match category:
        case "single object":
            return scene.is_single and scene.size != "small"
        case "two objects":
            return bool(others)
        case "counting":
            return first.count > 1
        case "colour":
            return scene.is_single and first.colour is not None and coloured
        case "position":
            return scene.side is not None or scene.relation == "left of"
        case "attribute binding":
            colours = {subject.colour for subject in scene.subjects}
            return bool(others) and len(colours) == 2 and None not in colours and coloured
        case "weather":
            return scene.weather != "clear"
        case "style":
            return scene.style != "flat"
        case "setting" | "time":
            return True


def _worded(category: Category, split: Split, scene: SceneSpec, scene_seed: int) -> str | None:
    """A prompt that says what is asked; None if no wording that was tried does."""
    templates: Templates = "held_out" if split == "held-out phrasing" else "train"
    for attempt in range(WORDINGS_TRIED):
        text = caption(scene, np.random.default_rng([scene_seed, attempt]), templates, typos=False)
        if _SAYS[category](text, scene):
            return text
    return None


def _says_colours(text: str, scene: SceneSpec) -> bool:
    return all(
        _names_any(text, wordings.COLOUR_SPELLINGS.get(c, (c,))) for c in (s.colour for s in scene.subjects) if c
    )


def _says_counts(text: str, scene: SceneSpec) -> bool:
    return _names_any(text, wordings.NUMBER_WORDS[scene.subjects[0].count])


def _says_position(text: str, scene: SceneSpec) -> bool:
    return _names_any(text, ("left", "right"))


def _says_setting(text: str, scene: SceneSpec) -> bool:
    return _names_any(text, _phrases("setting", scene.setting))


def _says_time(text: str, scene: SceneSpec) -> bool:
    return _names_any(text, _phrases("time", scene.time))


def _says_weather(text: str, scene: SceneSpec) -> bool:
    return _names_any(text, _phrases("weather", scene.weather))


def _says_subject(text: str, scene: SceneSpec) -> bool:
    return True  # Every form of a caption does


_SAYS: Final[dict[Category, Callable[[str, SceneSpec], bool]]] = {
    "single object": _says_subject,
    "two objects": _says_subject,
    "counting": _says_counts,
    "colour": _says_colours,
    "position": _says_position,
    "attribute binding": _says_colours,
    "setting": _says_setting,
    "time": _says_time,
    "weather": _says_weather,
    "style": _says_subject,
}


@cache
def _phrases(factor: Literal["setting", "time", "weather"], value: Any) -> tuple[str, ...]:
    """Every wording of a factor's value."""
    if factor == "time":
        return (*wordings.TIME_PHRASES[value], *wordings.FAIR_TIME_PHRASES[value], *wordings.TIME_TAGS[value])
    if factor == "weather":
        return (*wordings.WEATHER_PHRASES[value], *wordings.WEATHER_TAGS[value])
    tables = (
        wordings.SETTING_PHRASES,
        wordings.AFLOAT_PHRASES,
        wordings.ALOFT_PHRASES,
        wordings.SHARED_PHRASES,
    )
    tag = wordings.SETTING_TAGS[value] if value in wordings.SETTING_TAGS else str(value)
    return (tag, *(phrase for table in tables for phrase in table.get(value, ())))


def _names_any(text: str, phrases: Iterable[str]) -> bool:
    """Whether one of the phrases stands in the text as whole words."""
    return any(phrase and re.search(rf"\b{re.escape(phrase)}\b", text) for phrase in phrases)

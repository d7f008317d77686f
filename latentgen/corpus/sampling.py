"""Drawing scenes of the full vocabulary: what stands where, under which light, in which style.

A scene is a function of its generator; the order of the draws is part of the corpus.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np

from latentgen.corpus.captions import choose
from latentgen.corpus.scene import (
    Category,
    Drawing,
    Noun,
    SceneSpec,
    Setting,
    Side,
    Size,
    Style,
    Subject,
    TimeOfDay,
    Weather,
)
from latentgen.corpus.vocabulary import nouns_by_category

K = TypeVar("K", bound=str)

CATEGORY_SHARES: dict[Category, float] = {
    "building": 0.20,
    "land_animal": 0.17,
    "head": 0.04,
    "vehicle": 0.08,
    "air": 0.07,
    "water": 0.06,
    "undersea": 0.05,
    "plant": 0.07,
    "food": 0.11,
    "object": 0.13,
    "spacey": 0.02,
}
TIME_SHARES: dict[TimeOfDay, float] = {"day": 0.3, "dawn": 0.14, "sunset": 0.26, "dusk": 0.12, "night": 0.18}
STYLE_SHARES: dict[Style, float] = {
    "flat": 0.74,
    "watercolor": 0.08,
    "pixel art": 0.06,
    "pencil sketch": 0.04,
    "oil painting": 0.05,
    "neon": 0.03,
}

STILL_LIFE_OF_FOOD: tuple[Setting, ...] = ("table", "studio") * 4
STILL_LIFE_OF_OBJECTS: tuple[Setting, ...] = ("table", "studio", "studio") * 3
SETTINGS_OF: dict[Category, tuple[Setting, ...]] = {
    "building": (
        "island", "garden", "farm", "river", "cliff", "sea", "beach", "meadow", "hills", "mountains", "lake", "desert",
        "snow", "village", "autumn", "forest",
    ),
    "land_animal": (
        "garden", "farm", "river", "island", "meadow", "hills", "forest", "desert", "snow", "beach", "lake", "autumn",
        "studio", "mountains", "city",
    ),
    "head": ("garden", "meadow", "river", "hills", "forest", "snow", "autumn", "lake", "studio"),
    "vehicle": ("farm", "garden", "city", "desert", "hills", "village", "beach", "snow", "meadow", "studio"),
    "air": (
        "farm", "river", "island", "garden", "hills", "mountains", "sea", "city", "meadow", "desert", "lake", "village",
        "autumn", "snow",
    ),
    "water": ("sea", "sea", "city"),
    "undersea": ("underwater",),
    "plant": ("river", "meadow", "hills", "desert", "snow", "beach", "lake", "autumn", "studio", "village"),
    "food": (*STILL_LIFE_OF_FOOD, "meadow", "beach"),
    "object": (*STILL_LIFE_OF_OBJECTS, "beach", "meadow", "snow"),
    "spacey": ("space",),
}  # fmt: skip
"""Where each placement class is shown; a repeated setting is as many times as likely."""
LIGHTHOUSE_SETTINGS: tuple[Setting, ...] = ("cliff", "sea", "cliff", "sea", "beach", "island", "lake", "snow", "hills")
SNOWFALL_SETTINGS = ("snow", "mountains", "forest", "city", "village", "lake")

HERO_COLOURS: dict[Drawing, tuple[str | None, ...]] = {
    "lighthouse": ("red", "red", "red", "blue", "white", "black", "yellow", "green", None, None, None),
    "house": ("white", "red", "blue", "yellow", "pink", "green", None),
    "cottage": ("white", "yellow", "pink", "blue", None),
    "castle": ("white", "gray", "pink", "brown", "blue", None),
    "barn": ("red", "red", "red", "white", "green", "blue", None),
    "suspension": ("red", "red", "gray", "blue", "green", None),
    "sailboat": ("white", "red", "blue", "yellow", "orange", None, None),
    "balloon": ("red", "blue", "yellow", "green", "orange", "purple", "pink", None),
    "windmill": ("white", "red", "blue", None),
}
SPRITE_COLOURS = ("red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black")
BACKDROP_COLOURS = (
    "pink", "blue", "yellow", "green", "purple", "orange", "teal", "white", "gray", "red", "black", "beige",
)  # fmt: skip


def sample_scene(rng: np.random.Generator) -> SceneSpec:
    """Draw one scene of the full vocabulary."""
    category = weighted_choice(rng, CATEGORY_SHARES)
    setting = choose(rng, SETTINGS_OF[category])
    is_lighthouse = category == "building" and rng.random() < 0.22
    if is_lighthouse:
        setting = choose(rng, LIGHTHOUSE_SETTINGS)
        noun = next(noun for noun in nouns_by_category()["building"] if noun.drawing == "lighthouse")
    else:
        noun = choose(rng, _candidates(category, setting))
    time = weighted_choice(rng, TIME_SHARES)
    style = weighted_choice(rng, STYLE_SHARES)
    time, weather = _sample_weather(rng, setting, time)
    backdrop = choose(rng, BACKDROP_COLOURS) if setting == "studio" else None
    colour = _sample_colour(rng, noun)
    count = 1 if rng.random() < 0.8 or category == "building" else int(rng.integers(2, 5))
    subjects = [Subject(noun, count, colour)]
    companion = _sample_companion(rng, noun, setting) if count == 1 and rng.random() < 0.22 else None
    if companion is not None:
        subjects.append(companion.subject)
    placement = _sample_placement(rng, category, setting) if len(subjects) == 1 and count == 1 else Placement()
    return SceneSpec(
        setting=setting,
        time=time,
        weather=weather,
        style=style,
        subjects=tuple(subjects),
        size=placement.size,
        side=placement.side,
        behind=companion is not None and companion.behind,
        backdrop=backdrop,
        river=setting == "city" and category == "water",
        sun_behind=placement.sun_behind,
    )


def weighted_choice(rng: np.random.Generator, shares: dict[K, float]) -> K:
    """One key, as likely as its share."""
    return cast("K", str(rng.choice(list(shares), p=list(shares.values()))))


def _candidates(category: Category, setting: Setting) -> list[Noun]:
    """The nouns that fit a setting; the procedural ones are repeated, because they look best."""
    nouns = list(nouns_by_category()[category])
    procedural = [noun for noun in nouns if noun.drawing is not None]
    if category == "building":
        nouns = procedural * 3 + nouns
        unfit: set[Drawing] = set()
        if setting in ("sea", "cliff"):
            unfit |= {"barn", "igloo", "campfire"}
        if setting != "sea":
            unfit.add("suspension")
        if setting != "snow":
            unfit.add("igloo")
        if setting in ("cliff", "forest", "island", "beach", "lake"):
            unfit.add("volcano")
        return [noun for noun in nouns if noun.drawing not in unfit]
    if category in ("air", "water"):
        return procedural * 4 + nouns
    if category == "plant":
        return procedural * 2 + nouns
    return nouns


def _sample_weather(rng: np.random.Generator, setting: Setting, time: TimeOfDay) -> tuple[TimeOfDay, Weather]:
    """The weather, and the hour: settings without a sky have neither."""
    weather: Weather = "clear"
    draw = rng.random()
    if draw < 0.24:
        weather = "cloudy"
    elif draw < 0.3:
        weather = "fog"
    elif draw < 0.35:
        weather = "rain"
    elif draw < 0.38:
        weather = "storm"
    elif draw < 0.44:
        weather = "snow" if setting in SNOWFALL_SETTINGS else "overcast"
    elif draw < 0.48 and time in ("day", "dawn"):
        weather = "rainbow"
    elif draw < 0.54 and time == "night":
        weather = "aurora"
    if setting in ("underwater", "space", "studio"):
        return "day", "clear"
    if setting == "table" and weather != "cloudy":
        return time, "clear"
    return time, weather


def _sample_colour(rng: np.random.Generator, noun: Noun) -> str | None:
    if noun.drawing in HERO_COLOURS:
        return choose(rng, HERO_COLOURS[noun.drawing])
    if noun.colourable and rng.random() < 0.75:
        return choose(rng, SPRITE_COLOURS)
    return None


@dataclass(frozen=True, slots=True)
class Companion:
    """The second subject of a scene."""

    subject: Subject
    behind: bool


def _sample_companion(rng: np.random.Generator, first: Noun, setting: Setting) -> Companion | None:
    category = first.category
    if category not in ("land_animal", "head", "vehicle", "food", "object", "plant"):
        return None
    other: Category = category
    behind = False
    if category in ("land_animal", "head", "vehicle") and setting not in ("studio", "city") and rng.random() < 0.6:
        other = choose(rng, ("building", "plant", "building", "vehicle"))
        behind = other != "vehicle" and rng.random() < 0.7
    unfit = ("suspension", "volcano", "igloo")
    fitting = [noun for noun in nouns_by_category()[other] if noun.drawing not in unfit and noun.name != first.name]
    noun = choose(rng, fitting)
    colour = choose(rng, ("red", "blue", "green", "yellow")) if noun.colourable else None
    return Companion(Subject(noun, 1, colour), behind)


@dataclass(frozen=True, slots=True)
class Placement:
    """How a single subject is shown."""

    size: Size = "medium"
    side: Side | None = None
    sun_behind: bool = False


def _sample_placement(rng: np.random.Generator, category: Category, setting: Setting) -> Placement:
    draw = rng.random()
    size: Size = "small" if draw < 0.1 else "large" if draw < 0.3 else "giant" if draw < 0.36 else "medium"
    if setting == "island" and size != "small":
        size = "medium"  # Anything larger dwarfs the island
    if category in ("food", "object") and setting in ("meadow", "beach", "snow"):
        size = "giant"
    sides: tuple[Side, ...] = ("left", "right")
    side = choose(rng, sides) if rng.random() < 0.12 else None
    return Placement(size, side, sun_behind=bool(rng.random() < 0.2))

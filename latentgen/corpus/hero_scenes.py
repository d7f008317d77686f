"""The `heroes` vocabulary: ten procedural nouns in nine settings, drawn without any artwork.

It is what the first embedded model is trained on: few things, each seen often. Its captions know synonyms of the nouns,
leave parts out as users do, and are sometimes comma tags or a bare noun.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from latentgen.corpus.captions import choose, plural, with_article
from latentgen.corpus.sampling import HERO_COLOURS, weighted_choice
from latentgen.corpus.scene import (
    Category,
    Drawing,
    Noun,
    SceneSpec,
    Setting,
    Side,
    Size,
    Subject,
    TimeOfDay,
    Weather,
)

K = TypeVar("K", bound=str)


@dataclass(frozen=True, slots=True)
class Hero:
    """A procedural noun: how often it is shown, where, and what people call it."""

    share: float
    drawing: Drawing
    category: Category
    names: tuple[str, ...]
    """What captions call it; a repeated name is as many times as likely."""
    settings: dict[Setting, float]


HEROES: dict[str, Hero] = {
    "lighthouse": Hero(
        0.27,
        "lighthouse",
        "building",
        ("lighthouse",),
        {"cliff": 0.3, "sea": 0.3, "island": 0.15, "beach": 0.15, "hills": 0.05, "snow": 0.05},
    ),
    "sailboat": Hero(
        0.13, "sailboat", "water", ("sailboat", "sailboat", "sailing boat", "boat", "yacht"), {"sea": 1.0}
    ),
    "castle": Hero(
        0.11,
        "castle",
        "building",
        ("castle", "castle", "castle", "fortress"),
        {"meadow": 0.25, "hills": 0.25, "cliff": 0.2, "lake": 0.15, "snow": 0.15},
    ),
    "house": Hero(
        0.07,
        "house",
        "building",
        ("house", "house", "home"),
        {"meadow": 0.3, "hills": 0.25, "lake": 0.15, "snow": 0.2, "beach": 0.1},
    ),
    "cottage": Hero(
        0.05,
        "house",
        "building",
        ("cottage",),
        {"meadow": 0.3, "hills": 0.25, "lake": 0.15, "snow": 0.2, "beach": 0.1},
    ),
    "cabin": Hero(
        0.04,
        "cabin",
        "building",
        ("cabin", "log cabin", "wooden cabin"),
        {"meadow": 0.2, "hills": 0.2, "lake": 0.3, "snow": 0.3},
    ),
    "windmill": Hero(0.10, "windmill", "building", ("windmill",), {"meadow": 0.5, "hills": 0.5}),
    "hot air balloon": Hero(
        0.10,
        "balloon",
        "air",
        ("hot air balloon", "hot air balloon", "hot-air balloon", "balloon"),
        {"hills": 0.3, "meadow": 0.3, "sea": 0.2, "desert": 0.2},
    ),
    "pine tree": Hero(
        0.065,
        "pine",
        "plant",
        ("pine tree", "pine tree", "pine", "fir tree"),
        {"snow": 0.5, "hills": 0.25, "lake": 0.25},
    ),
    "palm tree": Hero(
        0.065, "palm", "plant", ("palm tree", "palm tree", "palm"), {"beach": 0.4, "island": 0.4, "desert": 0.2}
    ),
}
COTTAGE_COLOURS = ("white", "yellow", "pink", "blue", None)
TIME_SHARES: dict[TimeOfDay, float] = {"day": 0.28, "dawn": 0.14, "sunset": 0.28, "dusk": 0.12, "night": 0.18}
SNOWFALL_SETTINGS = ("snow", "lake", "hills")


def sample_hero_scene(rng: np.random.Generator) -> SceneSpec:
    """Draw one scene: noun, setting, time, weather, colour, count, size, side, sun."""
    name = weighted_choice(rng, _normalised({name: hero.share for name, hero in HEROES.items()}))
    hero = HEROES[name]
    setting = weighted_choice(rng, _normalised(hero.settings))
    time = weighted_choice(rng, _normalised(TIME_SHARES))
    weather = _sample_weather(rng, setting)
    colour = choose(rng, COTTAGE_COLOURS if name == "cottage" else HERO_COLOURS.get(hero.drawing, (None,)))
    count = int(rng.integers(2, 4)) if hero.category != "building" and rng.random() < 0.2 else 1
    size: Size = "medium"
    side: Side | None = None
    sun_behind = False
    if count == 1:
        draw = rng.random()
        size = "small" if draw < 0.1 else "large" if draw < 0.38 else "medium"
        sides: tuple[Side, ...] = ("left", "right")
        side = choose(rng, sides) if rng.random() < 0.15 and setting != "cliff" else None
        sun_behind = bool(rng.random() < 0.15)
    noun = Noun(name, hero.category, hero.drawing)
    return SceneSpec(
        setting=setting,
        time=time,
        subjects=(Subject(noun, count, colour),),
        weather=weather,
        size=size,
        side=side,
        sun_behind=sun_behind,
    )


def _normalised(shares: dict[K, float]) -> dict[K, float]:
    total = sum(shares.values())
    return {name: share / total for name, share in shares.items()}


def _sample_weather(rng: np.random.Generator, setting: Setting) -> Weather:
    draw = rng.random()
    if draw < 0.27:
        return "cloudy"
    if draw < 0.34:
        return "fog"
    if draw < 0.40:
        return "rain"
    return "snow" if draw < 0.48 and setting in SNOWFALL_SETTINGS else "clear"


SETTING_PHRASES: dict[Setting, tuple[str, ...]] = {
    "sea": ("on the sea", "at sea", "on the ocean", "on the water", "in the sea"),
    "cliff": (
        "on a cliff above the sea",
        "on a rocky cliff by the ocean",
        "on a cliff overlooking the sea",
        "on a cliff",
    ),
    "beach": ("on a beach", "on a sandy beach", "by the shore", "on the seashore", "on the beach"),
    "meadow": ("in a meadow", "in a grassy field", "in a field of flowers", "on the grass", "in a green field"),
    "hills": ("in rolling hills", "among green hills", "on a hillside", "on a hill"),
    "lake": (
        "by a mountain lake",
        "beside a lake",
        "on the shore of a calm lake",
        "by a lake",
        "in front of mountains",
    ),
    "desert": ("in the desert", "among sand dunes", "in a sandy desert", "over sand dunes"),
    "snow": ("in the snow", "in a snowy landscape", "in a winter landscape", "in winter"),
    "island": (
        "on a tropical island",
        "on a small island in the sea",
        "on a desert island with palm trees",
        "on an island",
    ),
}
TIME_PHRASES: dict[TimeOfDay, tuple[str, ...]] = {
    "day": ("during the day", "on a sunny day", "in daylight", "under a blue sky", ""),
    "dawn": ("at dawn", "at sunrise", "in the early morning"),
    "sunset": ("at sunset", "at sunset", "at sunset", "at golden hour", "in the evening light", "with the sun setting"),
    "dusk": ("at dusk", "at twilight", "after sunset"),
    "night": ("at night", "at night", "under the stars", "on a starry night", "in the moonlight"),
}
WEATHER_PHRASES: dict[Weather, tuple[str, ...]] = {
    "clear": ("",),
    "cloudy": ("under a cloudy sky", "with big clouds", "with clouds"),
    "rain": ("in the rain", "on a rainy day"),
    "snow": ("in falling snow", "while it is snowing", "on a snowy day"),
    "fog": ("in the fog", "on a misty day", "in fog"),
}
WEATHER_TAGS: dict[Weather, str] = {"rain": "rain", "snow": "snowing", "fog": "fog", "cloudy": "clouds"}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {"small": ("small ", "tiny ", "little "), "large": ("large ", "big ", "")}
STYLE_FORMS = (
    *("{}",) * 6,
    "a flat illustration of {}",
    "an illustration of {}",
    "a poster of {}",
    "a picture of {}",
)
NUMBER_WORDS = {2: ("two", "two", "a pair of"), 3: ("three",)}
BLUE_SKY_PHRASES = ("on a sunny day", "under a blue sky", "in daylight", "during the day")
STARRY_PHRASES = ("under the stars", "on a starry night", "in the moonlight")


def hero_caption(scene: SceneSpec, rng: np.random.Generator) -> str:
    """One caption that is true of the scene; parts are dropped at random, because users leave them out too."""
    subject = scene.subjects[0]
    name = choose(rng, HEROES[subject.noun.name].names)
    colour = f"{subject.colour} " if subject.colour is not None and rng.random() < 0.9 else ""
    form = rng.random()
    if form < 0.08:
        return _comma_tags(scene, f"{colour}{name}", rng)
    size_words = SIZE_WORDS.get(scene.size)
    size = choose(rng, size_words) if size_words is not None and rng.random() < 0.8 else ""
    what = f"{size}{colour}{name}"
    single = subject.count == 1
    who = with_article(what) if single else f"{choose(rng, NUMBER_WORDS[subject.count])} {plural(what)}"
    if form < 0.13:  # A bare noun
        return what if single and rng.random() < 0.5 else who
    tail = _surroundings(scene, rng)
    if rng.random() < 0.15:
        tail = tail[::-1]
    sentence = f"{who} {' '.join(tail)}" if rng.random() < 0.75 else ", ".join([who, *tail])
    return choose(rng, STYLE_FORMS).format(sentence.strip())


def _comma_tags(scene: SceneSpec, what: str, rng: np.random.Generator) -> str:
    setting = "mountain lake" if scene.setting == "lake" else scene.setting
    tags = [setting, scene.time, WEATHER_TAGS.get(scene.weather, "")]
    return ", ".join([what, *(tag for tag in tags if tag and rng.random() < 0.8)])


def _surroundings(scene: SceneSpec, rng: np.random.Generator) -> list[str]:
    """Place, time and weather, each perhaps left out, none contradicting the weather."""
    where = choose(rng, SETTING_PHRASES[scene.setting]) if rng.random() < 0.72 else ""
    if where and scene.side is not None and rng.random() < 0.8:
        where += f", on the {scene.side} side"
    when = choose(rng, TIME_PHRASES[scene.time]) if rng.random() < (0.6 if scene.time == "day" else 0.93) else ""
    if scene.weather != "clear":
        if when in BLUE_SKY_PHRASES:
            when = ""
        if when in STARRY_PHRASES:
            when = "at night"
    sky = choose(rng, WEATHER_PHRASES[scene.weather]) if rng.random() < 0.85 else ""
    return [part for part in (where, when, sky) if part]

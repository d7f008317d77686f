"""The `heroes` and `heroes20` vocabularies: procedural nouns only, drawn large and without any artwork.

They are what the embedded model is trained on: few things, each seen often, alone, counted, and in pairs, so that
colour, number and place can be learned. `heroes` has ten nouns; `heroes20` has ten more, each as distinct, for a
longer training. A sixth of the scenes shows two to four of a noun, a fifth shows two different nouns side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np

from latentgen.corpus.captions import choose
from latentgen.corpus.sampling import HERO_COLOURS, weighted_choice
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

K = TypeVar("K", bound=str)


@dataclass(frozen=True, slots=True)
class Hero:
    """A procedural noun: how often it is shown, as what, and where."""

    share: float
    """Relative to the other nouns of the same vocabulary."""
    drawing: Drawing
    category: Category
    settings: dict[Setting, float]
    fills_the_picture: bool = False
    """Shown alone and in the middle only: a bridge, a volcano."""


ON_LAND: dict[Setting, float] = {"meadow": 0.3, "hills": 0.25, "lake": 0.15, "snow": 0.2, "beach": 0.1}
HEROES: dict[str, Hero] = {
    "lighthouse": Hero(
        0.22,
        "lighthouse",
        "building",
        {"cliff": 0.3, "sea": 0.3, "island": 0.12, "beach": 0.16, "hills": 0.06, "snow": 0.06},
    ),
    "sailboat": Hero(0.13, "sailboat", "water", {"sea": 0.75, "lake": 0.25}),
    "castle": Hero(
        0.12,
        "castle",
        "building",
        {"meadow": 0.25, "hills": 0.25, "cliff": 0.2, "lake": 0.15, "snow": 0.15},
    ),
    "house": Hero(0.10, "house", "building", ON_LAND),
    "cottage": Hero(0.06, "cottage", "building", ON_LAND),
    "cabin": Hero(0.06, "cabin", "building", {"meadow": 0.2, "hills": 0.2, "lake": 0.3, "snow": 0.3}),
    "windmill": Hero(0.10, "windmill", "building", {"meadow": 0.45, "hills": 0.4, "snow": 0.15}),
    "hot air balloon": Hero(
        0.11, "balloon", "air", {"hills": 0.3, "meadow": 0.25, "sea": 0.15, "desert": 0.15, "lake": 0.15}
    ),
    "pine tree": Hero(0.05, "pine", "plant", {"snow": 0.5, "hills": 0.25, "lake": 0.25}),
    "palm tree": Hero(0.05, "palm", "plant", {"beach": 0.45, "island": 0.35, "desert": 0.2}),
}
MORE_HEROES: dict[str, Hero] = {
    "igloo": Hero(0.06, "igloo", "building", {"snow": 1.0}),
    "pagoda": Hero(0.07, "pagoda", "building", {"garden": 0.4, "hills": 0.2, "lake": 0.2, "snow": 0.2}),
    "barn": Hero(0.07, "barn", "building", {"farm": 0.4, "meadow": 0.3, "hills": 0.2, "snow": 0.1}),
    "suspension bridge": Hero(0.06, "suspension", "building", {"sea": 1.0}, fills_the_picture=True),
    "volcano": Hero(
        0.06, "volcano", "building", {"sea": 0.4, "meadow": 0.2, "hills": 0.2, "desert": 0.2}, fills_the_picture=True
    ),
    "cactus": Hero(0.06, "cactus", "plant", {"desert": 1.0}),
    "campfire": Hero(
        0.07, "campfire", "building", {"forest": 0.4, "beach": 0.2, "snow": 0.15, "desert": 0.1, "lake": 0.15}
    ),
    "oak tree": Hero(0.06, "round", "plant", {"meadow": 0.4, "hills": 0.3, "lake": 0.2, "farm": 0.1}),
    "cherry blossom tree": Hero(0.07, "cherry", "plant", {"garden": 0.4, "hills": 0.3, "meadow": 0.3}),
    "autumn tree": Hero(0.06, "autumn", "plant", {"autumn": 0.7, "lake": 0.3}),
}
HEROES_20: dict[str, Hero] = {**HEROES, **MORE_HEROES}

TIME_SHARES: dict[TimeOfDay, float] = {"day": 0.28, "dawn": 0.14, "sunset": 0.26, "dusk": 0.12, "night": 0.2}
STYLE_SHARES: dict[Style, float] = {
    "flat": 0.72,
    "watercolor": 0.07,
    "oil painting": 0.06,
    "pixel art": 0.05,
    "pencil sketch": 0.05,
    "neon": 0.05,
}
WEATHER_SHARES: dict[Weather, float] = {
    "clear": 0.44,
    "cloudy": 0.16,
    "overcast": 0.06,
    "rain": 0.09,
    "storm": 0.05,
    "snow": 0.07,
    "fog": 0.07,
    "rainbow": 0.06,
}
AURORA_SHARE = 0.2
"""Of the nights that would be clear or cloudy."""
SNOWFALL_SETTINGS = ("snow", "lake", "hills", "meadow", "forest", "farm")
GREEN_ONLY = ("cherry", "autumn", "round", "palm", "cactus")
"""Drawings that are not shown in snowfall: they would lose what makes them known."""
COUNTED_SHARE, PAIRED_SHARE = 0.16, 0.22
BROAD = ("castle", "barn", "igloo", "cottage")
"""Drawings of which four beside each other would be too small."""
TOO_BROAD_FOR_A_SIDE = ("castle", "house", "cottage", "cabin", "barn", "igloo", "palm", "round", "cherry", "autumn")
"""Drawings that reach over the middle when they are large, so that none is large and at a side."""
ALL_COLOURS: Final = (
    "red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black", "brown", "gray",
)  # fmt: skip
"""What `in_any_colour` chooses from: all that some noun of `HERO_COLOURS` has."""
OF_FEW_COLOURS = ("suspension", "pagoda")
"""Drawings that it leaves as they are."""
TOO_BROAD_FOR_A_CLIFF = ("house", "cottage", "cabin", "barn")
"""Drawings that reach over its edge when they are large."""
CROWDED_SETTINGS = ("cliff", "island")
"""No room for several of a noun, nor for two that stand."""
DRAWN_SETTINGS: tuple[Setting, ...] = (
    "sea", "cliff", "beach", "island", "meadow", "hills", "lake", "snow", "desert",
)  # fmt: skip
"""Where `anywhere` puts what stands or flies: at sea a rock is under what does not swim."""
WATERS: tuple[Setting, ...] = ("sea", "lake", "beach")
"""Of them, where it puts what swims."""
OF_THEIR_PLACE = ("igloo", "cactus", "autumn")
"""Drawings that it leaves in their own settings."""
OFFSHORE_SETTINGS = ("beach", "lake", "cliff")
"""Land with water behind, where a second noun may be a sailboat."""


def sample_hero_scene(rng: np.random.Generator, heroes: dict[str, Hero] = HEROES) -> SceneSpec:
    """Draw one scene: noun, setting, time, weather, style, and then one, several, or a pair."""
    name = _weighted(rng, {name: hero.share for name, hero in heroes.items()})
    hero = heroes[name]
    setting = _weighted(rng, hero.settings)
    time = _weighted(rng, TIME_SHARES)
    style = _weighted(rng, STYLE_SHARES)
    kind = rng.random()
    if kind < PAIRED_SHARE and not hero.fills_the_picture:
        partner = _sample_partner(rng, heroes, name, setting)
        if partner is not None:
            names = [name, partner] if rng.random() < 0.5 else [partner, name]
            subjects = _in_different_colours(rng, [heroes[each] for each in names], names)
            weather = _sample_weather(rng, setting, time, [heroes[each].drawing for each in names])
            return SceneSpec(setting, time, subjects, weather, style)
    weather = _sample_weather(rng, setting, time, [hero.drawing])
    colour = _sample_colour(rng, hero.drawing)
    noun = Noun(name, hero.category, hero.drawing)
    counted = PAIRED_SHARE <= kind < PAIRED_SHARE + COUNTED_SHARE
    if counted and setting not in CROWDED_SETTINGS and not hero.fills_the_picture:
        count = int(rng.integers(2, 4 if hero.drawing in BROAD else 5))
        return SceneSpec(setting, time, (Subject(noun, count, colour),), weather, style)
    draw = rng.random()
    size: Size = "small" if draw < 0.12 else "large" if draw < 0.42 and setting != "island" else "medium"
    sides: tuple[Side, ...] = ("left", "right")
    side = choose(rng, sides) if rng.random() < 0.28 else None
    if side is not None and size == "large" and hero.drawing in TOO_BROAD_FOR_A_SIDE:
        size = "medium"
    if setting == "cliff" and size == "large" and hero.drawing in TOO_BROAD_FOR_A_CLIFF:
        size = "medium"
    if hero.fills_the_picture:
        size, side = "medium", None
    sun_behind = bool(rng.random() < 0.12)
    return SceneSpec(setting, time, (Subject(noun, 1, colour),), weather, style, size, side, sun_behind=sun_behind)


def sample_hero20_scene(rng: np.random.Generator) -> SceneSpec:
    """Draw one scene of the twenty nouns; the first ten are shown in 61 % of them."""
    return sample_hero_scene(rng, HEROES_20)


def anywhere(heroes: dict[str, Hero]) -> dict[str, Hero]:
    """The heroes in every setting that has room for them, equally often, and so beside every other that has.

    Of things that stand in few settings, next to few others, a network learns those, and not that a sentence names any.
    """

    def settings(hero: Hero) -> dict[Setting, float]:
        if hero.fills_the_picture or hero.drawing in OF_THEIR_PLACE:
            return hero.settings
        places = WATERS if hero.category == "water" else DRAWN_SETTINGS
        fitting: dict[Setting, float] = dict.fromkeys(hero.settings, 1.0)
        fitting |= {place: 1.0 for place in places if place != "snow" or hero.drawing not in GREEN_ONLY}
        return fitting

    return {name: replace(hero, settings=settings(hero)) for name, hero in heroes.items()}


def _weighted(rng: np.random.Generator, shares: dict[K, float]) -> K:
    total = sum(shares.values())
    return weighted_choice(rng, {name: share / total for name, share in shares.items()})


def _sample_colour(rng: np.random.Generator, drawing: Drawing) -> str | None:
    """A colour for every drawing that can have one, so that labels always say what is shown."""
    colours = [colour for colour in HERO_COLOURS.get(drawing, ()) if colour is not None]
    return choose(rng, colours) if colours else None


def _in_different_colours(rng: np.random.Generator, heroes: list[Hero], names: list[str]) -> tuple[Subject, ...]:
    """Two subjects; where both have a colour it differs, mostly, so that colours must be bound to nouns."""
    first, second = (_sample_colour(rng, hero.drawing) for hero in heroes)
    if first is not None and first == second:
        second = _sample_colour(rng, heroes[1].drawing)
    nouns = [Noun(name, hero.category, hero.drawing) for name, hero in zip(names, heroes, strict=True)]
    return Subject(nouns[0], 1, first), Subject(nouns[1], 1, second)


def in_any_colour(rng: np.random.Generator, scene: SceneSpec) -> SceneSpec:
    """The scene with each thing that has a colour in one of all colours, no two in the same.

    Of things that come in few colours a network learns those, and not that a colour word paints any thing: purple, say,
    would be the balloon's alone.
    """
    colours = iter(rng.permutation(ALL_COLOURS))

    def painted(subject: Subject) -> Subject:
        if subject.colour is None or subject.noun.drawing in OF_FEW_COLOURS:
            return subject
        return replace(subject, colour=str(next(colours)))

    return replace(scene, subjects=tuple(painted(subject) for subject in scene.subjects))


def _sample_partner(rng: np.random.Generator, heroes: dict[str, Hero], name: str, setting: Setting) -> str | None:
    """Another noun that belongs into the setting: on a cliff and an island, no two that stand."""

    def stands(noun: str) -> bool:
        return heroes[noun].category not in ("water", "air")

    def fits(other: str) -> bool:
        hero = heroes[other]
        if other == name or hero.fills_the_picture:
            return False
        if setting in CROWDED_SETTINGS:
            belongs = setting in hero.settings or (setting == "cliff" and not stands(other))
            return belongs and not (stands(name) and stands(other))
        offshore = hero.category == "water" and setting in OFFSHORE_SETTINGS
        return setting in hero.settings or offshore or hero.category == "air"

    shares = {other: hero.share for other, hero in heroes.items() if fits(other)}
    return _weighted(rng, shares) if shares else None


def _sample_weather(rng: np.random.Generator, setting: Setting, time: TimeOfDay, drawings: list[Drawing]) -> Weather:
    weather = _weighted(rng, WEATHER_SHARES)
    if time == "night" and weather in ("clear", "cloudy", "rainbow") and rng.random() < AURORA_SHARE:
        return "clear" if setting == "desert" else "aurora"
    if weather == "rainbow" and time in ("night", "dusk"):
        return "clear"
    if setting == "desert" and weather not in ("clear", "cloudy", "fog", "rainbow"):
        return "clear"
    if setting == "snow" and weather in ("rain", "storm"):
        return "snow"
    if weather == "snow" and (setting not in SNOWFALL_SETTINGS or any(drawing in GREEN_ONLY for drawing in drawings)):
        return "cloudy"
    return weather

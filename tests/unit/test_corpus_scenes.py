"""Scenes, vocabulary and held-out splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from typing import get_args

import numpy as np
import pytest

from latentgen.corpus import compose
from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.captions import caption
from latentgen.corpus.compose import render_scene
from latentgen.corpus.hero_scenes import (
    HEROES,
    HEROES_20,
    OFFSHORE_SETTINGS,
    Hero,
    sample_hero20_scene,
    sample_hero_scene,
)
from latentgen.corpus.records import scene_of
from latentgen.corpus.sampling import sample_scene
from latentgen.corpus.scene import Drawing, Noun, SceneSpec, Setting, Side, Style, Subject, Weather
from latentgen.corpus.splits import ALWAYS_HELD_OUT, ALWAYS_TRAINED, held_out_pairs
from latentgen.corpus.sprites import HUES
from latentgen.corpus.subjects import Figure
from latentgen.corpus.vocabulary import all_nouns, nouns_by_category
from latentgen.errors import InputError

SAMPLES = 20_000
LIGHTHOUSE = Noun("lighthouse", "building", "lighthouse")
BRIDGE = Noun("suspension bridge", "building", "suspension")


@cache
def sampled() -> list[SceneSpec]:
    return [sample_scene(np.random.default_rng(seed)) for seed in range(SAMPLES)]


@cache
def sampled_heroes() -> list[SceneSpec]:
    return [sample_hero_scene(np.random.default_rng(seed)) for seed in range(4000)]


@cache
def sampled_heroes20() -> list[SceneSpec]:
    return [sample_hero20_scene(np.random.default_rng(seed)) for seed in range(4000)]


def test_vocabulary_has_every_noun_it_promises() -> None:
    nouns = all_nouns()
    assert len({noun.name for noun in nouns}) == 402
    assert {noun.drawing for noun in nouns} - {None} == set(get_args(Drawing))
    assert len({noun.name for noun in nouns if noun.drawing is not None}) == 21
    assert all(noun.noto is not None for noun in nouns if noun.drawing is None)
    assert set(HEROES_20) <= {noun.name for noun in nouns}
    drawings = {noun.name: (noun.drawing, noun.category) for noun in nouns if noun.drawing is not None}
    assert all(drawings[name] == (hero.drawing, hero.category) for name, hero in HEROES_20.items())


def test_the_first_scenes_of_the_corpus_stay_the_same() -> None:
    """A seed stands for a scene: these were written down when corpus version 2 was made; 3 kept them."""
    scene = sample_scene(np.random.default_rng(5))
    wanted = "a blue cupcake to the left of a loaf of bread at sunset on a table by a window, poster"
    assert caption(scene, np.random.default_rng([5, 0])) == wanted
    assert scene.to_json() == {
        "setting": "table",
        "time": "sunset",
        "weather": "cloudy",
        "style": "flat",
        "size": "medium",
        "side": None,
        "behind": False,
        "backdrop": None,
        "river": False,
        "sun_behind": False,
        "relation": "left of",
        "subjects": [
            {"noun": "cupcake", "count": 1, "colour": "blue", "position": "left"},
            {"noun": "loaf of bread", "count": 1, "colour": None, "position": "right"},
        ],
    }
    hero = sample_hero_scene(np.random.default_rng(5))
    assert caption(hero, np.random.default_rng([5, 0])) == "a red hot-air balloon and a palm in the desert"
    unseen = caption(hero, np.random.default_rng([5, 0]), "held_out")
    assert unseen == "a palm tree right of a red air balloon at sunset in the desert"


def test_every_noun_and_setting_and_style_occurs() -> None:
    assert {subject.noun.name for scene in sampled() for subject in scene.subjects} == {n.name for n in all_nouns()}
    assert {scene.setting for scene in sampled()} == set(get_args(Setting))
    assert {scene.style for scene in sampled()} == set(get_args(Style))


def test_sampled_scenes_make_sense() -> None:
    for scene in sampled():
        first = scene.subjects[0]
        if scene.setting == "underwater":
            assert first.noun.category == "undersea"
        if scene.setting in ("studio", "underwater", "space"):
            assert (scene.time, scene.weather) == ("day", "clear")
        if scene.setting == "table":
            assert scene.weather in ("clear", "cloudy")
        assert scene.weather != "aurora" or scene.time == "night"
        assert scene.weather != "rainbow" or scene.time in ("day", "dawn")
        if not scene.is_single:
            assert (scene.size, scene.side, scene.sun_behind) == ("medium", None, False)
        for subject in scene.subjects:
            if subject.noun.drawing is None and subject.colour is not None:
                assert subject.noun.colourable
                assert subject.colour in {*HUES, "white", "black"}


@pytest.mark.parametrize(("scenes", "heroes"), [(sampled_heroes, HEROES), (sampled_heroes20, HEROES_20)])
def test_heroes_need_no_artwork(scenes: Callable[[], list[SceneSpec]], heroes: dict[str, Hero]) -> None:
    names = Counter(scene.subjects[0].noun.name for scene in scenes() if len(scene.subjects) == 1)
    assert set(names) == set(heroes)
    assert min(names.values()) > 60
    for scene in scenes():
        for subject in scene.subjects:
            hero = heroes[subject.noun.name]
            assert subject.noun.drawing == hero.drawing
            offshore = hero.category == "water" and scene.setting in OFFSHORE_SETTINGS
            aloft = hero.category == "air" and len(scene.subjects) == 2
            assert scene.setting in hero.settings or offshore or aloft


def test_heroes_are_shown_alone_counted_and_in_pairs() -> None:
    scenes = sampled_heroes()
    kinds = Counter(len(scene.subjects) if len(scene.subjects) == 2 else -scene.subjects[0].count for scene in scenes)
    assert 0.15 < kinds[2] / len(scenes) < 0.25
    for count in (-2, -3, -4):
        assert kinds[count] / len(scenes) > 0.03
    sides = Counter(scene.side for scene in scenes if scene.is_single)
    assert min(sides["left"], sides["right"]) > 200
    assert {scene.style for scene in scenes} == set(get_args(Style))
    assert {scene.weather for scene in scenes} == set(get_args(Weather))
    pairs = [scene for scene in scenes if len(scene.subjects) == 2]
    both = [[subject.colour for subject in scene.subjects] for scene in pairs]
    coloured = [colours for colours in both if None not in colours]
    assert sum(a != b for a, b in coloured) / len(coloured) > 0.85


def test_hero_scenes_make_sense() -> None:
    for scene in (*sampled_heroes(), *sampled_heroes20()):
        names = [subject.noun.name for subject in scene.subjects]
        assert len(set(names)) == len(names)
        assert scene.weather != "aurora" or scene.time == "night"
        assert scene.weather != "rainbow" or scene.time in ("day", "dawn", "sunset")
        assert scene.weather not in ("rain", "storm", "snow", "overcast") or scene.setting != "desert"
        assert scene.weather not in ("rain", "storm") or scene.setting != "snow"
        if scene.setting in ("cliff", "island"):
            standing = [s for s in scene.subjects if s.noun.category not in ("water", "air")]
            assert len(standing) == 1
            assert standing[0].count == 1


def test_labels_are_complete_enough_to_be_asked_about() -> None:
    for scene in sampled_heroes():
        labels = scene.to_json()
        assert labels["relation"] == ("left of" if len(scene.subjects) == 2 else None)
        positions = [subject["position"] for subject in labels["subjects"]]
        if scene.is_single:
            assert positions == [scene.side or "centre"]
        elif len(scene.subjects) == 2:
            assert positions == ["left", "right"]
        else:
            assert positions == [None]
        for subject in labels["subjects"]:
            drawing = HEROES[subject["noun"]].drawing
            assert (subject["colour"] is None) == (drawing in ("cabin", "pine", "palm"))


@pytest.mark.parametrize("setting", ["meadow", "cliff", "sea", "beach", "lake", "river"])
@pytest.mark.parametrize("side", ["left", None, "right"])
def test_a_label_of_a_side_is_where_the_subject_is_drawn(setting: Setting, side: Side | None) -> None:
    """The subject is found by drawing the scene in two colours: what differs is the lighthouse."""
    red, blue = (
        [
            render_scene(SceneSpec(setting, "day", (Subject(LIGHTHOUSE, 1, colour),), side=side), seed, 64).astype(int)
            for seed in range(5)
        ]
        for colour in ("red", "blue")
    )
    for first, second in zip(red, blue, strict=True):
        columns = (np.abs(first - second).sum(-1) > 150).sum(0)
        middle = (columns * np.arange(64)).sum() / columns.sum() / 64
        position = SceneSpec(setting, "day", (Subject(LIGHTHOUSE),), side=side).position(0)
        bounds = {"left": (0, 0.42), "centre": (0.33, 0.67), "right": (0.58, 1), None: (0, 1)}[position]
        assert bounds[0] < middle < bounds[1], (setting, middle)


def test_heroes_are_drawn_in_the_third_that_their_label_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever their size: a castle that reaches over the middle is not called "on the left"."""
    middles: list[float] = []

    def note(canvas: Canvas, figure: Figure, x: float, *_rest: object, **_options: object) -> None:
        middles.append(x / EXTENT)

    monkeypatch.setattr(compose, "draw_figure", note)
    at_a_side = [scene for scene in sampled_heroes20() if scene.side is not None]
    for seed, scene in enumerate(at_a_side[:80]):
        middles.clear()
        render_scene(scene, seed, 16)
        assert len(middles) == 1
        low, high = {"left": (0, 1 / 3), "right": (2 / 3, 1)}[scene.side or ""]
        assert low <= middles[0] <= high, (scene.subjects[0].noun.name, scene.setting, scene.size, middles[0])


def test_share_of_held_out_scenes() -> None:
    share = sum(bool(held_out_pairs(scene)) for scene in sampled()) / SAMPLES
    assert 0.115 < share < 0.14


def test_reserved_pairs_never_occur_in_training_but_their_parts_do() -> None:
    """Collects every pair of the reserved scenes that made them so, and looks for it among the trained ones."""
    training = [scene for scene in sampled() if not held_out_pairs(scene)]
    reserved = [scene for scene in sampled() if held_out_pairs(scene)]
    pairs = {
        "noun-setting": lambda scene: {(s.noun.name, scene.setting) for s in scene.subjects},
        "noun-colour": lambda scene: {(s.noun.name, s.colour) for s in scene.subjects if s.colour},
        "noun-style": lambda scene: {(s.noun.name, scene.style) for s in scene.subjects},
        "noun-count": lambda scene: {(s.noun.name, s.count) for s in scene.subjects if s.count > 1},
        "setting-time-weather": lambda scene: {(scene.setting, scene.time, scene.weather)},
        "noun-pair": lambda scene: {tuple(sorted(s.noun.name for s in scene.subjects))},
    }
    for kind, pairs_of in pairs.items():
        single = [scene for scene in reserved if held_out_pairs(scene) == (kind,) and len(scene.subjects) == 1]
        single = single or [scene for scene in reserved if held_out_pairs(scene) == (kind,)]
        assert single, f"no scene is reserved for its {kind} alone"
        trained = {pair for scene in training for pair in pairs_of(scene)}
        assert not trained & {pair for scene in single for pair in pairs_of(scene)}, kind
    assert {s.noun.name for scene in training for s in scene.subjects} == {noun.name for noun in all_nouns()}
    assert {scene.setting for scene in training} == set(get_args(Setting))
    for values in ({s.colour for scene in sampled() for s in scene.subjects}, {scene.style for scene in sampled()}):
        seen = {s.colour for scene in training for s in scene.subjects} | {scene.style for scene in training}
        assert values <= seen


def test_showpieces_are_always_trained() -> None:
    for setting in ("sea", "cliff"):
        scene = SceneSpec(setting, "sunset", (Subject(LIGHTHOUSE, 1, "red"),))
        assert {("lighthouse", setting), ("lighthouse", "red")} <= ALWAYS_TRAINED
        assert held_out_pairs(scene) == ()


def test_every_kind_of_pair_is_held_out_among_the_heroes() -> None:
    kinds = Counter(kind for scene in sampled_heroes() for kind in set(held_out_pairs(scene)))
    assert set(kinds) == {
        "noun-setting", "noun-colour", "noun-style", "noun-count", "noun-pair", "setting-time-weather"
    }  # fmt: skip
    assert min(kinds.values()) > 20
    share = sum(bool(held_out_pairs(scene)) for scene in sampled_heroes()) / len(sampled_heroes())
    assert 0.08 < share < 0.2
    assert not ALWAYS_HELD_OUT & ALWAYS_TRAINED


def test_a_vocabulary_is_sampled_by_its_own_rules() -> None:
    for seed in range(20):
        assert scene_of("full", seed) == sampled()[seed]
        assert scene_of("heroes", seed) == sampled_heroes()[seed]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"setting": "moon"}, "setting 'moon' is not one of sea"),
        ({"weather": "hail"}, "weather 'hail'"),
        ({"setting": "studio"}, "the studio needs one"),
        ({"backdrop": "red"}, "a backdrop colour belongs to the studio"),
        ({"subjects": ()}, "0 subjects"),
        ({"subjects": (Subject(BRIDGE),)}, "a suspension bridge needs water"),
    ],
)
def test_an_impossible_scene_is_refused(changes: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {"setting": "meadow", "time": "day", "subjects": (Subject(LIGHTHOUSE),)}
    with pytest.raises(InputError, match=message) as caught:
        SceneSpec(**{**fields, **changes})  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_a_subject_has_a_picture_and_a_sensible_count() -> None:
    with pytest.raises(InputError, match="neither a procedural drawing nor artwork"):
        Noun("ghost", "spacey")
    with pytest.raises(InputError, match="count 6 is not between 1 and 5"):
        Subject(LIGHTHOUSE, 6)


def test_a_noun_stands_in_each_of_its_classes() -> None:
    classes = [category for category, nouns in nouns_by_category().items() if "duck" in {noun.name for noun in nouns}]
    assert classes == ["land_animal", "water"]

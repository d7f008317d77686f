"""Scenes, vocabulary and held-out splits."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import get_args

import numpy as np
import pytest

from latentgen.corpus.captions import caption
from latentgen.corpus.hero_scenes import HEROES, hero_caption, sample_hero_scene
from latentgen.corpus.records import is_held_out
from latentgen.corpus.sampling import sample_scene
from latentgen.corpus.scene import Drawing, Noun, SceneSpec, Setting, Style, Subject
from latentgen.corpus.splits import ALWAYS_TRAINED, held_out_pairs
from latentgen.corpus.sprites import HUES
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
    return [sample_hero_scene(np.random.default_rng(seed)) for seed in range(3000)]


def test_vocabulary_has_every_noun_it_promises() -> None:
    nouns = all_nouns()
    assert len({noun.name for noun in nouns}) == 402
    assert {noun.drawing for noun in nouns} - {None} == set(get_args(Drawing))
    assert len({noun.name for noun in nouns if noun.drawing is not None}) == 21
    assert all(noun.noto is not None for noun in nouns if noun.drawing is None)
    assert set(HEROES) <= {noun.name for noun in nouns}


def test_the_first_scenes_of_the_corpus_stay_the_same() -> None:
    """A seed stands for a scene: these were written down when corpus version 1 was made."""
    scene = sample_scene(np.random.default_rng(5))
    wanted = "an illustration of a blue cupcake to the left of a croissant on a table by a window at sunset"
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
        "subjects": [
            {"noun": "cupcake", "count": 1, "colour": "blue"},
            {"noun": "croissant", "count": 1, "colour": None},
        ],
    }
    hero = sample_hero_scene(np.random.default_rng(5))
    assert hero_caption(hero, np.random.default_rng([5, 0])) == (
        "a hot-air balloon on a misty day at sunset over sand dunes, on the left side"
    )


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


def test_heroes_need_no_artwork() -> None:
    names = Counter(scene.subjects[0].noun.name for scene in sampled_heroes())
    assert set(names) == set(HEROES)
    for name, hero in HEROES.items():
        assert abs(names[name] / len(sampled_heroes()) - hero.share) < 0.03
    for scene in sampled_heroes():
        assert len(scene.subjects) == 1
        assert scene.subjects[0].noun.drawing is not None
        assert scene.style == "flat"
        assert scene.setting in HEROES[scene.subjects[0].noun.name].settings


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
        scene = SceneSpec(setting, "sunset", (Subject(LIGHTHOUSE),))
        assert ("lighthouse", setting) in ALWAYS_TRAINED
        assert "noun-setting" not in held_out_pairs(scene)


def test_is_held_out_agrees_with_the_scene() -> None:
    for seed in range(200):
        assert is_held_out("full", seed) == bool(held_out_pairs(sampled()[seed]))
        assert is_held_out("heroes", seed) == bool(held_out_pairs(sampled_heroes()[seed]))


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

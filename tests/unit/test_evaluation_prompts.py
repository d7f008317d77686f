"""The benchmark's prompts: fixed, of the right split, and saying what is asked."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from latentgen.corpus.captions import caption
from latentgen.corpus.records import VocabularyName
from latentgen.corpus.scene import Noun, SceneSpec, Subject
from latentgen.corpus.splits import held_out_pairs
from latentgen.corpus.wordings import COLOUR_SPELLINGS, NUMBER_WORDS
from latentgen.evaluation.judging import Reading, SeenNoun, is_right
from latentgen.evaluation.labels import GLOBAL_FACTORS, LabelSet
from latentgen.evaluation.prompts import CATEGORIES, SPLITS, Category, Item, make_items

PER_CATEGORY = 4


@pytest.fixture(scope="module")
def items() -> list[Item]:
    return make_items("heroes", PER_CATEGORY)


@pytest.mark.parametrize("vocabulary", ["heroes", "heroes20"])
def test_every_category_has_prompts_in_every_split(vocabulary: VocabularyName) -> None:
    count = Counter((item.category, item.split) for item in make_items(vocabulary, PER_CATEGORY))
    assert count == {(category, split): PER_CATEGORY for category in CATEGORIES for split in SPLITS}


def test_a_list_is_fixed_by_its_seed_and_begins_as_a_shorter_one_does(items: list[Item]) -> None:
    assert make_items("heroes", PER_CATEGORY) == items
    assert [item.prompt for item in make_items("heroes", PER_CATEGORY, seed=1)] != [item.prompt for item in items]
    shorter = make_items("heroes", 2)
    assert shorter == [item for item in items if item.number < 2]


def test_names_and_drawing_seeds_tell_pictures_apart(items: list[Item]) -> None:
    assert len({item.name for item in items}) == len(items)
    assert all(0 <= item.drawing_seed < 2**32 for item in items)


def test_splits_are_what_they_say(items: list[Item]) -> None:
    for item in items:
        assert bool(held_out_pairs(item.scene)) == (item.split == "held-out composition"), item.prompt
        if item.category == "counting" and item.split == "held-out composition":
            assert "noun-count" in held_out_pairs(item.scene)


def test_held_out_phrasings_are_never_captions_of_training(items: list[Item]) -> None:
    import numpy as np

    for item in (item for item in items if item.split == "held-out phrasing"):
        trained = {caption(item.scene, np.random.default_rng(k), typos=False) for k in range(60)}
        assert item.prompt not in trained


def test_prompts_say_what_is_asked(items: list[Item]) -> None:
    for item in items:
        words = item.prompt.replace(",", " ").split()
        if item.category in ("colour", "attribute binding"):
            for subject in item.scene.subjects:
                assert subject.colour is not None
                assert set(COLOUR_SPELLINGS.get(subject.colour, (subject.colour,))) & set(words), item.prompt
        if item.category == "counting":
            numbers = NUMBER_WORDS[item.scene.subjects[0].count]
            assert any(number in item.prompt for number in numbers), item.prompt
        if item.category == "position":
            assert {"left", "right"} & set(words), item.prompt
        if item.category == "attribute binding":
            assert len({subject.colour for subject in item.scene.subjects}) == 2


RED_HOUSE = Subject(Noun("house", "building", "house"), 1, "red")
BLUE_WINDMILL = Subject(Noun("windmill", "building", "windmill"), 1, "blue")
PAIR = SceneSpec("meadow", "sunset", (RED_HOUSE, BLUE_WINDMILL), "rain")
THREE = SceneSpec("meadow", "sunset", (Subject(RED_HOUSE.noun, 3, "red"),), "rain")


def seen(**nouns: tuple[int, str, str]) -> Reading:
    return Reading({name: SeenNoun(*each) for name, each in nouns.items()}, "meadow", "sunset", "rain", "flat")


RIGHT = seen(house=(1, "red", "left"), windmill=(1, "blue", "right"))
SWAPPED = seen(house=(1, "blue", "right"), windmill=(1, "red", "left"))
NO_WINDMILL = seen(house=(1, "red", "left"), windmill=(0, "blue", "right"))


@pytest.mark.parametrize(
    ("category", "scene", "reading", "expected"),
    [
        ("two objects", PAIR, RIGHT, True),
        ("two objects", PAIR, SWAPPED, True),
        ("two objects", PAIR, NO_WINDMILL, False),
        ("attribute binding", PAIR, RIGHT, True),
        ("attribute binding", PAIR, SWAPPED, False),
        ("attribute binding", PAIR, NO_WINDMILL, False),
        ("position", PAIR, RIGHT, True),
        ("position", PAIR, SWAPPED, False),
        ("counting", THREE, seen(house=(3, "red", "left")), True),
        ("counting", THREE, seen(house=(2, "red", "left")), False),
        ("single object", THREE, seen(house=(1, "blue", "left")), True),
        ("setting", PAIR, NO_WINDMILL, True),
        ("weather", SceneSpec("meadow", "sunset", (RED_HOUSE,), "fog"), RIGHT, False),
    ],
)
def test_a_verdict_is_about_its_category_alone(
    category: Category, scene: SceneSpec, reading: Reading, expected: bool
) -> None:
    assert is_right(category, scene, reading) is expected


def test_label_sets_come_from_labels_and_go_through_json() -> None:
    labels = LabelSet.of([PAIR.to_json(), THREE.to_json()])
    assert labels.nouns == ("house", "windmill")
    assert labels.colours == ("blue", "red")
    assert labels.max_count == 3
    assert [labels.answers(factor) for factor in GLOBAL_FACTORS] == [("meadow",), ("sunset",), ("rain",), ("flat",)]
    assert LabelSet.from_json(json.loads(json.dumps(labels.to_json()))) == labels

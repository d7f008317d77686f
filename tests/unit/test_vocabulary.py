"""Words that carry meaning, what of them a model has seen, and what is nearest to those that it has not."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from latentgen.corpus.hero_scenes import HEROES
from latentgen.corpus.records import make_record
from latentgen.errors import ModelLoadError
from latentgen.jsonfile import write_json
from latentgen.prompts.nearest import TABLE, find_nearest
from latentgen.prompts.vocabulary import Vocabulary, count_words, read_vocabulary
from latentgen.prompts.words import content_words, inflections

SEEN = [
    "lighthouse", "sunset", "sea", "night", "blue", "windmill", "green", "castle", "balloon", "sky", "yellow",
    "hills", "tree", "red", "cliff", "field", "house", "pine", "boat", "cottage", "cabin", "ocean", "fog",
    "lake", "meadow", "water", "snow", "rain", "purple", "gray", "mountain", "left", "right", "side", "light",
    "flat", "home", "setting", "picture", "winter",
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a lighthouse at sunset, in the fog", ["lighthouse", "sunset", "fog"]),
        ("A Captain's hot-air balloon; 4k, 3d!", ["captain", "hot", "air", "balloon"]),
        ("it’s the café’s", ["café"]),
        ("of the and with 12 x", []),
    ],
)
def test_words_that_carry_meaning(text: str, words: list[str]) -> None:
    assert content_words(text) == words


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        ("lighthouse", "lighthouses"),
        ("houses", "house"),
        ("berry", "berries"),
        ("church", "churches"),
        ("wolf", "wolves"),
        ("knife", "knives"),
        ("mouse", "mice"),
        ("man", "men"),
        ("people", "person"),
        ("sail", "sailing"),
        ("sailing", "sails"),
        ("running", "run"),
        ("dance", "dancing"),
        ("paint", "painted"),
        ("fog", "foggy"),
        ("rainy", "rain"),
        ("gray", "grey"),
        ("colour", "colors"),
        ("harbor", "harbour"),
    ],
)
def test_an_inflected_form_is_the_same_word(seen: str, said: str) -> None:
    assert seen in inflections(said)
    assert Vocabulary(1, {seen: 1}).has_seen(said)


@pytest.mark.parametrize(
    ("seen", "said"), [("arm", "army"), ("glas", "glass"), ("boat", "goat"), ("corn", "corner"), ("cat", "cater")]
)
def test_another_word_is_another_word(seen: str, said: str) -> None:
    assert not Vocabulary(1, {seen: 1}).has_seen(said)


def test_words_are_counted_once_a_caption_and_slips_left_out() -> None:
    captions = ["a boat, a boat and a house"] * 9_999 + ["a hosue", "a house"] * 5_000
    seen = count_words(captions)
    assert (seen.captions, dict(seen.words)) == (19_999, {"house": 14_999, "boat": 9_999, "hosue": 5_000})
    assert count_words([*captions, "a bota"]).words == seen.words
    assert "bota" in count_words(["a bota"]).words, "in a small data set every word is meant"


def test_the_corpus_is_counted_by_its_labels() -> None:
    records = [make_record("heroes", seed, 2) for seed in range(300)]
    seen = count_words((text for each in records for text in each.captions), (each.labels() for each in records))
    assert set(seen.scenes) == {"nouns", "settings", "times", "weathers", "styles", "colours"}
    assert set(seen.scenes["nouns"]) == set(HEROES)
    assert seen.scenes["times"].keys() == {"day", "dawn", "sunset", "dusk", "night"}
    assert sum(seen.scenes["settings"].values()) == 300
    assert not count_words(["a boat"], [{"subjects": 3}, {"setting": "sea"}, {"subjects": ["x"]}]).scenes


def test_what_was_trained_before_is_added() -> None:
    both = Vocabulary(10, {"boat": 8, "sea": 2}, {"nouns": {"boat": 4}}) + Vocabulary(5, {"sea": 5, "fox": 9})
    assert both == Vocabulary(15, {"fox": 9, "boat": 8, "sea": 7}, {"nouns": {"boat": 4}})
    assert list(both.words) == ["fox", "boat", "sea"], "the most frequent first"


def test_a_file_and_back(tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    assert read_vocabulary(path) is None
    for seen in (Vocabulary(3, {"sea": 2, "boat": 1}), Vocabulary(3, {"sea": 2}, {"nouns": {"boat": 1}})):
        write_json(path, seen.to_json())
        assert read_vocabulary(path) == seen
    assert list(json.loads(path.read_text())) == ["captions", "scenes", "words"]


@pytest.mark.parametrize(
    "content",
    [{}, {"captions": 1}, {"captions": "1", "words": {}}, {"captions": 1, "words": ["sea"]},
     {"captions": 1, "words": {"sea": "2"}}, {"captions": 1, "words": {}, "scenes": {"nouns": 3}}],
)  # fmt: skip
def test_a_damaged_file_is_named(content: dict[str, object], tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    write_json(path, content)
    with pytest.raises(ModelLoadError, match=r"vocabulary\.json is no list of words"):
        read_vocabulary(path)


@pytest.mark.parametrize(
    ("word", "nearest"),
    [
        ("lighthose", "lighthouse"),
        ("wndmill", "windmill"),
        ("palace", "castle"),
        ("tower", "lighthouse"),
        ("church", "house"),
        ("barn", "house"),
        ("ship", "boat"),
        ("canoes", "boat"),
        ("oak", "tree"),
        ("willows", "tree"),
        ("pond", "lake"),
        ("river", "water"),
        ("volcano", "mountain"),
        ("storm", "rain"),
        ("crimson", "red"),
        ("turquoise", "blue"),
        ("photograph", "picture"),
    ],
)
def test_the_nearest_word(word: str, nearest: str) -> None:
    assert find_nearest(word, SEEN) == nearest


SILLY = [
    "dog", "cat", "tiger", "car", "truck", "spaceship", "spacesuit", "robot", "king", "dragon", "apple",
    "guitar", "door", "hand", "mouse", "boar", "goat", "horse", "city", "summer", "noon", "masterpiece",
    "quality", "detailed", "rocket", "pier", "qwrtzp", "xx",
]  # fmt: skip


@pytest.mark.parametrize("word", SILLY)
def test_nothing_is_better_than_something_silly(word: str) -> None:
    assert find_nearest(word, SEEN) is None


def test_the_more_words_are_known_the_nearer() -> None:
    assert find_nearest("spaniel", SEEN) is None
    assert find_nearest("spaniel", [*SEEN, "animal", "cat", "dog"]) == "dog"
    assert find_nearest("spaniel", []) is None


def test_a_word_of_any_length_is_looked_up_at_once() -> None:
    """Comparing it letter by letter with a thousand words would take minutes."""
    code = """
from latentgen.prompts.nearest import find_nearest
assert find_nearest("b" + "oats" * 25_000, [f"boats{i}" for i in range(1000)]) is None
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_table_is_small_and_its_licence_is_beside_it() -> None:
    assert TABLE.stat().st_size < 150_000
    assert "WordNet 3.1 Copyright 2011 by Princeton University" in TABLE.with_name("WORDNET-LICENCE.txt").read_text()

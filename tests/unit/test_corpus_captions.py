"""Captions: grammar, and truth to the scene."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from latentgen.corpus import captions, hero_scenes
from latentgen.corpus.captions import STYLE_FORMS, caption, plural, with_article
from latentgen.corpus.hero_scenes import HEROES, hero_caption, sample_hero_scene
from latentgen.corpus.sampling import sample_scene
from latentgen.corpus.scene import SceneSpec
from latentgen.corpus.vocabulary import all_nouns

Sampler = Callable[[np.random.Generator], SceneSpec]
Captioner = Callable[[SceneSpec, np.random.Generator], str]
SOURCES: list[tuple[Sampler, Captioner]] = [(sample_scene, caption), (sample_hero_scene, hero_caption)]
COLOURS = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black", "brown", "gray",
)  # fmt: skip


def captioned(sample: Sampler, describe: Captioner, count: int) -> list[tuple[SceneSpec, str]]:
    scenes = [sample(np.random.default_rng(seed)) for seed in range(count)]
    return [
        (scene, describe(scene, np.random.default_rng([seed, k])))
        for seed, scene in enumerate(scenes)
        for k in range(2)
    ]


@pytest.mark.parametrize(
    ("noun", "expected"),
    [
        ("dog", "dogs"),
        ("fox", "foxes"),
        ("bus", "buses"),
        ("cherry blossom", "cherry blossoms"),
        ("butterfly", "butterflies"),
        ("monkey", "monkeys"),
        ("wolf", "wolves"),
        ("goose", "geese"),
        ("sheep", "sheep"),
        ("slice of pizza", "slices of pizza"),
        ("loaf of bread", "loaves of bread"),
        ("stack of books", "stacks of books"),
        ("fish", "fish"),
        ("mailbox", "mailboxes"),
    ],
)
def test_plurals(noun: str, expected: str) -> None:
    assert plural(noun) == expected


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [("owl", "an owl"), ("orange boat", "an orange boat"), ("unicorn", "a unicorn"), ("umbrella", "an umbrella"),
     ("house", "a house"), ("Easter Island statue", "an Easter Island statue")],
)  # fmt: skip
def test_articles(phrase: str, expected: str) -> None:
    assert with_article(phrase) == expected


def test_mass_nouns_are_nouns_of_the_vocabulary() -> None:
    """A word that no noun has would be a rule that never applies."""
    names = {noun.name for noun in all_nouns()}
    assert captions.WITHOUT_ARTICLE - names <= {"pancakes"}
    assert set(captions.IRREGULAR_PLURALS) - names == set()


@pytest.mark.parametrize(("sample", "describe"), SOURCES, ids=["full", "heroes"])
def test_captions_are_well_formed_and_the_same_again(sample: Sampler, describe: Captioner) -> None:
    pairs = captioned(sample, describe, 800)
    for _, text in pairs:
        assert text == text.strip()
        assert "  " not in text
        assert not re.search(r"[{}]|,,| ,|,$", text), text
        assert not re.search(r"\ba [aeio]", text.lower()), text
        assert not re.search(r"\ban [^aeiou]", text.lower()), text
    assert pairs == captioned(sample, describe, 800)
    assert len({text for _, text in pairs}) > 0.7 * len(pairs)


@pytest.mark.parametrize(("sample", "describe"), SOURCES, ids=["full", "heroes"])
def test_captions_name_what_is_drawn_and_nothing_else(sample: Sampler, describe: Captioner) -> None:
    for scene, text in captioned(sample, describe, 1500):
        for subject in scene.subjects:
            name = subject.noun.name
            names = set(HEROES[name].names) if describe is hero_caption else {name}
            spellings = names if subject.count == 1 else {plural(n) for n in names} | names
            assert any(spelling in text for spelling in spellings), (text, names)
            if subject.count > 1 and not _is_comma_tags(scene, text):
                words = {2: ("two ", "pair of "), 3: ("three ",), 4: ("four ",)}[subject.count]
                assert any(word in text for word in words), text
        _check_colours(scene, text)
        _check_time_and_weather(scene, text)
        if scene.side is None:
            assert "side" not in text.replace("beside", "").replace("hillside", "").replace("countryside", "")
        assert not (scene.style == "flat" and re.search("watercolor|pixel|pencil (sketch|drawing)|oil|neon", text))
        if scene.style != "flat":
            assert any(_matches(form, text) for form in STYLE_FORMS[scene.style])


def _is_comma_tags(scene: SceneSpec, text: str) -> bool:
    return not re.search(r"\b(a|an|two|three|a pair of)\b", text)


def _matches(form: str, text: str) -> bool:
    return re.fullmatch(re.escape(form).replace(r"\{\}", ".+"), text) is not None


def _check_colours(scene: SceneSpec, text: str) -> None:
    """No colour word that is not the scene's own, or part of a noun or a phrase."""
    allowed = {subject.colour for subject in scene.subjects} | {scene.backdrop}
    rest = text
    for phrase in ("blue sky", "green hills", "green field", "gray clouds", "blueberries"):
        rest = rest.replace(phrase, "")
    for subject in scene.subjects:
        for name in (subject.noun.name, plural(subject.noun.name)):
            rest = rest.replace(name, "")
    for colour in COLOURS:
        assert colour in allowed or not re.search(rf"\b{colour}\b", rest), (text, colour)


def _check_time_and_weather(scene: SceneSpec, text: str) -> None:
    """Phrases of another hour or another weather would be false."""
    own, others = set[str](), set[str]()
    for phrases in (captions.TIME_PHRASES, hero_scenes.TIME_PHRASES):
        for time, options in phrases.items():
            (own if time == scene.time else others).update(options)
    for phrase in others - own - {""}:
        assert phrase not in text
    if scene.weather in ("rain", "storm", "snow", "fog", "overcast"):
        assert not re.search("blue sky|sunny|starry|under the stars|moonlight", text), text
    weather_words = {
        "rain": "rain|rainy",
        "fog": "fog|misty",
        "storm": "storm|thunderstorm",
        "rainbow": "rainbow",
        "aurora": "aurora|northern lights",
    }
    for weather, words in weather_words.items():
        assert weather == scene.weather or not re.search(rf"\b({words})\b", text), (text, weather)


def test_the_full_vocabulary_always_tells_the_colour_it_draws() -> None:
    for scene, text in captioned(sample_scene, caption, 800):
        for subject in scene.subjects:
            if subject.colour is not None and scene.style != "pencil sketch":
                assert f"{subject.colour} " in text


def test_a_pencil_sketch_has_no_colours() -> None:
    sketches = [(s, t) for s, t in captioned(sample_scene, caption, 3000) if s.style == "pencil sketch"]
    coloured = [(scene, text) for scene, text in sketches if scene.subjects[0].colour is not None]
    assert coloured
    for scene, text in coloured:
        assert f"{scene.subjects[0].colour} {scene.subjects[0].noun.name}" not in text

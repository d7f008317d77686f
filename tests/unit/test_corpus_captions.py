"""Captions: grammar, truth to the scene, and what is held out of training."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from latentgen.corpus import captions, wordings
from latentgen.corpus.captions import Templates, caption, plural, with_article
from latentgen.corpus.hero_scenes import sample_hero20_scene, sample_hero_scene
from latentgen.corpus.sampling import sample_scene
from latentgen.corpus.scene import SceneSpec, Subject
from latentgen.corpus.vocabulary import all_nouns
from latentgen.corpus.wordings import NOUN_NAMES, STYLE_FORMS, STYLE_TAGS, split_wordings

Sampler = Callable[[np.random.Generator], SceneSpec]
SOURCES: list[Sampler] = [sample_scene, sample_hero_scene, sample_hero20_scene]
COLOURS = (
    "red", "orange", "yellow", "green", "teal", "blue", "purple", "pink", "white", "black", "brown", "gray", "grey",
)  # fmt: skip
NUMBERS = {2: ("two ", "2 ", "a pair of "), 3: ("three ", "3 "), 4: ("four ", "4 ")}


def captioned(
    sample: Sampler, count: int, templates: Templates = "train", *, typos: bool = False
) -> list[tuple[SceneSpec, str]]:
    scenes = [sample(np.random.default_rng(seed)) for seed in range(count)]
    return [
        (scene, caption(scene, np.random.default_rng([seed, k]), templates, typos=typos))
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
        ("cherry tree in blossom", "cherry trees in blossom"),
        ("saguaro cactus", "saguaro cacti"),
        ("fortress", "fortresses"),
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


def test_words_about_nouns_are_about_nouns_of_the_vocabulary() -> None:
    """A word that no noun has would be a rule that never applies."""
    names = {noun.name for noun in all_nouns()}
    assert captions.WITHOUT_ARTICLE - names <= {"pancakes"}
    assert set(captions.IRREGULAR_PLURALS) - names == set()
    assert set(NOUN_NAMES) - names == set()


@pytest.mark.parametrize("templates", ["train", "held_out"])
@pytest.mark.parametrize("sample", SOURCES)
def test_captions_are_well_formed_and_the_same_again(sample: Sampler, templates: Templates) -> None:
    pairs = captioned(sample, 500, templates)
    for _, text in pairs:
        assert text == text.strip()
        assert "  " not in text
        assert not re.search(r"[{}]|,,| ,|,$|^,", text), text
        assert not re.search(r"\ba [aeio]", text.lower()), text
        assert not re.search(r"\ban [^aeiou]", text.lower()), text
        assert not re.search(r"\b(and|of|with|on|in|a|the)$", text), text
        assert not re.search(r"\b(of|draw|me) (in|at|on|under|over|by|while|as|during|with)\b", text), text
    assert pairs == captioned(sample, 500, templates)
    assert len({text for _, text in pairs}) > 0.8 * len(pairs)


@pytest.mark.parametrize("templates", ["train", "held_out"])
@pytest.mark.parametrize("sample", SOURCES)
def test_captions_name_what_is_drawn_and_nothing_else(sample: Sampler, templates: Templates) -> None:
    for scene, text in captioned(sample, 700, templates):
        for subject in scene.subjects:
            names = set(NOUN_NAMES.get(subject.noun.name, ())) | {subject.noun.name}
            spellings = names if subject.count == 1 else {plural(name) for name in names} | names
            assert any(spelling in text for spelling in spellings), (text, names)
            if subject.count > 1:
                assert any(word in text for word in NUMBERS[subject.count]), text
        _check_colours(scene, text)
        _check_time_and_weather(scene, text)
        _check_sides(scene, text)
        if scene.style == "flat":
            assert not re.search("watercolou?r|pixel|pencil (sketch|drawing)|in pencil|oil painting|neon", text), text
        else:
            styled = any(_matches(form, text) for form in STYLE_FORMS[scene.style])
            assert styled or any(tag in text for tag in STYLE_TAGS[scene.style]), text


def _matches(form: str, text: str) -> bool:
    return re.fullmatch(re.escape(form).replace(r"\{\}", ".+"), text) is not None


def _check_sides(scene: SceneSpec, text: str) -> None:
    """Left and right are said of the subject that is there."""
    left, right = (re.search(rf"\b{side}\b", text) is not None for side in ("left", "right"))
    if scene.is_single:
        assert (left, right) in {(False, False), (scene.side == "left", scene.side == "right")}, text
        assert scene.side is None or not re.search(r"\b(middle|center)\b", text), text
    elif len(scene.subjects) == 1 or scene.behind:
        assert not left, text
        assert not right, text
    elif left or right:
        both = [_names(subject) for subject in scene.subjects]
        places = [_first_mention(text, own, other) for own, other in (both, both[::-1])]
        leftmost_first = places[0] < places[1]
        if "on the left and" in text or "on its right" in text or re.search(r"\bleft of\b", text):
            assert leftmost_first, text
        else:
            assert not leftmost_first, text


def _names(subject: Subject) -> tuple[str, ...]:
    return (*NOUN_NAMES.get(subject.noun.name, ()), subject.noun.name)


def _first_mention(text: str, names: tuple[str, ...], other: tuple[str, ...]) -> int:
    """Where one of the names begins that is not a part of the other subject's name."""
    for name in sorted(other, key=len, reverse=True):
        if any(own in name for own in names):
            text = text.replace(name, "#" * len(name))
    found = re.search("|".join(rf"\b{re.escape(name)}\b" for name in names), text)
    assert found is not None, (text, names)
    return found.start()


def _check_colours(scene: SceneSpec, text: str) -> None:
    """No colour word that is not the scene's own, or part of a noun or a phrase."""
    allowed = {subject.colour for subject in scene.subjects} | {scene.backdrop}
    allowed |= {"grey"} if "gray" in allowed else set()
    rest = text
    for phrase in ("blue sky", "gray sky", "green hills", "green field", "gray clouds", "blueberries"):
        rest = rest.replace(phrase, "")
    for subject in scene.subjects:
        for name in (subject.noun.name, plural(subject.noun.name)):
            rest = rest.replace(name, "")
    for colour in COLOURS:
        assert colour in allowed or not re.search(rf"\b{colour}\b", rest), (text, colour)


def _check_time_and_weather(scene: SceneSpec, text: str) -> None:
    """Phrases of another hour, of another weather, or of grass under snow would be false."""
    own, others = set[str](), set[str]()
    for phrases in (wordings.TIME_PHRASES, wordings.FAIR_TIME_PHRASES):
        for time, options in phrases.items():
            (own if time == scene.time else others).update(options)
    for phrase in others - own - {""}:
        assert not re.search(rf"\b{phrase}\b(?! or)", text.replace("in the middle", "")), (text, phrase)
    if scene.weather in ("rain", "storm", "snow", "fog", "overcast"):
        assert not re.search("blue sky|sunny|sunshine|starry|under the stars|moonlight|moonlit|golden hour", text), text
    if scene.time == "night":
        assert not re.search(r"\bday\b|flower meadow|field of flowers", text), text
    if scene.snow_covered:
        assert not re.search("green (hills|field)|grassy|the grass|flower meadow|field of flowers", text), text
    weather_words = {
        "rain": "rain|rainy|raining",
        "fog": "fog|foggy|mist|misty",
        "storm": "storm|thunderstorm|lightning",
        "snow": "snowing|snowfall|falling snow|snowy day",
        "rainbow": "rainbow",
        "aurora": "aurora|northern lights",
    }
    for weather, words in weather_words.items():
        assert weather == scene.weather or not re.search(rf"\b({words})\b", text), (text, weather)


def test_a_pencil_sketch_has_no_colours() -> None:
    sketches = [(s, t) for s, t in captioned(sample_hero_scene, 1500) if s.style == "pencil sketch"]
    coloured = [(scene, text) for scene, text in sketches if scene.subjects[0].colour is not None]
    assert len(coloured) > 40
    for scene, text in coloured:
        for name in _names(scene.subjects[0]):
            assert f"{scene.subjects[0].colour} {name}" not in text


def test_colour_is_mostly_told() -> None:
    told = [
        subject.colour in text or "grey" in text
        for scene, text in captioned(sample_hero_scene, 1500)
        for subject in scene.subjects
        if subject.colour is not None and scene.style != "pencil sketch"
    ]
    assert 0.85 < np.mean(told) < 0.95


def test_prompts_come_as_sentences_tags_and_bare_nouns() -> None:
    texts = Counter(text for _, text in captioned(sample_hero_scene, 1500))
    assert texts["a lighthouse"] + texts["lighthouse"] + texts["red lighthouse"] + texts["a red lighthouse"] > 3
    tagged = [text for text in texts if re.search(r"(^|, )(sunset|night|day|dawn|dusk)(,|$)", text)]
    assert 0.04 < len(tagged) / len(texts) < 0.15


def test_a_fixed_share_of_training_captions_has_one_typo() -> None:
    right = [text for _, text in captioned(sample_hero_scene, 1500)]
    typed = [text for _, text in captioned(sample_hero_scene, 1500, typos=True)]
    slips = [(a, b) for a, b in zip(right, typed, strict=True) if a != b]
    assert 0.5 * captions.TYPO_SHARE < len(slips) / len(right) < 1.5 * captions.TYPO_SHARE
    for a, b in slips:
        assert abs(len(a) - len(b)) <= 1
        assert len(a.split()) == len(b.split())
    held_out = captioned(sample_hero_scene, 200, "held_out")
    assert held_out == captioned(sample_hero_scene, 200, "held_out", typos=True)


def test_the_sky_of_a_night_is_not_called_gray() -> None:
    pairs = captioned(sample_hero20_scene, 1500)
    gray = re.compile("gr[ae]y (sky|clouds)")
    assert not [text for scene, text in pairs if scene.time == "night" and gray.search(text)]
    assert [text for scene, text in pairs if scene.time == "sunset" and gray.search(text)]


def _tables() -> list[tuple[str, tuple[str, ...]]]:
    tables: list[tuple[str, tuple[str, ...]]] = [
        ("order", wordings.SENTENCE_ORDERS),
        ("tags", wordings.TAG_ORDERS),
        ("frame", wordings.FRAMES),
        ("relation", wordings.BESIDE_FORMS),
        ("relation", wordings.IN_FRONT_FORMS),
        ("side", wordings.SIDE_FORMS),
        ("centre", wordings.CENTRE_FORMS),
    ]
    places = (wordings.SETTING_PHRASES, wordings.AFLOAT_PHRASES, wordings.ALOFT_PHRASES, wordings.SHARED_PHRASES)
    tables += [("setting", options) for phrases in places for options in phrases.values()]
    tables += [("time", (*plain, *wordings.FAIR_TIME_PHRASES[time])) for time, plain in wordings.TIME_PHRASES.items()]
    tables += [("weather", options) for options in wordings.WEATHER_PHRASES.values()]
    tables += [("style", options) for options in STYLE_FORMS.values()]
    return tables


def test_a_tenth_of_the_wordings_is_held_out_and_none_of_their_words() -> None:
    splits = [split_wordings(kind, options) for kind, options in _tables()]
    held_out = [text for _, unseen in splits for text in unseen]
    trained = [text for train, _ in splits for text in set(train) - {""}]
    assert 0.07 < len(held_out) / (len(held_out) + len(trained)) < 0.12
    assert not set(held_out) & set(trained) - {"on the water", "in the desert", "on a calm lake"}
    words = (wordings.NOUN_NAMES, wordings.TIME_TAGS, wordings.WEATHER_TAGS)
    trained += [text for table in words for options in table.values() for text in options]
    seen = {word for text in trained for word in re.findall("[a-z]+", text)}
    assert {word for text in held_out for word in re.findall("[a-z]+", text)} - seen == set()
    assert len(split_wordings("order", wordings.SENTENCE_ORDERS)[1]) >= 3


def test_training_never_sees_a_held_out_wording() -> None:
    pairs = captioned(sample_hero20_scene, 1500)
    training = {text for _, text in pairs}
    for kind, options in _tables():
        if kind not in ("frame", "style", "weather", "time"):
            continue
        for text in split_wordings(kind, options)[1]:
            form = re.escape(text).replace(r"\{\}", ".+")
            pattern = re.compile(form if kind in ("frame", "style") else rf".*\b{form}\b.*")
            assert not [seen for seen in training if pattern.fullmatch(seen)], (kind, text)
    paraphrased = {text for _, text in captioned(sample_hero20_scene, 500, "held_out")}
    assert len(paraphrased & training) / len(paraphrased) < 0.02

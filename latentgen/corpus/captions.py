"""Captions: style, count, size, colour, noun, second noun, setting, time and weather, in words true of the picture.

Sentences, comma tags and bare nouns; every slot has synonyms, and parts are left out at random as users leave them out.
Like the drawing, a caption is a function of its generator: the order of the draws is part of the corpus.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from latentgen.corpus import wordings
from latentgen.corpus.scene import SceneSpec, Subject
from latentgen.corpus.wordings import split_wordings

T = TypeVar("T")
Templates = Literal["train", "held_out"]
"""Which wordings a caption is made of: those of training, or with at least one that training never sees."""

TAGS_SHARE, BARE_SHARE = 0.12, 0.06
"""Of the captions: comma tags, and the subject alone."""
TYPO_SHARE = 0.02
"""Of the training captions: one with a slip of the keyboard."""
HELD_OUT_PHRASE_SHARE = 0.6
"""How often a held-out caption takes a held-out phrase for a slot that has one; its sentence order always is."""

IRREGULAR_PLURALS = {
    "mouse": "mice",
    "goose": "geese",
    "sheep": "sheep",
    "bison": "bison",
    "deer": "deer",
    "fish": "fish",
    "tropical fish": "tropical fish",
    "shrimp": "shrimp",
    "squid": "squid",
    "moose": "moose",
    "ox": "oxen",
    "wolf": "wolves",
    "loaf of bread": "loaves of bread",
    "pufferfish": "pufferfish",
    "starfish": "starfish",
    "jellyfish": "jellyfish",
    "octopus": "octopuses",
    "cactus": "cacti",
}
WITHOUT_ARTICLE = {
    "french fries", "grapes", "cherries", "blueberries", "pancakes", "sunglasses", "glasses", "jeans", "crossed swords",
    "headphones", "scissors", "popcorn", "corn", "lettuce", "broccoli", "garlic", "spaghetti", "sushi", "fire", "coral",
    "bamboo", "bow and arrow", "cheese", "steak",
}  # fmt: skip
"""Mass nouns and plurals: no article, and no plural of their own."""
FAIR_WEATHERS = {"day": ("clear",), "night": ("clear", "aurora")}
"""Where the phrases of a clear sky are true; at other hours also under clouds."""
SKYLESS = ("studio", "underwater", "space")


def plural(noun: str) -> str:
    """`fox` to `foxes`, `cup of coffee` to `cups of coffee`."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    for joint in (" of ", " in "):
        if joint in noun:
            head, rest = noun.split(joint, 1)
            return f"{plural(head)}{joint}{rest}"
    *before, word = noun.split(" ")
    if word in IRREGULAR_PLURALS:
        word = IRREGULAR_PLURALS[word]
    elif word.endswith(("s", "x", "ch", "sh")):
        word += "es"
    elif word.endswith("y") and word[-2] not in "aeiou":
        word = word[:-1] + "ies"
    else:
        word += "s"
    return " ".join([*before, word])


def with_article(phrase: str) -> str:
    """`an owl`, `a unicorn`."""
    takes_an = phrase[0].lower() in "aeiou" and not phrase.startswith("unicorn")
    return f"an {phrase}" if takes_an else f"a {phrase}"


def choose(rng: np.random.Generator, options: Sequence[T]) -> T:
    """One of them, equally likely."""
    return options[int(rng.integers(len(options)))]


def caption(scene: SceneSpec, rng: np.random.Generator, templates: Templates = "train", *, typos: bool = True) -> str:
    """One caption that is true of the scene.

    With `templates="held_out"` its order of parts, or its phrases, are among those never used in training, and it has
    neither typos nor tags nor bare nouns. Without `typos` the caption is the same, spelled right.
    """
    writer = _Writer(scene, rng, templates)
    form = rng.random()
    if templates == "train" and form < TAGS_SHARE:
        text = writer.tags()
    elif templates == "train" and form < TAGS_SHARE + BARE_SHARE:
        text = writer.bare()
    else:
        text = writer.sentence()
    if templates == "train" and rng.random() < TYPO_SHARE:
        slipped = _with_typo(text, rng)
        return slipped if typos else text
    return text


@dataclass(frozen=True, slots=True)
class _Writer:
    """Puts one scene into words, slot by slot."""

    scene: SceneSpec
    rng: np.random.Generator
    templates: Templates

    def tags(self) -> str:
        """Comma tags, as `red lighthouse, cliff, sunset, watercolor`."""
        scene = self.scene
        tag = wordings.SETTING_TAGS.get(scene.setting, scene.setting).format(backdrop=scene.backdrop)
        has_sky = scene.setting not in SKYLESS
        slots = {
            "who": ", ".join(self._subject(subject, article=False) for subject in scene.subjects),
            "where": tag if self._keeps(0.85) else "",
            "when": choose(self.rng, wordings.TIME_TAGS[scene.time]) if has_sky and self._keeps(0.85) else "",
            "sky": self._sky("tag", wordings.WEATHER_TAGS[scene.weather]),
            "style": choose(self.rng, wordings.STYLE_TAGS[scene.style]),
        }
        return _joined(self._word("tags", wordings.TAG_ORDERS), slots)

    def bare(self) -> str:
        """The subject alone, with or without its article, and its style unless that is plain."""
        article = self.rng.random() < 0.5 or self.scene.style != "flat"
        who = self._subjects(article=article) if len(self.scene.subjects) == 2 else self._single(article=article)
        return self._styled(who)

    def sentence(self) -> str:
        """The subject and its surroundings in some order, inside a frame or a style."""
        order_options = wordings.SENTENCE_ORDERS
        _, unseen = split_wordings("order", order_options)
        order = choose(self.rng, unseen) if self.templates == "held_out" else self._word("order", order_options)
        slots = {"who": self._subjects(article=True), "where": self._where(), "when": self._when()}
        slots["sky"] = self._sky("weather", wordings.WEATHER_PHRASES[self.scene.weather])
        if self.templates == "held_out" and not slots["where"]:
            slots["where"] = self._place()
        sentence = _joined(order, slots)
        if self.scene.style != "flat":
            return self._styled(sentence, before=order.startswith("{who}"))
        frame = self._word("frame", wordings.FRAMES)
        return frame.format(sentence) if order.startswith("{who}") else sentence

    def _word(self, kind: str, options: Sequence[str]) -> str:
        """One of the wordings that these templates may use."""
        train, held_out = split_wordings(kind, tuple(options))
        wants_unseen = self.rng.random() < HELD_OUT_PHRASE_SHARE
        if self.templates == "held_out" and held_out and wants_unseen:
            return choose(self.rng, held_out)
        return choose(self.rng, train)

    def _keeps(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def _styled(self, text: str, *, before: bool = True) -> str:
        """The text with its style, which is named behind it unless it may be named `before`."""
        forms = wordings.STYLE_FORMS[self.scene.style]
        return self._word("style", forms if before else [form for form in forms if form.startswith("{}, ")]).format(
            text
        )

    def _single(self, *, article: bool) -> str:
        return self._subject(self.scene.subjects[0], article=article)

    def _subjects(self, *, article: bool) -> str:
        if len(self.scene.subjects) == 1:
            return self._single(article=article)
        phrases = [self._subject(subject, article=True) for subject in self.scene.subjects]
        forms = wordings.IN_FRONT_FORMS if self.scene.behind else wordings.BESIDE_FORMS
        return self._word("relation", forms).format(*phrases)

    def _subject(self, subject: Subject, *, article: bool) -> str:
        """Number, size, colour and name; the colour is left out now and then, and always in a pencil sketch."""
        name = choose(self.rng, wordings.NOUN_NAMES.get(subject.noun.name, (subject.noun.name,)))
        words = [name]
        if subject.colour is not None and self._keeps(0.9) and self.scene.style != "pencil sketch":
            words.insert(0, choose(self.rng, wordings.COLOUR_SPELLINGS.get(subject.colour, (subject.colour,))))
        size = choose(self.rng, wordings.SIZE_WORDS[self.scene.size])
        if size and len(self.scene.subjects) == 1 and self._keeps(0.85):
            words.insert(0, size)
        if subject.count == 1:
            phrase = " ".join(words)
            return with_article(phrase) if article and name not in WITHOUT_ARTICLE else phrase
        if name not in WITHOUT_ARTICLE:
            words[-1] = plural(name)
        return " ".join([choose(self.rng, wordings.NUMBER_WORDS[subject.count]), *words])

    def _where(self) -> str:
        """The place, and the side of the picture: left out now and then."""
        scene = self.scene
        place = self._place() if self._keeps(0.82) else ""
        side = ""
        if scene.is_single and scene.position(0) is not None:
            if scene.side is not None and self._keeps(0.85):
                side = self._word("side", wordings.SIDE_FORMS).format(scene.side)
            elif scene.side is None and not self._keeps(0.96):
                side = self._word("centre", wordings.CENTRE_FORMS)
        if side and not place:
            return re.sub("^(, | and )", "", side).strip()
        return place + side

    def _place(self) -> str:
        scene = self.scene
        categories = {subject.noun.category for subject in scene.subjects}
        options = wordings.SETTING_PHRASES[scene.setting]
        if categories == {"water"}:
            options = wordings.AFLOAT_PHRASES.get(scene.setting, options)
        elif categories == {"air"}:
            options = wordings.ALOFT_PHRASES.get(scene.setting, options)
        elif categories & {"water", "air"}:
            options = wordings.SHARED_PHRASES.get(scene.setting, options)
        fitting = [phrase for phrase in options if not _is_false(scene, phrase)]
        phrase = self._word("setting", fitting)
        if scene.backdrop is None:
            return phrase
        return phrase.format(backdrop=scene.backdrop, a_backdrop=with_article(scene.backdrop))

    def _when(self) -> str:
        scene = self.scene
        if scene.setting in SKYLESS or not self._keeps(0.62 if scene.time == "day" else 0.93):
            return ""
        fair = scene.weather in FAIR_WEATHERS.get(scene.time, ("clear", "cloudy"))
        phrases = wordings.TIME_PHRASES[scene.time]
        return self._word("time", (*phrases, *wordings.FAIR_TIME_PHRASES[scene.time]) if fair else phrases)

    def _sky(self, kind: str, options: Sequence[str]) -> str:
        if self.scene.setting in (*SKYLESS, "table") or not self._keeps(0.9):
            return ""
        fitting = [text for text in options if not (self.scene.time == "night" and re.search("day$|gray", text))]
        return self._word(kind, fitting)


def _is_false(scene: SceneSpec, phrase: str) -> bool:
    """Snow covers grass and flowers; flowers are closed at night."""
    if scene.snow_covered and re.search("green|grass|flower|crops", phrase):
        return True
    return scene.time == "night" and "flower" in phrase


def _joined(order: str, slots: dict[str, str]) -> str:
    """Fill the slots; commas and spaces around empty ones go."""
    text = order.format(**slots)
    text = re.sub(r"\s+", " ", text)
    text = re.sub(r"(\s*,)+(?=\s*,)", "", text)
    return re.sub(r"\s+,", ",", text).strip(" ,")


def _with_typo(text: str, rng: np.random.Generator) -> str:
    """Two letters swapped, one left out or one doubled, inside a word of five letters or more."""
    words = list(re.finditer("[a-z]{5,}", text))
    if not words:
        return text
    word = choose(rng, words)
    at = word.start() + int(rng.integers(1, len(word.group()) - 1))
    slip = choose(rng, ("swap", "drop", "double"))
    if slip == "swap":
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + text[at + 1 :] if slip == "drop" else text[:at] + text[at] + text[at:]

"""Captions of the full vocabulary: style, count, size, colour, noun, second noun, setting, time, weather.

Every slot has synonyms, and slots are left out at random, but only where what remains is still true of the picture.
Like the drawing, a caption is a function of its generator: the order of the draws is part of the corpus.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from latentgen.corpus.scene import SceneSpec, Setting, Style, Subject, TimeOfDay, Weather

T = TypeVar("T")

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
}
WITHOUT_ARTICLE = {
    "french fries", "grapes", "cherries", "blueberries", "pancakes", "sunglasses", "glasses", "jeans", "crossed swords",
    "headphones", "scissors", "popcorn", "corn", "lettuce", "broccoli", "garlic", "spaghetti", "sushi", "fire", "coral",
    "bamboo", "bow and arrow", "cheese", "steak",
}  # fmt: skip
"""Mass nouns and plurals: no article, and no plural of their own."""

NUMBER_WORDS = {2: ("two", "two", "a pair of"), 3: ("three",), 4: ("four",), 5: ("five",)}
SIZE_WORDS = {
    "small": ("small ", "tiny ", "little "),
    "large": ("large ", "big ", ""),
    "giant": ("giant ", "huge ", "enormous "),
}
IN_FRONT_FORMS = ("{0} in front of {1}", "{0} in front of {1}", "{1} behind {0}")
BESIDE_FORMS = (
    "{0} and {1}",
    "{0} and {1}",
    "{0} next to {1}",
    "{1} beside {0}",
    "{0} to the left of {1}",
    "{1} to the right of {0}",
)

SETTING_PHRASES: dict[Setting, tuple[str, ...]] = {
    "sea": ("on the sea", "at sea", "on the ocean", "on the water"),
    "cliff": ("on a cliff above the sea", "on a rocky cliff by the ocean", "on a cliff overlooking the sea"),
    "beach": ("on a beach", "on a sandy beach", "by the shore", "on the seashore"),
    "meadow": ("in a meadow", "in a grassy field", "in a field of flowers", "on the grass"),
    "hills": ("in rolling hills", "among green hills", "on a hillside"),
    "mountains": ("in the mountains", "in front of snowy mountains", "with mountains in the background"),
    "lake": ("by a mountain lake", "beside a lake", "on the shore of a calm lake"),
    "desert": ("in the desert", "among sand dunes", "in a sandy desert"),
    "forest": ("in a forest", "in the woods", "in a pine forest"),
    "snow": ("in the snow", "in a snowy landscape", "in a winter landscape"),
    "city": ("in the city", "with a city skyline behind", "in front of skyscrapers"),
    "village": ("in a village", "near a small village", "in the countryside"),
    "autumn": ("in autumn", "in an autumn field", "among autumn leaves"),
    "island": ("on a tropical island", "on a small island in the sea", "on a desert island with palm trees"),
    "garden": ("in a garden of cherry blossom trees", "in a spring garden", "among cherry blossoms"),
    "farm": ("on a farm", "in a farm field", "by a field of crops"),
    "river": ("by a river", "beside a winding river", "on a river bank"),
    "underwater": ("underwater", "under the sea", "in the deep ocean", "on a coral reef"),
    "space": ("in space", "in outer space", "among the stars", "floating in space"),
    "table": ("on a wooden table", "on a table by a window"),
    "studio": ("on {a_backdrop} background", "against {a_backdrop} backdrop", "in front of a plain {backdrop} wall"),
}
TIME_PHRASES: dict[TimeOfDay, tuple[str, ...]] = {
    "day": ("during the day", "on a sunny day", "in daylight", "under a blue sky", ""),
    "dawn": ("at dawn", "at sunrise", "in the early morning"),
    "sunset": ("at sunset", "at golden hour", "in the evening light", "with the sun setting"),
    "dusk": ("at dusk", "at twilight", "after sunset"),
    "night": ("at night", "under the stars", "on a starry night", "in the moonlight"),
}
WEATHER_PHRASES: dict[Weather, tuple[str, ...]] = {
    "clear": ("",),
    "cloudy": ("under a cloudy sky", "with big clouds"),
    "overcast": ("on an overcast day", "under gray clouds"),
    "rain": ("in the rain", "on a rainy day"),
    "storm": ("during a thunderstorm", "in a storm with lightning"),
    "snow": ("in falling snow", "while it is snowing", "on a snowy day"),
    "fog": ("in the fog", "on a misty day"),
    "rainbow": ("with a rainbow", "under a rainbow"),
    "aurora": ("under the northern lights", "with aurora in the sky"),
}
STYLE_FORMS: dict[Style, tuple[str, ...]] = {
    "flat": ("{}", "{}", "{}", "a flat illustration of {}", "an illustration of {}", "a poster of {}"),
    "watercolor": ("a watercolor painting of {}", "{}, watercolor", "watercolor of {}"),
    "pixel art": ("pixel art of {}", "{}, pixel art", "{} in pixel art style"),
    "pencil sketch": ("a pencil sketch of {}", "a pencil drawing of {}", "{}, pencil sketch"),
    "oil painting": ("an oil painting of {}", "{}, oil painting"),
    "neon": ("{} in neon colors", "a neon drawing of {}", "{}, neon glow", "a glowing neon sign of {}"),
}
BLUE_SKY_PHRASES = ("on a sunny day", "under a blue sky", "in daylight", "during the day")
STARRY_PHRASES = ("under the stars", "on a starry night", "in the moonlight")


def plural(noun: str) -> str:
    """`fox` to `foxes`, `cup of coffee` to `cups of coffee`."""
    if noun in IRREGULAR_PLURALS:
        return IRREGULAR_PLURALS[noun]
    if " of " in noun:
        head, rest = noun.split(" of ", 1)
        return f"{plural(head)} of {rest}"
    *before, word = noun.split(" ")
    if word.endswith(("s", "x", "ch", "sh")):
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
    """One of the options, all equally likely."""
    return options[int(rng.integers(len(options)))]


def caption(scene: SceneSpec, rng: np.random.Generator) -> str:
    """One caption that is true of the scene."""
    who = _subjects_phrase(scene, rng)
    where = _setting_phrase(scene, rng)
    outdoors = scene.setting not in ("studio", "underwater", "space")
    when = choose(rng, TIME_PHRASES[scene.time]) if outdoors else ""
    sky = choose(rng, WEATHER_PHRASES[scene.weather]) if outdoors and scene.setting != "table" else ""
    when = _agree_with_weather(scene, when, rng)
    if scene.side is not None and scene.is_single:
        where = f"{where}, on the {scene.side} side"
    tail = [part for part in (where, when, sky) if part]
    # Drop a part only where that keeps the caption true of what is drawn by default
    dropping = rng.random()
    if outdoors and dropping < (0.45 if scene.time == "day" else 0.07) and len(tail) > 1:
        tail = [part for part in tail if part != when]
    elif outdoors and dropping > 0.91 and len(tail) > 1 and scene.setting != "table":
        tail = tail[1:]
    if rng.random() < 0.15 and len(tail) > 1:
        tail = tail[::-1]
    sentence = f"{who} {' '.join(tail) if rng.random() < 0.75 else ', '.join(tail)}"
    return choose(rng, STYLE_FORMS[scene.style]).format(sentence).strip()


def _subjects_phrase(scene: SceneSpec, rng: np.random.Generator) -> str:
    phrases = [_subject_phrase(scene, subject, rng) for subject in scene.subjects]
    if len(phrases) == 1:
        return phrases[0]
    return choose(rng, IN_FRONT_FORMS if scene.behind else BESIDE_FORMS).format(*phrases)


def _subject_phrase(scene: SceneSpec, subject: Subject, rng: np.random.Generator) -> str:
    name = subject.noun.name
    colour = "" if subject.colour is None or scene.style == "pencil sketch" else f"{subject.colour} "
    size = ""
    if len(scene.subjects) == 1:
        words = {name_of_size: choose(rng, options) for name_of_size, options in SIZE_WORDS.items()}
        size = words.get(scene.size, "")
    if subject.count == 1:
        return f"{size}{colour}{name}" if name in WITHOUT_ARTICLE else with_article(f"{size}{colour}{name}")
    number = choose(rng, NUMBER_WORDS[subject.count])
    return f"{number} {size}{colour}{name if name in WITHOUT_ARTICLE else plural(name)}"


def _setting_phrase(scene: SceneSpec, rng: np.random.Generator) -> str:
    phrase = choose(rng, SETTING_PHRASES[scene.setting])
    if scene.backdrop is None:
        return phrase
    return phrase.format(backdrop=scene.backdrop, a_backdrop=with_article(scene.backdrop))


def _agree_with_weather(scene: SceneSpec, when: str, rng: np.random.Generator) -> str:
    """The time phrase, unless the weather contradicts it: no blue sky in rain, no golden hour in fog."""
    weather = scene.weather
    if weather != "clear" and when == "under a blue sky":
        when = "during the day"
    if weather in ("storm", "rain", "snow", "fog", "overcast") and scene.time in ("sunset", "dawn"):
        plain = {
            "sunset": choose(rng, ("at sunset", "in the evening")),
            "dawn": choose(rng, ("at dawn", "in the early morning")),
        }
        when = plain[scene.time]
    if weather not in ("clear", "cloudy") and when in BLUE_SKY_PHRASES:
        when = ""
    if when in STARRY_PHRASES and weather not in ("clear", "aurora"):
        when = "at night"
    return when

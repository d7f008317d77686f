"""The words captions are made of: names of nouns, phrases for every label, sentence orders and frames.

A tenth of the orders, frames and phrases is held out by hash (`split_wordings`): training never sees them, and
paraphrase tests are made of them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

from latentgen.corpus.scene import Setting, Size, Style, TimeOfDay, Weather

HELD_OUT_SHARE = 0.12
"""Of the wordings that may be held out; those that must be trained bring it down to a tenth of all."""
HELD_OUT_SALT = "201"
ALWAYS_TRAINED_WORDINGS = {"draw {}", "a scene with {}", "on a moonlit night"}
"""Each has a word that no other wording has: phrasing is tested, not vocabulary."""

NOUN_NAMES: dict[str, tuple[str, ...]] = {
    "lighthouse": ("lighthouse", "lighthouse", "lighthouse", "light house"),
    "sailboat": ("sailboat", "sailboat", "sailing boat", "boat", "yacht", "sail boat"),
    "castle": ("castle", "castle", "castle", "fortress"),
    "house": ("house", "house", "house", "home"),
    "cottage": ("cottage", "cottage", "thatched cottage"),
    "cabin": ("cabin", "log cabin", "log cabin", "wooden cabin"),
    "windmill": ("windmill", "windmill", "windmill", "wind mill"),
    "hot air balloon": ("hot air balloon", "hot air balloon", "hot-air balloon", "balloon", "air balloon"),
    "pine tree": ("pine tree", "pine tree", "pine", "fir tree", "conifer"),
    "palm tree": ("palm tree", "palm tree", "palm"),
    "pagoda": ("pagoda", "pagoda", "pagoda tower"),
    "barn": ("barn", "barn", "farm barn"),
    "suspension bridge": ("suspension bridge", "suspension bridge", "bridge"),
    "volcano": ("volcano", "volcano", "erupting volcano"),
    "cactus": ("cactus", "cactus", "saguaro cactus", "cactus plant"),
    "campfire": ("campfire", "campfire", "camp fire", "bonfire"),
    "oak tree": ("oak tree", "oak tree", "oak", "tree"),
    "cherry blossom tree": ("cherry blossom tree", "cherry tree in blossom", "blossoming cherry tree", "sakura tree"),
    "autumn tree": ("autumn tree", "autumn tree", "fall tree"),
    "birch tree": ("birch tree", "birch tree", "birch"),
}
"""What captions call a noun, where that is more than its name; a repeated name is as many times as likely."""
COLOUR_SPELLINGS = {"gray": ("gray", "grey")}
NUMBER_WORDS = {
    2: ("two", "two", "two", "2", "a pair of"),
    3: ("three", "three", "3"),
    4: ("four", "four", "4"),
    5: ("five", "5"),
}
SIZE_WORDS: dict[Size, tuple[str, ...]] = {
    "small": ("small", "tiny", "little"),
    "medium": ("",),
    "large": ("large", "big"),
    "giant": ("giant", "huge", "enormous"),
}
IN_FRONT_FORMS = ("{0} in front of {1}", "{0} in front of {1}", "{1} behind {0}", "{0} with {1} behind")
BESIDE_FORMS = (
    "{0} and {1}",
    "{0} and {1}",
    "{0} next to {1}",
    "{1} beside {0}",
    "{0} to the left of {1}",
    "{1} to the right of {0}",
    "{0} left of {1}",
    "{1} right of {0}",
    "{0} on the left and {1} on the right",
    "{0} with {1} on its right",
)
"""The first of two subjects stands on the left."""
SIDE_FORMS = (", on the {} side", ", on the {}", " on the {} of the picture", ", at the {}", " and to the {}")
CENTRE_FORMS = (", in the middle", ", in the center", " in the middle of the picture")

SETTING_PHRASES: dict[Setting, tuple[str, ...]] = {
    "sea": ("on the sea", "at sea", "on the ocean", "on the water", "in the sea", "out at sea", "in the ocean"),
    "cliff": (
        "on a cliff above the sea",
        "on a rocky cliff by the ocean",
        "on a cliff overlooking the sea",
        "on a cliff",
        "on top of a cliff",
        "on a steep cliff by the sea",
    ),
    "beach": ("on a beach", "on a sandy beach", "by the shore", "on the seashore", "on the beach", "at the seaside"),
    "meadow": (
        "in a meadow",
        "in a grassy field",
        "in a field of flowers",
        "on the grass",
        "in a green field",
        "in a flower meadow",
    ),
    "hills": ("in rolling hills", "among green hills", "on a hillside", "on a hill", "in hilly country"),
    "mountains": ("in the mountains", "in front of snowy mountains", "with mountains in the background"),
    "lake": (
        "by a mountain lake",
        "beside a lake",
        "on the shore of a calm lake",
        "by a lake",
        "in front of a mountain lake",
        "at a lake in the mountains",
    ),
    "desert": ("in the desert", "among sand dunes", "in a sandy desert", "in a desert with dunes"),
    "forest": ("in a forest", "in the woods", "in a pine forest", "in a forest clearing"),
    "snow": ("in the snow", "in a snowy landscape", "in a winter landscape", "in winter", "in deep snow"),
    "city": ("in the city", "with a city skyline behind", "in front of skyscrapers"),
    "village": ("in a village", "near a small village", "in the countryside"),
    "autumn": ("in autumn", "in an autumn field", "among autumn leaves", "in the fall"),
    "island": ("on a tropical island", "on a small island in the sea", "on a desert island", "on an island"),
    "garden": ("in a garden of cherry blossom trees", "in a spring garden", "among cherry blossoms"),
    "farm": ("on a farm", "in a farm field", "by a field of crops", "in farmland"),
    "river": ("by a river", "beside a winding river", "on a river bank"),
    "underwater": ("underwater", "under the sea", "in the deep ocean", "on a coral reef"),
    "space": ("in space", "in outer space", "among the stars", "floating in space"),
    "table": ("on a wooden table", "on a table by a window"),
    "studio": ("on {a_backdrop} background", "against {a_backdrop} backdrop", "in front of a plain {backdrop} wall"),
}
AFLOAT_PHRASES: dict[Setting, tuple[str, ...]] = {
    "sea": ("on the sea", "at sea", "on the ocean", "on the water", "sailing on the sea", "out at sea"),
    "lake": ("on a mountain lake", "on a lake", "on a calm lake", "sailing on a lake", "on a lake below mountains"),
    "beach": ("off a beach", "off a sandy beach", "on the water off the beach", "sailing off a beach"),
}
"""For a boat alone."""
ALOFT_PHRASES: dict[Setting, tuple[str, ...]] = {
    "sea": ("over the sea", "above the ocean", "flying over the sea", "over the water"),
    "meadow": ("over a meadow", "above a grassy field", "flying over a meadow", "over a field of flowers"),
    "hills": ("over rolling hills", "above green hills", "flying over hills", "over the hills"),
    "desert": ("over the desert", "above sand dunes", "flying over the desert", "over sand dunes"),
    "lake": ("over a mountain lake", "above a lake", "flying over a lake"),
    "snow": ("over a snowy landscape", "above the snow", "flying over a winter landscape"),
    "beach": ("over a beach", "above a sandy beach", "flying over the beach"),
    "cliff": ("over a cliff", "above a cliff by the sea", "flying over a cliff", "above a rocky cliff"),
    "mountains": ("over the mountains", "above the mountains", "flying in front of mountains"),
    "city": ("over the city", "above a city", "flying over the city"),
    "farm": ("over a farm", "above farm fields", "flying over farmland"),
    "river": ("over a river", "above a winding river"),
    "island": ("over a tropical island", "above an island"),
    "village": ("over a village", "above the countryside"),
    "garden": ("over a garden of cherry blossom trees", "above cherry blossoms"),
    "autumn": ("over an autumn field", "above autumn trees"),
}
"""For a balloon or a bird alone."""
SHARED_PHRASES: dict[Setting, tuple[str, ...]] = {
    "sea": ("at sea", "on the water", "by the sea", "in a seascape"),
    "cliff": ("by a cliff above the sea", "at a rocky cliff by the ocean", "by a cliff", "on a cliff coast"),
    "beach": ("at the beach", "by the shore", "at a sandy beach", "at the seaside"),
    "lake": ("at a mountain lake", "by a lake", "at a calm lake", "at a lake below mountains"),
    "desert": ("in the desert", "in a sandy desert", "in a desert with dunes"),
}
"""For two subjects of which one floats or flies."""
SETTING_TAGS: dict[Setting, str] = {
    "lake": "mountain lake",
    "garden": "cherry garden",
    "studio": "{backdrop} background",
}

TIME_PHRASES: dict[TimeOfDay, tuple[str, ...]] = {
    "day": ("during the day", "in daylight", "in the daytime", "by day"),
    "dawn": ("at dawn", "at sunrise", "in the early morning", "at daybreak"),
    "sunset": ("at sunset", "at sunset", "at sunset", "in the evening", "at sundown"),
    "dusk": ("at dusk", "at twilight", "after sunset", "in the twilight"),
    "night": ("at night", "at night", "at night", "in the night", "at nighttime"),
}
FAIR_TIME_PHRASES: dict[TimeOfDay, tuple[str, ...]] = {
    "day": ("on a sunny day", "under a blue sky", "on a clear day", "in bright sunshine"),
    "dawn": ("as the sun rises", "in the first light of the day"),
    "sunset": ("at golden hour", "in the evening light", "with the sun setting", "as the sun goes down"),
    "dusk": ("in the last light of the day",),
    "night": ("under the stars", "on a starry night", "in the moonlight", "under a starry sky", "on a moonlit night"),
}
"""True only under a clear sky."""
TIME_TAGS: dict[TimeOfDay, tuple[str, ...]] = {
    "day": ("day", "daytime"),
    "dawn": ("dawn", "sunrise"),
    "sunset": ("sunset", "sunset", "evening"),
    "dusk": ("dusk", "twilight"),
    "night": ("night", "night", "nighttime"),
}
WEATHER_PHRASES: dict[Weather, tuple[str, ...]] = {
    "clear": ("",),
    "cloudy": ("under a cloudy sky", "with big clouds", "with clouds", "with clouds in the sky"),
    "overcast": ("on an overcast day", "under gray clouds", "under an overcast sky", "under a gray sky"),
    "rain": ("in the rain", "on a rainy day", "in rainy weather", "while it is raining"),
    "storm": ("during a thunderstorm", "in a storm with lightning", "in a thunderstorm", "with lightning"),
    "snow": ("in falling snow", "while it is snowing", "on a snowy day", "in a snowfall"),
    "fog": ("in the fog", "on a misty day", "in fog", "in foggy weather", "in the mist"),
    "rainbow": ("with a rainbow", "under a rainbow", "with a rainbow in the sky"),
    "aurora": ("under the northern lights", "with aurora in the sky", "with the northern lights", "under an aurora"),
}
WEATHER_TAGS: dict[Weather, tuple[str, ...]] = {
    "clear": ("",),
    "cloudy": ("clouds", "cloudy"),
    "overcast": ("overcast", "gray sky"),
    "rain": ("rain", "rainy"),
    "storm": ("thunderstorm", "lightning", "storm"),
    "snow": ("snowing", "snowfall"),
    "fog": ("fog", "foggy", "mist"),
    "rainbow": ("rainbow",),
    "aurora": ("aurora", "northern lights"),
}

SENTENCE_ORDERS = (
    *("{who} {where} {when} {sky}",) * 6,
    *("{who} {where} {sky} {when}",) * 2,
    *("{who}, {where}, {when}, {sky}",) * 2,
    "{who} {when} {where} {sky}",
    "{who} {when} {sky} {where}",
    "{who} {sky} {where} {when}",
    "{who} {sky} {when} {where}",
    "{who} {where}, {when}, {sky}",
    "{who} {where}, {when} {sky}",
    "{who} {where} {when}, {sky}",
    "{who}, {where} {when} {sky}",
    "{who}, {when}, {where}, {sky}",
    "{who}, {sky}, {where}, {when}",
    "{who} {when}, {where}, {sky}",
    "{who} {sky}, {where}, {when}",
    "{when}, {who} {where} {sky}",
    "{when} {where}, {who} {sky}",
    "{when} {sky}, {who} {where}",
    "{where}, {who} {when} {sky}",
    "{where} {when}, {who} {sky}",
    "{where} {sky}, {who} {when}",
    "{sky}, {who} {where} {when}",
    "{sky} {when}, {who} {where}",
    "{who} seen {where} {when} {sky}",
    "{who} as seen {when} {where} {sky}",
)
"""A slot left empty takes its comma with it."""
TAG_ORDERS = (
    *("{who}, {where}, {when}, {sky}, {style}",) * 4,
    "{who}, {when}, {where}, {sky}, {style}",
    "{who}, {where}, {sky}, {when}, {style}",
    "{who}, {style}, {where}, {when}, {sky}",
    "{style}, {who}, {where}, {when}, {sky}",
    "{style}, {who}, {when}, {sky}, {where}",
    "{when}, {who}, {where}, {sky}, {style}",
    "{where}, {who}, {when}, {sky}, {style}",
    "{who}, {sky}, {when}, {where}, {style}",
    "{who}, {style}, {when}, {sky}, {where}",
)
FRAMES = (
    *("{}",) * 10,
    "a flat illustration of {}",
    "an illustration of {}",
    "a poster of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a digital illustration of {}",
    "a postcard of {}",
    "artwork of {}",
    "a view of {}",
    "a scene with {}",
    "a landscape with {}",
    "a beautiful picture of {}",
    "a colorful illustration of {}",
    "draw {}",
    "show me {}",
    "{}, flat illustration",
    "{}, digital art",
    "{}, poster",
)
"""Around a sentence about a flat picture, the drawing as it is."""
STYLE_FORMS: dict[Style, tuple[str, ...]] = {
    "flat": ("{}",),
    "watercolor": (
        "a watercolor painting of {}",
        "{}, watercolor",
        "watercolor of {}",
        "{}, watercolor painting",
        "{} painted in watercolor",
        "a watercolour of {}",
    ),
    "pixel art": ("pixel art of {}", "{}, pixel art", "{} in pixel art style", "a pixel art picture of {}"),
    "pencil sketch": (
        "a pencil sketch of {}",
        "a pencil drawing of {}",
        "{}, pencil sketch",
        "{} drawn in pencil",
        "a sketch in pencil of {}",
    ),
    "oil painting": ("an oil painting of {}", "{}, oil painting", "{} painted in oil", "an oil on canvas of {}"),
    "neon": ("{} in neon colors", "a neon drawing of {}", "{}, neon glow", "a glowing neon sign of {}", "{}, neon"),
}
STYLE_TAGS: dict[Style, tuple[str, ...]] = {
    "flat": ("", "", "", "illustration", "flat illustration"),
    "watercolor": ("watercolor",),
    "pixel art": ("pixel art",),
    "pencil sketch": ("pencil sketch", "pencil drawing"),
    "oil painting": ("oil painting",),
    "neon": ("neon", "neon glow"),
}


def is_held_out_wording(kind: str, text: str) -> bool:
    """Whether a template or phrase belongs to the tenth that training never sees."""
    if text in ALWAYS_TRAINED_WORDINGS:
        return False
    digest = hashlib.blake2b(f"{HELD_OUT_SALT}|{kind}|{text}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32 < HELD_OUT_SHARE


@cache
def split_wordings(kind: str, options: tuple[str, ...]) -> tuple[Sequence[str], Sequence[str]]:
    """(for training, held out): repeated wordings and the empty one are always trained, and never is nothing left."""
    if kind == "tag":  # A word, not a template
        return options, ()
    held_out = [text for text in options if text and options.count(text) == 1 and is_held_out_wording(kind, text)]
    train = [text for text in options if text not in held_out]
    if not train:
        return options, ()
    return train, held_out

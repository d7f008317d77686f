"""The words of a text that carry meaning, and their inflected forms: what a model has seen is counted in these."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

FUNCTION_WORDS = frozenset({
    "a", "about", "above", "across", "after", "again", "against", "all", "along", "also", "although", "am", "among",
    "an", "and", "another", "any", "anything", "are", "aren't", "around", "as", "at", "away", "be", "because",
    "been", "before", "behind", "being", "below", "beneath", "beside", "besides", "between", "beyond", "both",
    "but", "by", "can", "cannot", "could", "couldn't", "did", "didn't", "do", "does", "doesn't", "doing", "don't",
    "done", "down", "during", "each", "either", "else", "etc", "even", "ever", "every", "everything", "few", "for",
    "from", "further", "had", "hadn't", "has", "hasn't", "have", "haven't", "having", "he", "her", "here", "hers",
    "herself", "him", "himself", "his", "how", "however", "i", "i'm", "if", "in", "inside", "into", "is", "isn't",
    "it", "it's", "its", "itself", "just", "less", "lot", "lots", "many", "may", "me", "might", "more", "most",
    "much", "must", "my", "myself", "near", "nearby", "neither", "no", "none", "nor", "not", "nothing", "of", "off",
    "on", "once", "one", "only", "onto", "or", "other", "others", "our", "ours", "ourselves", "out", "outside",
    "over", "own", "per", "please", "quite", "rather", "same", "several", "shall", "she", "should", "since", "so",
    "some", "something", "still", "such", "than", "that", "that's", "the", "their", "theirs", "them", "themselves",
    "then", "there", "there's", "these", "they", "this", "those", "though", "through", "throughout", "till", "to",
    "together", "too", "toward", "towards", "under", "underneath", "until", "up", "upon", "us", "very", "via",
    "was", "wasn't", "we", "were", "weren't", "what", "when", "where", "whether", "which", "while", "who", "whole",
    "whom", "whose", "why", "will", "with", "within", "without", "won't", "would", "yet", "you", "your", "yours",
    "yourself",
})  # fmt: skip
"""English words that name nothing a picture could show."""

IRREGULAR = {
    "children": "child", "feet": "foot", "geese": "goose", "men": "man", "mice": "mouse", "people": "person",
    "teeth": "tooth", "women": "woman", "grey": "gray",
}  # fmt: skip

LEAST_STEM = 3
"""Letters that must remain when an ending is taken off."""
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_VOWELS = "aeiouy"


def content_words(text: str) -> list[str]:
    """The words of a text in small letters, in its order, without function words, numbers and single letters.

    'A captain's hot-air balloon, 4k' -> captain, hot, air, balloon.
    """
    found = (match.replace("’", "'") for match in _WORD.findall(unicodedata.normalize("NFC", text).lower()))
    words = (word.removesuffix("'s") for word in found if word not in FUNCTION_WORDS)
    return [word for word in words if len(word) > 1 and word not in FUNCTION_WORDS]


def inflections(word: str) -> frozenset[str]:
    """The word and what it may be an inflected form of, and all of their forms: sail, sails, sailed, sailing.

    Some of them are no words; that does no harm, as they are looked up among words that are. Endings are taken off in
    the plural, in -ing and -ed, and from adjectives in -y (foggy); British spellings are the same as American ones.
    """
    return frozenset(form for base in base_forms(word) for form in _forms(base))


def base_forms(word: str) -> set[str]:
    """The word and what it may be an inflected form of; some of it may be no word."""
    bases = {word, IRREGULAR.get(word, word)}
    if len(word) > 5:
        bases.add(word.replace("our", "or"))  # colour, harbour
    if word.endswith("s") and not word.endswith("ss"):
        bases.add(word[:-1])
    for ending, replacements in (
        ("es", ("",)), ("ies", ("y",)), ("ves", ("f", "fe")), ("ing", ("", "e")), ("ed", ("", "e")), ("y", ("", "e")),
    ):  # fmt: skip
        if word.endswith(ending):
            stem = word.removesuffix(ending)
            bases |= {stem + replacement for replacement in replacements}
            if ending in ("ing", "ed", "y") and stem[-2:-1] == stem[-1:]:
                bases.add(stem[:-1])  # running, foggy
    # -y comes off longer words only: an army is no arm.
    return {base for base in bases if len(base) >= LEAST_STEM + word.startswith(base + "y")} | {word}


def _forms(base: str) -> Iterator[str]:
    """What `base_forms` takes off, put on."""
    yield base
    stem = base[:-1] if base.endswith("e") else base
    doubled = base + base[-1] if len(base) >= LEAST_STEM and base[-2] in _VOWELS and base[-1] not in _VOWELS else stem
    for start in {base, stem, doubled}:
        yield from (start + ending for ending in ("s", "es", "ing", "ed"))
    if len(base) > LEAST_STEM or doubled != stem:
        yield from (stem + "y", doubled + "y")
    if base.endswith("y"):
        yield base[:-1] + "ies"
    if base.endswith(("f", "fe")):
        yield base.removesuffix("e")[:-1] + "ves"
    yield from (irregular for irregular, plain in IRREGULAR.items() if plain == base)
    if "or" in base:
        yield base.replace("or", "our")

"""The word nearest to another among those that a model has seen: by meaning for a known noun, by spelling for a slip.

Meaning is WordNet's (Princeton University; its licence lies beside this file): two nouns are as near as the most
specific concept above both is informative, by Lin's measure (ICML 1998). `wordnet.tsv.gz` holds what that needs; its
first line says how many concepts follow. A concept's line is its information content, in 100ths, and the numbers of the
concepts directly above it. All other lines are words, in order, with the numbers of their meanings, and a tab at the
end; a word without any is only known to be one. `scripts/wordnet_table.py` makes it.
"""

from __future__ import annotations

import gzip
from bisect import bisect_left
from collections.abc import Sequence
from difflib import SequenceMatcher
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from latentgen.prompts.words import base_forms

TABLE: Final = Path(__file__).with_name("wordnet.tsv.gz")
LEVELS: Final = 100
"""Of information content in the table."""

LEAST_LIKENESS = 0.65
"""Lin's measure from which two words are called near: an oak is near a tree, an apple is not."""
LEAST_CONTENT, LEAST_CONTENT_OF_KIND = 50, 39
"""Information content, in 100ths, of the concept that two near words share: building is one, vehicle is none. Less will
do where the one is a kind of the other: a church and a house are buildings, an oak is a tree."""
LEAST_RATIO, LEAST_LETTERS = 0.8, 5
"""Of a slip of the keyboard: difflib's ratio, and the letters of a word that may hold one."""
MAX_CANDIDATES = 1000
"""Of the words that a model has seen, the most frequent: looking at them takes about 10 ms."""


def find_nearest(word: str, seen: Sequence[str]) -> str | None:
    """The nearest of the words `seen`, the most frequent first, to one that is not among them.

    None where nothing is near, which is better than anything far: that there are boats says nothing of cars.
    """
    forms = sorted(base_forms(word), key=len, reverse=True)
    known = [meanings for form in forms if (meanings := _meanings(form)) is not None]
    candidates = seen[:MAX_CANDIDATES]
    return _by_meaning(known[0], candidates) if known else _by_spelling(word, candidates)


def _by_meaning(meanings: Sequence[int], candidates: Sequence[str]) -> str | None:
    """Lin's measure is 2 I(c) / (I(a) + I(b)), c being the most informative concept above a and b."""
    best, best_likeness = None, LEAST_LIKENESS
    if not meanings:
        return None
    for other in candidates:
        for theirs in _meanings(other) or ():
            others = _above(theirs)
            for ours in meanings:
                these = _above(ours)
                shared = max((content for number, content in these.items() if number in others), default=0)
                least = LEAST_CONTENT_OF_KIND if ours in others or theirs in these else LEAST_CONTENT
                likeness = 2 * shared / (these[ours] + others[theirs])
                if shared >= least and likeness > best_likeness:
                    best, best_likeness = other, likeness
    return best


def _by_spelling(word: str, candidates: Sequence[str]) -> str | None:
    """The likeliest word that was meant; its first letter is taken to be right."""
    matchers = {
        other: SequenceMatcher(None, word, other, autojunk=False)
        for other in candidates
        if other[0] == word[0] and min(len(word), len(other)) >= LEAST_LETTERS
    }
    # real_quick_ratio looks at the lengths alone: a word of thousands of letters is compared with none.
    ratios = {other: each.ratio() for other, each in matchers.items() if each.real_quick_ratio() >= LEAST_RATIO}
    best = max(ratios, key=ratios.__getitem__, default=None)
    return best if best is not None and ratios[best] >= LEAST_RATIO else None


@cache
def _meanings(word: str) -> tuple[int, ...] | None:
    """The concepts that a word names; None for what is no word that the table knows."""
    words = _read_table().words
    at = bisect_left(words, f"{word}\t")  # every line has a tab behind the word
    if at == len(words) or not words[at].startswith(f"{word}\t"):
        return None
    return tuple(map(int, words[at].split("\t")[1:-1]))


@cache
def _above(concept: int) -> dict[int, int]:
    """The information content, in 100ths, of the concept and of all above it, by their numbers."""
    content, *parents = map(int, _read_table().concepts[concept].split("\t"))
    found = {concept: content}
    for parent in parents:
        found |= _above(parent)
    return found


class _Table(NamedTuple):
    concepts: list[str]
    words: list[str]


@cache
def _read_table() -> _Table:
    first, *lines = gzip.decompress(TABLE.read_bytes()).decode("ascii").splitlines()
    return _Table(lines[: int(first)], lines[int(first) :])

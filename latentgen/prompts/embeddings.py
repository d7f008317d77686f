"""Where the names of textual inversions stand in a prompt."""

from __future__ import annotations

import re
from collections.abc import Iterable

from latentgen.prompts.syntax import parse_prompt


def find_embeddings(prompt: str, names: Iterable[str]) -> list[str]:
    """Which of the names stand in a prompt's words, in the order of `names`. Raises InputError as `parse_prompt`.

    A name counts as a word of its own, in small letters or capitals; of two names at one place the longer counts.
    """
    names = list(names)
    segments = [segment for section in parse_prompt(prompt).sections for segment in section]
    found = {name for segment in segments for _, name in split_at_names(segment.text, names)}
    return [name for name in names if name in found]


def split_at_names(text: str, names: Iterable[str]) -> list[tuple[str, str | None]]:
    """The words before each name, with the name; the last pair has none. Names count as `find_embeddings` says."""
    by_letters = {name.lower(): name for name in names}
    if not by_letters:
        return [(text, None)]
    longest_first = sorted(by_letters, key=len, reverse=True)
    # A group a name: what matches one without regard to capitals need not be one in small letters (the dotless i).
    pattern = re.compile("|".join(f"({_as_word(name)})" for name in longest_first), re.IGNORECASE)
    parts: list[tuple[str, str | None]] = []
    position = 0
    for match in pattern.finditer(text):
        assert match.lastindex is not None, "each alternative is a group"
        parts.append((text[position : match.start()], by_letters[longest_first[match.lastindex - 1]]))
        position = match.end()
    return [*parts, (text[position:], None)]


def _as_word(name: str) -> str:
    before = r"(?<!\w)" if re.match(r"\w", name) else ""
    after = r"(?!\w)" if re.search(r"\w$", name) else ""
    return before + re.escape(name) + after

"""A prompt in the pieces that the text encoder reads: chunks of at most 75 tokens, each with its weight. Torch-free.

Source: AUTOMATIC1111/stable-diffusion-webui, wiki "Features" (infinite prompt length, BREAK), and
`modules/sd_hijack_clip.py`, whose chunks these are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from latentgen.models.tokenizer import CHUNK_LENGTH, Tokenizer
from latentgen.prompts.embeddings import split_at_names
from latentgen.prompts.syntax import ParsedPrompt, Segment

COMMA_BACKTRACK: Final = 20
"""A full chunk ends after its last comma if no more tokens than this follow, so that an expression stays together."""


class Token(NamedTuple):
    """One place in a chunk."""

    id: int
    """In the vocabulary; 0 where an embedding's vector stands."""
    weight: float
    embedding: str | None = None
    """The textual inversion whose vector stands here."""
    vector: int = 0
    """Which of its vectors."""


Chunk = tuple[Token, ...]
"""At most 75 tokens, without the specials that are put around them and the padding."""


def chunk_prompt(prompt: ParsedPrompt, tokenizer: Tokenizer, embeddings: Mapping[str, int]) -> tuple[Chunk, ...]:
    """The chunks of a prompt, at least one. `embeddings` are the textual inversions to look for: name to vectors.

    A BREAK ends a chunk; otherwise one ends where the next token, or the next embedding as a whole, has no room.
    """
    chunks: list[Chunk] = []
    for i, section in enumerate(prompt.sections):
        filled = _fill(_units(section, tokenizer, embeddings), tokenizer.comma_token_id)
        is_last = i == len(prompt.sections) - 1
        chunks += filled or ([()] if not is_last or not chunks else [])
    return tuple(chunks)


def _units(
    section: Sequence[Segment], tokenizer: Tokenizer, embeddings: Mapping[str, int]
) -> Iterator[tuple[Token, ...]]:
    """Tokens that must stay in one chunk: each by itself, an embedding's vectors together."""
    for segment in section:
        for words, name in split_at_names(segment.text, embeddings):
            for number in tokenizer.tokenize(words):
                yield (Token(number, segment.weight),)
            if name is not None:
                yield tuple(Token(0, segment.weight, name, vector) for vector in range(embeddings[name]))


def _fill(units: Iterable[tuple[Token, ...]], comma_id: int) -> list[Chunk]:
    chunks: list[Chunk] = []
    chunk: list[Token] = []
    comma = -1
    for unit in units:
        is_comma = unit[0].embedding is None and unit[0].id == comma_id
        if len(chunk) == CHUNK_LENGTH and not is_comma and comma >= len(chunk) - COMMA_BACKTRACK:
            chunks.append(tuple(chunk[: comma + 1]))
            chunk, comma = chunk[comma + 1 :], -1
        if len(chunk) + len(unit) > CHUNK_LENGTH:
            chunks.append(tuple(chunk))
            chunk, comma = [], -1
        if is_comma:
            comma = len(chunk)
        chunk += unit
    return [*chunks, tuple(chunk)] if chunk else chunks

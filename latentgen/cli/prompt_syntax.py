"""What `generate` and `tokens` do with the signs and the length of prompts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli.options import DRAWING, MODEL
from latentgen.cli.plan import Entry
from latentgen.errors import InputError
from latentgen.prompts.syntax import escape, find_unsupported, parse_prompt
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.checkpoints.textual_inversion import EmbeddingFile
    from latentgen.cli.console import Console
    from latentgen.models.tokenizer import Tokenizer

NOTES_SHOWN = 3
"""Of a prompt file's many long prompts."""
MANY_WORDS = 3
"""From so many prompts of one word on they are taken for one whose quotes were forgotten."""

Plain = Annotated[
    bool,
    typer.Option(
        "--plain-prompt",
        rich_help_panel=DRAWING,
        help="Brackets, BREAK and <lora:...> are words. They are stored escaped, so that they stay so everywhere.",
    ),
]
Embeddings = Annotated[
    list[Path] | None,
    typer.Option(
        "--embedding",
        metavar="FILE",
        rich_help_panel=MODEL,
        help="A textual inversion (.safetensors), for prompts that name it; can be given several times.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class SyntaxOptions:
    """How prompts are read."""

    plain_prompt: Plain = False
    strict_prompt: Annotated[
        bool,
        typer.Option(
            "--strict-prompt",
            rich_help_panel=DRAWING,
            help="Refuse prompts of more than 75 tokens, instead of reading them in chunks.",
        ),
    ] = False
    embedding: Embeddings = None


def plain_entries(entries: Sequence[Entry]) -> list[Entry]:
    """Prompts to be read to the letter."""
    return [
        replace(
            entry,
            prompt=escape(entry.prompt),
            flags=replace(entry.flags, negative_prompt=escape(entry.flags.negative_prompt)),
        )
        for entry in entries
    ]


def tell_of_lone_words(console: Console, prompts: Sequence[str]) -> None:
    """Note that the command line's prompts may be the words of one; see MANY_WORDS."""
    if len(prompts) >= MANY_WORDS and all(len(prompt.split()) == 1 for prompt in prompts):
        console.note(f"{len(prompts)} prompts of one word each: put a prompt of several words in quotes")


def tell_of_prompts(
    console: Console,
    requests: Sequence[GenerationRequest],
    model: Path,
    embeddings: Sequence[EmbeddingFile],
    *,
    strict: bool,
) -> None:
    """Warn of syntax that is not supported, and note which prompts are longer than one chunk.

    Raises InputError for those with `strict`.
    """
    texts = dict.fromkeys((request.prompt, "prompt") for request in requests)
    texts |= dict.fromkeys(
        (request.negative_prompt, "negative prompt") for request in requests if request.guidance != 1
    )
    unsupported = unsupported_syntax(text for text, _ in texts)
    if unsupported is not None:
        console.warn(unsupported)
    vectors = {file.name: file.vectors for file in embeddings}
    if any(_may_be_long(text, vectors) for text, _ in texts):
        from latentgen.checkpoints.tokenizers import load_tokenizer

        _tell_of_length(console, list(texts), load_tokenizer(model), vectors, strict=strict)


def unsupported_syntax(texts: Iterable[str]) -> str | None:
    """A line about the syntax in some prompts that is read as words; None if there is none."""
    found = dict.fromkeys(signs for text in texts for signs in find_unsupported(text))
    if not found:
        return None
    return (
        f"{', '.join(list(found)[:3])}: prompt editing [a:b:0.5], alternation [a|b] and AND are not "
        "supported and are read as words"
    )


def _may_be_long(text: str, vectors: dict[str, int]) -> bool:
    """An ASCII prompt has no more tokens than characters; only what may be longer is worth a tokenizer."""
    return bool(vectors) or not text.isascii() or len(text) > 75


def _tell_of_length(
    console: Console, texts: Sequence[tuple[str, str]], tokenizer: Tokenizer, vectors: dict[str, int], *, strict: bool
) -> None:
    from latentgen.prompts.chunks import chunk_prompt

    notes: list[str] = []
    for text, what in texts:
        parsed = parse_prompt(text)
        sections = [replace(parsed, sections=(section,)) for section in parsed.sections]
        over = [chunk for section in sections for chunk in chunk_prompt(section, tokenizer, vectors)[1:]]
        if not over:  # no more chunks than its BREAKs ask for
            continue
        chunks = chunk_prompt(parsed, tokenizer, vectors)
        count = sum(len(chunk) for chunk in chunks)
        if strict:
            beyond = tokenizer.decode([token.id for chunk in over for token in chunk if token.embedding is None])
            raise InputError(
                f"the {what} has {count} tokens, a chunk 75; beyond it: {beyond}",
                hint=f"without --strict-prompt it is read in {len(chunks)} chunks",
            )
        notes.append(f"{what} of {count} tokens: {len(chunks)} chunks")
    for note in notes[:NOTES_SHOWN]:
        console.note(note)
    if len(notes) > NOTES_SHOWN:
        console.note(f"and {len(notes) - NOTES_SHOWN} more prompts of several chunks")

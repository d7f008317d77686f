"""What a model has seen, told to the user: a line about a prompt's new words, and what `models show` lists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from latentgen.checkpoints.layout import VOCABULARY
from latentgen.cli.console import Console
from latentgen.cli.model_names import EMBEDDED_TITLE, name_of
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.prompts.vocabulary import Vocabulary

MAX_NAMED: Final = 3
"""New words that the line names; of more it gives the number."""
MAX_KNOWN: Final = 40
"""Words that `models show` lists of a model whose data had no labels."""


def tell_of_unseen_words(
    console: Console, requests: Sequence[GenerationRequest], model: Path, embeddings: Collection[str] = ()
) -> None:
    """Note the words of all prompts that no caption held on which the model was trained, in one line.

    Nothing is said of a model without a list of words, of a prompt with LoRAs, which know words of their own, and of
    the names of `embeddings`. Raises ModelLoadError if the list is damaged.
    """
    if console.quiet or not (model / VOCABULARY).exists():
        return
    from latentgen.prompts.nearest import find_nearest
    from latentgen.prompts.vocabulary import read_vocabulary
    from latentgen.prompts.words import content_words

    seen = read_vocabulary(model / VOCABULARY)
    if seen is None:
        return
    texts = dict.fromkeys(_words_of(request.prompt) for request in requests if not request.loras)
    known = {word for name in embeddings for word in content_words(name)}
    new = [word for word in seen.unseen("\n".join(texts)) if word not in known]
    if not new:
        return
    nearest = [(word, find_nearest(word, list(seen.words))) for word in new[:MAX_NAMED]]
    whose = name_of(model)
    if len(new) == 1:
        word, other = nearest[0]
        line = f"{word}: never seen by {whose}" + (f"; nearest: {other}" if other else "")
    else:
        named = ", ".join(f"{word} (nearest: {other})" if other else word for word, other in nearest)
        more = f" and {len(new) - MAX_NAMED} more" if len(new) > MAX_NAMED else ""
        line = f"{named}{more}: never seen by {whose}"
    console.note(f"{line}. For anything else: -m your-model" if whose == EMBEDDED_TITLE else line)


def known_words(model: Path) -> dict[str, str]:
    """What a model folder's captions spoke of, for `models show`: of the built-in corpus kind by kind, else its most
    frequent words. Empty for a model without a list. Raises ModelLoadError if the list is damaged.
    """
    from latentgen.prompts.vocabulary import read_vocabulary

    seen = read_vocabulary(model / VOCABULARY)
    if seen is None:
        return {}
    rows = {f"knows {kind}": ", ".join(counts) for kind, counts in seen.scenes.items()} or _most_frequent(seen)
    return {"captions": f"{seen.captions:,}, of {len(seen.words):,} words (vocabulary.json)", **rows}


def _most_frequent(seen: Vocabulary) -> dict[str, str]:
    words = list(seen.words)
    more = f" and {len(words) - MAX_KNOWN:,} more" if len(words) > MAX_KNOWN else ""
    return {"knows": ", ".join(words[:MAX_KNOWN]) + more} if words else {}


def _words_of(prompt: str) -> str:
    """A prompt's text without the signs of its syntax."""
    from latentgen.prompts.syntax import parse_prompt

    return "\n".join(segment.text for section in parse_prompt(prompt).sections for segment in section)

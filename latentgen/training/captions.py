"""What a text encoder is told of captions: their first 75 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from latentgen.data.record import Record
from latentgen.models.tokenizer import CHUNK_LENGTH, Tokenizer


def cut_captions(records: Iterable[Record], tokenizer: Tokenizer, report: Callable[[str], None]) -> dict[str, str]:
    """The captions that are longer than one chunk, each with the whole words that `Tokenizer.encode` keeps of it.

    report: told of their number, if there are any.
    """
    captions = {caption for record in records for caption in record.captions}
    cut: dict[str, str] = {}
    for caption in captions:
        if len(caption.encode(errors="replace")) <= CHUNK_LENGTH:
            continue  # a token is a byte or more
        ids = tokenizer.tokenize(caption)
        if len(ids) > CHUNK_LENGTH:
            kept = tokenizer.decode(ids[:CHUNK_LENGTH])
            ends_a_word = tokenizer.spell(ids[CHUNK_LENGTH - 1]).endswith(" ")
            cut[caption] = kept if ends_a_word else kept.rpartition(" ")[0]
    if cut:
        report(
            f"{len(cut)} of {len(captions)} distinct captions are longer than {CHUNK_LENGTH} tokens: "
            "what comes after them is not learnt"
        )
    return cut

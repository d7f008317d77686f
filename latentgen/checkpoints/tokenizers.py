"""The tokenizer of a model, whatever its form. No torch, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from latentgen.checkpoints.layout import part_folder, read_config
from latentgen.config import TextEncoderConfig
from latentgen.models.tokenizer import EOS, PUBLISHED_MERGES, Tokenizer

BASE_TOKENS: Final = 2 * 256 + 2
"""Entries of CLIP's vocabulary that are no merges: byte symbols, the same at the end of a word, and two specials."""


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a model, or of a folder that holds just it."""
    if path.is_file():
        return published_tokenizer(read_config(path).text_encoder)
    return Tokenizer.from_folder(part_folder(path, "tokenizer"))


def published_tokenizer(config: TextEncoderConfig) -> Tokenizer:
    """The tokenizer that a single file does without: CLIP's own, or its first merges for a smaller vocabulary.

    SD 2.x pads with token 0, which is `!`.
    """
    merges = min(config.vocab_size - BASE_TOKENS, PUBLISHED_MERGES)
    return Tokenizer.published(merges, pad="!" if config.pad_token_id == 0 else EOS)

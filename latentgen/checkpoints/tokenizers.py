"""The tokenizer of a model, whatever its form. No torch, no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from latentgen.checkpoints.layout import CONFIG, part_folder, read_config
from latentgen.config import TextEncoderConfig
from latentgen.jsonfile import read_json
from latentgen.models.tokenizer import BOS, EOS, PUBLISHED_MERGES, Tokenizer

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


def unusual_tokens(folder: Path, tokenizer: Tokenizer, config: TextEncoderConfig) -> str:
    """What of a model folder's tokenizer its vocabulary and the text encoder's file do not tell; empty for most models.

    Control tokens other than CLIP's, and added tokens. The usual padding is what the text encoder's file says; where
    that is no token that models pad with, as in the published ones, OpenCLIP's `!` goes with the exact GELU.
    """
    stated = read_json(folder / "text_encoder" / CONFIG).get("pad_token_id")
    pads_with_zero = stated == 0 or (stated != config.eos_token_id and config.hidden_act == "gelu")
    usual = {"bos": BOS, "eos": EOS, "pad": "!" if pads_with_zero else EOS}
    found = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
    unusual: dict[str, object] = {name: token for name, token in found.items() if token != usual[name]}
    if tokenizer.added:
        unusual["added"] = {token.id: token.to_json() for token in tokenizer.added}
    return json.dumps(unusual) if unusual else ""

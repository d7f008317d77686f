"""The tiny networks as one model, in memory and as a folder."""

from __future__ import annotations

from pathlib import Path

from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.models.tokenizer import Tokenizer
from tests.tiny import TINY_MODEL, tiny_text_encoder, tiny_unet, tiny_vae

MERGES = TINY_MODEL.text_encoder.vocab_size - 2 * 256 - 2
"""So that the tokenizer's vocabulary is the text encoder's."""


def tiny_bundle() -> ModelBundle:
    return ModelBundle(
        unet=tiny_unet(),
        vae=tiny_vae(),
        text_encoder=tiny_text_encoder(),
        tokenizer=Tokenizer.published(MERGES),
        config=TINY_MODEL,
    )


def save_tiny_model(folder: Path) -> Path:
    save_model(tiny_bundle(), folder)
    return folder

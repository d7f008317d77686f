"""The tiny networks as one model, in memory and as a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.checkpoints.lora import LoRAWeights
from latentgen.checkpoints.lora_names import is_target
from latentgen.models.lora import LowRankUpdate, layers_of
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


def some_lora(seed: int) -> LoRAWeights:
    """Random adapters of the tiny model's attention, strong enough to be seen in a picture."""
    bundle = tiny_bundle()
    generator = torch.Generator().manual_seed(seed)
    modules = {
        name: LowRankUpdate(
            torch.randn(2, layer.weight.shape[1], generator=generator) * 0.3,
            torch.randn(len(layer.weight), 2, generator=generator),
            alpha=2.0,
        )
        for name, layer in layers_of(bundle.unet, bundle.text_encoder).items()
        if is_target(name, "attention") and layer.weight.ndim == 2
    }
    return LoRAWeights(modules, "kohya")

"""Any published CLIP as our text encoder and tokenizer, strictly, so that a model folder written with it is whole."""

from __future__ import annotations

from dataclasses import replace

from latentgen.checkpoints.folder import load_text_encoder
from latentgen.checkpoints.io import load_strict, read_tensors, without_numbers
from latentgen.checkpoints.keymap import text_tower_from_open_clip
from latentgen.checkpoints.text_encoder_names import FoundTextEncoder, OpenClipTower
from latentgen.checkpoints.tokenizers import load_tokenizer
from latentgen.errors import ModelLoadError
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import CONTEXT_LENGTH, Tokenizer


def load_found(found: FoundTextEncoder) -> tuple[CLIPTextModel, Tokenizer]:
    """The text encoder, in evaluation mode, and its tokenizer, in float32 on the CPU.

    Raises ModelLoadError for tensors that do not fit the config beside them, and for a tokenizer of another model.
    """
    if isinstance(found, OpenClipTower):
        # open_clip pads with token 0, and so do SD 2.x's published tokenizers, by its name `!`.
        return _without_last_layer(found), Tokenizer.published(pad="!")
    encoder, tokenizer = load_text_encoder(found.folder), load_tokenizer(found.folder)
    config = encoder.config
    if tokenizer.vocab_size > config.vocab_size or config.max_position_embeddings != CONTEXT_LENGTH:
        raise ModelLoadError(
            f"{found.folder}: the text encoder takes {config.max_position_embeddings} tokens out of "
            f"{config.vocab_size}, but the tokenizer gives {CONTEXT_LENGTH} out of {tokenizer.vocab_size}"
        )
    return encoder, tokenizer


def _without_last_layer(found: OpenClipTower) -> CLIPTextModel:
    """SD 2.x conditions on the layer before the last; its published text encoder is open_clip's without that one."""
    config = found.config
    with without_numbers():
        encoder = CLIPTextModel(replace(config, num_hidden_layers=config.num_hidden_layers + 1))
    tower = text_tower_from_open_clip(read_tensors(found.weights), found.weights)
    load_strict(encoder, tower, found.weights)
    del encoder.text_model.encoder.layers[-1]
    encoder.config = config
    return encoder.eval()

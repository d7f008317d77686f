"""Our text encoder against transformers' CLIPTextModel: same weights, same tokens, same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import CLIPTextConfig
from transformers import CLIPTextModel as TransformersCLIPTextModel

from latentgen.config import TextEncoderConfig
from latentgen.errors import ShapeError
from latentgen.models.clip_text import CLIPTextModel
from tests.tiny import TINY_TEXT, randomize

VARIANTS = {
    "quick_gelu": replace(TINY_TEXT, num_hidden_layers=3),
    "gelu": replace(TINY_TEXT, num_hidden_layers=3, hidden_act="gelu", num_attention_heads=3),
    "other-norm-eps": replace(TINY_TEXT, num_hidden_layers=3, layer_norm_eps=1e-3),
}

# float64 rounds at 1e-16; quick_gelu in place of gelu shows at 1e-2, a wrong norm epsilon at 1e-6.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def build_pair(config: TextEncoderConfig) -> tuple[CLIPTextModel, TransformersCLIPTextModel]:
    theirs = TransformersCLIPTextModel(
        CLIPTextConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_hidden_layers,
            num_attention_heads=config.num_attention_heads,
            max_position_embeddings=config.max_position_embeddings,
            hidden_act=config.hidden_act,
            layer_norm_eps=config.layer_norm_eps,
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            projection_dim=config.projection_dim,
        )
    )
    theirs = theirs.eval().double()
    randomize(theirs)
    # transformers 5 dropped the `text_model.` prefix that its own published files, and version 4, have.
    weights = {f"text_model.{name.removeprefix('text_model.')}": w for name, w in theirs.state_dict().items()}
    ours = CLIPTextModel(config).eval().double()
    ours.load_state_dict(weights, strict=True)
    return ours, theirs


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_last_layer_equals_transformers(config: TextEncoderConfig) -> None:
    ours, theirs = build_pair(config)
    token_ids = torch.randint(0, config.vocab_size, (2, 77))
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).last_hidden_state, **TOLERANCE)


@pytest.mark.parametrize("skip_last", [0, 1, 2])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_earlier_layers_equal_transformers(config: TextEncoderConfig, skip_last: int) -> None:
    ours, theirs = build_pair(config)
    token_ids = torch.randint(0, config.vocab_size, (2, 77))
    hidden = theirs(token_ids, output_hidden_states=True).hidden_states[-1 - skip_last]
    final_layer_norm = theirs.get_submodule(
        "final_layer_norm" if hasattr(theirs, "final_layer_norm") else "text_model.final_layer_norm"
    )
    torch.testing.assert_close(ours(token_ids, skip_last=skip_last), final_layer_norm(hidden), **TOLERANCE)


@torch.no_grad()
def test_vectors_in_place_of_tokens_equal_transformers() -> None:
    """Two new rows of their embedding matrix against two vectors given to ours."""
    ours, theirs = build_pair(VARIANTS["gelu"])
    size = TINY_TEXT.vocab_size
    new = torch.randn(2, TINY_TEXT.hidden_size, dtype=torch.float64)
    theirs.resize_token_embeddings(size + 2)
    theirs.get_input_embeddings().weight[size:] = new
    token_ids = torch.randint(0, size, (1, 77))
    vectors = ours.look_up(token_ids)
    vectors[0, 3:5] = new
    extended = token_ids.clone()
    extended[0, 3:5] = torch.tensor([size, size + 1])
    result = ours(token_ids, token_vectors=vectors)
    torch.testing.assert_close(result, theirs(extended).last_hidden_state, **TOLERANCE)
    assert (result - ours(token_ids)).abs().max() > 0.1


@pytest.mark.parametrize("skip_last", [-1, 3])
def test_layers_that_are_not_there_cannot_be_left_out(skip_last: int) -> None:
    ours, _ = build_pair(VARIANTS["gelu"])
    with pytest.raises(ShapeError, match=f"{skip_last} of its 3 layers"):
        ours(torch.zeros(1, 77, dtype=torch.int64), skip_last=skip_last)


@torch.no_grad()
def test_shorter_sequences_equal_transformers() -> None:
    ours, theirs = build_pair(VARIANTS["gelu"])
    token_ids = torch.randint(0, TINY_TEXT.vocab_size, (3, 9))
    torch.testing.assert_close(ours(token_ids), theirs(token_ids).last_hidden_state, **TOLERANCE)

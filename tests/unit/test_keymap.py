"""Foreign names to ours: exact tables, and open_clip's own text tower through our network."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, QuickGELU
from open_clip.transformer import TextTransformer

from latentgen.checkpoints.io import load_strict
from latentgen.checkpoints.keymap import (
    DROP,
    OPEN_CLIP_TEXT,
    apply_rules,
    published,
    reverse_rules,
    text_tower_from_open_clip,
    to,
)
from latentgen.config import TextEncoderConfig
from latentgen.errors import ModelLoadError
from latentgen.models.clip_text import CLIPTextModel
from tests.tiny import randomize, tiny_text_encoder, tiny_vae

CONFIG = TextEncoderConfig(
    vocab_size=100,
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    hidden_act="gelu",
    bos_token_id=98,
    eos_token_id=99,
    pad_token_id=99,
)


def hidden_states(tower: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """open_clip's states after ln_final, before pooling and projection."""
    states: list[torch.Tensor] = []
    hook = tower.ln_final.register_forward_hook(lambda module, args, output: states.append(output))
    getattr(tower, "encode_text", tower)(ids)
    hook.remove()
    return states[0]


@torch.no_grad()
def test_text_transformer_of_open_clip() -> None:
    theirs = TextTransformer(vocab_size=100, width=32, heads=4, layers=3, mlp_ratio=2.0, output_dim=16)
    randomize(theirs).eval()
    ours = CLIPTextModel(CONFIG).eval()
    load_strict(ours, text_tower_from_open_clip(theirs.state_dict(), "tower"), "tower")
    ids = torch.randint(0, 100, (2, 77))
    # float32 on both sides, another order of additions in attention
    torch.testing.assert_close(ours(ids), hidden_states(theirs, ids), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_whole_clip_model_of_open_clip() -> None:
    theirs = CLIP(
        embed_dim=16,
        vision_cfg=CLIPVisionCfg(layers=1, width=32, head_width=8, image_size=32, patch_size=16),
        text_cfg=CLIPTextCfg(context_length=77, vocab_size=100, width=32, heads=4, layers=3, mlp_ratio=2.0),
        quick_gelu=True,
    )
    assert isinstance(theirs.transformer.resblocks[0].mlp.gelu, QuickGELU)
    randomize(theirs).eval()
    config = TextEncoderConfig(
        **{name: getattr(CONFIG, name) for name in CONFIG.__slots__} | {"hidden_act": "quick_gelu"}
    )
    ours = CLIPTextModel(config).eval()
    load_strict(ours, text_tower_from_open_clip(theirs.state_dict(), "clip"), "clip")
    ids = torch.randint(0, 100, (2, 77))
    torch.testing.assert_close(ours(ids), hidden_states(theirs, ids), atol=1e-5, rtol=1e-5)


def test_unknown_names_are_an_error() -> None:
    tensors = {"ln_final.weight": torch.ones(2), "transformer.resblocks.0.ls_1.gamma": torch.ones(2)}
    with pytest.raises(
        ModelLoadError, match=r"clip: 1 tensors have unknown names \(transformer.resblocks.0.ls_1.gamma\)"
    ):
        text_tower_from_open_clip(tensors, "clip")


def test_templates_splits_transforms_and_drops() -> None:
    rules = {
        "x.{}.qkv": to("y.{}.q", "y.{}.k", "y.{}.v"),
        "t": to("u", transform=lambda tensor: tensor.t()),
        "mask": DROP,
    }
    tensors = {"x.12.qkv": torch.arange(6), "t": torch.ones(2, 3), "mask": torch.ones(1)}
    renamed = apply_rules(rules, tensors, "file")
    assert set(renamed) == {"y.12.q", "y.12.k", "y.12.v", "u"}
    assert renamed["y.12.k"].tolist() == [2, 3]
    assert renamed["u"].shape == (3, 2)
    with pytest.raises(ModelLoadError, match="unknown names"):
        apply_rules(rules, {"x.one.qkv": torch.ones(3)}, "file")
    with pytest.raises(ModelLoadError, match=r"x.0.qkv is \(4,\) and does not split into 3 equal parts"):
        apply_rules(rules, {"x.0.qkv": torch.ones(4)}, "file")


def test_vae_attention_under_its_old_names() -> None:
    """SD 1.x's VAE is published with query/key/value/proj_attn, in older files as 1x1 convolutions."""
    wanted = tiny_vae().state_dict()
    olden = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    old = {}
    for name, tensor in wanted.items():
        renamed = name
        for new_part, old_part in olden.items():
            renamed = renamed.replace(f"attentions.0.{new_part}.", f"attentions.0.{old_part}.")
        old[renamed] = tensor[:, :, None, None] if renamed != name and tensor.ndim == 2 else tensor
    assert old.keys() != wanted.keys()
    found = published("vae", old)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_text_encoder_extras_and_missing_prefix() -> None:
    wanted = tiny_text_encoder().state_dict()
    extras = {"text_model.embeddings.position_ids": torch.arange(77)[None], "text_projection.weight": torch.ones(2, 2)}
    assert published("text_encoder", wanted | extras).keys() == wanted.keys()
    bare = {name.removeprefix("text_model."): tensor for name, tensor in wanted.items()}
    assert published("text_encoder", bare).keys() == wanted.keys()


def test_rules_backwards() -> None:
    theirs = randomize(TextTransformer(vocab_size=100, width=32, heads=4, layers=3, mlp_ratio=2.0, output_dim=16))
    tensors = {
        name: tensor for name, tensor in theirs.state_dict().items() if name not in ("text_projection", "attn_mask")
    }
    back = reverse_rules(OPEN_CLIP_TEXT, text_tower_from_open_clip(tensors, "tower"), "tower")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)
    part = {"text_model.encoder.layers.0.self_attn.q_proj.bias": torch.ones(1), "other": torch.ones(1)}
    with pytest.raises(ModelLoadError, match=r"2 tensors have no foreign name \(other, text_model\.encoder"):
        reverse_rules(OPEN_CLIP_TEXT, part, "tower")

"""Our trained towers as transformers opens them, and what goes back into open_clip's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentgen.checkpoints.clip_folder import (
    as_open_clip,
    load_image_tower,
    load_init_towers,
    read_image_tower,
    read_init_towers,
    save_towers,
)
from latentgen.checkpoints.folder import save_text_encoder
from latentgen.config import ImageTowerConfig, TextEncoderConfig
from latentgen.errors import ConfigError, ModelLoadError
from latentgen.training.clip import CLIPTowers, build_towers, text_encoder_of
from tests.tiny import randomize

TEXT = TextEncoderConfig(
    vocab_size=600,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_act="gelu",
    bos_token_id=598,
    eos_token_id=599,
    pad_token_id=599,
    projection_dim=8,
)
IMAGE = ImageTowerConfig(side_px=16, patch_px=8, width=64, layers=2, head_width=32, mlp_ratio=2.0)


def random_towers(text: TextEncoderConfig = TEXT, image: ImageTowerConfig = IMAGE) -> CLIPTowers:
    towers = build_towers(text, image).eval()
    randomize(towers)
    return towers


def token_ids() -> torch.Tensor:
    ids = torch.randint(0, 500, (3, 77))
    ids[:, 0] = 598
    for row, end in enumerate((5, 20, 76)):
        ids[row, end:] = 599
    return ids


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_transformers_gives_the_features_that_were_trained(activation: str, tmp_path: Path) -> None:
    """float32, sums in another order: 1e-5 of unit vectors."""
    from dataclasses import replace

    from transformers import CLIPModel

    text = replace(TEXT, hidden_act=activation)
    image = replace(IMAGE, hidden_act=activation)
    towers = random_towers(text, image)
    save_towers(towers.state_dict(), text, image, tmp_path / "clip")
    theirs, report = CLIPModel.from_pretrained(tmp_path / "clip", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    pixels, ids = torch.randn(3, 3, 16, 16), token_ids()
    with torch.inference_mode():
        ours = towers(pixels, ids)
        output = theirs.eval()(pixel_values=pixels, input_ids=ids)
        states = theirs.vision_model(pixels, output_hidden_states=True)
        tower = load_image_tower(tmp_path)
        own_states = tower(pixels)
    torch.testing.assert_close(output.image_embeds, ours[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(output.text_embeds, ours[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.logit_scale.exp(), ours[2])
    for own, their in zip(own_states, states.hidden_states[1:], strict=True):
        torch.testing.assert_close(own, their, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(tower.pooled(own_states), states.pooler_output, rtol=1e-4, atol=1e-5)
    assert read_image_tower(tmp_path) == image


def test_towers_come_back_bit_for_bit(tmp_path: Path) -> None:
    before = random_towers().state_dict()
    save_towers(before, TEXT, IMAGE, tmp_path / "clip")
    save_text_encoder(text_encoder_of(before, TEXT), tmp_path / "text_encoder")
    assert read_init_towers(tmp_path) == (TEXT, IMAGE)
    after = as_open_clip(load_init_towers(tmp_path), before, tmp_path)
    assert set(after) == set(before)
    for name, value in before.items():
        assert torch.equal(after[name], value), name


def test_a_text_encoder_alone_fills_the_text_tower(tmp_path: Path) -> None:
    """The projection, which it does not hold, and the image tower stay as they are."""
    before = random_towers().state_dict()
    save_text_encoder(text_encoder_of(before, TEXT), tmp_path / "text_encoder")
    assert read_init_towers(tmp_path) == (TEXT, None)
    after = as_open_clip(load_init_towers(tmp_path), before, tmp_path)
    missing = {name for name in before if name not in after}
    assert {name for name in missing if not name.startswith("visual.")} == {"text.text_projection", "logit_scale"}
    for name, value in after.items():
        assert torch.equal(before[name], value), name
    other = random_towers(image=ImageTowerConfig(side_px=16, patch_px=8, width=64, layers=1)).state_dict()
    save_towers(before, TEXT, IMAGE, tmp_path / "clip")
    wrong = {**other, "visual.positional_embedding": torch.zeros(9, 64)}
    with pytest.raises(ModelLoadError, match=r"position_embedding.weight does not fit: \(5, 64\) for \(9, 64\)"):
        as_open_clip(load_init_towers(tmp_path), wrong, tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("patch_size", 7, "do not split into patches of 7"),
        ("num_attention_heads", 3, "it must divide hidden_size 64"),
        ("hidden_act", "relu", "only quick_gelu, gelu can be used"),
        ("num_channels", 1, "only 3 is supported"),
        ("image_size", 24, "of another shape"),
        ("num_hidden_layers", 3, "missing"),
    ],
)
def test_configs_that_do_not_fit(key: str, value: object, says: str, tmp_path: Path) -> None:
    save_towers(random_towers().state_dict(), TEXT, IMAGE, tmp_path / "clip")
    path = tmp_path / "clip" / "config.json"
    config = json.loads(path.read_text())
    config["vision_config"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=says):
        load_image_tower(tmp_path)


def test_heads_that_do_not_split() -> None:
    with pytest.raises(ConfigError, match="width 100 does not split over heads of 64"):
        ImageTowerConfig(width=100)

"""LoRA files: names both ways, one form into the other and back, and files that are not what they should be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import safe_open, save_file
from torch import Tensor

from latentgen.checkpoints.folder import ModelBundle
from latentgen.checkpoints.lora import (
    ADAPTER_METADATA,
    LoRAWeights,
    match_lora,
    read_lora,
    write_lora,
)
from latentgen.checkpoints.lora_names import (
    TARGETS,
    from_diffusers,
    from_kohya,
    is_target,
    kohya_name,
    narrowest_layer,
)
from latentgen.errors import LatentgenError, ModelLoadError, ModelNotFoundError, ShapeError
from latentgen.models.lora import AdapterSize, LoRANetwork, LowRankUpdate, layers_of
from latentgen.presets import EMBEDDED, SD15
from tests.merged import apply_lora
from tests.tiny import TINY_MODEL, randomize, tiny_text_encoder, tiny_unet
from tests.tiny_bundle import tiny_bundle

TO_Q = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return tiny_bundle()


def tiny_lora(*, mixed: bool = True) -> LoRAWeights:
    unet, text_encoder = tiny_unet(), tiny_text_encoder()
    names = [name for name in layers_of(unet, text_encoder) if is_target(name, "all")]
    sizes = {
        name: AdapterSize(2 + i % 2, 0.1 + i % 3) if mixed else AdapterSize(4, 2.0) for i, name in enumerate(names)
    }
    network = LoRANetwork(unet, text_encoder, sizes)
    randomize(network)
    return LoRAWeights(network.updates(), "kohya", {"ss_v2": "False"})


def kohya_tensors(name: str = TO_Q) -> dict[str, Tensor]:
    """One module of the tiny model as kohya writes it."""
    prefix = kohya_name(name)
    return {
        f"{prefix}.lora_down.weight": torch.randn(2, 16),
        f"{prefix}.lora_up.weight": torch.randn(16, 2),
        f"{prefix}.alpha": torch.tensor(1.0),
    }


def test_names() -> None:
    """As the tools write them (seen in published files)."""
    assert kohya_name(TO_Q) == "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    out = "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0"
    assert kohya_name(out) == "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0"
    text = "text_encoder.text_model.encoder.layers.11.self_attn.q_proj"
    assert kohya_name(text) == "lora_te_text_model_encoder_layers_11_self_attn_q_proj"
    assert from_kohya("lora_te_encoder_layers_11_self_attn_q_proj") == text
    assert from_diffusers("text_encoder.encoder.layers.11.self_attn.q_proj") == text
    oldest = "up_blocks.3.attentions.2.transformer_blocks.0.attn2.processor.to_out"  # `unet.save_attn_procs`
    assert from_diffusers(oldest) == from_diffusers(f"unet.{oldest}") == out
    for foreign in ("lora_te2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_input_blocks_1_1_proj_in", "lora_unet_"):
        assert from_kohya(foreign) is None
    assert from_diffusers("text_encoder_2.text_model.encoder.layers.0.mlp.fc1") is None
    assert from_diffusers("unet.down_blocks.x.attentions.0.proj_in") is None


def test_every_layer_has_a_name_of_its_own_both_ways(bundle: ModelBundle) -> None:
    names = [name for name in layers_of(bundle.unet, bundle.text_encoder) if is_target(name, "all")]
    names += ["unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.time_embedding.linear_2"]
    assert [from_kohya(kohya_name(name)) for name in names] == names
    assert [from_diffusers(name) for name in names] == names
    assert len({kohya_name(name) for name in names}) == len(names)


def test_targets(bundle: ModelBundle) -> None:
    layers = layers_of(bundle.unet, bundle.text_encoder)
    chosen = {targets: {name for name in layers if is_target(name, targets)} for targets in TARGETS}
    assert chosen["attention"] < chosen["attention+ff"] < chosen["all"]
    untouched = {"unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.time_embedding.linear_2"}
    assert layers.keys() - chosen["all"] == untouched


def test_narrowest_layer_is_that_of_the_network(bundle: ModelBundle) -> None:
    for unet in (TINY_MODEL.unet, replace(TINY_MODEL.unet, cross_attention_dim=8)):
        shape = replace(
            TINY_MODEL, unet=unet, text_encoder=replace(TINY_MODEL.text_encoder, hidden_size=unet.cross_attention_dim)
        )
        network, text_encoder = tiny_unet(unet), tiny_text_encoder(shape.text_encoder)
        for targets in TARGETS:
            for text in (None, text_encoder):
                layers = layers_of(network, text).items()
                expected = min(min(layer.weight.shape[:2]) for name, layer in layers if is_target(name, targets))
                assert narrowest_layer(shape, targets, text_encoder=text is not None) == expected
    assert narrowest_layer(SD15, "attention+ff", text_encoder=True) == 320
    assert narrowest_layer(EMBEDDED, "all", text_encoder=False) == 128


@pytest.mark.parametrize("mixed", [False, True])
def test_from_one_form_to_the_other_and_back(mixed: bool, tmp_path: Path) -> None:
    """Bit for bit, header included."""
    write_lora(tmp_path / "kohya", tiny_lora(mixed=mixed), "kohya")
    first = read_lora(tmp_path / "kohya")
    write_lora(tmp_path / "diffusers", first, "diffusers")
    second = read_lora(tmp_path / "diffusers")
    write_lora(tmp_path / "back", second, "kohya")
    write_lora(tmp_path / "and forth", read_lora(tmp_path / "back"), "diffusers")
    assert (first.kind, second.kind) == ("kohya", "diffusers")
    assert first.metadata == second.metadata == {"ss_v2": "False"}
    assert (tmp_path / "kohya").read_bytes() == (tmp_path / "back").read_bytes()
    assert (tmp_path / "diffusers").read_bytes() == (tmp_path / "and forth").read_bytes()
    assert first.modules.keys() == second.modules.keys()
    for name, update in first.modules.items():
        other = second.modules[name]
        assert torch.equal(update.down, other.down), name
        assert torch.equal(update.up, other.up), name
        assert update.alpha == other.alpha, name


def test_headers(tmp_path: Path) -> None:
    """What others look for, and nothing of this machine."""
    write_lora(tmp_path / "kohya", tiny_lora(mixed=False), "kohya")
    write_lora(tmp_path / "diffusers", tiny_lora(mixed=False), "diffusers")
    with safe_open(tmp_path / "kohya", "pt") as file:
        assert file.metadata() == {
            "ss_network_module": "networks.lora",
            "ss_network_dim": "4",
            "ss_network_alpha": "2.0",
            "ss_v2": "False",
        }
    with safe_open(tmp_path / "diffusers", "pt") as file:
        metadata = file.metadata()
    settings = json.loads(metadata.pop(ADAPTER_METADATA))
    assert metadata == {"format": "pt", "ss_v2": "False"}
    assert (settings["unet.r"], settings["unet.lora_alpha"], settings["text_encoder.lora_alpha"]) == (4, 2.0, 2.0)
    assert "encoder.layers.0.mlp.fc1" in settings["text_encoder.target_modules"]


def test_without_alpha_the_scale_is_1(tmp_path: Path) -> None:
    tensors = kohya_tensors()
    del tensors[f"{kohya_name(TO_Q)}.alpha"]
    save_file(tensors, tmp_path / "kohya")
    save_file(
        {f"{TO_Q}.lora_A.weight": torch.randn(2, 16), f"{TO_Q}.lora_B.weight": torch.randn(16, 2)}, tmp_path / "d"
    )
    for name in ("kohya", "d"):
        assert read_lora(tmp_path / name).modules[TO_Q].alpha == 2.0


def test_rank_stabilised_alpha(tmp_path: Path) -> None:
    """arXiv:2312.03732: the scale is alpha / sqrt(rank)."""
    tensors = {f"{TO_Q}.lora_A.weight": torch.randn(4, 16), f"{TO_Q}.lora_B.weight": torch.randn(16, 4)}
    settings = {"unet.lora_alpha": 3, "unet.use_rslora": True}
    save_file(tensors, tmp_path / "lora", {ADAPTER_METADATA: json.dumps(settings)})
    update = read_lora(tmp_path / "lora").modules[TO_Q]
    assert update.alpha / update.rank == pytest.approx(3 / 4**0.5)


def test_what_a_model_has_no_layer_for_is_listed(bundle: ModelBundle, tmp_path: Path) -> None:
    absent = "unet.down_blocks.1.attentions.0.proj_in"  # the tiny model's second level does not attend
    foreign = {name.replace("lora_unet_down", "lora_unet_input"): t for name, t in kohya_tensors().items()}
    save_file({**kohya_tensors(), **kohya_tensors(absent), **foreign}, tmp_path / "lora")
    lora = read_lora(tmp_path / "lora")
    assert lora.ranks == [2]
    before = layers_of(bundle.unet, None)[TO_Q].weight.clone()
    report = match_lora(bundle, lora)
    assert (report.applied, report.total) == (1, 3)
    assert report.unmatched == (absent, "lora_unet_input_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q")
    assert str(report).startswith(f"1/3 modules applied; not in this model: {absent}, lora_unet_input_blocks_0")
    assert torch.equal(layers_of(bundle.unet, None)[TO_Q].weight, before), "looking changes nothing"


def test_merging_in_half_precision_rounds_once() -> None:
    half = tiny_bundle()
    half.unet.half()
    weight = layers_of(half.unet, None)[TO_Q].weight
    update = LowRankUpdate(torch.randn(2, 16), torch.randn(16, 2), 1.0)
    expected = (weight.float() + 0.5 * update.up @ update.down * 0.5).half()
    apply_lora(half, LoRAWeights({TO_Q: update}, "kohya"), 0.5)
    torch.testing.assert_close(weight, expected, rtol=2e-3, atol=1e-4)
    assert weight.dtype == torch.float16


def test_another_base(bundle: ModelBundle) -> None:
    before = {name: value.clone() for name, value in bundle.unet.state_dict().items()}
    right, wrong = (LowRankUpdate(torch.randn(2, side), torch.randn(side, 2), 1.0) for side in (16, 320))
    to_k = TO_Q.replace("to_q", "to_k")
    with pytest.raises(
        ModelLoadError, match="made for another base model: 1 of its modules have another shape"
    ) as error:
        apply_lora(bundle, LoRAWeights({TO_Q: right, to_k: wrong}, "kohya"))
    assert f"({to_k} from 320 to 320, here from 16 to 16)" in error.value.message
    assert all(torch.equal(value, before[name]) for name, value in bundle.unet.state_dict().items()), "all or nothing"
    none = {"unet.down_blocks.1.attentions.0.proj_in": right}
    with pytest.raises(ModelLoadError, match="none of the LoRA's 1 modules is in this model"):
        match_lora(bundle, LoRAWeights(none, "kohya"))


PREFIX = kohya_name(TO_Q)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({f"{PREFIX}.lora_up.weight": None}, f"{PREFIX} lacks its matrix up"),
        ({f"{PREFIX}.lora_down.weight": None}, f"{PREFIX} lacks its matrix down"),
        ({f"{PREFIX}.lora_up.weight": torch.randn(16, 3)}, "which do not multiply"),
        ({f"{PREFIX}.lora_up.weight": torch.randn(16, 2, 3, 3)}, "which do not multiply"),
        ({f"{PREFIX}.lora_down.weight": torch.zeros(())}, "which do not multiply"),
        ({f"{PREFIX}.lora_up.weight": torch.zeros(0, 2)}, "which do not multiply"),
        ({f"{PREFIX}.lora_down.weight": torch.full((2, 16), torch.nan)}, "not a finite fraction"),
        ({f"{PREFIX}.lora_down.weight": torch.ones(2, 16, dtype=torch.int32)}, "not a finite fraction"),
        ({f"{PREFIX}.alpha": torch.tensor(torch.inf)}, "alpha of .* is not a number"),
        ({f"{PREFIX}.alpha": torch.ones(2)}, "alpha of .* is not a number"),
        ({f"{PREFIX}.dora_scale": torch.ones(16, 1)}, "1 tensors are not understood"),
    ],
)
def test_damaged_files(changes: dict[str, Tensor | None], says: str, tmp_path: Path) -> None:
    tensors = {name: value for name, value in {**kohya_tensors(), **changes}.items() if value is not None}
    save_file(tensors, tmp_path / "lora.safetensors")
    with pytest.raises(ModelLoadError, match=says):
        read_lora(tmp_path / "lora.safetensors")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_lora(path)
    save_file(tiny_text_encoder().state_dict(), path)
    with pytest.raises(ModelLoadError, match="is not a LoRA: no tensor in it is named as one"):
        read_lora(path)
    save_file({"transformer.blocks.0.lora_A.weight": torch.ones(1, 1)}, path)
    with pytest.raises(ModelLoadError, match=r"another kind of model: it adapts transformer\.blocks\.0"):
        read_lora(path)
    for text in ("{", "[]"):
        save_file({f"{TO_Q}.lora_A.weight": torch.ones(2, 16)}, path, {ADAPTER_METADATA: text})
        with pytest.raises(ModelLoadError, match=ADAPTER_METADATA):
            read_lora(path)
    path.write_bytes(b"<html>")
    with pytest.raises(LatentgenError, match="web page"):
        read_lora(path)


@pytest.mark.parametrize(
    ("name", "rank", "says"),
    [(TO_Q, 17, "rank 17 is not between 1 and 16"), (TO_Q, 0, "rank 0"), ("unet.nowhere", 2, "no layer unet.nowhere")],
)
def test_adapters_that_no_layer_can_have(name: str, rank: int, says: str) -> None:
    with pytest.raises(ShapeError, match=says):
        LoRANetwork(tiny_unet(), None, {name: AdapterSize(rank, 1.0)})

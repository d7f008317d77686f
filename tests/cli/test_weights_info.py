"""`info` on weights files: what each kind says of itself, from headers as the tools that write them make them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentgen.checkpoints.compvis_names import text_names, unet_names, vae_names
from latentgen.checkpoints.single_layout import CLIP_PREFIX, UNET_PREFIX, VAE_PREFIX
from latentgen.presets import SD15
from tests.cli.conftest import Cli
from tests.tiny import tiny_text_encoder, tiny_unet, tiny_vae

Tensors = dict[str, torch.Tensor]


def about(cli: Cli, tensors: Tensors, metadata: dict[str, str] | None = None) -> dict[str, object]:
    """What `info --json` says of a file; `info` must manage it too."""
    save_file(tensors, "w.safetensors", metadata=metadata)
    table = cli("info", "w.safetensors")
    assert (table.code, table.err) == (0, "")
    return json.loads(cli("info", "w.safetensors", "--json").out)


def kohya_lora(width: int, rank: int = 4, alpha: float = 2.0) -> Tensors:
    """Two layers of the U-Net and one of the text encoder, as kohya's `networks/lora.py` names them."""
    unet, text = "lora_unet_down_blocks_0_attentions_0", "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    inputs = {
        f"{unet}_transformer_blocks_0_attn2_to_k": width,
        f"{unet}_proj_in": 320,
        text: width,
    }
    tensors: Tensors = {}
    for layer, count in inputs.items():
        tensors[f"{layer}.lora_down.weight"] = torch.zeros(rank, count)
        tensors[f"{layer}.lora_up.weight"] = torch.zeros(320, rank)
        tensors[f"{layer}.alpha"] = torch.tensor(alpha)
    return tensors


@pytest.mark.parametrize(("width", "architecture"), [(768, "SD 1.x"), (1024, "SD 2.x")])
def test_a_lora_of_kohyas(width: int, architecture: str, cli: Cli) -> None:
    metadata = {
        "ss_network_dim": "4",
        "ss_network_alpha": "2.0",
        "ss_base_model_version": "sd_v1",
        "ss_sd_model_name": "v1-5-pruned-emaonly.safetensors",
        "ss_clip_skip": "None",
        "ss_tag_frequency": json.dumps({"10_fox": {"fox": 12, " snow": 3}, "1_more": {"fox": 1, "a": 2, "odd": "x"}}),
        "modelspec.title": "Fox",
        "modelspec.trigger_phrase": "a photo of sks fox",
    }
    summary = about(cli, kohya_lora(width), metadata)
    expected = {
        "kind": "lora",
        "architecture": architecture,
        "form": "kohya",
        "layers": {"U-Net": 2, "text encoder": 1},
        "rank": [4],
        "alpha": [2.0],
        "context width": width,
        "base version": "sd_v1",
        "trained on": "v1-5-pruned-emaonly.safetensors",
        "trigger phrase": "a photo of sks fox",
        "most frequent tags": {"fox": 13, "snow": 3, "a": 2},
        "metadata": metadata,
    }
    assert expected.items() <= summary.items()
    assert "clip skip" not in summary
    table = cli("info", "w.safetensors").out
    assert "fox 13, snow 3, a 2" in table
    assert "6 values of the training run; --json prints them" in table
    assert "ss_tag_frequency" not in table


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_alpha_is_read_in_every_type(dtype: torch.dtype, cli: Cli) -> None:
    tensors = kohya_lora(768, alpha=0.5) | {"lora_unet_x.alpha": torch.tensor(8)}
    tensors = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    assert about(cli, tensors)["alpha"] == [0.5, 8.0]


@pytest.mark.parametrize(
    ("form", "down", "up"),
    [
        ("diffusers", "unet.{}.lora_A.weight", "unet.{}.lora_B.weight"),
        ("diffusers", "unet.{}.lora.down.weight", "unet.{}.lora.up.weight"),
        ("peft", "base_model.model.{}.lora_A.weight", "base_model.model.{}.lora_B.weight"),
        ("peft", "base_model.model.{}.lora_A.default.weight", "base_model.model.{}.lora_B.default.weight"),
    ],
)
def test_a_lora_of_other_tools(form: str, down: str, up: str, cli: Cli) -> None:
    layers = [f"down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_{name}" for name in "kv"]
    tensors = {down.format(layer): torch.zeros(8, 768) for layer in layers}
    tensors |= {up.format(layer): torch.zeros(320, 8) for layer in layers}
    summary = about(cli, tensors)
    assert (summary["form"], summary["rank"], summary["architecture"]) == (form, [8], "SD 1.x")
    assert summary["layers"] == {"U-Net": 2, "text encoder": 0}
    assert str(summary["alpha"]).startswith("not in the file")


def test_a_lora_with_ranks_of_its_own_and_scalars_and_other_algebra(cli: Cli) -> None:
    tensors = kohya_lora(768) | {"lora_unet_conv.lora_down.weight": torch.zeros(16, 320, 3, 3)}
    assert about(cli, tensors)["rank"] == [4, 16]
    odd = {"lora_unet_a.lora_down.weight": torch.tensor(1.0), "lora_unet_a.alpha": torch.zeros(3)}
    assert (about(cli, odd)["rank"], about(cli, odd)["layers"]) == ([], {"U-Net": 1, "text encoder": 0})
    loha = {f"lora_unet_a.hada_w{i}_{side}": torch.zeros(4, 4) for i in (1, 2) for side in "ab"}
    assert about(cli, loha)["form"] == "LoHa of LyCORIS"


@pytest.mark.parametrize("text", ["not JSON", "[1, 2]", '{"a": 1, "b": {"c": true, "d": null}}', "[" * 100_000])
def test_tags_that_are_none(text: str, cli: Cli) -> None:
    assert "most frequent tags" not in about(cli, kohya_lora(768), {"ss_tag_frequency": text})


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        ({"emb_params": torch.zeros(3, 768)}, {"token": "w", "vectors": 3, "width": 768, "architecture": "SD 1.x"}),
        ({"<fox>": torch.zeros(2, 1024)}, {"token": "<fox>", "vectors": 2, "width": 1024, "architecture": "SD 2.x"}),
        ({"<fox>": torch.zeros(768)}, {"token": "<fox>", "vectors": 1, "width": 768}),
    ],
    ids=["A1111", "diffusers", "diffusers, one vector"],
)
def test_a_textual_inversion(tensors: Tensors, expected: dict[str, object], cli: Cli) -> None:
    assert ({"kind": "textual_inversion"} | expected).items() <= about(cli, tensors).items()


def test_the_parts_of_a_model(cli: Cli) -> None:
    vae = about(cli, dict(tiny_vae().state_dict()))
    assert (vae["kind"], vae["latent channels"], vae["pixels per latent"]) == ("vae", 4, 8)
    unet = about(cli, dict(tiny_unet().state_dict()))
    count = sum(parameter.numel() for parameter in tiny_unet().parameters())
    assert (unet["kind"], unet["context width"], unet["input channels"], unet["parameters"]) == ("unet", 24, 4, count)
    text = about(cli, dict(tiny_text_encoder().state_dict()))
    assert (text["kind"], text["context width"], text["dtypes"]) == (
        "text_encoder",
        24,
        {"F32": len(tiny_text_encoder().state_dict())},
    )


@pytest.mark.parametrize(
    ("tensors", "architecture"),
    [
        ({"conditioner.embedders.0.x": torch.zeros(2)}, "SDXL"),
        ({"lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.zeros(4, 8)}, "SDXL"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2)}, "Flux"),
        ({"double_blocks.0.img_attn.qkv.weight": torch.zeros(2, 2, dtype=torch.float8_e4m3fn)}, "Flux"),
    ],
)
def test_another_architecture_says_that_it_is_not_run(tensors: Tensors, architecture: str, cli: Cli) -> None:
    summary = about(cli, tensors)
    assert summary["architecture"] == architecture
    assert summary["note"] == f"latentgen does not run {architecture}; it draws with SD 1.x, SD 2.x, latentgen"


def test_a_file_of_nothing_known(cli: Cli) -> None:
    summary = about(cli, {"x.y": torch.zeros(3)}, {"note": "a \x1b[2J" + "b" * 5000})
    assert (summary["kind"], summary["parameters"], summary["tensors"]) == ("unknown", 3, 1)
    table = cli("info", "w.safetensors").out
    assert "\x1b" not in table
    assert "--json prints all" in table


# The largest file that is common: SD 1.5 in one file, with the real names and shapes of what decides


def write_sparse(path: Path, *, lacks: str | None = None, bytes_each: int = 2_000_000) -> Path:
    """A valid file of SD 1.5's names, over 2 GB long and almost nothing on the disk: the data are a hole."""
    shapes = {
        f"{UNET_PREFIX}input_blocks.0.0.weight": [320, 4, 3, 3],
        f"{UNET_PREFIX}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": [320, 768],
    }
    names = [UNET_PREFIX + theirs for theirs in unet_names(SD15.unet).values()]
    names += [VAE_PREFIX + theirs for theirs in vae_names(SD15.vae).values()]
    names += [CLIP_PREFIX + name for name in text_names(SD15.text_encoder)]
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in names:
        if name != lacks:
            shape = shapes.get(name, [bytes_each // 2])
            end = position + 2 * torch.Size(shape).numel()
            header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [position, end]}
            position = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + position)
    return path


def test_a_model_of_two_gigabytes_is_only_looked_at(cli: Cli, tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "model.safetensors")
    assert path.stat().st_size > 2 * 10**9
    assert path.stat().st_blocks * 512 < 10**6
    summary = json.loads(cli("info", path, "--json").out)
    expected = {
        "what": "an SD 1.x model",
        "kind": "model",
        "prediction type": "epsilon",
        "input channels": 4,
        "context width": 768,
        "tensors": 1130,
        "missing tensors": [],
        "unexpected tensors": [],
    }
    assert expected.items() <= summary.items()
    assert "missing tensors     none\n" in cli("info", path).out


def test_what_a_model_lacks_is_named(cli: Cli, tmp_path: Path) -> None:
    lost = f"{VAE_PREFIX}decoder.conv_out.bias"
    path = write_sparse(tmp_path / "model.safetensors", lacks=lost, bytes_each=2)
    assert json.loads(cli("info", path, "--json").out)["missing tensors"] == [lost]
    assert f"missing tensors     {lost}\n" in cli("info", path).out


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer, not the weights themselves"),
        (b"<!DOCTYPE html><html>", "is a web page, not weights"),
        (b"", "is empty"),
        (b"\x10\0\0\0\0\0\0\0{", "is not a whole safetensors file"),
    ],
)
def test_what_is_no_weights_file_is_one_line(content: bytes, line: str, cli: Cli) -> None:
    Path("w.safetensors").write_bytes(content)
    outcome = cli("info", "w.safetensors")
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (3, "", 1)
    assert line in outcome.err


def test_a_download_that_stopped_is_one_line(cli: Cli, tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "model.safetensors")
    os.truncate(path, 10**9)
    outcome = cli("info", path)
    assert outcome.code == 3
    assert "is cut short: 1000000000 bytes where the header says" in outcome.err


def test_a_pickle_is_named_and_not_opened(cli: Cli) -> None:
    torch.save({"state_dict": {"model.diffusion_model.x": torch.zeros(1)}}, "old.ckpt")
    outcome = cli("info", "old.ckpt")
    assert outcome.code == 0
    assert "a pickle is not opened as it is; run: latentgen convert old.ckpt" in outcome.out
    Path("other.ckpt").write_bytes(b"PK\x03\x04rest of it")
    outcome = cli("info", "other.ckpt")
    assert (outcome.code, outcome.out) == (3, "")
    assert "is a pickle, which could run code, of unknown content" in outcome.err

"""What a file is, told from its header: every kind we meet, at full size without its bytes, and files that are none."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgen.checkpoints.compvis_names import unet_names, vae_names
from latentgen.checkpoints.folder import load_model
from latentgen.checkpoints.identify import identify
from latentgen.checkpoints.keymap import OPEN_CLIP_TEXT, reverse_rules
from latentgen.checkpoints.layout import read_config
from latentgen.checkpoints.single_file import probe_prediction_type, with_prediction_type
from latentgen.checkpoints.single_layout import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    SGM_PREFIX,
    UNET_PREFIX,
    VAE_PREFIX,
    SingleFile,
)
from latentgen.config import ModelConfig
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.errors import LatentgenError, ModelLoadError, ModelNotFoundError
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.presets import SD15, SD21_BASE, SD21_V
from tests.tiny_bundle import save_tiny_model

Shapes = dict[str, tuple[int, ...]]
SPREAD = f"{UNET_PREFIX}output_blocks.11.1.transformer_blocks.0.norm1.bias"
SD15_INPAINTING = replace(SD15, unet=replace(SD15.unet, in_channels=9))
SD21_INPAINTING = replace(SD21_BASE, unet=replace(SD21_BASE.unet, in_channels=9))


def write_header(path: Path, shapes: Mapping[str, tuple[int, ...]], dtype: str = "F16", **metadata: str) -> Path:
    """A safetensors file of these shapes whose data is a hole: full size, no bytes."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    position = 0
    for name, shape in shapes.items():
        end = position + torch.Size(shape).numel() * {"F16": 2, "F32": 4, "F8_E4M3": 1}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, end]}
        position = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + position)
    return path


@cache
def published(config: ModelConfig) -> Shapes:
    """Names and shapes of the file that a model of these sizes is published as."""
    with torch.device("meta"):
        unet, vae = UNet(config.unet).state_dict(), AutoencoderKL(config.vae).state_dict()
        text = CLIPTextModel(config.text_encoder).state_dict()
    shapes = {UNET_PREFIX + theirs: tuple(unet[ours].shape) for ours, theirs in unet_names(config.unet).items()}
    shapes |= {VAE_PREFIX + theirs: tuple(vae[ours].shape) for ours, theirs in vae_names(config.vae).items()}
    if config.text_encoder.hidden_act == "quick_gelu":
        shapes[f"{CLIP_PREFIX}text_model.embeddings.position_ids"] = (1, 77)
        return shapes | {CLIP_PREFIX + name: tuple(tensor.shape) for name, tensor in text.items()}
    tower = reverse_rules(OPEN_CLIP_TEXT, text, "tower")
    return shapes | {OPEN_CLIP_PREFIX + name: tuple(tensor.shape) for name, tensor in tower.items()}


@pytest.mark.parametrize(
    ("config", "architecture", "prediction_type"),
    [
        (SD15, "SD 1.x", "epsilon"),
        (SD15_INPAINTING, "SD 1.x", "epsilon"),
        (SD21_BASE, "SD 2.x", None),
        (SD21_INPAINTING, "SD 2.x", "epsilon"),
    ],
    ids=["sd15", "sd15-inpainting", "sd21", "sd21-inpainting"],
)
def test_models_at_full_size(
    config: ModelConfig, architecture: str, prediction_type: str | None, tmp_path: Path
) -> None:
    path = write_header(tmp_path / "model.SafeTensors", published(config))
    found = identify(path)
    assert path.stat().st_size > 2e9
    assert (found.kind, found.format, found.architecture) == ("model", "safetensors", architecture)
    assert (found.in_channels, found.is_inpainting) == (config.unet.in_channels, config.unet.in_channels == 9)
    assert found.prediction_type == prediction_type
    assert (found.missing, found.unexpected) == ((), ())
    assert found.dtypes == {"F16": found.tensors}
    assert found.context_width == config.unet.cross_attention_dim
    assert read_config(path) == config


def in_sgm_form(shapes: Shapes) -> Shapes:
    return {name.replace(OPEN_CLIP_PREFIX, SGM_PREFIX): shape for name, shape in shapes.items()}


def test_sd2_as_sgm_writes_it(tmp_path: Path) -> None:
    """OpenCLIP under the first of sgm's embedders, which SDXL has two of."""
    left = {f"{SGM_PREFIX}logit_scale": (), f"{SGM_PREFIX}text_projection": (1024, 1024), "denoiser.sigmas": (1000,)}
    path = write_header(tmp_path / "model", in_sgm_form(published(SD21_BASE)) | left)
    found = identify(path)
    assert (found.kind, found.architecture, found.is_supported) == ("model", "SD 2.x", True)
    assert (found.missing, found.unexpected, found.prediction_type) == ((), (), None)
    assert read_config(path) == SD21_BASE


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """Two gigabytes in the processor time of parsing half a megabyte of JSON."""
    path = write_header(tmp_path / "model", published(SD15))
    before = time.process_time()
    assert identify(path).parameters == 1_066_235_384
    assert time.process_time() - before < 0.5


def test_missing_and_unexpected_are_listed(tmp_path: Path) -> None:
    shapes = dict(published(SD15))
    removed = [name for name in shapes if name.startswith(VAE_PREFIX)][:5]
    shapes = {name: shape for name, shape in shapes.items() if name not in removed} | {"extra.weight": (3,)}
    found = identify(write_header(tmp_path / "model", shapes))
    assert set(found.missing) == set(removed)
    assert found.unexpected == ("extra.weight",)


@pytest.mark.parametrize(
    ("shapes", "metadata", "expected"),
    [
        ({}, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
        ({}, {"modelspec.architecture": "stable-diffusion-v2-768-v"}, "v_prediction"),
        ({"v_pred": (0,)}, {}, "v_prediction"),
        ({}, {}, None),
    ],
)
def test_what_a_file_says_that_it_predicts(
    shapes: Shapes, metadata: dict[str, str], expected: str | None, tmp_path: Path
) -> None:
    path = write_header(tmp_path / "model", published(SD21_BASE) | shapes, **metadata)
    assert identify(path).prediction_type == expected
    assert SingleFile.open(path).is_prediction_known == (expected is not None)
    assert read_config(path) == (SD21_V if expected == "v_prediction" else SD21_BASE)


def test_zero_terminal_snr_by_its_mark(tmp_path: Path) -> None:
    path = write_header(tmp_path / "model", published(SD15) | {"v_pred": (0,), "ztsnr": (0,)})
    diffusion = read_config(path).diffusion
    assert (diffusion.prediction_type, diffusion.rescale_betas_zero_snr) == ("v_prediction", True)
    assert (diffusion.timestep_spacing, read_config(path).defaults.schedule) == ("trailing", "trailing")
    assert NoiseSchedule.from_config(diffusion).timesteps(25, diffusion.timestep_spacing)[0] == 999
    assert identify(path).unexpected == ()


@pytest.mark.parametrize(("spread", "expected"), [(0.05, SD21_BASE), (0.15, SD21_V)])
def test_the_likelier_answer_where_it_does_not_say(spread: float, expected: ModelConfig, tmp_path: Path) -> None:
    path = write_header(tmp_path / "model", published(SD21_BASE))
    entry = next(e for e in SingleFile.open(path).header.entries if e.name == SPREAD)
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(struct.pack("<320e", *[spread, -spread] * 160))
    assert read_config(path) == expected


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_numbers_that_are_none_say_nothing_of_what_is_predicted(number: float, tmp_path: Path) -> None:
    path = write_header(tmp_path / "model", published(SD21_BASE))
    entry = next(e for e in SingleFile.open(path).header.entries if e.name == SPREAD)
    with path.open("r+b") as file:
        file.seek(entry.begin)
        file.write(struct.pack("<320e", *[number] * 320))
    assert identify(path).prediction_type is None
    assert read_config(path) == SD21_BASE


@pytest.mark.parametrize(("offset", "expected"), [(0.0, "epsilon"), (-0.9, "epsilon"), (-1.1, "v_prediction")])
def test_probing_a_network(offset: float, expected: str) -> None:
    asked: list[tuple[tuple[int, ...], tuple[int, ...], int]] = []

    def network(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        asked.append((tuple(x.shape), tuple(context.shape), int(t)))
        assert (x == 0.5).all()
        assert (context == 0.5).all()
        return x + offset

    assert probe_prediction_type(network, SD21_BASE, torch.zeros(1)) == expected
    assert asked == [((1, 4, 8, 8), (1, 2, 1024), 999)]
    assert with_prediction_type(SD21_BASE, "v_prediction") == SD21_V
    assert with_prediction_type(SD21_V, "epsilon") == SD21_BASE


MODEL = "model.diffusion_model."
KINDS: dict[str, tuple[Shapes, str, str | None]] = {
    "LoRA of SD 1.x, kohya": (
        {"lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k.lora_down.weight": (4, 768)},
        "lora", "SD 1.x",
    ),
    "LoRA of SD 2.x, diffusers": (
        {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight": (4, 1024)}, "lora", "SD 2.x",
    ),
    "LoRA of SDXL": (
        {"lora_unet_x_attn2_to_k.lora_down.weight": (4, 2048), "lora_te2_x.lora_down.weight": (4, 1280)},
        "lora", "SDXL",
    ),
    "LoRA of Flux": ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": (4, 3072)}, "lora", "Flux"),
    "LoHa": ({"lora_unet_x_attn2_to_k.hada_w1_a": (4, 4)}, "lora", None),
    "embedding, A1111": ({"emb_params": (2, 768)}, "textual_inversion", "SD 1.x"),
    "embedding, diffusers": ({"<cat-toy>": (1, 1024)}, "textual_inversion", "SD 2.x"),
    "embedding of SDXL": ({"clip_l": (2, 768), "clip_g": (2, 1280)}, "textual_inversion", "SDXL"),
    "SDXL": (
        {f"{MODEL}input_blocks.0.0.weight": (320, 4, 3, 3), "conditioner.embedders.0.transformer.x": (1,),
         "first_stage_model.x": (1,)},
        "model", "SDXL",
    ),
    "SDXL refiner": (
        {f"{MODEL}input_blocks.0.0.weight": (384, 4, 3, 3), f"{MODEL}label_emb.0.0.weight": (1536, 2560),
         f"{SGM_PREFIX}token_embedding.weight": (49408, 1280), "first_stage_model.x": (1,)},
        "model", "SDXL",
    ),
    "SDXL without its first text encoder": ({"conditioner.embedders.1.model.ln_final.bias": (1280,)}, "model", "SDXL"),
    "SD3": ({f"{MODEL}joint_blocks.0.x_block.attn.qkv.weight": (3, 3), "first_stage_model.x": (1,)}, "model", "SD3"),
    "Flux": ({"double_blocks.0.img_attn.norm.key_norm.scale": (128,)}, "unet", "Flux"),
    "U-Net of diffusers": (
        {"conv_in.weight": (320, 9, 3, 3), "time_embedding.linear_1.weight": (1, 1), "a.attn2.to_k.weight": (320, 768)},
        "unet", "SD 1.x",
    ),
    "VAE": ({"decoder.conv_in.weight": (512, 4, 3, 3)}, "vae", None),
    "text encoder": ({"text_model.embeddings.token_embedding.weight": (49408, 768)}, "text_encoder", "SD 1.x"),
    "ControlNet": ({"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3)}, "controlnet", None),
    "unknown": ({"a.b": (3,), "c.d": (3,)}, "unknown", None),
}  # fmt: skip


@pytest.mark.parametrize("case", KINDS)
@pytest.mark.parametrize("dtype", ["F16", "F8_E4M3"])
def test_every_kind_is_named(case: str, dtype: str, tmp_path: Path) -> None:
    """Other models' quantised files too, which could not be read."""
    shapes, kind, architecture = KINDS[case]
    found = identify(write_header(tmp_path / "some.file", shapes, dtype))
    assert (found.kind, found.architecture) == (kind, architecture)
    assert found.is_supported == (architecture in (None, "SD 1.x", "SD 2.x"))


@pytest.mark.parametrize(
    ("case", "title"),
    [
        ("LoRA of SDXL", "an SDXL LoRA"),
        ("Flux", "a Flux U-Net"),
        ("unknown", "a file of unknown kind"),
        ("VAE", "a VAE"),
        ("U-Net of diffusers", "an SD 1.x inpainting U-Net"),
    ],
)
def test_titles_for_messages(case: str, title: str, tmp_path: Path) -> None:
    assert identify(write_header(tmp_path / "x", KINDS[case][0])).title == title


def test_a_model_folder_and_folders_of_parts(tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    found = identify(tmp_path / "model")
    assert (found.kind, found.format, found.architecture) == ("folder", "folder", "latentgen")
    assert (found.prediction_type, found.missing) == ("epsilon", ())
    assert identify(tmp_path / "model" / "unet").kind == "unet"
    assert identify(tmp_path / "model" / "vae").kind == "vae"
    assert identify(tmp_path / "model" / "text_encoder").kind == "text_encoder"
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    found = identify(tmp_path / "model")
    assert (found.kind, found.architecture, found.is_supported) == ("folder", "SDXL", False)


def test_a_folder_under_published_names_is_whole(tmp_path: Path) -> None:
    """The VAE's attention as SD 1.x still has it, a text encoder as transformers 5 writes it, and what is too much."""
    save_tiny_model(tmp_path / "model")
    vae = tmp_path / "model" / "vae" / "diffusion_pytorch_model.safetensors"
    older = (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn"))
    tensors = load_file(vae)
    for new, old in older:
        tensors = {name.replace(f"attentions.0.{new}.", f"attentions.0.{old}."): each for name, each in tensors.items()}
    save_file(tensors, vae)
    text = tmp_path / "model" / "text_encoder" / "model.safetensors"
    tensors = {name.removeprefix("text_model."): each for name, each in load_file(text).items()}
    save_file({**tensors, "logit_scale": torch.zeros(1)}, text)
    found = identify(tmp_path / "model")
    assert (found.missing, found.unexpected) == ((), ())
    load_model(tmp_path / "model")
    save_file({**tensors, "extra": torch.zeros(1)}, text)
    assert identify(tmp_path / "model").unexpected == ("text_encoder/text_model.extra",)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickles_are_never_opened(zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": {"model.diffusion_model.x": torch.zeros(1), "cond_stage_model.model.y": torch.zeros(1)}}
    torch.save(content, tmp_path / "a.safetensors", _use_new_zipfile_serialization=zipped)
    found = identify(tmp_path / "a.safetensors")
    assert found.format == "pickle"
    assert (found.kind, found.architecture) == (("model", "SD 2.x") if zipped else ("unknown", None))


@pytest.mark.parametrize(
    ("names", "architecture"),
    [
        (["cond_stage_model.transformer.x"], "SD 1.x"),
        ([f"{SGM_PREFIX}x"], "SD 2.x"),
        ([f"{SGM_PREFIX}x", f"{UNET_PREFIX}label_emb.0.0.weight"], "SDXL"),
        (["conditioner.embedders.0.transformer.x", "conditioner.embedders.1.model.x"], "SDXL"),
    ],
)
def test_pickles_by_the_names_spelled_in_them(names: list[str], architecture: str, tmp_path: Path) -> None:
    content = {name: torch.zeros(1) for name in [f"{UNET_PREFIX}x", *names]}
    torch.save({"state_dict": content}, tmp_path / "model.ckpt")
    found = identify(tmp_path / "model.ckpt")
    assert (found.kind, found.architecture) == ("model", architecture)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty.*download it again"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>", "web page.*download it again"),
        (b"hello", "not a whole safetensors file"),
        (b"GGUF\3\0\0\0", r"is a GGUF file, which is not read here"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "is a picture, not weights"),
        (b"\xff\xd8\xff\xe0\0\x10JFIF", "is a picture, not weights"),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "is a picture, not weights"),
        (b"PK\x03\x04 not an archive", None),
    ],
)
def test_files_that_are_no_weights(content: bytes, told: str | None, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    if told is None:
        assert identify(tmp_path / "model.safetensors").kind == "unknown"
        return
    with pytest.raises(ModelLoadError, match=told):
        identify(tmp_path / "model.safetensors")


def test_a_way_out_can_be_pasted(tmp_path: Path) -> None:
    (tmp_path / "my picture.png").write_bytes(b"GIF89a")
    with pytest.raises(ModelLoadError) as caught:
        identify(tmp_path / "my picture.png")
    assert caught.value.hint == "what it was made with: latentgen info 'my picture.png'"


def test_nothing_there_and_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError):
        identify(tmp_path / "none")
    with pytest.raises(ModelLoadError, match="is not a model folder"):
        identify(tmp_path)
    with pytest.raises(LatentgenError):
        identify(Path("a\0b"))


def test_identify_needs_no_torch(tmp_path: Path) -> None:
    save_file({"decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "vae")
    code = (
        "import sys; from pathlib import Path; from latentgen.checkpoints.identify import identify;"
        "print(identify(Path(sys.argv[1])).kind, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "vae")], capture_output=True, text=True, check=True
    )
    assert done.stdout == "vae False\n"

"""Model folders: round trips, published configs as our presets, and one clear line for everything that can be wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from latentgen.checkpoints import folder as folder_module
from latentgen.checkpoints.diffusers_config import read_text_encoder
from latentgen.checkpoints.folder import (
    ModelBundle,
    check_replaceable,
    load_model,
    load_text_encoder,
    load_tokenizer,
    load_unet,
    load_vae,
    read_config,
    save_diffusion,
    save_model,
    save_text_encoder,
    save_unet,
    save_vae,
)
from latentgen.checkpoints.io import read_tensors, write_tensors
from latentgen.checkpoints.tokenizers import unusual_tokens
from latentgen.config import DiffusionConfig, GenerationDefaults, ModelConfig
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError, RuntimeFailure
from latentgen.models.tokenizer import Tokenizer
from latentgen.presets import EMBEDDED, SD15, SD21_BASE, SD21_V
from tests.tiny import TINY_MODEL, TINY_UNET, tiny_text_encoder, tiny_unet, tiny_vae

PARTS = ("unet", "vae", "text_encoder")


def tiny_bundle(config: ModelConfig = TINY_MODEL) -> ModelBundle:
    return ModelBundle(
        unet=tiny_unet(config.unet),
        vae=tiny_vae(config.vae),
        text_encoder=tiny_text_encoder(config.text_encoder),
        tokenizer=Tokenizer.published(config.text_encoder.vocab_size - 514),
        config=config,
    )


@pytest.fixture(scope="module")
def bundle() -> ModelBundle:
    return tiny_bundle()


@pytest.fixture
def folder(tmp_path: Path, bundle: ModelBundle) -> Path:
    save_model(bundle, tmp_path / "model")
    return tmp_path / "model"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def write_configs(folder: Path, **files: dict[str, Any]) -> Path:
    for name, content in files.items():
        path = folder / {"index": "model_index.json", "scheduler": "scheduler/scheduler_config.json"}.get(
            name, f"{name}/config.json"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))
    return folder


def assert_same_weights(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    before, after = ours.state_dict(), theirs.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_round_trip(folder: Path, bundle: ModelBundle) -> None:
    loaded = load_model(folder)
    assert loaded.config == bundle.config
    assert loaded.name == "model"
    assert bundle.name == "unsaved"
    for part in PARTS:
        module = getattr(loaded, part)
        assert_same_weights(getattr(bundle, part), module)
        assert not module.training
        assert all(tensor.device.type == "cpu" for tensor in [*module.parameters(), *module.buffers()])
    assert loaded.tokenizer.tokenize("a red boat") == bundle.tokenizer.tokenize("a red boat")
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_presets_survive_their_json(tmp_path: Path) -> None:
    """Every preset is what the folder written from it says, without building the networks."""
    from latentgen.checkpoints import diffusers_config as files

    for number, preset in enumerate((SD15, SD21_BASE, SD21_V, EMBEDDED, TINY_MODEL)):
        path = write_configs(
            tmp_path / str(number),
            unet=files.write_unet(preset.unet),
            vae=files.write_vae(preset.vae),
            text_encoder=files.write_text_encoder(preset.text_encoder, "float32"),
            scheduler=files.write_scheduler(preset.diffusion),
            index=files.write_model_index(preset.defaults),
        )
        assert read_config(path) == preset


SD15_UNET: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0", "act_fn": "silu", "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280], "center_input_sample": False, "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "downsample_padding": 1, "flip_sin_to_cos": True, "freq_shift": 0, "in_channels": 4, "layers_per_block": 2,
    "mid_block_scale_factor": 1, "norm_eps": 1e-05, "norm_num_groups": 32, "out_channels": 4, "sample_size": 64,
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
}  # fmt: skip
SD15_VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0", "act_fn": "silu", "in_channels": 3,
    "block_out_channels": [128, 256, 512, 512], "down_block_types": ["DownEncoderBlock2D"] * 4, "latent_channels": 4,
    "layers_per_block": 2, "norm_num_groups": 32, "out_channels": 3, "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}  # fmt: skip
SD15_TEXT: dict[str, Any] = {
    "_name_or_path": "openai/clip-vit-large-patch14", "architectures": ["CLIPTextModel"], "attention_dropout": 0.0,
    "bos_token_id": 0, "dropout": 0.0, "eos_token_id": 2, "hidden_act": "quick_gelu", "hidden_size": 768,
    "initializer_factor": 1.0, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77, "model_type": "clip_text_model", "num_attention_heads": 12,
    "num_hidden_layers": 12, "pad_token_id": 1, "projection_dim": 768, "torch_dtype": "float32",
    "transformers_version": "4.22.0.dev0", "vocab_size": 49408,
}  # fmt: skip
SD15_SCHEDULER: dict[str, Any] = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "beta_start": 0.00085, "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None, "clip_sample": False,
}  # fmt: skip
SD15_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "scheduler": ["diffusers", "PNDMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
}  # fmt: skip
SD21_UNET = SD15_UNET | {
    "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "dual_cross_attention": False,
    "num_class_embeds": None, "only_cross_attention": False, "upcast_attention": False, "use_linear_projection": True,
}  # fmt: skip
SD21_TEXT = SD15_TEXT | {
    "hidden_act": "gelu", "hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
    "num_hidden_layers": 23, "projection_dim": 512,
}  # fmt: skip


def sd15(folder: Path) -> Path:
    """The config files of Stable Diffusion 1.5 as published."""
    return write_configs(
        folder, unet=SD15_UNET, vae=SD15_VAE, text_encoder=SD15_TEXT, scheduler=SD15_SCHEDULER, index=SD15_INDEX
    )


def test_published_sd15_reads_as_the_preset(tmp_path: Path) -> None:
    config = read_config(sd15(tmp_path))
    assert replace(config, defaults=SD15.defaults) == SD15
    assert config.defaults == GenerationDefaults(width_px=512, height_px=512)


def test_published_sd21_reads_as_the_preset(tmp_path: Path) -> None:
    scheduler = SD15_SCHEDULER | {"prediction_type": "epsilon"}
    write_configs(sd15(tmp_path), unet=SD21_UNET, text_encoder=SD21_TEXT, scheduler=scheduler)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "special_tokens_map.json").write_text('{"pad_token": "!"}')
    assert replace(read_config(tmp_path), defaults=SD21_BASE.defaults) == SD21_BASE


def test_v_prediction_and_zero_snr_are_read(tmp_path: Path) -> None:
    more = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    write_configs(sd15(tmp_path), scheduler=SD15_SCHEDULER | {"_class_name": "DDIMScheduler"} | more)
    config = read_config(tmp_path)
    assert config.diffusion == DiffusionConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=0
    )
    assert config.defaults.schedule == "trailing", "of 25 karras steps 14 would lie above sigma 80"


@pytest.mark.parametrize(
    ("file", "key", "value", "told"),
    [
        ("unet", "_class_name", "FluxTransformer2DModel", "only UNet2DConditionModel"),
        ("unet", "act_fn", "gelu", "only 'silu' is supported"),
        ("unet", "class_embed_type", "timestep", "unknown key class_embed_type = 'timestep'"),
        ("unet", "attention_type", "gated", "only 'default' is supported"),
        ("unet", "brand_new", 3, "unknown key brand_new = 3"),
        ("unet", "down_block_types", ["SimpleCrossAttnDownBlock2D"] * 4, "only CrossAttnDownBlock2D and DownBlock2D"),
        ("unet", "down_block_types", ["DownBlock2D"] * 3, "block_out_channels has 4 levels"),
        ("unet", "up_block_types", ["UpBlock2D"] * 4, "must mirror down_block_types"),
        ("unet", "block_out_channels", [320, 0, 1, 2], "a list of positive whole numbers"),
        ("unet", "block_out_channels", [320, 640, 1280, 1281], "1281 is not a multiple of norm_num_groups"),
        ("unet", "attention_head_dim", 0, "a whole number from 1"),
        ("unet", "attention_head_dim", [8, 8, True, 8], "a list of positive whole numbers"),
        ("unet", "attention_head_dim", [8, 8], "one entry per level"),
        ("unet", "attention_head_dim", [8, 8, 8, 7], "width 1280 does not split over 7 attention heads"),
        ("unet", "layers_per_block", [1, 2, 2, 2], "one number for all levels"),
        ("unet", "use_linear_projection", 1, "true or false"),
        ("unet", "norm_eps", "small", "a number is needed"),
        ("vae", "scaling_factor", float("nan"), "a number is needed"),
        ("vae", "scaling_factor", -1, "must be positive"),
        ("vae", "latents_mean", [0.0], "unknown key latents_mean"),
        ("vae", "_class_name", "AutoencoderTiny", "only AutoencoderKL"),
        ("text_encoder", "model_type", "t5", "only clip_text_model"),
        ("text_encoder", "hidden_act", "relu", "only quick_gelu, gelu"),
        ("text_encoder", "num_attention_heads", 7, "does not split over 7 heads"),
        ("scheduler", "_class_name", "FlowMatchEulerDiscreteScheduler", "only DDIMScheduler"),
        ("scheduler", "beta_schedule", None, "beta_schedule is None, but only linear"),
        ("scheduler", "trained_betas", [0.1], "only None is supported"),
        ("scheduler", "prediction_type", "flow_prediction", "only epsilon, v_prediction, sample"),
        ("scheduler", "variance_type", "learned_range", "predict a variance"),
        ("scheduler", "rescale_betas_zero_snr", True, "eps is undefined there"),
        ("index", "_class_name", "StableDiffusionXLPipeline", "is a 'StableDiffusionXLPipeline'"),
        ("index", "_latentgen", {"width": 3}, "only width_px"),
        ("index", "_latentgen", {"steps": "many"}, "steps must be of type int"),
        ("index", "_latentgen", {"steps": 0}, "steps 0 must lie between 1 and 1000"),
        ("index", "_latentgen", {"steps": 1001}, "steps 1001 must lie between 1 and 1000"),
        ("index", "_latentgen", {"width_px": 0}, "width 0 must be at least 1"),
        ("index", "_latentgen", {"height_px": -64}, "height -64 must be at least 1"),
        ("index", "_latentgen", {"guidance": -0.5}, "guidance -0.5 must be a number from 0"),
        ("index", "_latentgen", {"guidance": float("inf")}, "guidance inf must be a number from 0"),
        ("index", "_latentgen", {"guidance_interval": 0.2}, "guidance_interval must be of type tuple[float, float]"),
        ("index", "_latentgen", {"guidance_interval": [0.2]}, "guidance_interval must be of type tuple[float, float]"),
        ("index", "_latentgen", {"guidance_interval": [0.2, "1"]}, "guidance_interval must be of type"),
        ("index", "_latentgen", {"guidance_interval": [0.2, 0.2]}, "guidance_interval 0.2, 0.2 must rise within 0"),
        ("index", "_latentgen", {"guidance_interval": [0.2, 1.5]}, "guidance_interval 0.2, 1.5 must rise within 0"),
        ("index", "_latentgen", {"guidance_interval": [float("nan"), 1]}, "guidance_interval nan, 1 must rise within"),
    ],
)
def test_unsupported_values_name_file_and_key(tmp_path: Path, file: str, key: str, value: object, told: str) -> None:
    contents = {
        "unet": SD15_UNET, "vae": SD15_VAE, "text_encoder": SD15_TEXT, "scheduler": SD15_SCHEDULER, "index": SD15_INDEX
    }  # fmt: skip
    write_configs(sd15(tmp_path), **{file: contents[file] | {key: value}})
    with pytest.raises(ModelLoadError) as caught:
        read_config(tmp_path)
    assert told in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_keys_that_are_off_or_irrelevant_are_accepted(tmp_path: Path) -> None:
    more = {
        "time_cond_proj_dim": None,
        "class_embeddings_concat": False,
        "dropout": 0.1,
        "only_cross_attention": [False],
    }
    write_configs(sd15(tmp_path), unet=SD15_UNET | more | {"layers_per_block": [2, 2, 2, 2], "act_fn": None})
    assert read_config(tmp_path).unet == SD15.unet


def test_num_attention_heads_wins_where_given(tmp_path: Path) -> None:
    write_configs(sd15(tmp_path), unet=SD15_UNET | {"num_attention_heads": [5, 10, 20, 20]})
    assert read_config(tmp_path).unet.num_attention_heads == (5, 10, 20, 20)


def test_parts_of_different_models(tmp_path: Path) -> None:
    write_configs(sd15(tmp_path), text_encoder=SD21_TEXT)
    with pytest.raises(ModelLoadError, match="768 wide, but the text encoder's is 1024"):
        read_config(tmp_path)


def test_read_config_needs_no_torch(folder: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from latentgen.checkpoints.layout import read_config;"
        "read_config(Path(sys.argv[1])); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_loading_does_not_import_torchs_compiler(folder: Path) -> None:
    """It takes longer than all else that loading does, and torch would import it to initialise what has no numbers."""
    code = (
        "import sys; from pathlib import Path; from latentgen.checkpoints.folder import load_model;"
        "load_model(Path(sys.argv[1])); print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


@pytest.mark.parametrize("load", [read_config, load_model, load_unet, load_vae, load_text_encoder, load_tokenizer])
def test_wrong_paths(tmp_path: Path, load: Callable[[Path], object]) -> None:
    with pytest.raises(ModelNotFoundError, match=r"^no such path: runwayml/stable-diffusion"):
        load(Path("runwayml/stable-diffusion-v1-5"))
    (tmp_path / "file").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelLoadError, match="is not a whole safetensors file"):
        load(tmp_path / "file")
    (tmp_path / "pointer").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ModelLoadError, match="git lfs pull"):
        load(tmp_path / "pointer")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelLoadError, match=r"empty|config\.json is missing|vocab\.json is missing"):
        load(tmp_path / "empty")


def test_a_folder_that_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(ModelLoadError, match=r"it has no model_index\.json"):
        read_config(tmp_path)


def test_broken_json_names_file_and_line(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text('{\n  "act_fn": "silu",,\n}')
    with pytest.raises(ModelLoadError, match=r"unet/config\.json, line 2"):
        load_model(folder)
    (folder / "unet" / "config.json").write_text("[1]")
    with pytest.raises(ModelLoadError, match="expected a JSON object, found list"):
        load_model(folder)
    (folder / "unet" / "config.json").write_text("[" * 100_000)
    with pytest.raises(ModelLoadError, match="nested too deeply"):
        load_model(folder)
    (folder / "unet" / "config.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelLoadError, match="not UTF-8 text: byte 0"):
        load_model(folder)


@pytest.mark.parametrize("part", PARTS)
def test_missing_and_pickled_and_split_weights(folder: Path, part: str) -> None:
    (weights,) = (folder / part).glob("*.safetensors")
    weights.unlink()
    with pytest.raises(ModelLoadError, match=f"{weights.name} is missing"):
        load_model(folder)
    (folder / part / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(ModelLoadError, match=r"pickled weights only \(pytorch_model\.bin\).*latentgen convert"):
        load_model(folder)
    weights.with_suffix(".safetensors.index.json").write_text("{}")
    with pytest.raises(ModelLoadError, match="weight_map must map tensors to files"):
        load_model(folder)


def test_weights_of_another_shape_name_the_file(folder: Path) -> None:
    edit(folder / "unet" / "config.json", block_out_channels=[16, 40])
    with pytest.raises(ModelLoadError, match=r"unet/diffusion_pytorch_model\.safetensors does not fit this UNet"):
        load_model(folder)


def test_half_precision_variant_is_taken_if_it_is_the_only_one(folder: Path, bundle: ModelBundle) -> None:
    plain = folder / "vae" / "diffusion_pytorch_model.safetensors"
    halves = {name: tensor.half() for name, tensor in read_tensors(plain).items()}
    write_tensors(plain.with_suffix(".fp16.safetensors"), halves)
    assert_same_weights(load_vae(folder), bundle.vae)
    plain.unlink()
    loaded = load_vae(folder)
    assert loaded.encoder.conv_in.weight.dtype == torch.float32
    assert torch.equal(loaded.encoder.conv_in.weight, bundle.vae.encoder.conv_in.weight.half().float())


def test_dtype_of_loading_and_saving(folder: Path, bundle: ModelBundle) -> None:
    assert load_unet(folder, dtype=torch.bfloat16).conv_in.weight.dtype == torch.bfloat16
    save_model(bundle, folder, dtype=torch.float16)
    tensors = read_tensors(folder / "text_encoder" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert json.loads((folder / "text_encoder" / "config.json").read_text())["torch_dtype"] == "float16"


def test_parts_alone(tmp_path: Path, bundle: ModelBundle, folder: Path) -> None:
    save_unet(bundle.unet, tmp_path / "run" / "unet")
    save_vae(bundle.vae, tmp_path / "my-vae")
    save_text_encoder(bundle.text_encoder, tmp_path / "run" / "text_encoder")
    bundle.tokenizer.save(tmp_path / "run" / "tokenizer")
    for where in (tmp_path / "run" / "unet", tmp_path / "run", folder):
        assert_same_weights(load_unet(where), bundle.unet)
    for where in (tmp_path / "my-vae", folder):
        assert_same_weights(load_vae(where), bundle.vae)
    for where in (tmp_path / "run" / "text_encoder", tmp_path / "run", folder):
        assert_same_weights(load_text_encoder(where), bundle.text_encoder)
    for where in (tmp_path / "run" / "tokenizer", tmp_path / "run", folder):
        assert load_tokenizer(where).vocab_size == 600
    assert load_unet(tmp_path / "run").config == TINY_UNET


def test_tokenizer_larger_than_the_text_encoder(folder: Path) -> None:
    Tokenizer.published(100).save(folder / "tokenizer")
    with pytest.raises(ModelLoadError, match="77 tokens out of 600, but the tokenizer gives 77 out of 614"):
        load_model(folder)


def test_fingerprint_tells_models_apart(folder: Path, bundle: ModelBundle) -> None:
    fingerprint = load_model(folder).fingerprint()
    assert len(fingerprint) == 10
    int(fingerprint, 16)
    assert load_model(folder, dtype=torch.float16).fingerprint() == fingerprint
    edit(folder / "scheduler" / "scheduler_config.json", prediction_type="v_prediction")
    assert load_model(folder).fingerprint() != fingerprint
    assert bundle.fingerprint() == tiny_bundle().fingerprint()
    other = tiny_bundle()
    with torch.no_grad():
        other.vae.decoder.conv_in.bias[0] += 1
    assert other.fingerprint() != bundle.fingerprint()


def test_fingerprint_tells_tokens_apart(folder: Path) -> None:
    """What control tokens and added tokens are stands in files that are hashed only where it is unusual."""
    seen = [load_model(folder).fingerprint()]
    config, extra = folder / "tokenizer" / "tokenizer_config.json", folder / "tokenizer" / "special_tokens_map.json"
    written = config.read_text()
    edit(config, clean_up_tokenization_spaces=True, unk_token=None)
    extra.unlink()
    assert load_model(folder).fingerprint() == seen[0]
    for changes in (
        {"pad_token": "!"},
        {"bos_token": "<|endoftext|>"},
        {"eos_token": "!", "pad_token": "<|endoftext|>"},
        {"added_tokens_decoder": {"0": {"content": "!"}}},
        {"added_tokens_decoder": {"0": {"content": "!", "lstrip": True}}},
    ):
        config.write_text(written)
        edit(config, **changes)
        seen.append(load_model(folder).fingerprint())
    assert len(set(seen)) == len(seen)


@pytest.mark.parametrize(
    ("text", "pad"), [(SD15_TEXT, "<|endoftext|>"), (SD21_TEXT, "!"), ({"pad_token_id": 0, "hidden_act": "gelu"}, "!")]
)
def test_published_padding_is_not_unusual(text: dict[str, Any], pad: str, tmp_path: Path) -> None:
    """So fingerprints of Stable Diffusion's folders are those of their files alone."""
    tokenizer = Tokenizer.published(pad=pad)
    write_configs(tmp_path, text_encoder=text)
    tokenizer.save(tmp_path / "tokenizer")
    config = read_text_encoder(tmp_path / "text_encoder" / "config.json")
    assert unusual_tokens(tmp_path, tokenizer, config) == ""
    other = Tokenizer.published(pad="!" if pad != "!" else "<|endoftext|>")
    assert "pad" in unusual_tokens(tmp_path, other, config)


def test_the_specials_are_clips_where_tokens_were_added(tmp_path: Path) -> None:
    """SD 1.5 with a learnt word: the file's own ids are those that CLIP's vocabulary never had."""
    write_configs(tmp_path, text_encoder=SD15_TEXT | {"vocab_size": 49410})
    config = read_text_encoder(tmp_path / "text_encoder" / "config.json")
    assert (config.vocab_size, config.bos_token_id, config.eos_token_id, config.pad_token_id) == (
        49410, 49406, 49407, 49407,
    )  # fmt: skip


def test_saving_over_an_older_model_replaces_it(folder: Path, bundle: ModelBundle) -> None:
    (folder / "unet" / "config.json").write_text("of another U-Net")
    save_model(bundle, folder)
    assert load_model(folder).config == bundle.config
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_saving_over_an_older_part_replaces_it(tmp_path: Path, bundle: ModelBundle) -> None:
    for _ in range(2):
        save_vae(bundle.vae, tmp_path / "vae")
        save_text_encoder(bundle.text_encoder, tmp_path / "text_encoder")
        save_diffusion(bundle.config.diffusion, tmp_path / "scheduler")
    assert_same_weights(bundle.vae, load_vae(tmp_path / "vae"))
    assert sorted(os.listdir(tmp_path)) == ["scheduler", "text_encoder", "vae"]


OTHERS: dict[str, tuple[list[str], str]] = {
    "photos": (["cat.png"], "holds cat.png and is no model"),
    "run": (["config.json", "log.jsonl", "step_00000100/state.pt"], "holds config.json and is no model"),
    "half": (["unet/config.json", "vae/config.json"], "holds unet and is no model"),
    "with-notes": (["model_index.json", "README.md", "unet/config.json"], "holds README.md and is no model"),
    "with-notes-inside": (["model_index.json", "unet/config.json", "unet/notes.md"], "holds unet/notes.md and is no"),
}
"""Folders that are not ours to delete: their files, and what is said of them."""


@pytest.mark.parametrize("name", OTHERS)
def test_saving_never_replaces_what_is_no_model(name: str, tmp_path: Path, bundle: ModelBundle) -> None:
    files, told = OTHERS[name]
    for file in files:
        (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / file).write_bytes(b"mine")
    with pytest.raises(InputError, match=told):
        save_model(bundle, tmp_path / name)
    for save in (
        lambda: save_unet(bundle.unet, tmp_path / name),
        lambda: save_text_encoder(bundle.text_encoder, tmp_path / name),
        lambda: save_diffusion(bundle.config.diffusion, tmp_path / name),
    ):
        with pytest.raises(InputError, match=r"holds .* and is no (unet|text_encoder|scheduler)"):
            save()
    assert os.listdir(tmp_path) == [name]
    assert all((tmp_path / name / file).read_bytes() == b"mine" for file in files)


def test_a_part_does_not_replace_another_nor_a_model(folder: Path, tmp_path: Path, bundle: ModelBundle) -> None:
    with pytest.raises(InputError, match="is no vae"):
        save_vae(bundle.vae, folder)
    with pytest.raises(InputError, match="is no text_encoder"):
        save_text_encoder(bundle.text_encoder, folder / "unet")
    with pytest.raises(InputError, match="is no model"):
        save_model(bundle, folder / "unet")
    assert load_model(folder).config == bundle.config


def test_a_file_and_the_current_folder_are_not_replaced(
    tmp_path: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    with pytest.raises(InputError, match="is a file, not a folder"):
        save_model(bundle, tmp_path / "file")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for name in (".", "..", "x/.."):
        with pytest.raises(InputError, match=r"is the current folder|is no model"):
            save_model(bundle, Path(name))
    assert (tmp_path / "file").read_bytes() == b"mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "here"]


def test_an_empty_folder_and_a_link_take_a_model(tmp_path: Path, bundle: ModelBundle) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for _ in range(2):
        save_model(bundle, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert load_model(tmp_path / "real").config == bundle.config
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_what_may_be_replaced_can_be_asked_before_the_work(folder: Path, tmp_path: Path) -> None:
    check_replaceable(folder)
    check_replaceable(folder / "unet", "unet")
    check_replaceable(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no model"):
        check_replaceable(tmp_path)
    with pytest.raises(InputError, match="File name too long"):
        check_replaceable(tmp_path / ("x" * 300))


def test_a_failed_save_leaves_the_old_model_and_nothing_else(
    folder: Path, bundle: ModelBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = load_model(folder).fingerprint()

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RuntimeFailure, match="No space left"):
            save_model(bundle, folder)
    with monkeypatch.context() as patch:
        patch.setattr(folder_module, "sync_folder", full)
        patch.setattr(Path, "rename", full)
        with pytest.raises(RuntimeFailure, match="No space left"):
            save_model(bundle, folder)
    assert load_model(folder).fingerprint() == before
    assert [path.name for path in folder.parent.iterdir()] == ["model"]


def test_numbers_that_are_not_finite_are_never_saved(tmp_path: Path) -> None:
    broken = tiny_bundle()
    with torch.no_grad():
        broken.unet.conv_in.bias[0] = float("nan")
    with pytest.raises(RuntimeFailure, match=r"UNet is not saved: 1 tensors .*conv_in\.bias"):
        save_model(broken, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_no_file_of_a_folder_is_run(folder: Path, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (folder / "unet" / "model.py").write_text(f"open({str(marker)!r}, 'w')")
    edit(folder / "unet" / "config.json", auto_map={"AutoModel": "model.UNet"})
    with pytest.raises(ModelLoadError, match="unknown key auto_map"):
        load_model(folder)
    assert not marker.exists()

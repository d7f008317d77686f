"""Single files against diffusers and open_clip: what we write they read, and what they name we read, bit for bit.

diffusers has no writer of this format in its package, so its reader is the oracle of our names: it builds networks from
its own table of CompVis' names, and every tensor must arrive where ours lies. Values are copied, never computed, so all
comparisons are exact but those of pictures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from open_clip.transformer import TextTransformer
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from latentgen.checkpoints import single_file, single_layout
from latentgen.checkpoints.compvis_names import text_names, unet_names, vae_names
from latentgen.checkpoints.conversion import convert
from latentgen.checkpoints.folder import ModelBundle, load_model, load_text_encoder, load_vae, save_model
from latentgen.checkpoints.header import open_header
from latentgen.config import DiffusionConfig, ModelConfig
from latentgen.errors import ModelLoadError
from latentgen.models.clip_text import CLIPTextModel as OurTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL as OurVAE
from latentgen.presets import EMBEDDED, SD15, SD21_BASE, SD21_V
from tests.tiny import (
    TINY_MODEL,
    TINY_TEXT,
    TINY_UNET,
    TINY_VAE,
    randomize,
    tiny_text_encoder,
    tiny_unet,
    tiny_vae,
)

PARTS = ("unet", "vae", "text_encoder")
PROMPT = "A red lighthouse, at sunset"

SD1_LIKE = replace(
    TINY_MODEL,
    unet=replace(TINY_UNET, block_out_channels=(16, 32, 32), attention_levels=(True, True, False),
                 num_attention_heads=(2, 2, 2), layers_per_block=2),
    vae=replace(TINY_VAE, layers_per_block=2),
)  # fmt: skip
SD2_LIKE = replace(
    TINY_MODEL,
    unet=replace(TINY_UNET, use_linear_projection=True, num_attention_heads=(2, 4)),
    text_encoder=replace(TINY_TEXT, hidden_act="gelu", pad_token_id=0),
    diffusion=DiffusionConfig(prediction_type="v_prediction"),
)
INPAINTING_LIKE = replace(TINY_MODEL, unet=replace(TINY_UNET, in_channels=9))
CONFIGS = {"sd1": SD1_LIKE, "sd2": SD2_LIKE, "inpainting": INPAINTING_LIKE}


def bundle_of(config: ModelConfig) -> ModelBundle:
    pad = "!" if config.text_encoder.pad_token_id == 0 else "<|endoftext|>"
    return ModelBundle(
        unet=tiny_unet(config.unet, seed=1),
        vae=tiny_vae(config.vae, seed=2),
        text_encoder=tiny_text_encoder(config.text_encoder, seed=3),
        tokenizer=Tokenizer.published(config.text_encoder.vocab_size - 514, pad=pad),
        config=config,
    )


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelBundle, Path, Path]:
    """A tiny model in memory, as a folder and as a single file."""
    place = tmp_path_factory.mktemp(request.param)
    bundle = bundle_of(CONFIGS[request.param])
    save_model(bundle, place / "model")
    convert(place / "model", place / "model.safetensors")
    return bundle, place / "model", place / "model.safetensors"


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype, name
        assert torch.equal(ours[name], theirs[name]), name


def test_diffusers_builds_the_same_networks(model: tuple[ModelBundle, Path, Path]) -> None:
    bundle, folder, file = model
    unet = UNet2DConditionModel.from_single_file(file, config=str(folder), subfolder="unet", local_files_only=True)
    assert_same(unet.state_dict(), bundle.unet.state_dict())
    vae = AutoencoderKL.from_single_file(file, config=str(folder), subfolder="vae", local_files_only=True)
    assert_same(vae.state_dict(), bundle.vae.state_dict())


def test_diffusers_maps_every_name_to_ours(model: tuple[ModelBundle, Path, Path]) -> None:
    """Its tables alone, without its networks: nothing is left over on either side, text encoder included."""
    bundle, folder, file = model
    found = load_file(file)
    configs = {part: json.loads((folder / part / "config.json").read_text()) for part in PARTS}
    assert_same(convert_ldm_unet_checkpoint(dict(found), configs["unet"]), bundle.unet.state_dict())
    vae = convert_ldm_vae_checkpoint(dict(found), configs["vae"])
    flat = {n: t.flatten(1) if ".attentions." in n and t.ndim == 4 else t for n, t in vae.items()}
    assert_same(flat, bundle.vae.state_dict())
    if bundle.config.text_encoder.hidden_act == "gelu":
        theirs = CLIPTextModel(CLIPTextConfig(**configs["text_encoder"]))
        text = convert_open_clip_checkpoint(theirs, found)
    else:
        text = convert_ldm_clip_checkpoint(found)
    assert_same(
        {name.removeprefix("text_model."): tensor for name, tensor in text.items()},
        {name.removeprefix("text_model."): tensor for name, tensor in bundle.text_encoder.state_dict().items()},
    )


@torch.no_grad()
def test_pipeline_of_diffusers_draws_what_ours_would(model: tuple[ModelBundle, Path, Path]) -> None:
    bundle, folder, file = model
    pipeline = StableDiffusionPipeline.from_single_file(
        file, config=str(folder), local_files_only=True, safety_checker=None
    )
    ids = bundle.tokenizer.encode([PROMPT])
    theirs = pipeline.tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, theirs)
    ours = load_model(file)
    x, t = torch.randn(1, bundle.config.unet.in_channels, 8, 8), torch.tensor([421])
    context = ours.text_encoder(ids)
    # float32 on both sides, another order of additions in attention
    torch.testing.assert_close(context, pipeline.text_encoder(ids)[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.unet(x, t, context), pipeline.unet(x, t, context).sample, atol=1e-5, rtol=1e-5)
    z = x[:, :4]
    torch.testing.assert_close(ours.vae.decode(z), pipeline.vae.decode(z).sample, atol=1e-5, rtol=1e-5)


def test_our_own_file_opens_as_it_was(model: tuple[ModelBundle, Path, Path]) -> None:
    bundle, _, file = model
    opened = load_model(file)
    assert opened.config == bundle.config
    assert opened.name == "model"
    for part in PARTS:
        assert_same(getattr(opened, part).state_dict(), getattr(bundle, part).state_dict())
    assert torch.equal(opened.tokenizer.encode([PROMPT]), bundle.tokenizer.encode([PROMPT]))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*((name, torch.float32) for name in CONFIGS), ("sd1", torch.float16), ("sd2", torch.bfloat16)],
)
def test_there_and_back_again(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    """Every byte of folder -> file -> folder, and of file -> folder -> file."""
    save_model(bundle_of(CONFIGS[name]), tmp_path / "model", dtype=dtype)
    convert(tmp_path / "model", tmp_path / "one.safetensors")
    convert(tmp_path / "one.safetensors", tmp_path / "back")
    convert(tmp_path / "back", tmp_path / "two.safetensors")
    files = [path.relative_to(tmp_path / "model") for path in (tmp_path / "model").rglob("*") if path.is_file()]
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "model" / file).read_bytes() == (tmp_path / "back" / file).read_bytes(), file
    assert_same(load_file(tmp_path / "one.safetensors"), load_file(tmp_path / "two.safetensors"))
    assert {tensor.dtype for tensor in load_file(tmp_path / "one.safetensors").values()} == {dtype}


def rewritten(file: Path, target: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Path:
    """The same file with other tensors, our words in its header kept: a tiny network's shapes do not say what it is."""
    save_file(change(load_file(file)), target, metadata=open_header(file).metadata)
    return target


@pytest.mark.parametrize(
    "prefix", ["cond_stage_model.model.", "conditioner.embedders.0.model."], ids=["CompVis", "sgm"]
)
@pytest.mark.parametrize("layers", [2, 3], ids=["without the last layer", "whole"])
@torch.no_grad()
def test_open_clips_own_tower(layers: int, prefix: str, tmp_path: Path) -> None:
    """SD 2.x files hold open_clip's text tower under its own names, most with the last layer, which is not used."""
    save_model(bundle_of(SD2_LIKE), tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "ours.safetensors")
    tower = TextTransformer(vocab_size=600, width=24, heads=2, layers=layers, mlp_ratio=2.0, output_dim=16)
    randomize(tower).eval()
    text = {f"{prefix}{name}": tensor for name, tensor in tower.state_dict().items()}
    text |= {f"{prefix}logit_scale": torch.tensor(4.6), f"{prefix}attn_mask": torch.zeros(77, 77)}

    def swap(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if not name.startswith("cond_stage_model.")} | text

    file = rewritten(tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors", swap)
    states: list[Tensor] = []
    tower.transformer.resblocks[1].register_forward_hook(lambda module, args, output: states.append(output))
    ids = torch.randint(0, 600, (2, 77))
    tower(ids)
    wanted = tower.ln_final(states[0])
    # float32 on both sides, another order of additions in attention
    torch.testing.assert_close(load_text_encoder(file)(ids), wanted, atol=1e-5, rtol=1e-5)
    convert(file, tmp_path / "clean.safetensors")
    states_again = load_model(tmp_path / "clean.safetensors").text_encoder(ids)
    torch.testing.assert_close(states_again, wanted, atol=1e-5, rtol=1e-5)


def without_text_model(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("transformer.text_model.", "transformer."): tensor for name, tensor in tensors.items()}


def with_leftovers(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a training checkpoint of CompVis holds beside the networks."""
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    averaged = {f"model_ema.{name[6:].replace('.', '')}": tensor.clone() for name, tensor in unet.items()}
    schedule = [
        *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
        *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
        *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
    ]
    return {
        **tensors,
        **averaged,
        **{name: torch.ones(1000) for name in schedule},
        "model_ema.decay": torch.tensor(0.9999),
        "model_ema.num_updates": torch.tensor(3),
        "logvar": torch.zeros(1000),
        "first_stage_model.loss.discriminator.main.0.weight": torch.ones(2, 2),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None],
        "cond_stage_model.logit_scale": torch.tensor(4.6),
        "embedding_manager.string_to_param_dict.*": torch.zeros(1, 24),
    }


@pytest.mark.parametrize("change", [without_text_model, with_leftovers])
def test_older_and_fuller_files_of_sd1(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    bundle = bundle_of(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "ours.safetensors")
    file = rewritten(tmp_path / "ours.safetensors", tmp_path / "other.safetensors", change)
    opened = load_model(file)
    for part in PARTS:
        assert_same(getattr(opened, part).state_dict(), getattr(bundle, part).state_dict())
    convert(file, tmp_path / "clean.safetensors")
    assert_same(load_file(tmp_path / "clean.safetensors"), load_file(tmp_path / "ours.safetensors"))


def test_counted_positions_that_scripts_leave_in_sd2(tmp_path: Path) -> None:
    """diffusers' `convert_diffusers_to_original_stable_diffusion.py` renames all of SD 2.x's text encoder but these."""
    bundle = bundle_of(SD2_LIKE)
    save_model(bundle, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "ours.safetensors")
    left = {"cond_stage_model.model.transformer.text_model.embeddings.position_ids": torch.arange(77)[None]}
    file = rewritten(tmp_path / "ours.safetensors", tmp_path / "other.safetensors", lambda tensors: tensors | left)
    assert_same(load_model(file).text_encoder.state_dict(), bundle.text_encoder.state_dict())


# Files that say nothing of themselves, as published: told by their names and by the width of the context


def narrow(preset: ModelConfig, like: ModelConfig) -> ModelConfig:
    """A published architecture with tiny networks in it; only the width of the context is the real one."""
    width = preset.unet.cross_attention_dim
    text = replace(like.text_encoder, hidden_size=width, num_attention_heads=width // 64)
    return replace(
        preset,
        unet=replace(like.unet, cross_attention_dim=width, sample_size=preset.unet.sample_size),
        vae=like.vae,
        text_encoder=replace(text, intermediate_size=48, num_hidden_layers=1),
    )


NARROW_SD15, NARROW_SD21, NARROW_SD21_V = (
    narrow(preset, like) for preset, like in ((SD15, SD1_LIKE), (SD21_BASE, SD2_LIKE), (SD21_V, SD2_LIKE))
)


@pytest.fixture
def narrow_presets(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (single_layout, single_file):
        for name, preset in (("SD21_BASE", NARROW_SD21), ("SD21_V", NARROW_SD21_V)):
            monkeypatch.setattr(module, name, preset)
    monkeypatch.setattr(single_layout, "SD15", NARROW_SD15)
    monkeypatch.setattr(single_layout, "SD_VAE", NARROW_SD15.vae)


def published(bundle: ModelBundle, place: Path) -> dict[str, Tensor]:
    save_model(bundle, place / "model")
    convert(place / "model", place / "ours.safetensors")
    return load_file(place / "ours.safetensors")


@pytest.mark.usefixtures("narrow_presets")
@pytest.mark.parametrize("channels", [4, 9])
def test_a_published_sd1_as_safetensors_and_as_pickle(channels: int, tmp_path: Path) -> None:
    config = replace(NARROW_SD15, unet=replace(NARROW_SD15.unet, in_channels=channels))
    bundle = bundle_of(config)
    tensors = published(bundle, tmp_path)
    save_file(tensors, tmp_path / "published.safetensors")
    torch.save({"state_dict": with_leftovers(tensors), "global_step": 470000, "epoch": 6}, tmp_path / "published.ckpt")
    target = tmp_path / ("from-pickle.safetensors" if channels == 4 else "from-pickle")
    convert(tmp_path / "published.ckpt", target)
    for path in (tmp_path / "published.safetensors", target):
        opened = load_model(path)
        assert opened.config == config
        for part in PARTS:
            assert_same(getattr(opened, part).state_dict(), getattr(bundle, part).state_dict())
    with pytest.raises(ModelLoadError, match=r"never opened here.*latentgen convert published\.ckpt"):
        load_model(tmp_path / "published.ckpt")
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.usefixtures("narrow_presets")
@pytest.mark.parametrize("config", [NARROW_SD21, NARROW_SD21_V], ids=["eps", "v"])
def test_a_published_sd2_is_asked_what_it_predicts(config: ModelConfig, tmp_path: Path) -> None:
    """The last layer's bias sets what this network answers: the input itself, or far below it."""
    bundle = bundle_of(config)
    with torch.no_grad():
        bundle.unet.conv_out.weight.zero_()
        bundle.unet.conv_out.bias.fill_(0.5 if config == NARROW_SD21 else -1.0)
    save_file(published(bundle, tmp_path), tmp_path / "published.safetensors")
    opened = load_model(tmp_path / "published.safetensors")
    assert opened.config == config
    assert opened.tokenizer.pad_token_id == 0
    convert(tmp_path / "published.safetensors", tmp_path / "folder")
    assert load_model(tmp_path / "folder").config == config
    for part in PARTS:
        assert_same(getattr(opened, part).state_dict(), getattr(bundle, part).state_dict())


def test_fingerprint_is_a1111s_model_hash(model: tuple[ModelBundle, Path, Path]) -> None:
    """The first ten digits of the file's SHA-256."""
    file = model[2]
    assert load_model(file).fingerprint() == hashlib.sha256(file.read_bytes()).hexdigest()[:10]


# Autoencoders


@pytest.mark.parametrize("form", ["prefixed", "bare", "bare with loss", "diffusers"])
def test_autoencoders_of_their_own(form: str, tmp_path: Path) -> None:
    bundle = bundle_of(SD1_LIKE)
    save_model(bundle, tmp_path / "model")
    convert(tmp_path / "model", tmp_path / "ours.safetensors")

    def alone(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        prefix = "first_stage_model."
        found = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if form == "diffusers":
            return dict(bundle.vae.state_dict())
        if form == "bare with loss":
            found |= {"loss.logvar": torch.zeros(1), "model_ema.decay": torch.tensor(0.5)}
        return {prefix + name: tensor for name, tensor in found.items()} if form == "prefixed" else found

    file = rewritten(tmp_path / "ours.safetensors", tmp_path / "vae.safetensors", alone)
    assert_same(load_vae(file).state_dict(), bundle.vae.state_dict())
    assert_same(load_vae(tmp_path / "ours.safetensors").state_dict(), bundle.vae.state_dict())


@pytest.mark.parametrize("config", [SD15, SD21_BASE, EMBEDDED, SD1_LIKE, SD2_LIKE])
def test_names_are_those_of_the_networks(config: ModelConfig) -> None:
    """At full size too: as many as the published files have, each once."""
    with torch.device("meta"):
        unet, vae, text = UNet(config.unet), OurVAE(config.vae), OurTextModel(config.text_encoder)
    assert set(unet_names(config.unet)) == set(unet.state_dict())
    assert set(vae_names(config.vae)) == set(vae.state_dict())
    assert set(text_names(config.text_encoder)) == set(text.state_dict())
    assert len(set(unet_names(config.unet).values())) == len(unet.state_dict())
    assert len(set(vae_names(config.vae).values())) == len(vae.state_dict())
    if config == SD15:  # v1-5-pruned-emaonly: 1131 tensors, one of them counted positions
        assert len(unet.state_dict()) + len(vae.state_dict()) + len(text.state_dict()) == 1130


def test_names_of_the_published_unet() -> None:
    """Where numbering goes wrong first: the ends of levels. As listed in the headers of SD 1.5."""
    names = unet_names(SD15.unet)
    assert names["down_blocks.0.downsamplers.0.conv.weight"] == "input_blocks.3.0.op.weight"
    assert names["down_blocks.3.resnets.1.conv2.bias"] == "input_blocks.11.0.out_layers.3.bias"
    assert names["up_blocks.0.upsamplers.0.conv.weight"] == "output_blocks.2.1.conv.weight"
    assert names["up_blocks.2.upsamplers.0.conv.weight"] == "output_blocks.8.2.conv.weight"
    assert names["up_blocks.3.attentions.2.proj_out.weight"] == "output_blocks.11.1.proj_out.weight"
    assert vae_names(SD15.vae)["decoder.up_blocks.0.upsamplers.0.conv.bias"] == "decoder.up.3.upsample.conv.bias"

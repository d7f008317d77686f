"""A folder we save opens in diffusers, and one that diffusers saves opens in ours: same numbers, same pixels.

Tolerances: both sides compute the same float32 expressions in another order, so single networks agree to a few units in
the last place of values about 1 (1e-5; measured: 0); over five guided steps the schedules' float64 against float32 adds
up (1e-4; measured: 3e-5 in latents up to 18, 6e-6 in pixels).
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers import schedulers as diffusers_schedulers
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from latentgen.checkpoints.diffusers_config import DEFAULT_SPACING, read_scheduler
from latentgen.checkpoints.folder import ModelBundle, load_model, save_model
from latentgen.config import DiffusionConfig, GenerationDefaults, ModelConfig, VAEConfig
from latentgen.diffusion.guidance import GuidedDenoiser
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.models.tokenizer import Tokenizer
from latentgen.samplers.registry import get_sampler
from tests.tiny import TINY_MODEL, TINY_TEXT, TINY_UNET, randomize, tiny_text_encoder, tiny_unet, tiny_vae

PROMPT, NEGATIVE = "A red lighthouse, at sunset", "blurry"
STEPS, GUIDANCE = 5, 5.0
NETWORK = {"atol": 1e-5, "rtol": 1e-5}
GENERATION = {"atol": 1e-4, "rtol": 1e-5}

SD1_LIKE = TINY_MODEL
SD2_LIKE = replace(
    TINY_MODEL,
    unet=replace(TINY_UNET, use_linear_projection=True, num_attention_heads=(2, 4)),
    text_encoder=replace(TINY_TEXT, hidden_act="gelu"),
    diffusion=DiffusionConfig(prediction_type="v_prediction"),
)
EMBEDDED_LIKE = ModelConfig(
    unet=replace(TINY_UNET, in_channels=16, out_channels=16, attention_levels=(True, True), use_linear_projection=True),
    vae=VAEConfig(
        block_out_channels=(8, 8, 16, 16, 16),
        latent_channels=16,
        scaling_factor=0.7,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=128,
        mid_block_add_attention=False,
    ),
    text_encoder=TINY_TEXT,
    diffusion=DiffusionConfig(
        beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction", timestep_spacing="trailing", steps_offset=0
    ),
    defaults=GenerationDefaults(width_px=128, height_px=128, guidance=4.0),
)
CONFIGS = pytest.mark.parametrize("config", [SD1_LIKE, SD2_LIKE, EMBEDDED_LIKE], ids=["sd1", "sd2", "embedded"])


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What diffusers and transformers warn of meanwhile."""
    messages: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    collect = Collect(logging.WARNING)
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    for logger in loggers:
        logger.addHandler(collect)
    yield messages
    for logger in loggers:
        logger.removeHandler(collect)


def tiny_bundle(config: ModelConfig) -> ModelBundle:
    return ModelBundle(
        unet=tiny_unet(config.unet, seed=1),
        vae=tiny_vae(config.vae, seed=2),
        text_encoder=tiny_text_encoder(config.text_encoder, seed=3),
        tokenizer=Tokenizer.published(config.text_encoder.vocab_size - 514),
        config=config,
    )


def diffusers_pipeline(folder: Path) -> StableDiffusionPipeline:
    """A pipeline of their own classes and configs, as a training script of diffusers would build it."""
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=24,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vae = AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        sample_size=16,
    )
    text = CLIPTextConfig(
        vocab_size=600,
        hidden_size=24,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=598,
        eos_token_id=599,
        pad_token_id=599,
        projection_dim=16,
    )
    Tokenizer.published(86).save(folder)
    return StableDiffusionPipeline(
        unet=randomize(unet, 1).eval(),
        vae=randomize(vae, 2).eval(),
        text_encoder=randomize(CLIPTextModel(text), 3).eval(),
        tokenizer=CLIPTokenizer.from_pretrained(folder),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def starting_noise(bundle: ModelBundle) -> Tensor:
    size_px = bundle.unet.config.sample_size * bundle.vae.config.downscale
    shape = LatentSpace.from_config(bundle.config.vae).shape(size_px, size_px)
    return torch.randn(1, *shape, generator=torch.Generator().manual_seed(7))


def ours_generate(bundle: ModelBundle, sampler: str) -> tuple[Tensor, Tensor]:
    """Latents and pixels in [0, 1]: the whole path from words to picture, in our parts."""
    cond, uncond = bundle.text_encoder(bundle.tokenizer.encode([PROMPT, NEGATIVE])).split(1)
    diffusion = bundle.config.diffusion
    schedule = NoiseSchedule.from_config(diffusion)
    sigmas = schedule.inference_sigmas(STEPS, diffusion.timestep_spacing)
    denoise = GuidedDenoiser(bundle.unet, schedule, diffusion.prediction_type, cond, uncond, GUIDANCE)
    x = starting_noise(bundle) * (1 + sigmas[0] ** 2).sqrt()
    latents = get_sampler(sampler)(denoise, x, sigmas, noise=lambda: torch.zeros_like(x))
    pixels = bundle.vae.decode(LatentSpace.from_config(bundle.config.vae).denormalize(latents))
    return latents, (pixels / 2 + 0.5).clamp(0, 1)


def theirs_generate(pipeline: StableDiffusionPipeline, noise: Tensor) -> tuple[Tensor, Tensor]:
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "negative_prompt": NEGATIVE}
    latents = pipeline(PROMPT, latents=noise.clone(), output_type="latent", **settings).images
    pixels = pipeline(PROMPT, latents=noise.clone(), output_type="pt", **settings).images
    return latents, pixels


def assert_same_networks(bundle: ModelBundle, pipeline: StableDiffusionPipeline) -> None:
    ids = bundle.tokenizer.encode([PROMPT])
    theirs_ids = pipeline.tokenizer(PROMPT, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(ids, theirs_ids)
    context = bundle.text_encoder(ids)
    torch.testing.assert_close(context, pipeline.text_encoder(ids)[0], **NETWORK)
    x, t = starting_noise(bundle), torch.tensor([421])
    torch.testing.assert_close(bundle.unet(x, t, context), pipeline.unet(x, t, context).sample, **NETWORK)
    pixels = bundle.vae.decode(x)
    torch.testing.assert_close(pixels, pipeline.vae.decode(x).sample, **NETWORK)
    mean, logvar = bundle.vae.encode(pixels)
    theirs = pipeline.vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, theirs.mean, **NETWORK)
    torch.testing.assert_close(logvar, theirs.logvar, **NETWORK)


@CONFIGS
@torch.no_grad()
def test_our_folder_in_diffusers(config: ModelConfig, tmp_path: Path, complaints: list[str]) -> None:
    bundle = tiny_bundle(config)
    save_model(bundle, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    assert complaints == []
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    assert_same_networks(bundle, pipeline)
    latents, pixels = ours_generate(bundle, "ddim")
    theirs_latents, theirs_pixels = theirs_generate(pipeline, starting_noise(bundle))
    torch.testing.assert_close(latents, theirs_latents, **GENERATION)
    torch.testing.assert_close(pixels, theirs_pixels, **GENERATION)


@torch.no_grad()
def test_diffusers_folder_in_ours(tmp_path: Path) -> None:
    pipeline = diffusers_pipeline(tmp_path / "tokenizer")
    pipeline.save_pretrained(tmp_path / "model")
    bundle = load_model(tmp_path / "model")
    assert bundle.config.unet.num_attention_heads == (4, 4)
    assert bundle.config.unet.attention_levels == (False, True)
    assert bundle.config.diffusion == DiffusionConfig()
    assert (bundle.config.defaults.width_px, bundle.config.defaults.height_px) == (16, 16)
    assert_same_networks(bundle, pipeline)
    latents, pixels = ours_generate(bundle, "euler")
    theirs_latents, theirs_pixels = theirs_generate(pipeline, starting_noise(bundle))
    torch.testing.assert_close(latents, theirs_latents, **GENERATION)
    torch.testing.assert_close(pixels, theirs_pixels, **GENERATION)


@CONFIGS
def test_through_diffusers_and_back(config: ModelConfig, tmp_path: Path) -> None:
    """Ours, saved by them, opens in ours again with every weight bit for bit; only our defaults are lost on the way."""
    bundle = tiny_bundle(config)
    save_model(bundle, tmp_path / "ours")
    StableDiffusionPipeline.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    back = load_model(tmp_path / "theirs")
    assert replace(back.config, defaults=config.defaults) == config
    for part in ("unet", "vae", "text_encoder"):
        before, after = getattr(bundle, part).state_dict(), getattr(back, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def diffusers_scheduler(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scheduler's class from its own module; packages that only its steps need are faked where they are missing."""
    for package, names in {"scipy": ["stats", "integrate"], "torchsde": []}.items():
        if find_spec(package) is None:
            fake = ModuleType(package)
            for inner in names:
                setattr(fake, inner, ModuleType(f"{package}.{inner}"))
                monkeypatch.setitem(sys.modules, f"{package}.{inner}", getattr(fake, inner))
            monkeypatch.setitem(sys.modules, package, fake)
    files = Path(diffusers_schedulers.__file__).parent.glob("scheduling_*.py")
    file = next(path for path in files if f"class {name}(" in path.read_text(encoding="utf-8"))
    return getattr(importlib.import_module(f"diffusers.schedulers.{file.stem}"), name)


@pytest.mark.parametrize("name", DEFAULT_SPACING)
def test_every_scheduler_that_a_folder_may_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file that diffusers writes, and one written before it stated the spacing of timesteps."""
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.0009, "beta_end": 0.013}
    scheduler = diffusers_scheduler(name, monkeypatch)(**betas, prediction_type="v_prediction")
    written = json.loads(scheduler.to_json_string())
    spacing = written.get("timestep_spacing", "linspace")  # DPMSolverSinglestep has no other
    wanted = DiffusionConfig(**betas, prediction_type="v_prediction", timestep_spacing=spacing, steps_offset=0)
    older = {key: value for key, value in written.items() if key != "timestep_spacing"}
    for content in (written, older):
        assert read_scheduler(Path("scheduler_config.json"), content) == wanted


def test_half_precision_variant(tmp_path: Path) -> None:
    pipeline = diffusers_pipeline(tmp_path / "tokenizer")
    pipeline.to(torch.float16).save_pretrained(tmp_path / "model", variant="fp16")
    assert not list((tmp_path / "model").rglob("*model.safetensors"))
    bundle = load_model(tmp_path / "model")
    for name, theirs in pipeline.unet.state_dict().items():
        ours = bundle.unet.state_dict()[name]
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())
    assert load_model(tmp_path / "model", dtype=torch.float16).vae.decoder.conv_in.weight.dtype == torch.float16

"""The same weights here and in diffusers, at the full size of Stable Diffusion 1.5 and 2.1: how far the numbers differ.

    python benchmarks/parity.py [--tiny] [--size 256] [--steps 3] [--threads 1] [--only sd15]

Needs no download: the weights are random, at a scale that keeps every activation near 1, and lie in one single file
that both sides open, and in the folder that `latentgen convert` makes of it. Printed are the largest absolute
difference of each network, of the latents and of the picture, the picture's PSNR, and what opening the file costs.
"""

from __future__ import annotations

import argparse
import gc
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from torch import Tensor, nn

from latentgen.checkpoints.conversion import convert
from latentgen.checkpoints.folder import ModelBundle, load_model, published_tokenizer
from latentgen.checkpoints.identify import identify
from latentgen.checkpoints.single_file import MODEL_PARTS, write_single_file
from latentgen.config import ModelConfig
from latentgen.diffusion.guidance import GuidedDenoiser
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.presets import SD15, SD21_BASE, SD21_V
from latentgen.samplers.registry import get_sampler

PROMPT, NEGATIVE, GUIDANCE = "a red lighthouse at sunset, oil on canvas", "blurry, dull", 7.5
MODELS = {"sd15": SD15, "sd21-base": SD21_BASE, "sd21-v": SD21_V}
WANTED_DB = 60.0

Numbers = dict[str, Tensor]

LOADING = """
import sys, time
import torch
from pathlib import Path
from latentgen.checkpoints.folder import load_model

def peak_mib():
    # Not getrusage: a child's counter begins with its parent's.
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024

before, start = peak_mib(), time.perf_counter()
load_model(Path(sys.argv[1]), dtype=getattr(torch, sys.argv[2]))
print(time.perf_counter() - start, peak_mib() - before)
"""


def shrunk(config: ModelConfig) -> ModelConfig:
    """The same architecture with tiny networks, to try this program in seconds."""
    heads = (2, 2, 2, 2) if config.unet.num_attention_heads[0] == 8 else (1, 2, 4, 4)
    return replace(
        config,
        unet=replace(config.unet, block_out_channels=(32, 64, 64, 64), num_attention_heads=heads, norm_num_groups=8,
                     cross_attention_dim=64),
        vae=replace(config.vae, block_out_channels=(16, 16, 32, 32), norm_num_groups=8),
        text_encoder=replace(config.text_encoder, hidden_size=64, intermediate_size=128, num_hidden_layers=3,
                             num_attention_heads=2),
    )  # fmt: skip


def random_network(kind: Callable[..., nn.Module], config: object, seed: int) -> nn.Module:
    """Matrices and kernels keep the scale of their input; norm weights lie about 1, biases about 0."""
    with torch.device("meta"):
        network = kind(config)
    network = network.to_empty(device="cpu").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    return network


def write_random(config: ModelConfig, path: Path) -> None:
    kinds = {"unet": UNet, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}
    parts = {
        part: random_network(kinds[part], getattr(config, part), seed).state_dict()
        for seed, part in enumerate(MODEL_PARTS)
    }
    write_single_file(path, config, parts, title=path.stem)


def inputs(config: ModelConfig, size_px: int) -> tuple[Tensor, Tensor]:
    """Starting noise (1, C, h, w) and a picture (1, 3, H, W) in [-1, 1]."""
    generator = torch.Generator().manual_seed(7)
    shape = LatentSpace.from_config(config.vae).shape(size_px, size_px)
    return torch.randn(1, *shape, generator=generator), torch.rand(1, 3, size_px, size_px, generator=generator) * 2 - 1


@torch.no_grad()
def ours(bundle: ModelBundle, size_px: int, steps: int) -> Numbers:
    config = bundle.config
    noise, picture = inputs(config, size_px)
    contexts = bundle.text_encoder(bundle.tokenizer.encode([PROMPT, NEGATIVE]))
    cond, uncond = contexts.split(1)
    schedule = NoiseSchedule.from_config(config.diffusion)
    sigmas = schedule.inference_sigmas(steps, config.diffusion.timestep_spacing)
    denoise = GuidedDenoiser(bundle.unet, schedule, config.diffusion.prediction_type, cond, uncond, GUIDANCE)
    start = noise * (1 + sigmas[0] ** 2).sqrt().float()
    latents = get_sampler("ddim")(denoise, start, sigmas, noise=lambda: torch.zeros_like(start))
    z = LatentSpace.from_config(config.vae).denormalize(latents)
    return {
        "text encoder": contexts,
        "U-Net, t = 421": bundle.unet(noise, torch.tensor([421]), cond),
        "VAE encoder": bundle.vae.encode(picture)[0],
        "VAE decoder": bundle.vae.decode(noise),
        "latents drawn": latents,
        "picture drawn": (bundle.vae.decode(z) / 2 + 0.5).clamp(0, 1),
    }


@torch.no_grad()
def theirs(pipeline: StableDiffusionPipeline, config: ModelConfig, size_px: int, steps: int) -> Numbers:
    pipeline.set_progress_bar_config(disable=True)
    noise, picture = inputs(config, size_px)
    tokens = pipeline.tokenizer([PROMPT, NEGATIVE], padding="max_length", truncation=True, return_tensors="pt")
    contexts = pipeline.text_encoder(tokens.input_ids)[0]
    latents = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        guidance_scale=GUIDANCE,
        num_inference_steps=steps,
        latents=noise.clone(),
        height=size_px,
        width=size_px,
        output_type="latent",
    ).images
    drawn = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample
    return {
        "text encoder": contexts,
        "U-Net, t = 421": pipeline.unet(noise, torch.tensor([421]), contexts[:1]).sample,
        "VAE encoder": pipeline.vae.encode(picture).latent_dist.mean,
        "VAE decoder": pipeline.vae.decode(noise).sample,
        "latents drawn": latents,
        "picture drawn": (drawn / 2 + 0.5).clamp(0, 1),
    }


def psnr_db(a: Tensor, b: Tensor) -> float:
    """Of pictures in [0, 1]; infinite for equal ones."""
    error = (a.double() - b.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def compare(name: str, config: ModelConfig, place: Path, size_px: int, steps: int) -> bool:
    """Both formats of one model on both sides; whether both pictures reach WANTED_DB."""
    file, folder = place / f"{name}.safetensors", place / name
    write_random(config, file)
    convert(file, folder)
    wanted = {}
    pipelines = {
        "single file": lambda: StableDiffusionPipeline.from_single_file(
            file, config=str(folder), local_files_only=True, safety_checker=None
        ),
        "folder": lambda: StableDiffusionPipeline.from_pretrained(folder, local_files_only=True),
    }
    good = True
    for format, path in (("single file", file), ("folder", folder)):
        started = time.perf_counter()
        here = ours(load_model(path), size_px, steps)
        here_s = time.perf_counter() - started
        gc.collect()
        started = time.perf_counter()
        wanted = theirs(pipelines[format](), config, size_px, steps)
        there_s = time.perf_counter() - started
        gc.collect()
        for what, numbers in here.items():
            error = (numbers - wanted[what]).abs().max().item()
            extent = wanted[what].abs().max().item()
            print(f"{name:10} {format:12} {what:15} {error:12.2e} {extent:10.2f}", flush=True)
        decibel = psnr_db(here["picture drawn"], wanted["picture drawn"])
        good &= decibel >= WANTED_DB
        print(f"{name:10} {format:12} PSNR {decibel:.1f} dB; here {here_s:.1f} s, there {there_s:.1f} s", flush=True)
    return good


def cost_of_opening(file: Path, place: Path) -> None:
    """Seconds and additional peak memory of `load_model` in a fresh process, and of `identify`."""
    half = place / "half.safetensors"
    convert(file, half, dtype=torch.float16)
    for path, stored in ((file, "float32"), (half, "float16")):
        size_mb = path.stat().st_size / 1e6
        started = time.perf_counter()
        found = identify(path)
        seconds = time.perf_counter() - started
        print(f"identify: {found.title}, {size_mb:.0f} MB of {stored}: {seconds * 1000:.0f} ms", flush=True)
        for dtype in ("float32", "bfloat16"):
            done = subprocess.run([sys.executable, "-c", LOADING, str(path), dtype], capture_output=True, check=True)
            seconds, peak_mib = map(float, done.stdout.split())
            print(f"load {size_mb:.0f} MB of {stored} as {dtype}: {seconds:.1f} s, peak {peak_mib:.0f} MiB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="tiny networks: is this program right?")
    parser.add_argument("--size", type=int, default=256, help="side of the picture in pixels")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=MODELS, action="append", help="one of the models (default: all)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    print(f"{'model':10} {'format':12} {'what':15} {'max |error|':>12} {'max |it|':>10}")
    good = True
    for name in options.only or MODELS:
        with tempfile.TemporaryDirectory(prefix="parity-") as scratch:
            place = Path(scratch)
            config = shrunk(MODELS[name]) if options.tiny else MODELS[name]
            assert published_tokenizer(config.text_encoder).vocab_size == config.text_encoder.vocab_size
            good &= compare(name, config, place, options.size, options.steps)
            if name == "sd15":
                cost_of_opening(place / f"{name}.safetensors", place)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())

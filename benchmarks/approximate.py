"""What the options that trade the picture for time save, and how far their pictures are from the exact path's.

    python benchmarks/approximate.py [--model embedded,sd15] [--prompts 8] [--steps 20] [--size 512] [--threads 2]
                                     [--options NAME,NAME ...] [--sampler NAME]

Every row is ANOTHER PICTURE than the exact path draws, so none of these times is to be held against another program's
that does all the work. One process holds the model, and beside it
the same in 8 bits, and draws each prompt with all options in turns, there and back, so
that whatever else the machine does meets all alike. A time is that of the U-Net's steps, text and decoding left out, as
a share of the exact path's for the same prompt; printed is the median over the prompts, then PSNR and SSIM against the
exact path's picture, the mean and the worst.

embedded is the model that comes with latentgen, with its own sampler and steps unless they are given. sd15 is random
weights of Stable Diffusion 1.5's size: its pictures show nothing, so it has times alone.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from latentgen import embedded_model_path
from latentgen.checkpoints.folder import ModelBundle, load_model
from latentgen.images.similarity import psnr_db, ssim
from latentgen.kernels.memory import keep_freed_memory
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline import TextToImage, choose_dtype
from latentgen.presets import SD15
from latentgen.request import MAX_STEPS, RequestFields

PROMPTS = (
    "a lighthouse at sunset",
    "a red lighthouse on a cliff at night",
    "a blue sailboat at dawn",
    "a castle in the snow",
    "a windmill in a meadow",
    "a house at dusk",
    "a hot air balloon over the sea",
    "a palm tree on an island",
)
SD15_STEPS = 6
"""A multiple of both intervals, so that a few steps have the whole run's share of whole ones."""
INTERVAL = (0.0, 0.6)
"""Guided for the first three fifths of the steps."""


@dataclass(frozen=True, slots=True)
class Option:
    """A row: the flags as they are given to `generate`, and what they are in a request."""

    flags: str
    given: RequestFields
    int8: bool = False


OPTIONS = {
    "exact": Option("(exact)", {}),
    "deep2": Option("--deep-cache 2", {"deep_cache": 2}),
    "deep3": Option("--deep-cache 3", {"deep_cache": 3}),
    "interval": Option("--guidance-interval 0,0.6", {"guidance_interval": INTERVAL}),
    "deep2+interval": Option(
        "--deep-cache 2 --guidance-interval 0,0.6", {"deep_cache": 2, "guidance_interval": INTERVAL}
    ),
    "deep3+interval": Option(
        "--deep-cache 3 --guidance-interval 0,0.6", {"deep_cache": 3, "guidance_interval": INTERVAL}
    ),
    "int8": Option("--int8", {}, int8=True),
    "int8+deep2": Option("--int8 --deep-cache 2", {"deep_cache": 2}, int8=True),
    "int8+deep2+interval": Option(
        "--int8 --deep-cache 2 --guidance-interval 0,0.6",
        {"deep_cache": 2, "guidance_interval": INTERVAL},
        int8=True,
    ),
}


@dataclass(slots=True)
class Row:
    """What one option gave, a value for each prompt."""

    seconds: list[float] = field(default_factory=list[float])
    psnr_db: list[float] = field(default_factory=list[float])
    ssim: list[float] = field(default_factory=list[float])


def randomize(network: nn.Module, generator: torch.Generator) -> None:
    """Numbers in place of the meta device's none, such that what passes stays finite."""
    network.to_empty(device="cpu")
    for name, parameter in network.named_parameters():
        spread = (3 / parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.data.uniform_(-spread, spread, generator=generator)
        if parameter.ndim == 1 and name.endswith("weight"):
            parameter.data += 1


def random_sd15(dtype: torch.dtype) -> ModelBundle:
    """Stable Diffusion 1.5's networks, random."""
    with torch.device("meta"):
        unet, vae, text_encoder = UNet(SD15.unet), AutoencoderKL(SD15.vae), CLIPTextModel(SD15.text_encoder)
    generator = torch.Generator().manual_seed(0)
    for network in (unet, vae, text_encoder):
        randomize(network.to(dtype).eval(), generator)
    return ModelBundle(unet, vae, text_encoder, Tokenizer.published(), SD15)


def measure(
    models: dict[bool, TextToImage],
    names: Sequence[str],
    prompts: Sequence[str],
    given: RequestFields,
    *,
    with_pictures: bool,
) -> dict[str, Row]:
    """Every prompt with every option, in turns. One picture of each model before them pays for what happens once."""
    rows = {name: Row() for name in names}
    for model in models.values():
        next(model.draw(prompts[0], seed=1, **{**given, "deep_cache": MAX_STEPS}))
    for number, prompt in enumerate(prompts):
        pictures: dict[str, Tensor] = {}
        for name in names if number % 2 == 0 else reversed(names):
            model = models[OPTIONS[name].int8]
            result = next(model.draw(prompt, seed=number, **{**given, **OPTIONS[name].given}))
            rows[name].seconds.append(result.timings.denoise_s)
            pictures[name] = torch.from_numpy(result.pixels.copy())
        if with_pictures:
            for name, picture in pictures.items():
                rows[name].psnr_db.append(psnr_db(picture, pictures["exact"]))
                rows[name].ssim.append(ssim(picture, pictures["exact"]))
    return rows


def table(title: str, rows: dict[str, Row]) -> str:
    """Markdown, the times as shares of the exact path's."""
    exact = rows["exact"]
    lines = [
        f"\n{title}; the exact path's steps take {statistics.median(exact.seconds):.1f} s\n",
        "| option | time of the steps | PSNR, mean (worst) | SSIM, mean (worst) |",
        "|---|---|---|---|",
    ]
    for name, row in rows.items():
        share = statistics.median(mine / its for mine, its in zip(row.seconds, exact.seconds, strict=True))
        alike = "| |"
        if row.psnr_db and name != "exact":
            mean_psnr, mean_ssim = statistics.mean(row.psnr_db), statistics.mean(row.ssim)
            alike = f"| {mean_psnr:.1f} dB ({min(row.psnr_db):.1f}) | {mean_ssim:.3f} ({min(row.ssim):.3f})"
        lines.append(f"| `{OPTIONS[name].flags}` | {share:.2f} {alike} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded,sd15")
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--steps", type=int, default=None)
    parser.add_argument("--sampler", default=None)
    parser.add_argument("--size", type=int, default=None, help="side in px; default: the model's")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--options", default=",".join(OPTIONS))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    names = list(dict.fromkeys(["exact", *options.options.split(",")]))
    given: dict[str, Any] = {"steps": options.steps, "sampler": options.sampler}
    given |= {"width_px": options.size, "height_px": options.size}
    dtype = choose_dtype("auto", torch.device("cpu"))
    for kind in options.model.split(","):
        is_random = kind == "sd15"
        models = {
            int8: TextToImage(
                random_sd15(dtype) if is_random else load_model(embedded_model_path(), dtype=dtype), int8=int8
            )
            for int8 in sorted({OPTIONS[name].int8 for name in names})
        }
        config = models[False].bundle.config
        if is_random:
            given = {**given, "sampler": options.sampler or "euler", "steps": options.steps or SD15_STEPS}
        prompts = PROMPTS[: options.prompts]
        rows = measure(models, names, prompts, RequestFields(**given), with_pictures=not is_random)
        side = options.size or config.defaults.width_px
        steps = given["steps"] or config.defaults.steps
        kernels = models[False].fast_form.kernels
        print(table(f"{kind}, {side} px, {steps} steps, {dtype}, kernels {kernels}", rows), flush=True)
        del models


if __name__ == "__main__":
    main()

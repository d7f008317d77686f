"""Pictures a second on a GPU, beside diffusers, on equal random weights of Stable Diffusion 1.5's size.

    python benchmarks/gpu.py [--batches 1,4,8] [--runs 5] [--size 512] [--steps 20] [--dtype float16]
                             [--mode reduce-overhead] [--sides latentgen,diffusers,...] [--device cuda] [--tiny]

What is timed are whole pictures: text, DDIM steps with guidance 7.5, the autoencoder, bytes. Each side draws as it is
and by torch.compile, diffusers as its documentation says: channels_last, U-Net and decoder compiled without graph
breaks. Every batch has a prompt that was not encoded before; the empty negative prompt is the same, and latentgen
remembers it.

Every side is a process of its own and holds its model; they work in turns, one batch each. Printed for each batch size
are the median of pictures a second, the ratio to ours compiled, the seconds of the first batch of this size, which is
when it is compiled, and the most GPU memory held since. Before that: the seconds from a process's start to its first
picture. --mode is torch.compile's, of both. Without diffusers ours are measured alone.
--tiny takes small networks and compiles by torch's backend "eager", to try the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from contender import Contender

HERE = Path(__file__).parent
SIDES = ("latentgen compiled", "latentgen", "diffusers compiled", "diffusers")
GUIDANCE = 7.5


class Latentgen:
    """Our pipeline, as `latentgen generate` uses it."""

    def __init__(self, told: argparse.Namespace, *, compile: bool) -> None:
        from latentgen.kernels import gpu
        from latentgen.pipeline import TextToImage

        gpu.MODE = told.mode
        if told.tiny:
            gpu.DEVICES, gpu.COMPILER, gpu.MODE = ("cpu", "cuda"), "eager", "default"
        self.model = TextToImage.load(told.model, device=told.device, dtype=told.dtype, fast=False, compile=compile)
        self.model.one_by_one = False
        self.told = told

    def draw(self, prompt: str, count: int) -> None:
        from latentgen.request import complete_request

        told = self.told
        given: dict[str, Any] = {"sampler": "ddim", "guidance": GUIDANCE, "steps": told.steps}
        given["guidance_interval"] = (0.0, 1.0)  # as diffusers guides, whatever the model's own
        given |= {"width_px": told.size, "height_px": told.size}
        config = self.model.bundle.config
        requests = [complete_request(config, prompt=prompt, seed=seed, **given) for seed in range(count)]
        assert len(list(self.model.generate(requests, batch_size=count))) == count


class Diffusers:
    """`StableDiffusionPipeline`, channels_last."""

    def __init__(self, told: argparse.Namespace, *, compile: bool) -> None:
        import torch
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
        from diffusers.utils import logging

        logging.set_verbosity_error()
        logging.disable_progress_bar()
        dtype = getattr(torch, told.dtype)
        pipe: Any = StableDiffusionPipeline.from_pretrained(told.model, torch_dtype=dtype, local_files_only=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.to(told.device)
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
        if compile:
            how: dict[str, Any] = {"backend": "eager"} if told.tiny else {"mode": told.mode}
            how["dynamic"] = False  # as ours: for every batch size its own kernels
            pipe.unet = torch.compile(pipe.unet, fullgraph=True, **how)
            pipe.vae.decode = torch.compile(pipe.vae.decode, fullgraph=True, **how)
        self.pipe, self.told = pipe, told

    def draw(self, prompt: str, count: int) -> None:
        told = self.told
        given: dict[str, Any] = {"num_inference_steps": told.steps, "guidance_scale": GUIDANCE}
        given |= {"height": told.size, "width": told.size}
        assert len(self.pipe(prompt, num_images_per_prompt=count, **given).images) == count


def work(told: argparse.Namespace) -> None:
    """One side's process: each line of standard input is a batch size, each answer how its batch was drawn."""
    warnings.simplefilter("ignore")
    import torch

    kind = Latentgen if told.side.startswith("latentgen") else Diffusers
    side = kind(told, compile=told.side.endswith("compiled"))
    on_gpu = told.device.startswith("cuda")
    print("ready", flush=True)
    for number, line in enumerate(sys.stdin):
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(told.device)
        started = time.perf_counter()
        side.draw(f"a lighthouse at sunset, picture {number}", int(line))
        if on_gpu:
            torch.cuda.synchronize(told.device)
        taken = time.perf_counter() - started
        peak = torch.cuda.max_memory_reserved(told.device) / 2**20 if on_gpu else 0.0
        print(json.dumps({"seconds": taken, "peak_mib": peak}), flush=True)


class Side(Contender):
    """A side's process."""

    def __init__(self, side: str, arguments: list[str]) -> None:
        started = time.perf_counter()
        super().__init__(side, [sys.executable, __file__, *arguments, "--side", side])
        self.draw(1)
        self.first_s = time.perf_counter() - started

    def draw(self, count: int) -> dict[str, float]:
        """One batch of this many pictures: its "seconds" and "peak_mib"."""
        return json.loads(self.ask(str(count)))


def compare(contenders: list[Side], batch: int, runs: int) -> None:
    """Print one table: every side's turns at one batch size."""
    first = {each.name: each.draw(batch)["seconds"] for each in contenders}
    for each in contenders:
        each.draw(batch)  # where a CUDA graph is recorded
    drawn: dict[str, list[dict[str, float]]] = {each.name: [] for each in contenders}
    for turn in range(runs):
        for each in contenders if turn % 2 == 0 else reversed(contenders):
            drawn[each.name].append(each.draw(batch))
    rates = {side: batch / statistics.median(each["seconds"] for each in of) for side, of in drawn.items()}
    ours = next(iter(rates.values()))
    print(f"\nbatch {batch}\n{'':20} {'pictures/s':>10} {'ratio':>6} {'first batch s':>14} {'peak MiB':>9}")
    for side, rate in rates.items():
        peak = max(each["peak_mib"] for each in drawn[side])
        print(f"{side:20} {rate:10.3f} {rate / ours:6.2f} {first[side]:14.1f} {peak:9.0f}", flush=True)


def make_tiny(folder: Path) -> None:
    """Networks of the same form, small enough for a CPU."""
    from latentgen.checkpoints.folder import ModelBundle, save_model
    from latentgen.models.clip_text import CLIPTextModel
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.models.unet import UNet
    from latentgen.models.vae import AutoencoderKL
    from latentgen.presets import SD15

    unet = replace(
        SD15.unet,
        block_out_channels=(32, 32),
        attention_levels=(True, False),
        num_attention_heads=(2, 2),
        layers_per_block=1,
        cross_attention_dim=32,
    )
    vae = replace(SD15.vae, block_out_channels=(32, 32, 32, 32), layers_per_block=1)
    text_encoder = replace(
        SD15.text_encoder,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        projection_dim=32,
    )
    config = replace(SD15, unet=unet, vae=vae, text_encoder=text_encoder)
    networks = UNet(unet), AutoencoderKL(vae), CLIPTextModel(text_encoder)
    save_model(ModelBundle(*networks, Tokenizer.published(), config), folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", default="1,4,8")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="float16", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--mode", default="reduce-overhead", help="torch.compile's")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--model", type=Path, help="a model folder, instead of one with random weights")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side is not None:
        work(options)
        return
    import torch

    if options.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("there is no GPU here; try --tiny --device cpu --dtype float32 --size 64 --steps 2 --batches 1,2")
    sides = options.sides.split(",")
    if unknown := sorted(set(sides) - set(SIDES)):
        parser.error(f"no such side: {', '.join(unknown)}; choose from {', '.join(SIDES)}")
    if find_spec("diffusers") is None:
        sides = [side for side in sides if not side.startswith("diffusers")]
        print("diffusers is not installed: latentgen alone")
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or Path(scratch) / "sd15"
        if options.tiny and options.model is None:
            make_tiny(folder)
        elif options.model is None:
            # In a process of its own, so that this one stays small.
            subprocess.run([sys.executable, str(HERE / "memory.py"), "--make", str(folder)], check=True)
        where = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else options.device
        print(
            f"{options.size}x{options.size}, {options.steps} steps, {options.dtype}, torch {torch.__version__}, {where}"
        )
        contenders = [Side(side, [*sys.argv[1:], "--model", str(folder)]) for side in sides]
        print(f"\n{'':20} {'start to first picture s':>24}")
        for each in contenders:
            print(f"{each.name:20} {each.first_s:24.1f}")
        for batch in options.batches.split(","):
            compare(contenders, int(batch), options.runs)
        for each in contenders:
            each.end()


if __name__ == "__main__":
    main()

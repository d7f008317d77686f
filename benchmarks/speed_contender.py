"""One side of `speed.py`: a process that holds a model and, whenever it is told to, does a piece of work and times it.

    python benchmarks/speed_contender.py SIDE FOLDER THREADS

SIDE is latentgen, plain (latentgen without its fast form), diffusers, openvino or stable-diffusion.cpp, whose program
the environment variable SD_CLI names. Each line of standard input is a job,
"step 512", "decode 512" or "picture 512 20"; each answer is the seconds it took, on a line. The first job of a kind and
size is done twice, so that no answer holds what happens once: weights laid out, kernels chosen, graphs compiled.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

GUIDANCE, PROMPT = 7.5, "a lighthouse at sunset"


class Side(Protocol):
    def step(self, size_px: int) -> Callable[[], object]:
        """One guided step of the U-Net: one x, with the text and without."""
        ...

    def decode(self, size_px: int) -> Callable[[], object]: ...

    def picture(self, size_px: int, steps: int) -> Callable[[], object]:
        """Prompt to pixels: text, so many DDIM steps, decoding."""
        ...


class Latentgen:
    def __init__(self, folder: Path, *, fast: bool) -> None:
        from latentgen.kernels.memory import keep_freed_memory
        from latentgen.pipeline import TextToImage

        keep_freed_memory()
        self.model = TextToImage.load(folder, device="cpu", dtype="bfloat16", fast=fast)
        self.model.fast_form.take_up()

    def step(self, size_px: int) -> Callable[[], object]:
        import torch

        from latentgen.pipeline.network import Network

        config, side = self.model.bundle.config.unet, size_px // self.model.latent_space.downscale
        form = self.model.fast_form
        network = Network(self.model.bundle.unet, channels_last=form.is_taken_up, computes_once=form.ignores_batch)
        x = torch.randn(1, config.in_channels, side, side)
        context = torch.randn(2, 77, config.cross_attention_dim).bfloat16()
        return lambda: network(x, torch.tensor([500]), context)

    def decode(self, size_px: int) -> Callable[[], object]:
        import torch

        from latentgen.pipeline.decoding import decode

        latents = torch.randn(1, *self.model.latent_space.shape(size_px, size_px))
        return lambda: decode(self.model.bundle.vae, self.model.latent_space, latents, "off")

    def picture(self, size_px: int, steps: int) -> Callable[[], object]:
        given: dict[str, Any] = {"sampler": "ddim", "guidance": GUIDANCE, "steps": steps}
        given["guidance_interval"] = (0.0, 1.0)  # as diffusers guides, whatever the model's own
        return lambda: next(self.model.draw(PROMPT, seed=1, width_px=size_px, height_px=size_px, **given))


class Diffusers:
    """bfloat16 and channels_last: what a careful user of a CPU runs."""

    def __init__(self, folder: Path) -> None:
        import torch
        from diffusers import DDIMScheduler, StableDiffusionPipeline
        from diffusers.utils import logging

        logging.set_verbosity_error()
        pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, local_files_only=True)
        pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
        self.pipe, self.torch = pipe, torch

    def step(self, size_px: int) -> Callable[[], object]:
        torch, unet = self.torch, self.pipe.unet
        side = size_px // self.pipe.vae_scale_factor
        x = torch.randn(2, unet.config.in_channels, side, side).bfloat16().to(memory_format=torch.channels_last)
        context = torch.randn(2, 77, unet.config.cross_attention_dim).bfloat16()
        return lambda: unet(x, torch.tensor(500), context, return_dict=False)

    def decode(self, size_px: int) -> Callable[[], object]:
        torch, vae = self.torch, self.pipe.vae
        side = size_px // self.pipe.vae_scale_factor
        z = torch.randn(1, vae.config.latent_channels, side, side).bfloat16().to(memory_format=torch.channels_last)
        return lambda: vae.decode(z, return_dict=False)

    def picture(self, size_px: int, steps: int) -> Callable[[], object]:
        told = {"num_inference_steps": steps, "guidance_scale": GUIDANCE, "height": size_px, "width": size_px}
        return lambda: self.pipe(PROMPT, **told)


class OpenVINO:
    """The U-Net and the decoder of diffusers, converted once and compiled for a size, in bfloat16."""

    def __init__(self, folder: Path) -> None:
        import openvino
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        self.core = openvino.Core()
        unet, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8")) for part in ("unet", "vae")
        )
        self.downscale = 2 ** (len(vae["block_out_channels"]) - 1)
        self.channels, self.width = vae["latent_channels"], unet["cross_attention_dim"]
        self.compiled: dict[tuple[str, int], Any] = {}
        self.files = {name: folder / f"openvino-{name}.xml" for name in ("unet", "decoder")}
        with torch.no_grad():
            if not self.files["unet"].exists():
                unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
                self.save("unet", unet, lambda x, t, e: unet(x, t, e, return_dict=False)[0], *self.inputs(unet.config))
            if not self.files["decoder"].exists():
                vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
                z = torch.randn(1, vae.config.latent_channels, 32, 32)
                self.save("decoder", vae, lambda x: vae.decode(x, return_dict=False)[0], z)

    @staticmethod
    def inputs(config: Any) -> tuple[Any, ...]:
        import torch

        side = (2, config.in_channels, 32, 32)
        return torch.randn(side), torch.tensor(500.0), torch.randn(2, 77, config.cross_attention_dim)

    def save(self, name: str, network: Any, call: Callable[..., Any], *example: Any) -> None:
        import openvino
        from torch import nn

        class Call(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.network = network

            def forward(self, *inputs: Any) -> Any:
                return call(*inputs)

        converted = openvino.convert_model(Call(), example_input=example)
        openvino.save_model(converted, self.files[name], compress_to_fp16=True)

    def request(self, name: str, size_px: int) -> Callable[[], object]:
        import numpy as np

        model = self.core.read_model(self.files[name])
        side = size_px // self.downscale
        latents = [2 if name == "unet" else 1, self.channels, side, side]
        shapes = [latents, [], [2, 77, self.width]] if name == "unet" else [latents]
        model.reshape({each: shape for each, shape in zip(model.inputs, shapes, strict=True) if shape})
        settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "LATENCY"}
        settings["INFERENCE_NUM_THREADS"] = os.environ["OMP_NUM_THREADS"]
        request = self.core.compile_model(model, "CPU", settings).create_infer_request()
        values = [np.random.randn(*shape).astype("f4") if shape else np.float32(500) for shape in shapes]
        return lambda: request.infer(values)

    def step(self, size_px: int) -> Callable[[], object]:
        return self.request("unet", size_px)

    def decode(self, size_px: int) -> Callable[[], object]:
        return self.request("decoder", size_px)

    def picture(self, size_px: int, steps: int) -> Callable[[], object]:
        """Its steps and its decoding: what is around them costs others a hundredth."""
        step, decode = self.step(size_px), self.decode(size_px)

        def draw() -> None:
            for _ in range(steps):
                step()
            decode()

        return draw


class StableDiffusionCpp:
    """Its program, run anew for every answer; the seconds are those that it says of the part in question."""

    STEPS = 2

    def __init__(self, folder: Path, threads: int) -> None:
        self.program, self.threads = os.environ["SD_CLI"], threads
        self.model = folder.with_suffix(".safetensors")
        if not self.model.exists():
            command = [sys.executable, "-m", "latentgen", "convert", str(folder), str(self.model)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def run(self, size_px: int, steps: int, stages: Sequence[str]) -> float:
        """Seconds of these stages of one picture, in bfloat16, the type of the weights."""
        told = {"-m": self.model, "-p": PROMPT, "-W": size_px, "-H": size_px, "--steps": steps, "-t": self.threads}
        told |= {"--cfg-scale": GUIDANCE, "--sampling-method": "euler", "-s": 1, "-o": self.model.with_suffix(".png")}
        command = [self.program, *(str(each) for pair in told.items() for each in pair)]
        said = subprocess.run(command, check=True, capture_output=True, text=True)
        found = dict(re.findall(r"(\w+) completed, taking ([\d.]+)s", said.stdout + said.stderr))
        return sum(float(found[stage]) for stage in stages)

    def step(self, size_px: int) -> Callable[[], object]:
        return lambda: self.run(size_px, self.STEPS, ["sampling"]) / self.STEPS

    def decode(self, size_px: int) -> Callable[[], object]:
        return lambda: self.run(size_px, 1, ["decode_first_stage"])

    def picture(self, size_px: int, steps: int) -> Callable[[], object]:
        return lambda: self.run(size_px, steps, ["get_learned_condition", "sampling", "decode_first_stage"])


def main() -> None:
    name, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import torch

    warnings.simplefilter("ignore")  # of the tracers that convert networks
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    match name:
        case "latentgen" | "plain":
            side: Side = Latentgen(folder, fast=name == "latentgen")
        case "diffusers":
            side = Diffusers(folder)
        case "openvino":
            side = OpenVINO(folder)
        case "stable-diffusion.cpp":
            side = StableDiffusionCpp(folder, threads)
        case _:
            sys.exit(f"no such side: {name}")
    jobs: dict[str, Callable[[], object]] = {}
    print("ready", flush=True)
    for line in sys.stdin:
        kind, *numbers = line.split()
        with torch.inference_mode():
            if line not in jobs:
                jobs[line] = getattr(side, kind)(*map(int, numbers))
                jobs[line]()
            started = time.perf_counter()
            answer = jobs[line]()
            print(answer if isinstance(answer, float) else time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()

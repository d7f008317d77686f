"""Peak memory of a Stable Diffusion 1.5 picture, beside diffusers' on equal random weights, and of decoding large ones.

    python benchmarks/memory.py [--model FOLDER] [--size 512] [--steps 2] [--dtype bfloat16] [--decode 512 1024 2048]

The picture is drawn by the command, `latentgen generate`, whole and with --low-memory, and by diffusers where it is
installed; then pictures of each size of --decode come out of the autoencoder alone (none: `--decode` without sizes).
Each is a process of its own that opens the same folder; the figures are the operating system's (`ru_maxrss`), and hold
what importing torch takes, the first line. Memory does not depend on what the weights are, nor on how busy the machine
is, nor on the number of steps after the second. Of two runs of a side the times differ more than the peaks do.
Without --model a folder of SD 1.5's size is made of random bfloat16 weights, beside the temporary files, and removed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

PROMPT = "a boat"

THEIRS = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, size, steps, dtype, prompt, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
pipe.set_progress_bar_config(disable=True)
pipe(prompt, num_inference_steps=steps, height=size, width=size, guidance_scale=7.5).images[0].save(out)
"""

DECODE = """
import sys, torch
from pathlib import Path
from latentgen.checkpoints.folder import load_vae
from latentgen.diffusion.latents import LatentSpace
from latentgen.kernels.memory import keep_freed_memory, map_large_tensors
from latentgen.kernels.vae import speed_up_vae
from latentgen.pipeline.decoding import decode
folder, size, dtype = Path(sys.argv[1]), int(sys.argv[2]), getattr(torch, sys.argv[3])
map_large_tensors()
vae = load_vae(folder, dtype=dtype)
keep_freed_memory()
speed_up_vae(vae)
space = LatentSpace.from_config(vae.config)
decode(vae, space, torch.randn((1, *space.shape(size, size)), generator=torch.Generator().manual_seed(0)))
"""


def make_model(folder: Path) -> None:
    """SD 1.5's networks with random weights, in bfloat16; no matrix is all zero, because OpenVINO would merge those."""
    import torch
    from torch import nn

    from latentgen.checkpoints.folder import ModelBundle, save_model
    from latentgen.models.clip_text import CLIPTextModel
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.models.unet import UNet
    from latentgen.models.vae import AutoencoderKL
    from latentgen.presets import SD15

    torch.set_default_dtype(torch.bfloat16)
    unet = UNet(SD15.unet)
    for parameter in unet.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.kaiming_uniform_(parameter, a=5**0.5)  # as torch's own layers begin
    vae, text_encoder = AutoencoderKL(SD15.vae), CLIPTextModel(SD15.text_encoder)
    bundle = ModelBundle(unet, vae, text_encoder, Tokenizer.published(), SD15)
    save_model(bundle, folder)


def show_peak(name: str, *arguments: str) -> None:
    """Run Python with these arguments in a process of its own; print its peak in MiB and its seconds."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    said = process.stdout.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"{name} failed:\n{said}")
    print(f"{name:18} {usage.ru_maxrss / 1024:9.0f} {time.perf_counter() - started:8.1f}", flush=True)


def compare(folder: Path, scratch: Path, size: int, steps: int, dtype: str) -> None:
    """One picture: by the command, by the command with --low-memory, by diffusers."""
    print(f"one {size}x{size} picture, {steps} steps, guidance on, {dtype}")
    print(f"{'':18} {'peak MiB':>9} {'wall s':>8}")
    show_peak("importing torch", "-c", "import os, torch; os._exit(0)")  # an orderly end touches more of it
    ours = ["-m", "latentgen", "generate", PROMPT, "--model", str(folder), "--size", f"{size}x{size}", "--seed", "1"]
    ours += ["--steps", str(steps), "--sampler", "euler", "--guidance", "7.5", "--device", "cpu", "--dtype", dtype]
    ours += ["--guidance-interval", "0,1"]
    show_peak("latentgen", *ours, "--output", str(scratch / "ours.png"))
    show_peak("... --low-memory", *ours, "--low-memory", "--output", str(scratch / "low.png"))
    if find_spec("diffusers") is None:
        print("diffusers is not installed")
        return
    theirs = (str(folder), str(size), str(steps), dtype, PROMPT, str(scratch / "theirs.png"))
    show_peak("diffusers", "-c", THEIRS, *theirs)


def decode(folder: Path, sizes: list[int], dtype: str) -> None:
    """Pictures out of the autoencoder alone: from some size on in tiles."""
    print(f"\nthe autoencoder alone, one picture decoded, {dtype}")
    print(f"{'':18} {'peak MiB':>9} {'wall s':>8}")
    for size in sizes:
        show_peak(f"{size}x{size}", "-c", DECODE, str(folder), str(size), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--decode", type=int, nargs="*", default=[512, 1024, 2048], metavar="SIZE")
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make the folder of random weights and stop")
    options = parser.parse_args()
    if options.make is not None:
        make_model(options.make)
        return
    with tempfile.TemporaryDirectory() as name:
        scratch, folder = Path(name), options.model
        if folder is None:
            folder = scratch / "sd15"
            # In a process of its own, so that this one stays small.
            subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
        compare(folder, scratch, options.size, options.steps, options.dtype)
        if options.decode:
            decode(folder, options.decode, options.dtype)


if __name__ == "__main__":
    main()

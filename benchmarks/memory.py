"""Peak memory of one Stable Diffusion 1.5 picture, beside diffusers', on equal random weights.

    python benchmarks/memory.py [--model FOLDER] [--size 512] [--steps 2] [--dtype bfloat16]

Ours is drawn twice, whole and with --low-memory. Each is a process of its own that opens the same folder and draws one
guided picture; the figures are the operating system's (`ru_maxrss`). Memory does not depend on what the weights are,
nor on the number of steps after the second.
Without --model a folder of SD 1.5's size is made of random bfloat16 weights, beside the temporary files, and removed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

OURS = """
import sys
from latentgen import TextToImage
folder, size, steps, dtype, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
model = TextToImage.load(folder, device="cpu", dtype=dtype, low_memory=sys.argv[6:] == ["low"])
draw = model.draw("a boat", seed=1, steps=steps, width_px=size, height_px=size, sampler="euler", guidance=7.5)
next(draw).save(out)
"""

THEIRS = """
import sys, torch
from diffusers import StableDiffusionPipeline
folder, size, steps, dtype, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
pipe.set_progress_bar_config(disable=True)
pipe("a boat", num_inference_steps=steps, height=size, width=size, guidance_scale=7.5).images[0].save(out)
"""


def make_model(folder: Path) -> None:
    """SD 1.5's networks with random weights, in bfloat16."""
    import torch

    from latentgen.checkpoints.folder import ModelBundle, save_model
    from latentgen.models.clip_text import CLIPTextModel
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.models.unet import UNet
    from latentgen.models.vae import AutoencoderKL
    from latentgen.presets import SD15

    torch.set_default_dtype(torch.bfloat16)
    bundle = ModelBundle(
        UNet(SD15.unet), AutoencoderKL(SD15.vae), CLIPTextModel(SD15.text_encoder), Tokenizer.published(), SD15
    )
    save_model(bundle, folder)


def peak(script: str, arguments: list[str]) -> tuple[float, float]:
    """Peak MiB and wall seconds of a process of its own."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", script, *arguments], stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        raise SystemExit(f"a process failed:\n{errors}")
    return usage.ru_maxrss / 1024, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--make", type=Path, metavar="FOLDER", help="make the folder of random weights and stop")
    options = parser.parse_args()
    if options.make is not None:
        make_model(options.make)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model
        if folder is None:
            folder = Path(scratch) / "sd15"
            # In a process of its own, so that this one stays small.
            subprocess.run([sys.executable, __file__, "--make", str(folder)], check=True)
        print(f"one {options.size}x{options.size} picture, {options.steps} steps, guidance on, {options.dtype}")
        print(f"{'':12} {'peak MiB':>9} {'wall s':>8}")
        sides = (("latentgen", OURS, ()), ("--low-memory", OURS, ("low",)), ("diffusers", THEIRS, ()))
        for name, script, further in sides:
            arguments = [str(folder), str(options.size), str(options.steps), options.dtype, f"{scratch}/{name}.png"]
            peak_mib, wall_s = peak(script, [*arguments, *further])
            print(f"{name:12} {peak_mib:9.0f} {wall_s:8.1f}")


if __name__ == "__main__":
    main()

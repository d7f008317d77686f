"""Time the demo command as a stranger runs it: cold processes, beside diffusers', and how one picture's time splits.

    python benchmarks/generate.py [--runs 5]

Prints a table. Whole-process figures are the operating system's own (wall, CPU and peak memory of a child process), of
all commands in turns; the split is measured inside one process. diffusers, where it is installed, draws with the same
model, sampler and number of steps, in the same precision, channels_last.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

from latentgen import embedded_model_path
from latentgen.checkpoints.layout import read_config

PROMPT = "a lighthouse at sunset"
OURS = ["-m", "latentgen"]
COMMANDS = {
    "latentgen --help": [*OURS, "--help"],
    "latentgen generate (bad argument)": [*OURS, "generate", PROMPT, "--steps", "0"],
    "latentgen generate (demo)": [
        *OURS,
        "generate",
        PROMPT,
        "--seed=42",
        "--guidance=7.5",
        "--guidance-interval=0,1",
        "--device=cpu",
        "--output={out}/demo.png",
    ],
}
"""What is told to Python. Every step is guided, as with diffusers, whatever the model's own interval is."""
THEIRS = """
import sys, torch
from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline
folder, dtype, width, height, steps, prompt, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, dtype), local_files_only=True)
pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
pipe.set_progress_bar_config(disable=True)
pipe.unet.to(memory_format=torch.channels_last)
pipe.vae.to(memory_format=torch.channels_last)
size = {"width": int(width), "height": int(height)}
generator = torch.Generator().manual_seed(42)
pipe(prompt, num_inference_steps=int(steps), guidance_scale=7.5, generator=generator, **size).images[0].save(out)
"""

PRECISION = """
from latentgen.pipeline.devices import choose_device, choose_dtype
print(str(choose_dtype("auto", choose_device("cpu"))).removeprefix("torch."))
"""

SPLIT = """
import json, time
start = time.perf_counter()
import torch
torch_s = time.perf_counter() - start
from latentgen import GenerationRequest, TextToImage, embedded_model_path
imported_s = time.perf_counter() - start - torch_s
model = TextToImage.load(device="cpu")
loaded_s = time.perf_counter() - start - torch_s - imported_s
result = next(iter(model.draw({prompt!r}, seed=42, guidance=7.5, guidance_interval=(0, 1))))
t = result.timings
print(json.dumps({{"import torch": torch_s, "import latentgen": imported_s, "load": loaded_s, "text": t.text_s,
                  "denoise": t.denoise_s, "decode": t.decode_s}}))
"""


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of one cold process."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def theirs() -> list[str]:
    """What diffusers' process is told: the demo's picture."""
    folder = embedded_model_path()
    defaults = read_config(folder).defaults
    # Asked of another process: what this one holds is counted into the peaks of those that it starts.
    dtype = subprocess.run([sys.executable, "-c", PRECISION], capture_output=True, text=True, check=True).stdout.strip()
    numbers = [str(each) for each in (defaults.width_px, defaults.height_px, defaults.steps)]
    return ["-c", THEIRS, str(folder), dtype, *numbers, PROMPT, "{out}/theirs.png"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    commands = {**COMMANDS, "diffusers, the demo's picture": theirs()} if find_spec("diffusers") else COMMANDS
    rows: dict[str, list[tuple[float, float, float]]] = {title: [] for title in commands}
    for _ in range(runs):
        for title, arguments in commands.items():
            with tempfile.TemporaryDirectory() as out:
                rows[title].append(measure([each.replace("{out}", out) for each in arguments]))
                if "{out}" in arguments[-1] and not any(Path(out).iterdir()):
                    raise SystemExit(f"{title}: nothing was drawn")
    print(f"{'command':36} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}   (medians of {runs} cold processes)")
    for title, measured in rows.items():
        wall, cpu, peak = (statistics.median(column) for column in zip(*measured, strict=True))
        print(f"{title:36} {wall:8.2f} {cpu:8.2f} {peak:9.0f}")
    split: dict[str, list[float]] = {}
    for _ in range(runs):
        script = SPLIT.format(prompt=PROMPT)
        answer = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.home()
        )
        for part, seconds in json.loads(answer.stdout).items():
            split.setdefault(part, []).append(seconds)
    print("\none picture, seconds: " + ", ".join(f"{part} {statistics.median(s):.2f}" for part, s in split.items()))


if __name__ == "__main__":
    main()

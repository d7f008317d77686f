"""Does the same request give the same bytes on this machine? Every run is a process of its own.

    python benchmarks/exact.py                 the embedded model: 12 cells of batch size and threads, 20 restarts
    python benchmarks/exact.py --dtype float32 the same, not in the dtype that the CPU is best at
    python benchmarks/exact.py --sd            networks of Stable Diffusion 1.5's shape, random, at 128 px, too

A cell is `latentgen generate --no-metadata`, and what is compared are the bytes of its PNGs. (With metadata the files
differ in one number, that of the threads.) Restarts vary the hash seed, the locale, the working folder, and where in
the run a picture is drawn. Ends with exit code 1 if one byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from latentgen.pipeline import choose_dtype, dtype_name

BATCH_SIZES, THREADS, RESTARTS = (1, 2, 4, 8), (1, 2, 4), 20
SEEDS = (0, 1, 4294967295)
CASES = {
    "euler_a 128x128": ["--sampler", "euler_a", "--width", "128", "--height", "128"],
    "ddim eta 1, 192x64": ["--sampler", "ddim", "--eta", "1", "--width", "192", "--height", "64"],
    "dpmpp_2m 128x192": ["--sampler", "dpmpp_2m", "--width", "128", "--height", "192"],
}

SD = """
import hashlib, sys, torch
from latentgen.checkpoints.folder import ModelBundle
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline import TextToImage
from latentgen.presets import SD15 as config
from latentgen.request import complete_request
torch.set_num_threads(int(sys.argv[1]))
generator = torch.Generator().manual_seed(0)
def build(kind, part):
    with torch.device("meta"):
        network = kind(part)
    network.to_empty(device="cpu")
    for name, p in network.named_parameters():
        spread = (3 / p[0].numel()) ** 0.5 if p.ndim > 1 else 0.1
        p.data.uniform_(-spread, spread, generator=generator)
        if p.ndim == 1 and name.endswith("weight"):
            p.data += 1
    return network.to(getattr(torch, sys.argv[4])).eval()
bundle = ModelBundle(unet=build(UNet, config.unet), vae=build(AutoencoderKL, config.vae),
                     text_encoder=build(CLIPTextModel, config.text_encoder), tokenizer=Tokenizer.published(48894),
                     config=config)
bundle._fingerprint = "0" * 10
asked = dict(prompt="a (cat:1.2)", steps=2, width_px=int(sys.argv[3]), height_px=128, sampler="euler_a")
model = TextToImage(bundle)
requests = [complete_request(config, seed=seed, **asked) for seed in (0, 4294967295)]
digest = hashlib.sha256()
for result in model.generate(requests, batch_size=int(sys.argv[2])):
    digest.update(result.pixels.tobytes())
print(digest.hexdigest())
"""


def draw(case: str, dtype: str, *, batch_size: int, threads: int, turn: int = 0) -> dict[int, str]:
    """The hash of each seed's PNG. `turn` varies what must not matter."""
    seeds = SEEDS[turn % len(SEEDS) :] + SEEDS[: turn % len(SEEDS)]
    env = {
        **os.environ,
        "PYTHONHASHSEED": str(turn),
        "LC_ALL": ("C", "C.UTF-8", "de_DE.UTF-8", "tr_TR.UTF-8")[turn % 4],
    }
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(f'{{"prompt": "a lighthouse at sunset", "seed": {seed}}}\n' for seed in seeds)
        Path(folder, "prompts.jsonl").write_text(lines)
        command = [sys.executable, "-m", "latentgen", "generate", "--prompts", "prompts.jsonl", "--steps", "3"]
        numbers = ["--batch-size", str(batch_size), "--threads", str(threads), "--device", "cpu", "--dtype", dtype]
        run = [*command, *CASES[case], *numbers, "--no-metadata", "--output", "{seed}.png", "--quiet"]
        subprocess.run(run, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL)
        return {seed: hashlib.sha256(Path(folder, f"{seed}.png").read_bytes()).hexdigest() for seed in SEEDS}


def table(case: str, dtype: str) -> bool:
    """Print a case's cells; whether all are alike."""
    print(f"\nembedded model, {case}, 3 steps, seeds {', '.join(map(str, SEEDS))}")
    print("batch size " + "".join(f"{f'{threads} threads':>16}" for threads in THREADS))
    cells: list[dict[int, str]] = []
    for batch_size in BATCH_SIZES:
        row = [draw(case, dtype, batch_size=batch_size, threads=threads) for threads in THREADS]
        cells += row
        print(f"{batch_size:<11}" + "".join(f"{short(cell):>16}" for cell in row), flush=True)
    return all(cell == cells[0] for cell in cells)


def restarts(case: str, dtype: str) -> bool:
    drawn = [
        draw(case, dtype, batch_size=1 + turn % 8, threads=THREADS[turn % 3], turn=turn) for turn in range(RESTARTS)
    ]
    found = sorted({short(each) for each in drawn})
    print(f"{RESTARTS} restarts: {', '.join(found)}", flush=True)
    return len(found) == 1


def sd_shape(width: int, dtype: str) -> bool:
    found: list[str] = []
    for threads, batch_size in ((1, 1), (2, 2), (4, 1)):
        run = [sys.executable, "-c", SD, str(threads), str(batch_size), str(width), dtype]
        digest = subprocess.run(run, check=True, capture_output=True, text=True).stdout.strip()
        found.append(digest)
        print(f"SD 1.5's shape, {width}x128: batch size {batch_size}, {threads} threads: {digest[:12]}", flush=True)
    return len(set(found)) == 1


def short(cell: dict[int, str]) -> str:
    return hashlib.sha256("".join(cell[seed] for seed in SEEDS).encode()).hexdigest()[:12]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sd", action="store_true", help="Stable Diffusion 1.5's shape too (5 GB of memory)")
    best = dtype_name(choose_dtype("auto", torch.device("cpu")))
    arguments.add_argument("--dtype", default=best, choices=("float32", "bfloat16"), help=f"default: {best}")
    given = arguments.parse_args()
    results = [table(case, given.dtype) for case in CASES]
    results.append(restarts("euler_a 128x128", given.dtype))
    if given.sd:
        results += [sd_shape(width, given.dtype) for width in (128, 192)]
    print("\nall alike" if all(results) else "\nNOT alike")
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()

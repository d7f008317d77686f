"""Training speed and memory beside diffusers' own train_text_to_image.py: same U-Net, data, batch and precision.

    python benchmarks/training.py                                      the U-Net's step alone, against diffusers' U-Net
    python benchmarks/training.py --peer-script train_text_to_image.py [--peer-site FOLDER]       and the whole commands

The script is diffusers' `examples/text_to_image/train_text_to_image.py`, from its repository; nothing of it is kept
here. It needs the `datasets` package: `pip install --target FOLDER datasets`, then `--peer-site FOLDER` leaves this
environment as it is. Both commands run as processes of their own, in turn, with AdamW and an EMA, one picture size, the
same pictures; ours computes latents and text states once, theirs in every step. A rate is that of the steps after the
warm-up, a ratio is the median over the pairs, memory is the operating system's peak of the process.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training_data import SHAPES, write_model, write_pictures
from training_step import Timed, time_steps

from latentgen import embedded_model_path
from latentgen.jsonfile import read_json

PEER = Path(__file__).with_name("training_peer.py")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for both."""

    model: Path
    pictures: Path
    resolution: int
    batch_size: int
    precision: str
    steps: int
    warmup: int
    threads: int


@dataclass(frozen=True, slots=True)
class Run:
    """One process that trained."""

    wall_s: float
    cpu_s: float
    peak_mib: float
    samples_per_s: float
    """Of the steps after the warm-up, by the clock; nan if there were none."""


def train_ours(setting: Setting, out: Path, cache: Path, steps: int) -> Run:
    """`latentgen train-unet`, as a user runs it; its own log says when each step ended (to 0.1 s)."""
    command = [
        *(sys.executable, "-m", "latentgen", "train-unet", "--data", setting.pictures, "--init", setting.model),
        *("--out", out, "--cache", cache, "--resolution", setting.resolution, "--batch-size", setting.batch_size),
        *("--max-steps", steps, "--mixed-precision", setting.precision, "--threads", setting.threads),
        *("--lr", 1e-5, "--warmup", 0, "--validation-pictures", 0, "--log-every", 1),
    ]
    wall_s, cpu_s, peak_mib = _run(command, setting.threads)
    events = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    ended = [event["elapsed_s"] for event in events if "loss" in event]
    return Run(wall_s, cpu_s, peak_mib, _rate(ended, setting))


def train_theirs(setting: Setting, script: Path, site: Path | None, out: Path, steps: int) -> Run:
    """diffusers' script with its own defaults, and the faster of its two EMAs."""
    times = out.with_suffix(".json")
    command = [
        *(sys.executable, PEER, script, times, *([] if site is None else ["--site", site]), "--"),
        *("--pretrained_model_name_or_path", setting.model, "--train_data_dir", setting.pictures),
        *("--cache_dir", setting.pictures.parent / "datasets", "--output_dir", out, "--resolution", setting.resolution),
        *("--train_batch_size", setting.batch_size, "--max_train_steps", steps, "--mixed_precision", setting.precision),
        *("--learning_rate", 1e-5, "--lr_warmup_steps", 0, "--use_ema", "--foreach_ema"),
    ]
    wall_s, cpu_s, peak_mib = _run(command, setting.threads)
    return Run(wall_s, cpu_s, peak_mib, _rate(json.loads(times.read_text()), setting))


def _rate(ended: list[float], setting: Setting) -> float:
    """Samples a second of the steps after the warm-up, from the times at which steps ended."""
    counted = ended[setting.warmup - 1 :]
    return setting.batch_size * (len(counted) - 1) / (counted[-1] - counted[0]) if len(counted) > 1 else math.nan


def _run(command: Sequence[object], threads: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of a process. Ends with its last words if it fails."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        started = time.monotonic()
        process = subprocess.Popen([str(word) for word in command], stdout=said, stderr=said, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)  # else Popen would wait for it again
        if process.returncode != 0:
            said.seek(0)
            raise SystemExit(f"{' '.join(map(str, command[1:4]))} failed:\n{said.read()[-2000:]}")
        return time.monotonic() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def compare_commands(setting: Setting, script: Path, site: Path | None, repeats: int, scratch: Path) -> None:
    """The table of both commands, run in turn `repeats` times."""
    pictures = len(list(setting.pictures.glob("*.png")))
    cache = scratch / "cache"
    # Runs of one step: what their starting costs, so that it can be taken off the CPU time of the longer ones.
    filling = train_ours(setting, scratch / "filling", cache, 1)
    our_start = train_ours(setting, scratch / "ours-start", cache, 1)
    train_theirs(setting, script, site, scratch / "theirs-filling", 1)
    their_start = train_theirs(setting, script, site, scratch / "theirs-start", 1)
    ours: list[Run] = []
    theirs: list[Run] = []
    for number in range(repeats):
        ours.append(train_ours(setting, scratch / f"ours-{number}", cache, setting.steps))
        theirs.append(train_theirs(setting, script, site, scratch / f"theirs-{number}", setting.steps))

    title = f"as a user runs it, {setting.steps} steps, {repeats} pairs"
    print(f"\n{title:60} {'samples/s':>10} {'CPU s/sample':>13} {'peak MiB':>9}")
    costs: list[float] = []
    for name, runs, start in (
        ("latentgen train-unet, latents and text cached", ours, our_start),
        (f"{script.name}, both computed in every step", theirs, their_start),
    ):
        rate = statistics.median(run.samples_per_s for run in runs)
        samples = setting.batch_size * (setting.steps - 1)
        costs.append(statistics.median(run.cpu_s - start.cpu_s for run in runs) / samples)
        print(f"{name:60} {rate:10.2f} {costs[-1]:13.3f} {max(run.peak_mib for run in runs):9.0f}")
    ratios = sorted(a.samples_per_s / b.samples_per_s for a, b in zip(ours, theirs, strict=True))
    shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
    print(f"ratio {statistics.median(ratios):.2f} by the clock ({shown}), {costs[1] / costs[0]:.2f} in CPU time")
    # A run of n epochs fills its caches once; that time is shared out over the n samples made of a picture.
    filling_s = max(filling.cpu_s - our_start.cpu_s, 0.0) / pictures
    one, ten = (costs[1] / (costs[0] + filling_s / epochs) for epochs in (1, 10))
    print(f"filling the caches: {filling_s:.3f} CPU s a picture, once; counted in, the ratio in CPU time is")
    print(f"{one:.2f} for a run of one epoch, {ten:.2f} for one of ten")


def compare_steps(setting: Setting) -> None:
    """The table of the U-Net's step alone."""
    widths = read_json(setting.model / "vae" / "config.json")["block_out_channels"]
    side = setting.resolution // 2 ** (len(widths) - 1)
    given = (setting.model, setting.batch_size, side, setting.precision, setting.steps, setting.threads)
    timed: Timed = _apart(time_steps, *given)
    title = f"the U-Net's step alone, latents {side}x{side}, {setting.steps} pairs"
    print(f"\n{title:60} {'samples/s':>10} {'CPU s/sample':>13} {'% of peak':>9}")
    for name, wall_s, cpu_s in (
        ("latentgen", timed.ours_s, timed.ours_cpu_s),
        ("diffusers UNet2DConditionModel", timed.theirs_s, timed.theirs_cpu_s),
    ):
        seconds, cpu_seconds = statistics.median(wall_s), statistics.median(cpu_s)
        share = 100 * timed.gflop / cpu_seconds / timed.peak_gflops
        print(f"{name:60} {setting.batch_size / seconds:10.2f} {cpu_seconds / setting.batch_size:13.3f} {share:9.0f}")
    print(f"ratio {timed.ratio:.2f} by the clock, {timed.cpu_ratio:.2f} in CPU time (medians of the pairs)")
    print(f"losses of the first step {timed.losses[0]:.5f} and {timed.losses[1]:.5f}; {timed.gflop:.0f} GFLOP a step")
    print(f"100 % is the best matrix product or convolution seen: {timed.peak_gflops:.0f} GFLOP a second of CPU time")


def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """`function(*arguments)` in a process of its own: what a process has used, its children inherit as their peak."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-script", type=Path, help="diffusers' train_text_to_image.py")
    parser.add_argument("--peer-site", type=Path, help="folder with the packages it needs beyond ours")
    parser.add_argument(
        "--model", type=Path, default=embedded_model_path(), help="model folder (default: the embedded)"
    )
    parser.add_argument("--shape", choices=sorted(SHAPES), help="a U-Net with random weights instead of --model")
    parser.add_argument("--resolution", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", choices=("bf16", "no"), default="bf16")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args()
    if not 1 <= given.warmup <= given.steps - 2:
        parser.error("--warmup leaves at least two of --steps")
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        model = given.model if given.shape is None else _apart(write_model, scratch / "model", given.shape)
        setting = Setting(
            model=model,
            pictures=scratch / "pictures",
            resolution=given.resolution,
            batch_size=given.batch_size,
            precision=given.precision,
            steps=given.steps,
            warmup=given.warmup,
            threads=given.threads,
        )
        name = model.name if given.shape is None else f"{given.shape}, random weights"
        print(f"{name}, {given.resolution} px, batch {given.batch_size}, {given.precision}, {given.threads} threads")
        compare_steps(setting)
        if given.peer_script is None:
            print("\nthe whole commands: --peer-script train_text_to_image.py, from diffusers' repository (see --help)")
            return
        write_pictures(setting.pictures, given.pictures, given.resolution)
        compare_commands(setting, given.peer_script, given.peer_site, given.repeats, scratch)


if __name__ == "__main__":
    main()

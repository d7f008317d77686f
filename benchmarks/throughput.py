"""Pictures a minute on a CPU: many prompts from one load, in one process or in one a core, beside diffusers.

    python benchmarks/throughput.py [--pictures 24] [--steps 30] [--size PX] [--runs 5] [--threads 2] [--processes 2]
                                    [--batches 1,4] [--sides latentgen,diffusers] [--crowded] [--sd15]

Every worker is a process that holds its model. In each turn every setting draws the same prompts once: one worker with
all threads, or all workers side by side with their share of them. So whatever else the machine does meets all alike.
Printed are medians, and the median of each turn's ratio to our one process (above 1 is faster). Both tools compute in
bfloat16, with euler_a and guidance 7.5, to pixels; files are left out. Our pictures are compared: they must not depend
on the setting.

--crowded adds processes that each have all threads, as commands that know nothing of each other: diffusers' stop
each other almost wholly, so take few pictures and steps.

--sd15 takes random weights of Stable Diffusion 1.5's size in the place of the embedded model.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from contender import Contender

from latentgen import embedded_model_path
from latentgen.checkpoints.layout import read_config

HERE = Path(__file__).parent
GUIDANCE, SAMPLER = 7.5, "euler_a"
THINGS = ("a lighthouse", "a sailboat", "a castle", "a windmill", "a red house", "a hot air balloon")
TIMES = ("at sunset", "at night", "at dawn", "in the snow")
WARM_UP_STEPS = 2

Job = dict[str, Any]
"""threads, batch, steps, size_px, and prompts: pairs of seed and text."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to draw the prompts."""

    tool: str
    processes: int
    threads: int
    """Of each process."""
    batch: int

    def __str__(self) -> str:
        return f"{self.tool:10} {self.processes:9} {self.threads:7} {self.batch:5}"


def start(tool: str, folder: Path) -> Contender:
    """A process that holds a model and answers a `Job` with the hashes of its pictures."""
    return Contender(tool, [sys.executable, __file__, "--worker", tool, str(folder)])


def draw(
    setting: Setting, workers: Sequence[Contender], prompts: Sequence[str], steps: int, size: int
) -> tuple[float, list[str]]:
    """Seconds, and the pictures' hashes in the order of the prompts."""
    numbered = list(enumerate(prompts))
    used = workers[: setting.processes]
    started = time.perf_counter()
    for k, worker in enumerate(used):
        own = numbered[k :: len(used)]
        job: Job = {
            "threads": setting.threads,
            "batch": setting.batch,
            "steps": steps,
            "size_px": size,
            "prompts": own,
        }
        worker.tell(json.dumps(job))
    answers: list[list[str]] = [json.loads(worker.answer()) for worker in used]
    seconds = time.perf_counter() - started
    return seconds, [answers[k % len(used)][k // len(used)] for k in range(len(prompts))]


def compare(settings: Sequence[Setting], workers: dict[str, list[Contender]], options: argparse.Namespace) -> None:
    """Print the table: every setting's turns at the prompts."""
    prompts = [f"{THINGS[k % len(THINGS)]} {TIMES[k // len(THINGS) % len(TIMES)]}" for k in range(options.pictures)]
    taken: dict[Setting, list[float]] = {setting: [] for setting in settings}
    pictures: dict[str, list[str]] = {}
    for setting in settings:  # what happens once
        few = prompts[: setting.processes * setting.batch]
        draw(setting, workers[setting.tool], few, WARM_UP_STEPS, options.size)
    for turn in range(options.runs):
        for setting in settings if turn % 2 == 0 else reversed(settings):
            seconds, hashes = draw(setting, workers[setting.tool], prompts, options.steps, options.size)
            taken[setting].append(seconds)
            if setting.tool == "latentgen" and pictures.setdefault(setting.tool, hashes) != hashes:
                raise SystemExit(f"the pictures of {setting} are not those of the first setting")
    reference = taken[settings[0]]
    print(
        f"\n{options.pictures} pictures, {options.size} px, {options.steps} steps {SAMPLER}, {options.runs} turns\n"
        f"{'':10} processes threads batch  median s  pictures/min  of one process"
    )
    for setting, seconds in taken.items():
        median = statistics.median(seconds)
        ratio = statistics.median(one / own for one, own in zip(reference, seconds, strict=True))
        print(f"{setting} {median:9.2f} {60 * options.pictures / median:13.1f} {ratio:15.2f}")


# The other side of a worker


def latentgen_drawer(folder: Path) -> Callable[[Job], list[str]]:
    from latentgen.kernels.memory import keep_freed_memory
    from latentgen.pipeline import TextToImage
    from latentgen.request import complete_request

    keep_freed_memory()
    model = TextToImage.load(folder, device="cpu", dtype="bfloat16")

    def draw(job: Job) -> list[str]:
        given: dict[str, Any] = {"steps": job["steps"], "guidance": GUIDANCE, "sampler": SAMPLER}
        given["guidance_interval"] = (0.0, 1.0)  # as diffusers guides, whatever the model's own
        given |= {"width_px": job["size_px"], "height_px": job["size_px"]}
        config = model.bundle.config
        requests = [complete_request(config, prompt=text, seed=seed, **given) for seed, text in job["prompts"]]
        return [result.metadata.pixels_sha256 for result in model.generate(requests)]

    return draw


def diffusers_drawer(folder: Path) -> Callable[[Job], list[str]]:
    """bfloat16 and channels_last: what a careful user of a CPU runs."""
    from diffusers import DiffusionPipeline, EulerAncestralDiscreteScheduler
    from diffusers.utils import logging

    logging.set_verbosity_error()
    pipe = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16, local_files_only=True)
    pipe.scheduler = EulerAncestralDiscreteScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)

    def draw(job: Job) -> list[str]:
        hashes: list[str] = []
        for start in range(0, len(job["prompts"]), job["batch"]):
            batch = job["prompts"][start : start + job["batch"]]
            drawn = pipe(
                [text for _, text in batch],
                generator=[torch.Generator().manual_seed(seed) for seed, _ in batch],
                num_inference_steps=job["steps"],
                guidance_scale=GUIDANCE,
                height=job["size_px"],
                width=job["size_px"],
            )
            hashes.extend(hashlib.sha256(image.tobytes()).hexdigest() for image in drawn.images)
        return hashes

    return draw


DRAWERS = {"latentgen": latentgen_drawer, "diffusers": diffusers_drawer}


def work(tool: str, folder: Path) -> None:
    draw = DRAWERS[tool](folder)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        torch.set_num_threads(job["threads"])
        print(json.dumps(draw(job)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--size", type=int, help="default: the model's own")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of all processes together")
    parser.add_argument("--processes", type=int, help="default: one a thread")
    parser.add_argument("--batches", default="1,4", help="of diffusers' one process")
    parser.add_argument("--sides", default="latentgen,diffusers")
    parser.add_argument("--crowded", action="store_true", help="also processes that each have all threads")
    parser.add_argument("--sd15", action="store_true")
    parser.add_argument("--worker", nargs=2, metavar=("TOOL", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker is not None:
        work(options.worker[0], Path(options.worker[1]))
        return
    threads, processes = options.threads, options.processes or options.threads
    sides = options.sides.split(",")
    settings: list[Setting] = []
    for side in sides:
        batches = map(int, options.batches.split(",")) if side == "diffusers" else (1,)
        settings += [Setting(side, 1, threads, batch) for batch in batches]
        if processes > 1:
            settings.append(Setting(side, processes, max(1, threads // processes), 1))
            if options.crowded:
                settings.append(Setting(side, processes, threads, 1))
    with tempfile.TemporaryDirectory() as scratch:
        folder = embedded_model_path()
        if options.sd15:
            folder = Path(scratch) / "sd15"
            subprocess.run([sys.executable, str(HERE / "memory.py"), "--make", str(folder)], check=True)
        options.size = options.size or read_config(folder).defaults.width_px
        workers = {side: [start(side, folder) for _ in range(processes)] for side in sides}
        try:
            compare(settings, workers, options)
        finally:
            for worker in (each for side in workers.values() for each in side):
                worker.end()


if __name__ == "__main__":
    main()

"""How fast we draw on a CPU, beside diffusers and OpenVINO, on equal random weights of Stable Diffusion 1.5's size.

    python benchmarks/speed.py [--sizes 512,256] [--runs 5] [--threads 2] [--sides latentgen,plain,diffusers,openvino]
                               [--embedded] [--pictures] [--openvino-python PYTHON]

Every side is a process of its own and holds its model; they work in turns, one piece each, so that whatever else the
machine does meets all alike. Printed are medians, the ratio of theirs to ours, and for the U-Net's step GFLOPS and the
share of the best bfloat16 matrix product or convolution that this machine does in the same minute. The work is counted
as the networks are written, for all sides alike: who gets by with fewer multiplications shows more of the peak. All
sides compute in bfloat16. The weights are random and every tensor's are its own: OpenVINO merges equal constants.

--embedded takes the embedded model instead (256 px); --pictures times whole pictures of 20 steps too. OpenVINO may live
in another environment: --openvino-python names its interpreter. The side stable-diffusion.cpp takes a built program
(`SD_CLI=path/to/sd-cli`), which begins anew for every answer and is asked for its own seconds.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from contender import Contender
from torch.utils.flop_counter import FlopCounterMode

from latentgen import embedded_model_path
from latentgen.checkpoints.layout import read_config
from latentgen.config import ModelConfig
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL

HERE = Path(__file__).parent
STEPS = 20


def gflop(config: ModelConfig, kind: str, size_px: int) -> float:
    """Of one piece of work, counted on the meta device: 2 for a multiplication and an addition."""
    side = size_px // config.vae.downscale
    with torch.device("meta"), torch.inference_mode(), FlopCounterMode(display=False) as counter:
        if kind == "step":
            x, context = (
                torch.empty(2, config.unet.in_channels, side, side),
                torch.empty(2, 77, config.unet.cross_attention_dim),
            )
            UNet(config.unet)(x, torch.empty(2), context)
        else:
            AutoencoderKL(config.vae).decode(torch.empty(1, config.vae.latent_channels, side, side))
    return counter.get_total_flops() / 1e9


def peak_gflops() -> float:
    """The better of a large matrix product and a large convolution in bfloat16, best of some."""
    a, b = torch.randn(4096, 1280).bfloat16(), torch.randn(1280, 5120).bfloat16()
    x = torch.randn(2, 320, 64, 64).bfloat16().to(memory_format=torch.channels_last)
    weight = torch.randn(320, 320, 3, 3).bfloat16().to(memory_format=torch.channels_last)
    work = (
        (2 * 4096 * 1280 * 5120, lambda: a @ b),
        (2 * 2 * 64 * 64 * 320 * 320 * 9, lambda: F.conv2d(x, weight, padding=1)),
    )
    best = 0.0
    for flops, compute in work:
        for _ in range(8):
            started = time.perf_counter()
            compute()
            best = max(best, flops / (time.perf_counter() - started) / 1e9)
    return best


def compare(contenders: list[Contender], job: str, runs: int, *, work: float | None) -> None:
    """Print one table: every side's turns at one job."""
    for contender in contenders:
        contender.ask(job)  # what happens once
    taken: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    peaks: list[float] = []
    for turn in range(runs):
        for contender in contenders if turn % 2 == 0 else reversed(contenders):
            taken[contender.name].append(float(contender.ask(job)))
        if work is not None:
            peaks.append(peak_gflops())
    ours = statistics.median(taken[contenders[0].name])
    title = f"{job} px" if work is None else f"{job} px, {work:.0f} GFLOP, peak {statistics.median(peaks):.0f} GFLOPS"
    print(f"\n{title}\n{'':20} {'median s':>9} {'least s':>9} {'ratio':>6} {'GFLOPS':>7} {'of peak':>8}")
    for side, seconds in taken.items():
        median = statistics.median(seconds)
        rate = "" if work is None else f"{work / median:7.0f} {work / median / statistics.median(peaks):8.0%}"
        print(f"{side:20} {median:9.3f} {min(seconds):9.3f} {median / ours:6.2f} {rate}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=None)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--sides", default="latentgen,plain,diffusers,openvino")
    parser.add_argument("--embedded", action="store_true")
    parser.add_argument("--pictures", action="store_true")
    parser.add_argument("--openvino-python", default=sys.executable)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        folder = embedded_model_path()
        if not options.embedded:
            folder = Path(scratch) / "sd15"
            subprocess.run([sys.executable, str(HERE / "memory.py"), "--make", str(folder)], check=True)
        config = read_config(folder)
        sides = options.sides.split(",")
        pythons = {side: options.openvino_python if side == "openvino" else sys.executable for side in sides}
        told = [str(folder), str(options.threads)]
        contenders = [Contender(side, [pythons[side], str(HERE / "speed_contender.py"), side, *told]) for side in sides]
        for size in (options.sizes or ("256" if options.embedded else "512,256")).split(","):
            for kind in ("step", "decode"):
                compare(contenders, f"{kind} {size}", options.runs, work=gflop(config, kind, int(size)))
            if options.pictures:
                compare(contenders, f"picture {size} {STEPS}", options.runs, work=None)
        for contender in contenders:
            contender.end()


if __name__ == "__main__":
    main()

"""One training step of the U-Net alone, ours and diffusers' in turn: forward, backward, clipping, AdamW, EMA.

Both networks hold the same weights and learn the same batch. The steps alternate, so a ratio is between neighbours in
time; the median of the ratios is what a busy machine disturbs least.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from latentgen.checkpoints.folder import load_unet
from latentgen.diffusion.losses import diffusion_loss
from latentgen.models.unet import UNet
from latentgen.training.ema import EMA
from latentgen.training.optimizer import make_optimizer

LEARNING_RATE = 1e-5
WARMUP_STEPS = 2

Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Timed:
    """What the steps cost, seconds; the lists run in parallel."""

    ours_s: list[float]
    theirs_s: list[float]
    ours_cpu_s: list[float]
    theirs_cpu_s: list[float]
    gflop: float
    """Multiplications and additions of our step's matrix products and convolutions."""
    peak_gflops: float
    """What this machine reaches, GFLOP a second of CPU time: see `peak_gflops`."""
    losses: tuple[float, float]
    """Ours and theirs at the first step: equal up to rounding, or something else is measured."""

    @property
    def ratio(self) -> float:
        """How many times faster ours is, by the clock."""
        return statistics.median(b / a for a, b in zip(self.ours_s, self.theirs_s, strict=True))

    @property
    def cpu_ratio(self) -> float:
        """The same in CPU time, which other programs on the machine disturb less."""
        return statistics.median(b / a for a, b in zip(self.ours_cpu_s, self.theirs_cpu_s, strict=True))


def time_steps(model: Path, batch_size: int, side: int, precision: str, steps: int, threads: int) -> Timed:
    """Alternate `steps` steps of each on latents (batch_size, C, side, side)."""
    torch.set_num_threads(threads)
    network = load_unet(model).train()
    peer = UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype=torch.float32).train()
    config = network.config
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(batch_size, config.in_channels, side, side, generator=generator) for _ in range(2))
    context = torch.randn(batch_size, 77, config.cross_attention_dim, generator=generator)
    t = torch.randint(1000, (batch_size,), generator=generator)
    dtype = {"no": None, "bf16": torch.bfloat16}[precision]
    our_step = _our_step(network, (x, t, context, target), dtype)
    their_step = _their_step(peer, (x, t, context, target), dtype)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # the fused kernel is not counted
        ours_first = our_step()
    losses = (ours_first, their_step())
    columns: tuple[list[float], ...] = ([], [], [], [])
    for number in range(steps + WARMUP_STEPS):
        # Whoever comes first finds the other's data in the caches: take turns.
        for which in (0, 1) if number % 2 else (1, 0):
            wall, cpu = time.perf_counter(), time.process_time()
            (our_step, their_step)[which]()
            if number >= WARMUP_STEPS:
                columns[which].append(time.perf_counter() - wall)
                columns[2 + which].append(time.process_time() - cpu)
    gflop = counter.get_total_flops() / 1e9
    return Timed(*columns, gflop=gflop, peak_gflops=peak_gflops(dtype or torch.float32), losses=losses)


def peak_gflops(dtype: torch.dtype, tries: int = 10) -> float:
    """The best rate seen in `tries` of a matrix product and of a 3x3 convolution, GFLOP a second of CPU time."""
    a, b = (torch.randn(2048, 2048).to(dtype) for _ in range(2))
    x, kernel = torch.randn(16, 256, 16, 16).to(dtype), torch.randn(256, 256, 3, 3).to(dtype)
    works: list[tuple[float, Callable[[], Tensor]]] = [
        (2 * 2048**3, lambda: torch.mm(a, b)),
        (2 * x.numel() * 256 * 9, lambda: F.conv2d(x, kernel, padding=1)),
    ]
    best = 0.0
    for flop, work in works:
        for _ in range(tries):
            start = time.process_time()
            work()
            best = max(best, flop / (time.process_time() - start) / 1e9)
    return best


def _our_step(network: UNet, batch: tuple[Tensor, ...], dtype: torch.dtype | None) -> Step:
    """As `training/loop.py` does it."""
    x, t, context, target = batch
    optimizer = make_optimizer(network, lr=LEARNING_RATE, muon_lr=None, weight_decay=0.01, beta2=0.999)
    ema, done = EMA(network, 0.999), 0

    def step() -> float:
        nonlocal done
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            loss = diffusion_loss(network(x, t, context), target).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done += 1
        ema.update(network, done)
        return float(loss.detach())

    return step


def _their_step(network: UNet2DConditionModel, batch: tuple[Tensor, ...], dtype: torch.dtype | None) -> Step:
    """With the classes and defaults of diffusers' script, and its faster EMA (`--foreach_ema`)."""
    x, t, context, target = batch
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    ema = EMAModel(network.parameters(), foreach=True)

    def step() -> float:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            prediction = network(x, t, context, return_dict=False)[0]
        loss = F.mse_loss(prediction.float(), target.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        ema.step(network.parameters())
        return float(loss.detach())

    return step

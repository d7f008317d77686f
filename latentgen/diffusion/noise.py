"""The seed contract: a picture's noise is a function of its own seed and of nothing else.

Each picture has one float32 generator, for the start and for every stochastic step: torch's of the CPU, or where a
request asks for it (`rng` "nv") that of NVIDIA's GPUs, computed on the CPU. So its noise does not depend on the batch
it is drawn in, on how many pictures were asked for, on the thread count, or on the network's device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from latentgen.diffusion.philox import PhiloxNormal
from latentgen.errors import InputError
from latentgen.request import MAX_SEED

VECTOR_WIDTH = 16
"""torch.randn fills 16 values at a time and redraws an incomplete last group, so counts are padded to a multiple."""


class NoiseSource:
    """Standard normal noise for a batch of pictures, one generator per picture; `rng` as in the request."""

    def __init__(self, seeds: Sequence[int], rng: str = "cpu") -> None:
        for seed in seeds:
            if not 0 <= seed <= MAX_SEED:
                raise InputError(f"seed {seed} is out of range", hint=f"seeds are 0..{MAX_SEED}")
        self._streams = [_NVStream(seed) if rng == "nv" else _CPUStream(seed) for seed in seeds]

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The next noise, (B, *shape) float32 on the CPU; row k follows from seeds[k] and the draws before alone."""
        rows = [stream.draw(math.prod(shape)).view(shape) for stream in self._streams]
        return torch.stack(rows) if rows else torch.empty((0, *shape))


class _CPUStream:
    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator("cpu").manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        padded = math.ceil(count / VECTOR_WIDTH) * VECTOR_WIDTH
        return torch.randn(padded, generator=self._generator, dtype=torch.float32, device="cpu")[:count]


class _NVStream:
    def __init__(self, seed: int) -> None:
        self._normal = PhiloxNormal(seed)

    def draw(self, count: int) -> Tensor:
        return torch.from_numpy(self._normal.draw(count))


def starting_point(noise: Tensor, sigma_max: float) -> Tensor:
    """Where sampling starts: noise sqrt(1 + sigma_max^2), in sigma coordinates.

    The network is given x / sqrt(1 + sigma^2), so its first input is the noise itself, with variance 1, as in DDPM
    (algorithm 2, line 1) for every schedule.
    """
    return noise * math.sqrt(1.0 + sigma_max**2)

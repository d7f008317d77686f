"""What every sampler shares: the contract, and the walk down the noise levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """One step as it is reported: the state before it and the clean estimate made from that state."""

    index: int
    """0 .. total - 1."""
    total: int
    sigma: float
    x: Tensor
    """(B, C, h, w) at noise level sigma, variance-exploding."""
    denoised: Tensor
    """(B, C, h, w) the estimate of x_0 there."""


OnStep = Callable[[Step], None]
NoiseFn = Callable[[], Tensor]
"""Fresh standard normal noise of x's shape, dtype and device. It is called once for each stochastic step, in order."""


class Sampler(Protocol):
    """Takes x = x_0 + sigmas[0] eps down to sigmas[-1]; edits no argument and touches no global random state."""

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None
    ) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Transition:
    """From one noise level to the next. Python floats, so that coefficients are exact to float64 on every device."""

    index: int
    total: int
    sigma: float
    sigma_next: float


def transitions(sigmas: Tensor) -> list[Transition]:
    """The n steps between n+1 levels."""
    values: list[float] = sigmas.tolist()
    pairs = list(itertools.pairwise(values))
    assert all(sigma > sigma_next >= 0 for sigma, sigma_next in pairs), "sigmas must descend, to 0 at the lowest"
    return [Transition(index, len(pairs), *pair) for index, pair in enumerate(pairs)]


def estimate(denoise: Denoiser, x: Tensor, at: Transition, on_step: OnStep | None) -> Tensor:
    """The clean estimate of x (B, C, h, w), reported to on_step."""
    # On the CPU, where the denoiser reads it: no step waits for the device.
    denoised = denoise(x, torch.full((len(x),), at.sigma, dtype=torch.float64))
    if on_step is not None:
        on_step(Step(at.index, at.total, at.sigma, x, denoised))
    return denoised

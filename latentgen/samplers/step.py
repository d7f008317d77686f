"""What every sampler shares: the contract, and the walk down the noise levels."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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


NOTHING_VISIBLE = 80.0
"""EDM's sigma_max (arXiv:2206.00364, table 1): from here up the estimate does not depend on x, and Euler's step is as
good as exact. Models with a cosine or a zero-terminal-SNR schedule start in the thousands and come down from there to
10 in one step. A second slope, taken at 10, would be multiplied by those thousands and so its small difference from the
first: pictures come out twice too strong. So the samplers that step with it leave it out from here up."""

OnStep = Callable[[Step], None]
NoiseFn = Callable[[], Tensor]
"""Fresh standard normal noise of x's shape on x's device, independent of all before. Called, in order, as often as a
sampler uses noise: for a stochastic step once, or twice where the sampler looks twice."""


class Sampler(Protocol):
    """Takes x = x_0 + sigmas[0] eps down to sigmas[-1]; edits no argument and touches no global random state."""

    def __call__(
        self, denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None
    ) -> Tensor: ...


@runtime_checkable
class SteppedDenoiser(Denoiser, Protocol):
    """A denoiser that is told which step it is asked for; samplers look at it once or twice within a step."""

    def begin_step(self, index: int) -> None:
        """Before the first look of step `index`, 0 .. total - 1."""
        ...


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
    """The clean estimate of x (B, C, h, w) at a step's start, reported to on_step."""
    if isinstance(denoise, SteppedDenoiser):
        denoise.begin_step(at.index)
    denoised = look(denoise, x, at.sigma)
    if on_step is not None:
        on_step(Step(at.index, at.total, at.sigma, x, denoised))
    return denoised


def look(denoise: Denoiser, x: Tensor, sigma: float) -> Tensor:
    """The clean estimate of x (B, C, h, w) at any noise level above 0; a second look within a step is not reported."""
    # On the CPU, where the denoiser reads it: no step waits for the device.
    return denoise(x, torch.full((len(x),), sigma, dtype=torch.float64))


def down_and_up(sigma: float, sigma_next: float) -> tuple[float, float]:
    """An ancestral step's two parts: the level to go down to, and the noise to add, sigma_down^2 + sigma_up^2 =
    sigma_next^2. This is DDPM's posterior (arXiv:2006.11239, eq. 7) in sigma coordinates."""
    return sigma_next**2 / sigma, sigma_next * (1 - (sigma_next / sigma) ** 2) ** 0.5

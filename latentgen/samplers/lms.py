"""Linear multistep (Adams-Bashforth) on the probability-flow ODE over uneven noise levels.

k-diffusion's `sample_lms`: the slope dx/dsigma over a step is the polynomial in sigma through the last four slopes, or
as many as there are, and x moves by its integral. PLMS (arXiv:2202.09778) is the same idea for even timesteps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.samplers.step import NoiseFn, OnStep, estimate, transitions

ORDER = 4


def lms(denoise: Denoiser, x: Tensor, sigmas: Tensor, *, noise: NoiseFn, on_step: OnStep | None = None) -> Tensor:
    """x (B, C, h, w) at sigmas[0] to x at sigmas[-1]; sigmas (n+1,). Deterministic: draws no noise."""
    past: list[tuple[float, Tensor]] = []  # levels and slopes there, the latest first
    for at in transitions(sigmas):
        d = (x - estimate(denoise, x, at, on_step)) / at.sigma
        past = [(at.sigma, d), *past[: ORDER - 1]]
        weights = integrated_lagrange([sigma for sigma, _ in past], at.sigma, at.sigma_next)
        for weight, (_, slope) in zip(weights, past, strict=True):
            x = x + weight * slope
    return x


def integrated_lagrange(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The integral from start to end of each Lagrange basis polynomial over up to four nodes.

    By Gauss's formula with two points, which is exact up to the third degree.
    """
    assert len(nodes) <= ORDER, "two points do not integrate a polynomial of higher degree"
    middle, half = (start + end) / 2, (end - start) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return [half * sum(_lagrange(nodes, k, point) for point in points) for k in range(len(nodes))]


def _lagrange(nodes: Sequence[float], k: int, at: float) -> float:
    """The polynomial that is 1 at nodes[k] and 0 at the others."""
    return math.prod((at - node) / (nodes[k] - node) for j, node in enumerate(nodes) if j != k)

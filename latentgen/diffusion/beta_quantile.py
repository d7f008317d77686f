"""The quantile function of the symmetric beta distribution, so that one schedule does not need scipy."""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEWTON_STEPS = 8
SERIES_TERMS = 80
"""The series is used up to x = 0.6, where its terms fall below 0.6**80 = 1e-18."""


def symmetric_beta_quantile(p: Tensor, a: float) -> Tensor:
    """x of p's shape, float64, with P(X <= x) = p for X ~ Beta(a, a), for p in [0, 1] and a in (0, 1].

    For p up to 1/2, the rest being its mirror image, by Newton's method in y = x^a. There the distribution function
    (NIST DLMF 8.17.7) is y / (a B(a, a)) times a power series in x with positive terms: convex, and never below
    y / (a B). So Newton's method from y = p a B, which is not below the root, goes down to it without overshooting.
    """
    assert 0 < a <= 1, f"a = {a} is outside (0, 1]"
    p = p.to(torch.float64)
    lower = torch.minimum(p, 1.0 - p)
    scale = a * math.exp(2.0 * math.lgamma(a) - math.lgamma(2.0 * a))  # a B(a, a)
    y = lower * scale
    for _ in range(NEWTON_STEPS):
        x = y ** (1.0 / a)
        # d/dy of the distribution function is (1 - x)^(a - 1) / (a B)
        y = y - (y * _series(x, a) / scale - lower) * scale * (1.0 - x) ** (1.0 - a)
    x = y ** (1.0 / a)
    return torch.where(p <= 0.5, x, 1.0 - x)


def _series(x: Tensor, a: float) -> Tensor:
    """2F1(a, 1 - a; a + 1; x): the sum over k of (1 - a)_k / k! a / (a + k) x^k."""
    total, power = torch.ones_like(x), torch.ones_like(x)
    for k in range(1, SERIES_TERMS):
        power = power * x * ((k - a) / k)
        total = total + power * (a / (a + k))
    return total

"""PSNR and SSIM against their formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from latentgen.images.similarity import PSNR_LIMIT_DB, psnr_db, ssim


def pictures() -> tuple[torch.Tensor, torch.Tensor]:
    """A smooth one and the same with noise, (24, 31, 3) uint8."""
    generator = np.random.default_rng(0)
    smooth = np.linspace(0, 255, 24)[:, None, None] * np.linspace(0.3, 1, 31)[None, :, None] * np.ones(3)
    noisy = (smooth + generator.normal(0, 25, smooth.shape)).clip(0, 255)
    return torch.from_numpy(smooth.astype(np.uint8)), torch.from_numpy(noisy.astype(np.uint8))


def test_psnr() -> None:
    a = torch.full((4, 5, 3), 100, dtype=torch.uint8)
    assert psnr_db(a, a + 13) == pytest.approx(20 * np.log10(255 / 13))
    assert psnr_db(a, a) == PSNR_LIMIT_DB
    assert psnr_db(torch.zeros_like(a), torch.full_like(a, 255)) == 0


def test_ssim_is_its_equation() -> None:
    """Wang et al. 2004, eq. 13 to 16: weighted moments of every 11 x 11 window, one window after another."""
    a, b = pictures()
    x, y = np.meshgrid(np.arange(-5, 6), np.arange(-5, 6))
    weights = np.exp(-(x**2 + y**2) / (2 * 1.5**2))
    weights /= weights.sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    values: list[float] = []
    first, second = a.numpy().astype(float), b.numpy().astype(float)
    for top in range(24 - 10):
        for left in range(31 - 10):
            for channel in range(3):
                p = first[top : top + 11, left : left + 11, channel]
                q = second[top : top + 11, left : left + 11, channel]
                mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
                variance_p, variance_q = (weights * (p - mean_p) ** 2).sum(), (weights * (q - mean_q) ** 2).sum()
                covariance = (weights * (p - mean_p) * (q - mean_q)).sum()
                similar = (2 * mean_p * mean_q + c1) * (2 * covariance + c2)
                values.append(similar / ((mean_p**2 + mean_q**2 + c1) * (variance_p + variance_q + c2)))
    assert ssim(a, b) == pytest.approx(np.mean(values), rel=1e-9)
    assert ssim(a, a) == pytest.approx(1)
    assert ssim(a, b) < 0.9

"""How alike two pictures are: PSNR and SSIM, on bytes, computed in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

PSNR_LIMIT_DB = 100.0
"""PSNR of equal pictures, which have no error to take a logarithm of."""
SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_K1, SSIM_K2 = 0.01, 0.03


def psnr_db(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of two pictures (H, W, 3) uint8, in dB, at most `PSNR_LIMIT_DB`."""
    mse = float((a.double() - b.double()).square().mean())
    return PSNR_LIMIT_DB if mse == 0 else min(PSNR_LIMIT_DB, 10 * float(torch.log10(torch.tensor(255.0**2 / mse))))


def ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two pictures (H, W, 3) uint8 with sides of at least 11 px; 1 for equal ones.

    Source: Wang et al. 2004, "Image quality assessment: from error visibility to structural similarity", eq. 13: a
    Gaussian window of 11 px and sigma 1.5, K1 0.01, K2 0.03; where the whole window lies in the picture; mean over the
    three channels.
    """
    x, y = (picture.double().permute(2, 0, 1)[:, None] for picture in (a, b))  # (3, 1, H, W)
    offsets = torch.arange(SSIM_WINDOW, dtype=torch.float64, device=a.device) - SSIM_WINDOW // 2
    bell = torch.exp(-offsets.square() / (2 * SSIM_SIGMA**2))
    bell = bell / bell.sum()

    def blurred(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, bell[None, None, :, None]), bell[None, None, None, :])

    mean_x, mean_y = blurred(x), blurred(y)
    variance_x, variance_y = blurred(x * x) - mean_x.square(), blurred(y * y) - mean_y.square()
    covariance = blurred(x * y) - mean_x * mean_y
    c1, c2 = (SSIM_K1 * 255) ** 2, (SSIM_K2 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
    return float((luminance * structure).mean())

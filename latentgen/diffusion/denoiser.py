"""From a network that predicts eps, v or x_0 to a denoiser: `(x, sigma) -> x_0`, all that a sampler sees.

EDM's preconditioning (arXiv:2206.00364, eq. 7) with the coefficients of a variance-preserving network:

    D(x, sigma) = c_skip x + c_out F(c_in x, t(sigma)),    c_in = 1 / sqrt(1 + sigma^2)

x is variance-exploding, x = x_0 + sigma eps, so c_in x is DDPM's x_t with 1 / (1 + sigma^2) = abar_t.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from latentgen.config import PredictionType
from latentgen.diffusion.schedule import NoiseSchedule

Network = Callable[[Tensor, Tensor], Tensor]
"""network(x_t (B, C, h, w), t (B,) float32) -> prediction (B, C, h, w). Text is bound in beforehand."""


class Denoiser(Protocol):
    """The one contract between a model and a sampler."""

    def __call__(self, x: Tensor, sigma: Tensor, /) -> Tensor:
        """x = x_0 + sigma eps, (B, C, h, w), and sigma (B,) to the clean estimate x_0, (B, C, h, w)."""
        ...


class PreconditionedDenoiser(ABC):
    """D(x, sigma) around a network; a subclass says what the network predicts through c_skip and c_out."""

    def __init__(self, network: Network, schedule: NoiseSchedule) -> None:
        self.network = network
        self.schedule = schedule

    @staticmethod
    @abstractmethod
    def skip_and_out(sigma: Tensor) -> tuple[Tensor, Tensor]:
        """c_skip and c_out of each sigma."""

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == x.shape[:1], f"one sigma per sample: {tuple(sigma.shape)} for {len(x)} samples"
        # float64 on the CPU: a handful of numbers, and 1 + sigma^2 needs the digits.
        sigma = sigma.detach().to("cpu").to(torch.float64)
        c_skip, c_out = self.skip_and_out(sigma)
        c_in = (1.0 + sigma**2).rsqrt()
        t = self.schedule.sigma_to_t(sigma).to(torch.float32).to(x.device, non_blocking=may_run_ahead(x.device))
        prediction = self.network(_per_sample(c_in, x) * x, t)
        return _per_sample(c_skip, x) * x + _per_sample(c_out, x) * prediction.to(x.dtype)


class EpsDenoiser(PreconditionedDenoiser):
    """The network predicts eps: x_0 = x - sigma eps (DDPM eq. 15)."""

    @staticmethod
    def skip_and_out(sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(sigma), -sigma


class VDenoiser(PreconditionedDenoiser):
    """The network predicts v: x_0 = sqrt(abar) x_t - sqrt(1 - abar) v (arXiv:2202.00512, appendix D)."""

    @staticmethod
    def skip_and_out(sigma: Tensor) -> tuple[Tensor, Tensor]:
        return 1.0 / (1.0 + sigma**2), -sigma * (1.0 + sigma**2).rsqrt()


class SampleDenoiser(PreconditionedDenoiser):
    """The network predicts x_0 itself."""

    @staticmethod
    def skip_and_out(sigma: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(sigma), torch.ones_like(sigma)


DENOISERS: dict[PredictionType, type[PreconditionedDenoiser]] = {
    "epsilon": EpsDenoiser,
    "v_prediction": VDenoiser,
    "sample": SampleDenoiser,
}


def make_denoiser(network: Network, schedule: NoiseSchedule, prediction_type: PredictionType) -> Denoiser:
    return DENOISERS[prediction_type](network, schedule)


def _per_sample(coefficient: Tensor, x: Tensor) -> Tensor:
    """(B,) float64 to (B, 1, ...) of x's dtype, on its device, which is not waited for."""
    placed = coefficient.to(x.dtype).to(x.device, non_blocking=may_run_ahead(x.device))
    return placed.view(-1, *(1,) * (x.ndim - 1))


def may_run_ahead(device: torch.device) -> bool:
    """Whether a copy to the device need not be waited for. On MPS it reads its source later, when it may be gone."""
    return device.type == "cuda"

"""The forward process in numbers: betas, their running product, and the noise levels a sampler walks down.

Notation is DDPM's (arXiv:2006.11239): abar_t = prod (1 - beta_s), x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with
timesteps counted 0 .. T-1 as the published configs do (the paper counts 1 .. T). A sampler works in sigma coordinates
(EDM, arXiv:2206.00364): x_t / sqrt(abar_t) = x_0 + sigma_t eps with sigma_t = sqrt((1 - abar_t) / abar_t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentgen.config import BetaSchedule, DiffusionConfig, TimestepSpacing
from latentgen.errors import InputError

MAX_BETA = 0.999
"""The cosine schedule's cap (arXiv:2102.09672, section 3.2), so that the last step is not singular."""

ZERO_SNR_SIGMA = math.sqrt((1 - 2.0**-24) / 2.0**-24)
"""4096, where the infinite sigma of a zero-terminal-SNR end is sampled: abar 2**-24, as in the published samplers."""

KARRAS_RHO = 7.0
"""arXiv:2206.00364, table 1."""

SAME_SIGMA = 2.0**-22
"""Two sigmas this close in logarithm are one: float32 moves a logarithm by 2**-24, neighbours lie over 2**-9 apart."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    """A discrete variance-preserving schedule of T steps. The tables are float64 and live on the CPU."""

    betas: Tensor
    """(T,) variance added at each step."""
    timestep_spacing: TimestepSpacing = "leading"
    """The spacing the model is sampled with; `karras` takes its two ends from it."""
    steps_offset: int = 0
    """Added to `leading` timesteps (1 for SD 1.x)."""
    alphas_cumprod: Tensor = field(init=False)
    """(T,) abar: how much of the picture's variance is left."""
    sigmas: Tensor = field(init=False)
    """(T,) noise level relative to the picture, ascending. Infinite at T-1 under zero terminal SNR."""

    def __post_init__(self) -> None:
        betas = self.betas.to("cpu", torch.float64)
        assert bool(((betas > 0) & (betas <= 1)).all()), "betas lie in (0, 1]"
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        object.__setattr__(self, "betas", betas)
        object.__setattr__(self, "alphas_cumprod", alphas_cumprod)
        object.__setattr__(self, "sigmas", ((1.0 - alphas_cumprod) / alphas_cumprod).sqrt())

    @classmethod
    def from_config(cls, config: DiffusionConfig) -> NoiseSchedule:
        betas = make_betas(config.beta_schedule, config.num_train_timesteps, config.beta_start, config.beta_end)
        if config.rescale_betas_zero_snr:
            betas = rescale_zero_terminal_snr(betas)
        return cls(betas, config.timestep_spacing, config.steps_offset)

    @property
    def num_timesteps(self) -> int:
        """T."""
        return len(self.betas)

    # Training side: the closed forms at timesteps t (B,)

    def add_noise(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """x_t (B, ...) ~ q(x_t | x_0), DDPM eq. 4: sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps."""
        return self._combine(latents, eps, t, signal_of=latents, noise_of=eps, sign=1.0)

    def velocity(self, latents: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """v_t (B, ...), arXiv:2202.00512 section 4: sqrt(abar_t) eps - sqrt(1 - abar_t) x_0."""
        return self._combine(latents, eps, t, signal_of=eps, noise_of=latents, sign=-1.0)

    def snr(self, t: Tensor) -> Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t), (B,) float32 on t's device; 0 at a zero-terminal-SNR end."""
        return (self.alphas_cumprod / (1.0 - self.alphas_cumprod)).to(torch.float32).to(t.device)[t]

    def _combine(
        self, latents: Tensor, eps: Tensor, t: Tensor, *, signal_of: Tensor, noise_of: Tensor, sign: float
    ) -> Tensor:
        """sqrt(abar_t) signal_of + sign sqrt(1 - abar_t) noise_of, in float32 or better, in latents' dtype."""
        assert latents.shape == eps.shape, f"latents {tuple(latents.shape)} and eps {tuple(eps.shape)} differ"
        assert t.shape == latents.shape[:1], f"one timestep per sample: t {tuple(t.shape)} for {len(latents)} samples"
        dtype = torch.promote_types(latents.dtype, torch.float32)
        column = (-1,) + (1,) * (latents.ndim - 1)
        signal = self.alphas_cumprod.sqrt().to(dtype).to(t.device)[t].view(column)
        noise = (sign * (1.0 - self.alphas_cumprod).sqrt()).to(dtype).to(t.device)[t].view(column)
        return (signal * signal_of + noise * noise_of).to(latents.dtype)

    # Sampling side: which noise levels to visit

    def timesteps(self, n: int, spacing: TimestepSpacing) -> Tensor:
        """n timesteps, (n,) int64 descending, as table 2 of arXiv:2305.08891 names the spacings.

        `leading` with n near T would leave the table by its offset; the offset is then cut to what fits.
        """
        T = self.num_timesteps
        if not 1 <= n <= T:
            raise InputError(
                f"{n} sampling steps do not fit this model: its schedule has {T}", hint=f"use 1..{T} steps"
            )
        if spacing == "leading":
            ascending = torch.arange(n) * (T // n)
            ascending = ascending + min(self.steps_offset, T - 1 - int(ascending[-1]))
        elif spacing == "trailing":
            # T, T - T/n, T - 2T/n, ... rounded, less one: always starts at T-1. The stride is T/n as it comes out of
            # (T - T/n) - T in float64, so that halves round as in the published samplers, which step with numpy.arange.
            descending = T + torch.arange(n, dtype=torch.float64) * ((T - T / n) - T)
            ascending = descending.round().to(torch.int64).flip(0) - 1
        else:
            ascending = (torch.arange(n, dtype=torch.float64) * ((T - 1) / max(n - 1, 1))).round().to(torch.int64)
        return ascending.flip(0)

    def inference_sigmas(self, n: int, schedule: str) -> Tensor:
        """Noise levels for n steps: (n+1,) float32, descending, the last one 0.

        `leading`, `trailing`, `linspace` take the table's sigma at those timesteps. `karras` is EDM eq. 5 with rho 7
        between the first and the last sigma of the model's own spacing. Where the schedule has zero terminal SNR its
        infinite sigma is replaced by 4096 (abar 2**-24): x = x_0 + sigma eps has no meaning at infinity, and at 4096
        the picture's share of the network's input, 2**-12, is below what the network can see. The timestep stays T-1.
        """
        if schedule == "karras":
            ends = self._finite_sigmas[self.timesteps(n, self.timestep_spacing)]
            ramp = torch.linspace(0, 1, n, dtype=torch.float64)
            hottest, coldest = ends[0] ** (1 / KARRAS_RHO), ends[-1] ** (1 / KARRAS_RHO)
            levels = (hottest + ramp * (coldest - hottest)) ** KARRAS_RHO
        elif schedule in ("leading", "trailing", "linspace"):
            levels = self._finite_sigmas[self.timesteps(n, schedule)]
        else:
            raise InputError(f"no such sigma schedule: {schedule!r}", hint="leading, trailing, linspace or karras")
        return torch.cat([levels, levels.new_zeros(1)]).to(torch.float32)

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The timestep a noise level belongs to: float64 of sigma's shape, on the CPU, clamped to [0, T-1].

        Linear between the table's entries in log sigma. A sigma that is a table entry up to float32 rounding gives
        exactly that integer, so the network sees the timesteps that it was trained on.
        """
        table = self._finite_sigmas.log()
        query = sigma.detach().to("cpu").to(torch.float64).log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, query).clamp(min(1, len(table) - 1))
        below = (above - 1).clamp(0)
        weight = (query - table[below]) / (table[above] - table[below]).clamp(torch.finfo(torch.float64).tiny)
        t = below + weight * (above - below)
        nearest = t.round()
        return torch.where((query - table[nearest.long()]).abs() < SAME_SIGMA, nearest, t)

    @property
    def _finite_sigmas(self) -> Tensor:
        """(T,) the table with an infinite last entry brought down to `ZERO_SNR_SIGMA`, still above its neighbour."""
        if not torch.isinf(self.sigmas[-1]):
            return self.sigmas
        last = self.sigmas.new_tensor([max(ZERO_SNR_SIGMA, 1.01 * float(self.sigmas[-2]))])
        return torch.cat([self.sigmas[:-1], last])


def make_betas(schedule: BetaSchedule, num_timesteps: int, beta_start: float, beta_end: float) -> Tensor:
    """(T,) float64 betas of a named schedule.

    `linear` is DDPM's (section 4), `scaled_linear` is linear in sqrt(beta) (latent diffusion, `make_beta_schedule`),
    `squaredcos_cap_v2` is the cosine schedule of arXiv:2102.09672, eq. 17, which has no end points to choose.
    """
    if schedule == "linear":
        return torch.linspace(beta_start, beta_end, num_timesteps, dtype=torch.float64)
    if schedule == "scaled_linear":
        return torch.linspace(beta_start**0.5, beta_end**0.5, num_timesteps, dtype=torch.float64) ** 2
    u = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    alphas_cumprod = torch.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1.0 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(max=MAX_BETA)


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas (T,) whose last step holds no signal: arXiv:2305.08891, algorithm 1.

    sqrt(abar) is shifted so that it ends at 0 and scaled so that it starts where it did.
    """
    root = torch.cumprod(1.0 - betas, dim=0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    alphas_cumprod = root**2
    alphas = torch.cat([alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]])
    return 1.0 - alphas

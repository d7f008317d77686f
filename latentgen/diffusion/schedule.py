"""The forward process in numbers: betas, their running product, and the noise levels a sampler walks down.

Notation is DDPM's (arXiv:2006.11239): abar_t = prod (1 - beta_s), x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, with
timesteps counted 0 .. T-1 as the published configs do (the paper counts 1 .. T). A sampler works in sigma coordinates
(EDM, arXiv:2206.00364): x_t / sqrt(abar_t) = x_0 + sigma_t eps with sigma_t = sqrt((1 - abar_t) / abar_t).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentgen.config import BetaSchedule, DiffusionConfig, TimestepSpacing
from latentgen.diffusion.beta_quantile import symmetric_beta_quantile
from latentgen.errors import InputError

MAX_BETA = 0.999
"""The cosine schedule's cap (arXiv:2102.09672, section 3.2), so that the last step is not singular."""

ZERO_SNR_SIGMA = math.sqrt((1 - 2.0**-24) / 2.0**-24)
"""4096, where the infinite sigma of a zero-terminal-SNR end is sampled: abar 2**-24, as in the published samplers."""

KARRAS_RHO = 7.0
"""arXiv:2206.00364, table 1."""

BETA_SHAPE = 0.6
"""Both parameters of the beta schedule's distribution, as in ComfyUI, A1111 and diffusers."""

ALIGN_YOUR_STEPS = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
"""Sigmas of arXiv:2404.14507 for SD 1.5, from the authors' page."""

SAME_SIGMA = 2.0**-22
"""Two sigmas this close in logarithm are one: float32 moves a logarithm by 2**-24, neighbours lie over 2**-9 apart."""


@dataclass(frozen=True, slots=True, eq=False)
class NoiseSchedule:
    """A discrete variance-preserving schedule of T steps. The tables are float64 and live on the CPU."""

    betas: Tensor
    """(T,) variance added at each step."""
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
        return cls(betas, config.steps_offset)

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
        self._check_steps(n)
        T = self.num_timesteps
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
        """Noise levels for n steps: (n+1,) float32, descending, the last one 0. `LEVELS` has the schedules by name.

        Where the model has zero terminal SNR its infinite sigma is replaced by 4096 (abar 2**-24): x = x_0 + sigma eps
        has no meaning at infinity, and at 4096 the picture's share of the network's input, 2**-12, is below what the
        network can see. The timestep stays T-1. Raises InputError for an unknown schedule, for n outside 1..T, and for
        `align_your_steps` where the model's noise levels are not those it was found for.
        """
        if schedule not in LEVELS:
            raise InputError(f"no such sigma schedule: {schedule!r}", hint=f"choose from {', '.join(LEVELS)}")
        self._check_steps(n)
        levels = LEVELS[schedule](self, n)
        return torch.cat([levels, levels.new_zeros(1)]).to(torch.float32)

    @staticmethod
    def truncate(sigmas: Tensor, strength: float) -> Tensor:
        """The tail of sigmas (n+1,) that runs from a picture instead of from noise: (m+1,), m = int(n strength).

        strength in (0, 1]: 1 is all n steps, and one step always remains. The first entry is the level to which the
        picture is noised. int() cuts as the published image-to-image pipelines do: of 30 steps, 0.75 leaves 22.
        """
        assert 0 < strength <= 1, f"strength {strength} is outside (0, 1]"
        steps = len(sigmas) - 1
        return sigmas[steps - max(int(steps * strength), 1) :]

    def sigma_to_t(self, sigma: Tensor) -> Tensor:
        """The timestep a noise level belongs to: float64 of sigma's shape, on the CPU, clamped to [0, T-1].

        Linear between the table's entries in log sigma. A sigma that is a table entry up to float32 rounding gives
        exactly that integer, so the network sees the timesteps that it was trained on.
        """
        table = self.finite_sigmas.log()
        query = sigma.detach().to("cpu").to(torch.float64).log().clamp(table[0], table[-1])
        above = torch.searchsorted(table, query).clamp(min(1, len(table) - 1))
        below = (above - 1).clamp(0)
        weight = (query - table[below]) / (table[above] - table[below]).clamp(torch.finfo(torch.float64).tiny)
        t = below + weight * (above - below)
        nearest = t.round()
        return torch.where((query - table[nearest.long()]).abs() < SAME_SIGMA, nearest, t)

    def t_to_sigma(self, t: Tensor) -> Tensor:
        """The noise level of timesteps t in [0, T-1], whole or not: float64 of t's shape, inverse of `sigma_to_t`."""
        table = self.finite_sigmas
        below = t.floor().long().clamp(0, len(table) - 1)
        above = (below + 1).clamp(max=len(table) - 1)
        return table[below] * (table[above] / table[below]) ** (t - below)

    def _check_steps(self, n: int) -> None:
        T = self.num_timesteps
        if not 1 <= n <= T:
            raise InputError(
                f"{n} sampling steps do not fit this model: its schedule has {T}", hint=f"use 1..{T} steps"
            )

    @property
    def finite_sigmas(self) -> Tensor:
        """(T,) the table with an infinite last entry brought down to `ZERO_SNR_SIGMA`, still above its neighbour."""
        if not torch.isinf(self.sigmas[-1]):
            return self.sigmas
        last = self.sigmas.new_tensor([max(ZERO_SNR_SIGMA, 1.01 * float(self.sigmas[-2]))])
        return torch.cat([self.sigmas[:-1], last])


# Where n steps are taken: n levels (n,) float64, descending, without the 0 at the end


def _of_spacing(spacing: TimestepSpacing) -> Callable[[NoiseSchedule, int], Tensor]:
    """The table's sigma at the whole timesteps of a spacing."""
    return lambda model, n: model.finite_sigmas[model.timesteps(n, spacing)]


def _karras(model: NoiseSchedule, n: int) -> Tensor:
    """EDM (arXiv:2206.00364), eq. 5: even in sigma^(1/7) between the ends of the model's table.

    As k-diffusion, A1111, ComfyUI and diffusers' DPMSolverMultistepScheduler have it. diffusers' Euler takes the ends
    of its timesteps, so that on SD 1.5 ten steps begin at sigma 8.4 instead of 14.6.
    """
    hottest, coldest = (end ** (1 / KARRAS_RHO) for end in _ends(model))
    return (hottest + torch.linspace(0, 1, n, dtype=torch.float64) * (coldest - hottest)) ** KARRAS_RHO


def _exponential(model: NoiseSchedule, n: int) -> Tensor:
    """Even in log sigma between the ends of the model's table."""
    hottest, coldest = _ends(model)
    return hottest * (coldest / hottest) ** torch.linspace(0, 1, n, dtype=torch.float64)


def _uniform(model: NoiseSchedule, n: int) -> Tensor:
    """Even in t from T-1 to 0, both included, not rounded: k-diffusion's own choice, A1111's "Uniform"."""
    return model.t_to_sigma(torch.linspace(model.num_timesteps - 1, 0, n, dtype=torch.float64))


def _sgm_uniform(model: NoiseSchedule, n: int) -> Tensor:
    """Even in t from T-1 to 0, not rounded, with 0 itself left to the clean end: as Stability's sgm steps."""
    return model.t_to_sigma(torch.linspace(model.num_timesteps - 1, 0, n + 1, dtype=torch.float64)[:-1])


def _simple(model: NoiseSchedule, n: int) -> Tensor:
    """Every (T/n)th entry of the table counted from its end, cut to whole ones: ComfyUI's and A1111's "Simple"."""
    T = model.num_timesteps
    return model.finite_sigmas[torch.tensor([T - 1 - int(step * (T / n)) for step in range(n)])]


def _beta(model: NoiseSchedule, n: int) -> Tensor:
    """Dense at both ends: quantiles of Beta(0.6, 0.6) as timesteps (arXiv:2407.12173; ComfyUI's "beta").

    Timesteps are not rounded, so that many steps stay different. diffusers and A1111 spread sigma itself by the same
    quantiles, which on a schedule that reaches sigma 20000 leaves no level where a picture takes shape.
    """
    quantiles = symmetric_beta_quantile(1 - torch.arange(n, dtype=torch.float64) / n, BETA_SHAPE)
    return model.t_to_sigma(quantiles * (model.num_timesteps - 1))


def _align_your_steps(model: NoiseSchedule, n: int) -> Tensor:
    """The levels found for SD 1.5 at ten steps (arXiv:2404.14507), log-linear between them for other numbers of steps.

    Ten steps are the published ones: the eleventh level gives way to 0.
    """
    known = torch.tensor(ALIGN_YOUR_STEPS, dtype=torch.float64)
    lowest, highest = float(model.finite_sigmas[0]), float(model.finite_sigmas[-1])
    if abs(math.log(highest / float(known[0]))) > 0.05 or abs(math.log(lowest / float(known[-1]))) > 0.05:
        raise InputError(
            "align_your_steps is for Stable Diffusion's noise levels, sigma 0.029 to 14.6; "
            f"this model has {lowest:.2g} to {highest:.3g}",
            hint="choose another schedule, such as trailing or karras",
        )
    place = torch.linspace(0, len(known) - 1, n + 1, dtype=torch.float64)[:-1]
    below = place.floor().long()
    return known[below] * (known[below + 1] / known[below]) ** (place - below)


def _ends(model: NoiseSchedule) -> tuple[Tensor, Tensor]:
    """The noisiest and the cleanest level that the model was trained on."""
    return model.finite_sigmas[-1], model.finite_sigmas[0]


LEVELS: dict[str, Callable[[NoiseSchedule, int], Tensor]] = {
    "karras": _karras,
    "exponential": _exponential,
    "uniform": _uniform,
    "sgm_uniform": _sgm_uniform,
    "simple": _simple,
    "beta": _beta,
    "align_your_steps": _align_your_steps,
    "trailing": _of_spacing("trailing"),
    "leading": _of_spacing("leading"),
    "linspace": _of_spacing("linspace"),
}
"""The schedules that `samplers/registry.py` describes: names to how n levels are placed."""


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

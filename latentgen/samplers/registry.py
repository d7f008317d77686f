"""The samplers and noise schedules by name. Importable without torch: a sampler's module is loaded when asked for.

To add one: a file with one function, an entry here, and a case in `tests/oracle/test_samplers.py`.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from latentgen.config import ModelConfig
from latentgen.errors import InputError
from latentgen.request import RequestError

if TYPE_CHECKING:
    from latentgen.samplers.step import Sampler


@dataclass(frozen=True, slots=True)
class SamplerEntry:
    """One sampler; its function is `latentgen.samplers.<name>.<name>`."""

    name: str
    title: str
    """What AUTOMATIC1111 calls it, in its menus and in the metadata of pictures."""
    summary: str
    """When to use it, in one line."""
    aliases: tuple[str, ...] = ()
    """What k-diffusion, diffusers, InvokeAI and ComfyUI call it, where that is another spelling."""
    accepts_eta: bool = False
    stochastic: bool = False
    """Whether it adds noise on the way (DDIM: only where eta > 0), so that more steps give another picture."""
    evaluations_per_step: int = 1
    """Times the network is asked in a step. Steps are intervals between noise levels, as in k-diffusion, A1111 and
    diffusers, so 20 steps of a sampler with 2 cost 39 evaluations: a step to 0 needs one."""
    schedule: str = "uniform"
    """What to take with it on Stable Diffusion's noise levels: what A1111's "Automatic" does, but for unipc and lcm,
    which place their levels themselves there. With even timesteps the multistep ones extrapolate too far over the long
    last steps."""


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """One way of placing the noise levels; `NoiseSchedule.inference_sigmas` computes it."""

    name: str
    title: str
    summary: str
    aliases: tuple[str, ...] = ()


SAMPLERS: dict[str, SamplerEntry] = {
    entry.name: entry
    for entry in (
        SamplerEntry(
            "dpmpp_2m",
            "DPM++ 2M",
            "second order, deterministic: the best picture for 10 to 30 steps, the usual choice",
            aliases=("dpm++_2m", "k_dpmpp_2m", "dpmsolver++", "dpm_solver_multistep"),
            schedule="karras",
        ),
        SamplerEntry(
            "dpmpp_2m_sde",
            "DPM++ 2M SDE",
            "DPM++ 2M that adds noise at every step: more detail from 20 to 50 steps",
            aliases=("k_dpmpp_2m_sde", "sde_dpmsolver++"),
            stochastic=True,
            schedule="exponential",
        ),
        SamplerEntry(
            "dpmpp_3m_sde",
            "DPM++ 3M SDE",
            "DPM++ 2M SDE with a parabola through three estimates: for 30 steps and more, with exponential",
            aliases=("k_dpmpp_3m_sde",),
            stochastic=True,
            schedule="exponential",
        ),
        SamplerEntry(
            "dpmpp_sde",
            "DPM++ SDE",
            "adds noise and looks twice a step: detailed pictures from 8 to 20 steps",
            aliases=("k_dpmpp_sde", "dpm_solver_sde"),
            stochastic=True,
            evaluations_per_step=2,
            schedule="karras",
        ),
        SamplerEntry(
            "dpmpp_2s_a",
            "DPM++ 2S a",
            "Euler a that looks twice a step: fewer steps for the same steadiness",
            aliases=("k_dpmpp_2s_a", "dpmpp_2s_ancestral"),
            stochastic=True,
            evaluations_per_step=2,
            schedule="karras",
        ),
        SamplerEntry(
            "unipc",
            "UniPC",
            "DPM++ 2M with a free correction of every step, deterministic: for 8 to 20 steps",
            aliases=("uni_pc", "uni_pc_bh2", "unipc_multistep"),
            schedule="karras",
        ),
        SamplerEntry(
            "euler",
            "Euler",
            "first order, deterministic: simple and stable, 20 to 50 steps",
            aliases=("k_euler", "euler_discrete"),
        ),
        SamplerEntry(
            "euler_a",
            "Euler a",
            "adds noise at every step: varied and lively pictures that change with the number of steps",
            aliases=("k_euler_a", "k_euler_ancestral", "euler_ancestral", "euler_ancestral_discrete"),
            stochastic=True,
        ),
        SamplerEntry(
            "heun",
            "Heun",
            "Euler that looks twice a step, second order, deterministic: precise from 15 steps",
            aliases=("k_heun", "heun_discrete"),
            evaluations_per_step=2,
        ),
        SamplerEntry(
            "dpm2",
            "DPM2",
            "DPM-Solver-2, deterministic: as Heun, with its second look in the middle of the step",
            aliases=("k_dpm_2", "dpm_2", "kdpm_2", "kdpm2_discrete"),
            evaluations_per_step=2,
            schedule="karras",
        ),
        SamplerEntry(
            "dpm2_a",
            "DPM2 a",
            "DPM2 with noise added at every step, as Euler a adds it",
            aliases=("k_dpm_2_a", "dpm_2_ancestral", "k_dpm_2_ancestral", "kdpm_2_a", "kdpm2_ancestral_discrete"),
            stochastic=True,
            evaluations_per_step=2,
            schedule="karras",
        ),
        SamplerEntry(
            "lms",
            "LMS",
            "fourth-order multistep, deterministic: for reproducing early Stable Diffusion pictures, 40 steps",
            aliases=("k_lms", "lms_discrete"),
        ),
        SamplerEntry(
            "ddim",
            "DDIM",
            "Euler with a dial: eta 0 is deterministic, eta 1 is DDPM; for reproducing DDIM results",
            accepts_eta=True,
            stochastic=True,
            schedule="leading",
        ),
        SamplerEntry(
            "ddpm",
            "DDPM",
            "the original ancestral process: for hundreds of steps, up to every step the model was trained on",
            stochastic=True,
            schedule="leading",
        ),
        SamplerEntry(
            "lcm",
            "LCM",
            "for models and LoRAs distilled to a consistency model, 4 to 8 steps with trailing, guidance 1 to 2",
            stochastic=True,
            schedule="trailing",
        ),
    )
}

SCHEDULES: dict[str, ScheduleEntry] = {
    entry.name: entry
    for entry in (
        ScheduleEntry(
            "karras", "Karras", "dense near the clean end (rho 7): for few steps with dpmpp_2m or euler", aliases=("k",)
        ),
        ScheduleEntry("exponential", "Exponential", "even in log sigma: denser still, for the SDE samplers"),
        ScheduleEntry(
            "uniform",
            "Uniform",
            "even timesteps between the first and the last, not rounded: k-diffusion's default",
            aliases=("normal",),
        ),
        ScheduleEntry("sgm_uniform", "SGM Uniform", "as uniform, but for n + 1 of which the clean end is the last"),
        ScheduleEntry("simple", "Simple", "even entries of the model's table counted from its noisiest"),
        ScheduleEntry("beta", "Beta", "dense at both ends of the timesteps (beta distribution, 0.6)"),
        ScheduleEntry(
            "align_your_steps",
            "Align Your Steps",
            "levels found for SD 1.5 at 10 steps; for models with its noise levels only",
            aliases=("ays",),
        ),
        ScheduleEntry("trailing", "Trailing", "even timesteps from the very last one: for zero-terminal-SNR models"),
        ScheduleEntry("leading", "Leading", "even timesteps from the first one: as SD 1.x and 2.x were published"),
        ScheduleEntry("linspace", "Linspace", "even timesteps that include both the first and the last, rounded"),
    )
}

NEAREST: dict[str, tuple[str, ...]] = {
    "plms": ("lms", "dpmpp_2m"),
    "pndm": ("lms", "dpmpp_2m"),
    "ipndm": ("lms", "dpmpp_2m"),
    "deis": ("unipc", "dpmpp_2m"),
    "dpm_fast": ("dpm2", "dpmpp_2m"),
    "dpm_adaptive": ("heun", "dpm2"),
    "restart": ("dpmpp_sde", "heun"),
    "tcd": ("lcm",),
}
"""Samplers people know that are not here, and what to take in their place."""


def resolve_sampler(name: str) -> tuple[str, str | None]:
    """Our name of a sampler, and the schedule that the name carries with it, if any: "DPM++ 2M Karras" has both.

    Also read: a diffusers class ("HeunDiscreteScheduler"), k-diffusion's function ("sample_heun") and InvokeAI's
    endings ("heun_k" is Heun with Karras).
    """
    key = _key(name).removesuffix("scheduler").removeprefix("sample")
    names = _spellings(SAMPLERS.values())
    if key in names:
        return names[key], None
    for ending, schedule in _spellings(SCHEDULES.values()).items():
        stem = key.removesuffix(ending)
        if stem != key and stem in names:
            return names[stem], schedule
    for known, nearest in NEAREST.items():
        if key.startswith(_key(known)):
            raise InputError(f"no such sampler: {name!r}", hint=f"the nearest here: {' or '.join(nearest)}")
    raise InputError(f"no such sampler: {name!r}", hint=_closest(key, names, SAMPLERS))


def resolve_schedule(name: str) -> str:
    """Our name of a schedule, by any of its names."""
    names = _spellings(SCHEDULES.values())
    key = _key(name)
    if key not in names:
        raise InputError(f"no such schedule: {name!r}", hint=_closest(key, names, SCHEDULES))
    return names[key]


def resolve_sampling(sampler: str | None, schedule: str | None, config: ModelConfig) -> tuple[str, str | None]:
    """Our names of what is asked for, by any of their names; None is the model's own.

    A sampler that is asked for brings its own schedule to Stable Diffusion's noise levels. Raises InputError for names
    that are not known, and RequestError for a sampler that carries a schedule with it ("DPM++ 2M Karras") beside
    another one.
    """
    name, carried = resolve_sampler(config.defaults.sampler if sampler is None else sampler)
    asked = None if schedule is None else resolve_schedule(schedule)
    if carried is not None and asked is not None and carried != asked:
        raise RequestError("sampler", f"{sampler} and the schedule {schedule} contradict each other")
    has_usual_levels = config.diffusion.usual_schedule == "karras"
    if asked is None and carried is None and sampler is not None and has_usual_levels:
        return name, SAMPLERS[name].schedule
    return name, asked if asked is not None else carried


def get_sampler(name: str) -> Sampler:
    """The sampler's function, by any of its names; its module is imported here."""
    canonical, _ = resolve_sampler(name)
    return cast("Sampler", getattr(importlib.import_module(f"latentgen.samplers.{canonical}"), canonical))


def _spellings(entries: Iterable[SamplerEntry] | Iterable[ScheduleEntry]) -> dict[str, str]:
    """Every way of naming an entry, without case and separators, to its name."""
    return {_key(each): entry.name for entry in entries for each in (entry.name, entry.title, *entry.aliases)}


def _key(name: str) -> str:
    """Spelling without case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _closest(key: str, names: dict[str, str], known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(key, list(names), n=3, cutoff=0.5)
    close = list(dict.fromkeys(names[match] for match in matches))
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}"

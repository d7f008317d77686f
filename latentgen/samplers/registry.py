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

from latentgen.errors import InputError

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
    accepts_eta: bool = False
    stochastic: bool = False
    """Whether it adds noise on the way (DDIM: only where eta > 0), so that more steps give another picture."""


@dataclass(frozen=True, slots=True)
class ScheduleEntry:
    """One way of placing the noise levels; `NoiseSchedule.inference_sigmas` computes it."""

    name: str
    title: str
    summary: str


SAMPLERS: dict[str, SamplerEntry] = {
    entry.name: entry
    for entry in (
        SamplerEntry(
            "dpmpp_2m",
            "DPM++ 2M",
            "second order, deterministic: the best picture for 10 to 30 steps, the usual choice",
            aliases=("dpm++_2m", "k_dpmpp_2m", "dpmsolver++"),
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
            aliases=("k_euler_a", "k_euler_ancestral", "euler_ancestral"),
            stochastic=True,
        ),
        SamplerEntry(
            "ddim",
            "DDIM",
            "Euler with a dial: eta 0 is deterministic, eta 1 is DDPM; for reproducing DDIM results",
            accepts_eta=True,
            stochastic=True,
        ),
        SamplerEntry(
            "ddpm",
            "DDPM",
            "the original ancestral process: for hundreds of steps, up to every step the model was trained on",
            stochastic=True,
        ),
    )
}

SCHEDULES: dict[str, ScheduleEntry] = {
    entry.name: entry
    for entry in (
        ScheduleEntry("karras", "Karras", "dense near the clean end (rho 7): for few steps with dpmpp_2m or euler"),
        ScheduleEntry("trailing", "Trailing", "even timesteps from the very last one: for zero-terminal-SNR models"),
        ScheduleEntry("leading", "Leading", "even timesteps from the first one: as SD 1.x and 2.x were published"),
        ScheduleEntry("linspace", "Linspace", "even timesteps that include both the first and the last"),
    )
}


def resolve_sampler(name: str) -> tuple[str, str | None]:
    """Our name of a sampler, and the schedule that the name carries with it, if any: "DPM++ 2M Karras" has both."""
    key = _key(name)
    names = {
        _key(each): entry.name for entry in SAMPLERS.values() for each in (entry.name, entry.title, *entry.aliases)
    }
    if key in names:
        return names[key], None
    for schedule in SCHEDULES:
        stem = key.removesuffix(_key(schedule))
        if stem != key and stem in names:
            return names[stem], schedule
    raise InputError(f"no such sampler: {name!r}", hint=_closest(key, names, SAMPLERS))


def resolve_schedule(name: str) -> str:
    """Our name of a schedule, however it is capitalised."""
    names = {_key(entry.name): entry.name for entry in SCHEDULES.values()}
    key = _key(name)
    if key not in names:
        raise InputError(f"no such schedule: {name!r}", hint=_closest(key, names, SCHEDULES))
    return names[key]


def get_sampler(name: str) -> Sampler:
    """The sampler's function, by any of its names; its module is imported here."""
    canonical, _ = resolve_sampler(name)
    return cast("Sampler", getattr(importlib.import_module(f"latentgen.samplers.{canonical}"), canonical))


def _key(name: str) -> str:
    """Spelling without case, spaces, underscores and hyphens."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _closest(key: str, names: dict[str, str], known: Iterable[str]) -> str:
    matches = difflib.get_close_matches(key, list(names), n=3, cutoff=0.5)
    close = list(dict.fromkeys(names[match] for match in matches))
    return f"did you mean {' or '.join(close)}?" if close else f"choose from {', '.join(known)}"

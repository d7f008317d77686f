"""From what the user said to the requests that will be drawn, all checked before torch is imported."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from latentgen.cli.options import RANDOM_SEED
from latentgen.config import ModelConfig
from latentgen.errors import InputError
from latentgen.request import MAX_SEED, GenerationRequest, RequestError, complete_request
from latentgen.samplers.registry import SAMPLERS, resolve_sampler, resolve_schedule

MAX_PICTURES = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What is said of a picture beside its prompt. None is the model's default, and for the seed a random one."""

    negative_prompt: str = ""
    seed: int | None = None
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    schedule: str | None = None
    eta: float | None = None
    width_px: int | None = None
    height_px: int | None = None

    @staticmethod
    def kinds(name: str) -> tuple[type, ...]:
        """The types a value of this field may have in a prompt file."""
        if name in ("negative_prompt", "sampler", "schedule", "size"):
            return (str,)
        return (int, float) if name in ("guidance", "eta") else (int,)


@dataclass(frozen=True, slots=True)
class Entry:
    prompt: str
    flags: Flags
    where: str = ""
    """File and line for messages; empty for the command line."""


def plan_requests(entries: Sequence[Entry], config: ModelConfig) -> list[GenerationRequest]:
    """Every picture to draw, in order. Picture i of a prompt has seed + i; a random seed is drawn for each prompt.

    Raises InputError naming the flag, or the line of the prompt file, for what this model cannot draw.
    """
    requests: list[GenerationRequest] = []
    for entry in entries:
        try:
            requests.extend(_requests(entry, config))
        except RequestError as error:
            message = f"{entry.where}: {error.message}" if entry.where else _as_flag(error)
            raise InputError(message, hint=error.hint) from None
        except InputError as error:
            if not entry.where:
                raise
            raise InputError(f"{entry.where}: {error.message}", hint=error.hint) from None
        if len(requests) > MAX_PICTURES:
            raise InputError(f"more than {MAX_PICTURES} pictures", hint="draw them in several runs")
    return requests


def _requests(entry: Entry, config: ModelConfig) -> list[GenerationRequest]:
    flags = entry.flags
    if not 1 <= flags.count <= MAX_PICTURES:
        raise RequestError("count", f"{flags.count} is out of range", hint=f"1 to {MAX_PICTURES}")
    seed = flags.seed
    if seed is None or seed == RANDOM_SEED:
        seed = secrets.randbelow(MAX_SEED - flags.count + 2)
    elif seed + flags.count - 1 > MAX_SEED:
        last = "" if flags.count == 1 else f" with --count {flags.count}"
        raise RequestError("seed", f"{seed}{last} is out of range", hint=f"the last seed is {MAX_SEED}")
    sampler, schedule = _resolve_sampler(flags, config)
    return [
        complete_request(
            config,
            prompt=entry.prompt,
            seed=seed + i,
            negative_prompt=flags.negative_prompt,
            width_px=flags.width_px,
            height_px=flags.height_px,
            steps=flags.steps,
            guidance=flags.guidance,
            sampler=sampler,
            schedule=schedule,
            eta=flags.eta,
        )
        for i in range(flags.count)
    ]


def _resolve_sampler(flags: Flags, config: ModelConfig) -> tuple[str, str | None]:
    """Canonical names. "DPM++ 2M Karras" names a schedule too, which --schedule must not contradict."""
    name, carried = resolve_sampler(config.defaults.sampler if flags.sampler is None else flags.sampler)
    asked = None if flags.schedule is None else resolve_schedule(flags.schedule)
    if carried is not None and asked is not None and carried != asked:
        raise InputError(f"--sampler {flags.sampler} and --schedule {flags.schedule} contradict each other")
    if flags.eta and not SAMPLERS[name].accepts_eta:
        able = ", ".join(entry.name for entry in SAMPLERS.values() if entry.accepts_eta)
        raise RequestError("eta", f"{flags.eta:g} changes nothing with {name}", hint=f"it is for {able}")
    return name, asked if asked is not None else carried


def _as_flag(error: RequestError) -> str:
    return f"the prompt {error.problem}" if error.field == "prompt" else f"--{error.field} {error.problem}"

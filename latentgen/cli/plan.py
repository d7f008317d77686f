"""From what the user said to the requests that will be drawn, all checked before torch is imported."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentgen.cli.init_pictures import InitFiles
from latentgen.cli.options import RANDOM_SEED
from latentgen.cli.wildcards import Wildcards
from latentgen.config import ModelConfig
from latentgen.diffusion.strength import check_passes
from latentgen.errors import InputError, ModelNotFoundError
from latentgen.prompts.check import check_prompts
from latentgen.request import (
    MAX_SEED,
    GenerationRequest,
    RequestError,
    complete_request,
    low_bits,
    random_seed,
    shorten,
)
from latentgen.samplers.registry import SAMPLERS, resolve_sampler, resolve_sampling

MAX_PICTURES = 10_000
PNG_BYTES_PER_PIXEL = 1.5
"""Of pictures that are neither flat nor noise: half of the three that they have in memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flags:
    """What is said of a picture beside its prompt. None is the model's default, and for the seed a random one.

    Each field is a key of a prompt file's lines, read as its type says: int, float, str, bool, Path, tuple.
    """

    negative_prompt: str = ""
    seed: int | None = None
    count: int = 1
    steps: int | None = None
    guidance: float | None = None
    guidance_rescale: float | None = None
    guidance_interval: tuple[float, float] | None = None
    deep_cache: int | None = None
    sampler: str | None = None
    schedule: str | None = None
    eta: float | None = None
    clip_skip: int | None = None
    width_px: int | None = None
    height_px: int | None = None
    init_image: Path | None = None
    strength: float | None = None
    mask: Path | None = None
    invert_mask: bool = False
    mask_blur: int | None = None
    outpaint: tuple[int, int, int, int] | None = None
    hires: str | None = None
    hires_strength: float | None = None
    rng: str | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    prompt: str
    flags: Flags
    where: str = ""
    """File and line for messages; empty for the command line."""
    said: frozenset[str] = frozenset()
    """Of the flags, what this line of a prompt file or this place of a sweep says."""


def plan_requests(
    entries: Sequence[Entry],
    config: ModelConfig,
    wildcards: Wildcards | None = None,
    init_files: InitFiles | None = None,
    recorded: Flags | None = None,
) -> list[GenerationRequest]:
    """Every picture to draw, in order. Picture i of a prompt has seed + i; a random seed is drawn for each prompt.

    wildcards: what `__name__` stands for; without it no name is known.
    init_files: gets the pictures that requests start from, and says what was done to them and to seeds.
    recorded: what flags say because a picture's file does: another sampler than that picture's does without its
    schedule, if it brings one, and without its eta.

    Raises InputError naming the flag, or the line of the prompt file, for what this model cannot draw.
    """
    wildcards = Wildcards() if wildcards is None else wildcards
    init_files = InitFiles() if init_files is None else init_files
    requests: list[GenerationRequest] = []
    for entry in entries:
        try:
            entry = entry if recorded is None else _with_own_walk(entry, recorded)
            requests.extend(_requests(entry, config, wildcards, init_files))
        except RequestError as error:
            message = f"{entry.where}: {error.message}" if entry.where else _as_flag(error)
            raise InputError(message, hint=error.hint) from None
        except (InputError, ModelNotFoundError) as error:
            if not entry.where:
                raise
            raise type(error)(f"{entry.where}: {error.message}", hint=error.hint) from None
        if len(requests) > MAX_PICTURES:
            raise InputError(f"more than {MAX_PICTURES} pictures", hint="draw them in several runs")
    if (note := _seed_note(entries)) is not None:
        init_files.notes[note] = None
    return requests


def _requests(
    entry: Entry, config: ModelConfig, wildcards: Wildcards, init_files: InitFiles
) -> list[GenerationRequest]:
    flags = entry.flags
    if not 1 <= flags.count <= MAX_PICTURES:
        pictures = min(max(flags.count, 0), 10**12)  # no more than a float holds
        room = pictures * config.defaults.width_px * config.defaults.height_px * PNG_BYTES_PER_PIXEL
        many = f"; so many would take about {room / 1e9:.0f} GB" if room > 1e9 and pictures == flags.count else ""
        raise RequestError("count", f"{shorten(flags.count)} is out of range", hint=f"1 to {MAX_PICTURES}{many}")
    seed = flags.seed
    if seed is None or seed == RANDOM_SEED:
        seed = random_seed(flags.count)
    elif (seed := low_bits(seed)) + flags.count - 1 > MAX_SEED:
        last = "" if flags.count == 1 else f" with --count {flags.count}"
        raise RequestError("seed", f"{seed}{last} is out of range", hint=f"the last seed is {MAX_SEED}")
    sampler, schedule = resolve_sampling(flags.sampler, flags.schedule, config)
    _check_eta(flags, sampler)
    beginning = init_files.begin(flags, config)
    requests = [
        complete_request(
            config,
            prompt=prompt,
            seed=own_seed,
            negative_prompt=wildcards.expand(flags.negative_prompt, own_seed, "negative_prompt"),
            width_px=beginning.width_px,
            height_px=beginning.height_px,
            steps=flags.steps,
            guidance=flags.guidance,
            guidance_rescale=flags.guidance_rescale,
            guidance_interval=flags.guidance_interval,
            deep_cache=flags.deep_cache,
            sampler=sampler,
            schedule=schedule,
            eta=flags.eta,
            clip_skip=flags.clip_skip,
            init=beginning.init,
            hires=beginning.hires,
            rng=flags.rng,
        )
        for prompt, own_seed in wildcards.prompts(entry.prompt, range(seed, seed + flags.count))
    ]
    for request in requests:
        check_passes(request, config.size_multiple_px)
        check_prompts(request, config)
    return requests


def _seed_note(entries: Sequence[Entry]) -> str | None:
    """What is said of seeds of more than 32 bits: of one, and how many more there are. None if there is none."""
    rngs = {entry.flags.seed: entry.flags.rng for entry in entries if (entry.flags.seed or 0) > MAX_SEED}
    seed = next((seed for seed, rng in rngs.items() if rng == "nv"), next(iter(rngs), None))
    if seed is None:
        return None
    what = "are drawn; an NVIDIA GPU looks at all 64" if rngs[seed] == "nv" else "make the same noise"
    more = f"; so with {len(rngs) - 1} more" if len(rngs) > 1 else ""
    return f"seed {seed}: its low 32 bits, {low_bits(seed)}, {what}{more}"


def _with_own_walk(entry: Entry, recorded: Flags) -> Entry:
    flags = entry.flags
    if flags.sampler is None or recorded.sampler is None:
        return entry
    (name, carried), (name_there, _) = resolve_sampler(flags.sampler), resolve_sampler(recorded.sampler)
    if carried is not None and recorded.schedule is not None and "schedule" not in entry.said:
        flags = replace(flags, schedule=None)
    if name != name_there and recorded.eta is not None and "eta" not in entry.said:
        flags = replace(flags, eta=None)
    return replace(entry, flags=flags)


def _check_eta(flags: Flags, sampler: str) -> None:
    if flags.eta and not SAMPLERS[sampler].accepts_eta:
        able = ", ".join(entry.name for entry in SAMPLERS.values() if entry.accepts_eta)
        raise RequestError("eta", f"{flags.eta:g} changes nothing with {sampler}", hint=f"it is for {able}")


def _as_flag(error: RequestError) -> str:
    return f"the prompt {error.problem}" if error.field == "prompt" else f"--{error.field} {error.problem}"

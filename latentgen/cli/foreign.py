"""Another tool's account of a picture in `generate`'s terms, as far as that goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from latentgen.cli.plan import Flags
from latentgen.cli.prompt_syntax import unsupported_syntax
from latentgen.config import ModelConfig
from latentgen.diffusion.strength import check_passes
from latentgen.errors import InputError
from latentgen.prompts.check import check_prompts
from latentgen.request import GenerationRequest, Hires, RequestError, complete_request
from latentgen.samplers.registry import SAMPLERS, resolve_sampler, resolve_schedule

if TYPE_CHECKING:
    from latentgen.images.foreign import ForeignMetadata, ForeignSettings

Summary = dict[str, Any]

_NAMES = {
    "seed": "seed",
    "steps": "steps",
    "guidance": "guidance",
    "sampler": "sampler",
    "schedule": "schedule",
    "eta": "eta",
    "guidance_rescale": "guidance rescale",
    "unguided": "unguided",
    "clip_skip": "clip skip",
    "hires_scale": "hires scale",
    "hires_strength": "hires strength",
}


def foreign_summary(foreign: ForeignMetadata) -> Summary:
    """What `info` shows of it, for a table or JSON."""
    settings = foreign.settings
    summary: Summary = {"made by": foreign.tool, "prompt": foreign.prompt}
    if foreign.negative_prompt:
        summary["negative prompt"] = foreign.negative_prompt
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    summary |= {shown: values[name] for name, shown in _NAMES.items() if values[name] is not None}
    if settings.width_px is not None and settings.height_px is not None:
        summary["drawn at"] = f"{settings.width_px}x{settings.height_px}"
    if foreign.model is not None:
        summary["model"] = foreign.model
    summary |= foreign.also
    unsupported = unsupported_syntax((foreign.prompt, foreign.negative_prompt))
    not_repeatable = [*foreign.named.missing(), *foreign.could_not, *([] if unsupported is None else [unsupported])]
    if not_repeatable:
        summary["not repeatable"] = not_repeatable
    return summary


def flags_of(request: GenerationRequest) -> Flags:
    """The flags that ask for a request again, without those of its files."""
    hires = request.hires
    return Flags(
        negative_prompt=request.negative_prompt,
        seed=request.seed,
        steps=request.steps,
        guidance=request.guidance,
        guidance_rescale=request.guidance_rescale,
        guidance_interval=request.guidance_interval,
        deep_cache=request.deep_cache,
        sampler=request.sampler,
        schedule=request.schedule,
        eta=request.eta,
        clip_skip=request.clip_skip,
        rng=request.rng,
        width_px=request.width_px,
        height_px=request.height_px,
        hires=None if hires is None else f"{hires.scale:.6f}",
        hires_strength=None if hires is None else hires.strength,
    )


def foreign_flags(foreign: ForeignMetadata, config: ModelConfig) -> tuple[str, Flags, list[str]]:
    """The prompt, the flags without those of files, and what of the account they leave out, each with its reason.

    A setting that this model or latentgen has not is left out and takes the model's default. Raises InputError if the
    prompt cannot be drawn.
    """
    from latentgen.images.foreign import plain_embeddings

    remarks = list(foreign.could_not)
    if foreign.settings.seed is None:
        remarks.append("seed: it is not in the file; a random one is drawn")
    given: dict[str, Any] = {
        **_plain(foreign.settings),
        **_walk(foreign.settings, remarks),
        **_sides(foreign.settings, config.size_multiple_px, remarks),
        **_guided(foreign.settings, config),
        "prompt": plain_embeddings(foreign.prompt),
        "negative_prompt": plain_embeddings(foreign.negative_prompt),
        "seed": 0,
    }
    _second_pass(foreign.settings, given, remarks)
    while True:
        try:
            request = complete_request(config, **given)
            check_passes(request, config.size_multiple_px)
            check_prompts(request, config)
            # What is not said stays open: a size is then that of the picture it starts from.
            said = {"seed": foreign.settings.seed, **{name: given.get(name) for name in ("width_px", "height_px")}}
            return request.prompt, replace(flags_of(request), **said), remarks
        except RequestError as error:
            fields_of = {"width": "width_px", "height": "height_px", "hires-strength": "hires"}
            dropped = fields_of.get(error.field, error.field.replace("-", "_"))
            if dropped not in given or dropped in ("prompt", "seed"):
                raise
            del given[dropped]
            remarks.append(f"{error.field} {error.problem}: the model's default is taken")


def _plain(settings: ForeignSettings) -> dict[str, Any]:
    names = ("steps", "guidance", "guidance_rescale", "clip_skip", "rng")
    return {name: value for name in names if (value := getattr(settings, name)) is not None}


def _guided(settings: ForeignSettings, config: ModelConfig) -> dict[str, Any]:
    """Where guidance acted: throughout if nothing is said of it, whatever the model's own interval is."""
    if settings.unguided is None:
        return {"guidance_interval": (0.0, 1.0)}
    steps = config.defaults.steps if settings.steps is None else settings.steps
    first = math.floor(settings.unguided * steps) + 1
    return {"guidance_interval": (first / steps, 1.0)} if first < steps else {"guidance": 1.0}


def _walk(settings: ForeignSettings, remarks: list[str]) -> dict[str, Any]:
    """Sampler, schedule and eta."""
    from latentgen.images.foreign_names import AUTOMATIC

    sampler, carried = _known(settings.sampler, resolve_sampler, "sampler", remarks) or (None, None)
    schedule = carried
    if carried is None and settings.schedule == AUTOMATIC:
        schedule = None if sampler is None else SAMPLERS[sampler].schedule
    elif carried is None:
        schedule = _known(settings.schedule, resolve_schedule, "schedule", remarks)
    given: dict[str, Any] = {"sampler": sampler, "schedule": schedule}
    if settings.eta is not None and sampler is not None and SAMPLERS[sampler].accepts_eta:
        given["eta"] = settings.eta
    return {name: value for name, value in given.items() if value is not None}


def _known(word: str | None, resolve: Any, what: str, remarks: list[str]) -> Any:
    """What a resolver makes of a word, None with a remark if it does not know it."""
    if word is None:
        return None
    try:
        return resolve(word)
    except InputError as error:
        remarks.append(f"{what} {word}: not here, the model's default is taken ({error.hint})")
        return None


def _sides(settings: ForeignSettings, multiple: int, remarks: list[str]) -> dict[str, int]:
    """Width and height, brought to what the model can draw."""
    if settings.width_px is None or settings.height_px is None:
        return {}
    sides = {"width_px": settings.width_px, "height_px": settings.height_px}
    fitted = {name: max(multiple, round(side / multiple) * multiple) for name, side in sides.items()}
    if fitted != sides:
        remarks.append(
            f"size {sides['width_px']}x{sides['height_px']}: sizes are multiples of {multiple} with this model; "
            f"{fitted['width_px']}x{fitted['height_px']} is drawn"
        )
    return fitted


def _second_pass(settings: ForeignSettings, given: dict[str, Any], remarks: list[str]) -> None:
    if settings.hires_scale is None:
        return
    strength: Mapping[str, float] = {}
    if settings.hires_strength is not None:
        strength = {"strength": settings.hires_strength}
    try:
        given["hires"] = Hires(scale=settings.hires_scale, **strength)
    except RequestError as error:
        remarks.append(f"second pass: {error.field} {error.problem}; one pass is drawn")

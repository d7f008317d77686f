"""What is asked for: one picture, completely, in numbers and words that a file can carry.

The same request with the same weights gives the same picture, so this is what a PNG stores and `replay` reads back.
Everything is checked when a request is made; nothing here imports torch, so a mistake is answered at once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypedDict

from latentgen.config import ModelConfig
from latentgen.errors import InputError

MAX_SEED = 2**32 - 1
"""torch's CPU generator uses the low 32 bits of a seed only, so a larger one would be another name for a smaller."""
MAX_SIDE_PX = 8192
MAX_STEPS = 1000
MAX_GUIDANCE = 1000.0
MAX_PROMPT_BYTES = 100_000
"""Of UTF-8. About a thousand times what the text encoder reads."""


class RequestError(InputError):
    """One field of a request that cannot be drawn. `field` is its name on the command line, without the dashes."""

    def __init__(self, field: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{field} {problem}", hint=hint)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One picture. Raises RequestError, naming the field, for anything that cannot be drawn with any model."""

    prompt: str
    negative_prompt: str = ""
    seed: int
    """0 .. 2**32 - 1. Fixes the starting noise and the noise of every stochastic step."""
    width_px: int
    height_px: int
    steps: int
    """Sampler steps, 1 .. 1000."""
    guidance: float
    """Classifier-free guidance (arXiv:2207.12598): uncond + g (cond - uncond). 1 is off, 0 ignores the prompt."""
    sampler: str
    schedule: str
    """How the noise levels are spaced. This and the sampler are canonical names of `samplers/registry.py`, which checks
    them where they are resolved: on the command line, and before anything is drawn."""
    eta: float = 0.0
    """Share of fresh noise in a DDIM step, 0 .. 1 (arXiv:2010.02502, eq. 16); other samplers have no such dial."""

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative-prompt", self.negative_prompt)
        if not self.prompt.strip():
            raise RequestError("prompt", "is empty", hint="say what to draw")
        _check_int("seed", self.seed, 0, MAX_SEED)
        _check_int("width", self.width_px, 1, MAX_SIDE_PX)
        _check_int("height", self.height_px, 1, MAX_SIDE_PX)
        _check_int("steps", self.steps, 1, MAX_STEPS)
        # A whole number stands for the float it equals, so 7 and 7.0 are one request and one JSON text.
        object.__setattr__(self, "guidance", _check_float("guidance", self.guidance, 0.0, MAX_GUIDANCE))
        object.__setattr__(self, "eta", _check_float("eta", self.eta, 0.0, 1.0))
        for field, name in (("sampler", self.sampler), ("schedule", self.schedule)):
            if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  from JSON
                raise RequestError(field, f"must be a name, not {name!r}")

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dumps`, which writes a float as the shortest text that reads back to it."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> GenerationRequest:
        """The request `to_json` wrote. Raises InputError for unknown or missing fields, RequestError for bad ones."""
        names = {field.name for field in fields(cls)}
        unknown = sorted(str(name) for name in set(value) - names)
        missing = sorted(field.name for field in fields(cls) if field.default is MISSING and field.name not in value)
        if unknown or missing:
            raise InputError(
                f"the request does not hold the expected fields: unknown {unknown}, missing {missing}",
                hint="it may come from another version of latentgen",
            )
        return cls(**dict(value))


class RequestFields(TypedDict, total=False):
    """The fields of a request that have a default with every model."""

    negative_prompt: str
    width_px: int | None
    height_px: int | None
    steps: int | None
    guidance: float | None
    sampler: str | None
    schedule: str | None
    eta: float | None


def complete_request(
    config: ModelConfig,
    *,
    prompt: str,
    seed: int,
    negative_prompt: str = "",
    width_px: int | None = None,
    height_px: int | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    sampler: str | None = None,
    schedule: str | None = None,
    eta: float | None = None,
) -> GenerationRequest:
    """A request for one model, with what is None taken from its defaults. Raises RequestError if it cannot draw it."""
    defaults = config.defaults
    request = GenerationRequest(
        prompt=prompt,
        negative_prompt=negative_prompt,
        seed=seed,
        width_px=defaults.width_px if width_px is None else width_px,
        height_px=defaults.height_px if height_px is None else height_px,
        steps=defaults.steps if steps is None else steps,
        guidance=defaults.guidance if guidance is None else guidance,
        sampler=defaults.sampler if sampler is None else sampler,
        schedule=defaults.schedule if schedule is None else schedule,
        eta=0.0 if eta is None else eta,
    )
    check_fits(request, config)
    return request


def check_fits(request: GenerationRequest, config: ModelConfig) -> None:
    """Raise RequestError if a model cannot draw this request: sides off its grid, more steps than its schedule has."""
    multiple = config.size_multiple_px
    for field, side in (("width", request.width_px), ("height", request.height_px)):
        if side % multiple:
            lower, upper = side - side % multiple, side - side % multiple + multiple
            nearest = f"{lower}, {upper}" if lower else str(upper)
            raise RequestError(
                field, f"{side} does not fit this model: sizes are multiples of {multiple}", hint=f"nearest: {nearest}"
            )
    if request.steps > config.diffusion.num_train_timesteps:
        raise RequestError(
            "steps",
            f"{request.steps} is more than the {config.diffusion.num_train_timesteps} this model was trained with",
        )


def check_text(field: str, text: object) -> None:
    """Raise RequestError if a text cannot be drawn or stored: not UTF-8, control characters, too long."""
    if not isinstance(text, str):
        raise RequestError(field, f"must be text, not {type(text).__name__}")
    try:
        size = len(text.encode("utf-8"))
    except UnicodeEncodeError as error:
        code = ord(text[error.start])
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"surrogate U+{code:04X}"
        raise RequestError(
            field, f"is not valid UTF-8 text: {what} at character {error.start}", hint="pass it as UTF-8"
        ) from None
    if size > MAX_PROMPT_BYTES:
        raise RequestError(field, f"holds {size} bytes; the limit is {MAX_PROMPT_BYTES}")
    for position, character in enumerate(text):
        if character not in "\t\n\r" and (ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0):
            raise RequestError(field, f"holds the control character U+{ord(character):04X} at character {position}")


def _check_int(field: str, value: object, low: int, high: int) -> None:
    if type(value) is not int:
        raise RequestError(field, f"must be a whole number, not {value!r}")
    if not low <= value <= high:
        raise RequestError(field, f"{_shorten(value)} is out of range", hint=f"{low} to {high}")


def _check_float(field: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(field, f"must be a number, not {value!r}")
    if not math.isfinite(value) or not low <= value <= high:
        raise RequestError(field, f"{_shorten(value)} is out of range", hint=f"{low:g} to {high:g}")
    return float(value)


def _shorten(value: float) -> str:
    """A number in a message, short even if somebody typed 10^300."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}… ({len(text)} characters)"

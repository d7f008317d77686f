"""What is asked for: one picture, completely, in numbers and words that a file can carry.

The same request with the same weights gives the same picture, so this is what a PNG stores and `replay` reads back.
Everything is checked when a request is made; nothing here imports torch, so a mistake is answered at once.
"""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypedDict, TypeVar, cast

from latentgen.config import ModelConfig
from latentgen.errors import InputError

MAX_SEED = 2**32 - 1
"""torch's CPU generator uses the low 32 bits of a seed only, so a larger one would be another name for a smaller."""
MAX_LONG_SEED = 2**64 - 1
"""Of tools that draw seeds of 64 bits, as ComfyUI does: `low_bits` of one is the seed of a request."""
RNGS = ("cpu", "nv")
MAX_SIDE_PX = 8192
MAX_STEPS = 1000
MAX_GUIDANCE = 1000.0
MAX_PROMPT_BYTES = 100_000
"""Of UTF-8. About a thousand times what the text encoder reads."""
MAX_CLIP_SKIP = 12
MAX_ADD_ONS = 32
MAX_ADD_ON_SCALE = 100.0
MAX_HIRES_SCALE = 8.0
MAX_MASK_BLUR_PX = 512
STRENGTH, HIRES_STRENGTH = 0.75, 0.5
MASK_BLUR_PX = 4
"""A1111's default."""

P = TypeVar("P")


class RequestError(InputError):
    """One field of a request that cannot be drawn. `field` is its name on the command line, without the dashes."""

    def __init__(self, field: str, problem: str, *, hint: str | None = None) -> None:
        super().__init__(f"{field} {problem}", hint=hint)
        self.field = field
        self.problem = problem


@dataclass(frozen=True, slots=True, kw_only=True)
class LoRAUse:
    """A LoRA that a picture is drawn with (arXiv:2106.09685)."""

    name: str
    """The file's own name without its ending, never a path."""
    fingerprint: str
    """The first ten hexadecimal digits of the file's SHA-256."""
    scale: float = 1.0
    """Factor on the adapters of the U-Net and the text encoder; 0 leaves the model as it is, negative ones subtract."""

    def __post_init__(self) -> None:
        _check_name("lora", self.name, self.fingerprint)
        _check_float("lora", self.scale, -MAX_ADD_ON_SCALE, MAX_ADD_ON_SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingUse:
    """A textual inversion (arXiv:2208.01618) whose name stands in the prompt or the negative prompt."""

    name: str
    fingerprint: str

    def __post_init__(self) -> None:
        _check_name("embedding", self.name, self.fingerprint)


@dataclass(frozen=True, slots=True, kw_only=True)
class InitPicture:
    """The picture that drawing starts from, and where it may change. Its pixels travel beside the request, by hash."""

    sha256: str
    """Of the picture's RGB bytes as read from its file, before any resizing (`images.pixels.pixels_sha256`)."""
    strength: float = STRENGTH
    """Share of the steps that are drawn, above 0 .. 1 (SDEdit, arXiv:2108.01073); 1 ignores the picture."""
    mask_sha256: str | None = None
    """Of the mask's (H, W) grey bytes as read from its file; white is redrawn. None redraws all of it."""
    mask_blur_px: int = 0
    """Standard deviation of the mask's edge in pixels of the drawn picture; pixels where it stays 0 are exact."""
    invert_mask: bool = False
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Pixels added on the left, top, right, bottom, and drawn."""

    def __post_init__(self) -> None:
        _check_sha256("init-image", self.sha256)
        if self.mask_sha256 is not None:
            _check_sha256("mask", self.mask_sha256)
        _check_bool("invert-mask", self.invert_mask)
        _check_float("strength", self.strength, 0.0, 1.0)
        if self.strength == 0:
            raise RequestError("strength", "0 would leave the picture as it is", hint="above 0, up to 1")
        _check_int("mask-blur", self.mask_blur_px, 0, MAX_MASK_BLUR_PX)
        object.__setattr__(self, "outpaint", tuple(self.outpaint))
        if len(self.outpaint) != 4:
            raise RequestError("outpaint", "must be four widths", hint="left,top,right,bottom in pixels")
        for width in self.outpaint:
            _check_int("outpaint", width, 0, MAX_SIDE_PX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hires:
    """A second pass at a larger size: the first picture is enlarged, noised by `strength` and drawn again."""

    scale: float = 2.0
    """Factor on both sides; they are then rounded to the model's grid."""
    strength: float = HIRES_STRENGTH
    """As in `InitPicture`."""

    def __post_init__(self) -> None:
        _check_float("hires", self.scale, 1.0, MAX_HIRES_SCALE)
        _check_float("hires-strength", self.strength, 0.0, 1.0)
        if self.scale == 1 or self.strength == 0:
            raise RequestError("hires", "would change nothing", hint="a scale above 1 and a strength above 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """One picture. Raises RequestError, naming the field, for values that no model can draw; kinds are not checked."""

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
    guidance_rescale: float = 0.0
    """0 .. 1 (arXiv:2305.08891, eq. 16): how far the guided prediction's contrast is brought back to the text's own."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Where in the run guidance acts, as fractions of its steps (arXiv:2404.07724); outside it is 1."""
    deep_cache: int = 1
    """One step in so many computes the whole U-Net, the others reuse its deep features (DeepCache, arXiv:2312.00858),
    1 .. 1000. 1 is off; anything else is another picture, made in less time."""
    clip_skip: int | None = None
    """Which layer of the text encoder is read: 1, as None, the one that the model itself reads, 2 the one before it."""
    loras: tuple[LoRAUse, ...] = ()
    embeddings: tuple[EmbeddingUse, ...] = ()
    init: InitPicture | None = None
    hires: Hires | None = None
    rng: str = "cpu"
    """One of RNGS, whose numbers the noise is made of, on every device: torch's CPU generator's, or those of an NVIDIA
    GPU (Philox), with which A1111 draws."""

    def __post_init__(self) -> None:
        check_text("prompt", self.prompt)
        check_text("negative-prompt", self.negative_prompt)
        if not self.prompt.strip():
            raise RequestError("prompt", "is empty", hint="say what to draw")
        _check_int("seed", self.seed, 0, MAX_SEED)
        if self.rng not in RNGS:
            raise RequestError("rng", f"{self.rng} is not one of {', '.join(RNGS)}")
        _check_int("width", self.width_px, 1, MAX_SIDE_PX)
        _check_int("height", self.height_px, 1, MAX_SIDE_PX)
        _check_int("steps", self.steps, 1, MAX_STEPS)
        # A whole number stands for the float it equals, so 7 and 7.0 are one request and one JSON text.
        object.__setattr__(self, "guidance", _check_float("guidance", self.guidance, 0.0, MAX_GUIDANCE))
        object.__setattr__(self, "eta", _check_float("eta", self.eta, 0.0, 1.0))
        for field, name in (("sampler", self.sampler), ("schedule", self.schedule)):
            if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  from JSON
                raise RequestError(field, f"must be a name, not {name!r}")
        rescale = _check_float("guidance-rescale", self.guidance_rescale, 0.0, 1.0)
        object.__setattr__(self, "guidance_rescale", rescale)
        object.__setattr__(self, "guidance_interval", _check_interval(self.guidance_interval))
        _check_int("deep-cache", self.deep_cache, 1, MAX_STEPS)
        if self.clip_skip is not None:
            _check_int("clip-skip", self.clip_skip, 1, MAX_CLIP_SKIP)
        for field, uses in (("lora", self.loras), ("embedding", self.embeddings)):
            if len(uses) > MAX_ADD_ONS:
                raise RequestError(field, f"is given {len(uses)} times; the limit is {MAX_ADD_ONS}")
        object.__setattr__(self, "loras", tuple(self.loras))
        object.__setattr__(self, "embeddings", tuple(self.embeddings))

    def to_json(self) -> dict[str, Any]:
        """A plain dict for `json.dumps`, which writes a float as the shortest text that reads back to it.

        A field that the first version did not have is left out where it says nothing, so that it can read the rest.
        """
        silent = {name: default for name, default in _LATER_FIELDS.items() if getattr(self, name) == default}
        return {name: value for name, value in asdict(self).items() if name not in silent}

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
        given = dict(value)
        for name, kind in (("loras", LoRAUse), ("embeddings", EmbeddingUse)):
            if name in given:
                given[name] = tuple(_part_from_json(name, kind, each) for each in _as_list(name, given[name]))
        for name, kind in (("init", InitPicture), ("hires", Hires)):
            if given.get(name) is not None:
                given[name] = _part_from_json(name, kind, given[name])
        if "guidance_interval" in given:
            given["guidance_interval"] = tuple(_as_list("guidance_interval", given["guidance_interval"]))
        return cls(**given)


_LATER_FIELDS: dict[str, object] = {
    "guidance_rescale": 0.0,
    "guidance_interval": (0.0, 1.0),
    "deep_cache": 1,
    "clip_skip": None,
    "loras": (),
    "embeddings": (),
    "init": None,
    "hires": None,
    "rng": "cpu",
}


def _as_list(name: str, value: object) -> list[object]:
    if not isinstance(value, list | tuple):
        raise InputError(f"the request's {name} must be a list, not {value!r}")
    return list(cast("list[object]", value))


def _part_from_json(name: str, kind: type[P], value: object) -> P:
    """A part of a request as `to_json` wrote it. Raises InputError for unknown or missing fields."""
    if not isinstance(value, Mapping):
        raise InputError(f"the request's {name} must be an object, not {value!r}")
    try:
        return kind(**cast("Mapping[str, Any]", value))
    except TypeError as error:
        raise InputError(f"the request's {name} cannot be read: {error}") from None


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
    guidance_rescale: float | None
    guidance_interval: tuple[float, float] | None
    deep_cache: int | None
    clip_skip: int | None
    loras: tuple[LoRAUse, ...]
    embeddings: tuple[EmbeddingUse, ...]
    init: InitPicture | None
    hires: Hires | float | None
    """A number is the scale."""
    rng: str | None


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
    guidance_rescale: float | None = None,
    guidance_interval: tuple[float, float] | None = None,
    deep_cache: int | None = None,
    clip_skip: int | None = None,
    loras: tuple[LoRAUse, ...] = (),
    embeddings: tuple[EmbeddingUse, ...] = (),
    init: InitPicture | None = None,
    hires: Hires | float | None = None,
    rng: str | None = None,
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
        guidance_rescale=0.0 if guidance_rescale is None else guidance_rescale,
        guidance_interval=defaults.guidance_interval if guidance_interval is None else guidance_interval,
        deep_cache=1 if deep_cache is None else deep_cache,
        clip_skip=clip_skip,
        loras=loras,
        embeddings=embeddings,
        init=init,
        hires=Hires(scale=hires) if isinstance(hires, int | float) else hires,
        rng="cpu" if rng is None else rng,
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


def random_seed(count: int = 1) -> int:
    """One that leaves room for so many pictures, each with the next seed."""
    return secrets.randbelow(MAX_SEED - count + 2)


def low_bits(seed: int) -> int:
    """The low 32 bits of a seed of up to 64; one below 0 comes back as it is. Raises RequestError for a longer one."""
    if seed > MAX_LONG_SEED:
        raise RequestError("seed", f"{shorten(seed)} is out of range", hint=f"0 to {MAX_LONG_SEED}")
    return seed & MAX_SEED if seed > MAX_SEED else seed


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
        raise RequestError(field, f"{shorten(value)} is out of range", hint=f"{low} to {high}")


def _check_float(field: str, value: object, low: float, high: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RequestError(field, f"must be a number, not {value!r}")
    if not low <= value <= high or value in (math.inf, -math.inf):  # a whole number may be too large for a float
        raise RequestError(field, f"{shorten(value)} is out of range", hint=f"{low:g} to {high:g}")
    return float(value)


def _check_bool(field: str, value: object) -> None:
    if not isinstance(value, bool):
        raise RequestError(field, f"must be true or false, not {value!r}")


def _check_sha256(field: str, value: object) -> None:
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{64}", value):
        raise RequestError(field, f"{value!r} is not a SHA-256", hint="64 hexadecimal digits")


def _check_interval(value: object) -> tuple[float, float]:
    if not isinstance(value, list | tuple) or len(cast("list[object]", value)) != 2:
        raise RequestError("guidance-interval", f"must be two numbers, not {value!r}", hint="for instance 0.1,0.8")
    start, end = (_check_float("guidance-interval", each, 0.0, 1.0) for each in cast("list[object]", value))
    if start >= end:
        raise RequestError("guidance-interval", f"{start:g},{end:g} is empty", hint="the first is the smaller one")
    return start, end


def _check_name(field: str, name: object, fingerprint: object) -> None:
    check_text(field, name)
    if not isinstance(fingerprint, str) or not re.fullmatch(r"[0-9a-f]{10}", fingerprint):
        raise RequestError(field, f"{name} has no fingerprint of ten hexadecimal digits")


def shorten(value: float) -> str:
    """A number in a message, short even if somebody typed 10^300."""
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}… ({len(text)} characters)"

"""How a picture of another tool was made, in our terms: what maps onto a request, and what does not.

A file's words are anybody's: numbers are taken only where they are numbers, texts only where they are texts, and what
is missing or absurd is left out rather than refused. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from latentgen.images.files import PictureText

MAX_JSON_CHARACTERS = 8 * 2**20
"""Of one JSON text; large ComfyUI workflows have some hundred thousand."""
MAX_SHOWN = 200
"""Characters of a foreign word inside a message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSettings:
    """What maps onto a request; None is what the file does not say."""

    seed: int | None = None
    """As the tool says it, often of 64 bits; torch's CPU generator looks at the low 32 bits of it."""
    steps: int | None = None
    guidance: float | None = None
    sampler: str | None = None
    """A word that `samplers/registry.py` reads, where it has such a sampler; it may carry a schedule with it."""
    schedule: str | None = None
    """The same for the schedule, or `foreign_names.AUTOMATIC`. Where the file is silent, what the tool takes then."""
    width_px: int | None = None
    height_px: int | None = None
    eta: float | None = None
    guidance_rescale: float | None = None
    clip_skip: int | None = None
    hires_scale: float | None = None
    """Of a second pass at a larger size; None is no such pass."""
    hires_strength: float | None = None


@dataclass(frozen=True, slots=True)
class ForeignMetadata:
    """One tool's account of a picture."""

    tool: str
    prompt: str
    negative_prompt: str = ""
    settings: ForeignSettings = field(default_factory=ForeignSettings)
    model: str | None = None
    """The checkpoint's name there."""
    could_not: tuple[str, ...] = ()
    """What another program can't do again from this, each with its reason: "LoRA ink (0.8): give its file"."""
    also: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else the file says, for whoever looks at it: the tool's version, hashes."""


def read_foreign(text: PictureText) -> ForeignMetadata | None:
    """The first account that a picture's words hold in one of the known forms, None if there is none.

    A1111's text comes last of those that a file may hold together: SwarmUI, Draw Things and Fooocus write something of
    their own into the same places.
    """
    from latentgen.images import a1111, comfyui, flat_json, invokeai

    for read in (invokeai.read, flat_json.read, a1111.read, comfyui.read):
        found = read(text)
        if found is not None:
            return found
    return None


def parse_object(text: str | None) -> dict[str, Any] | None:
    """A JSON object, None for anything else, however deep or long it is."""
    if text is None or len(text) > MAX_JSON_CHARACTERS:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # ValueError: not JSON, or a number of thousands of digits
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def as_number(value: object) -> float | None:
    """A finite number, also one written as a text."""
    if isinstance(value, str):
        try:
            value = float(value) if len(value) < 40 else None
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def as_whole(value: object) -> int | None:
    """A whole number, also one written as a text; exact, however large."""
    if isinstance(value, str):
        return int(value) if len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit() else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    return value if type(value) is int and abs(value) < 2**64 else None


def as_seed(value: object) -> int | None:
    """A whole number from 0; tools write -1 for a random one that they then do not tell."""
    seed = as_whole(value)
    return seed if seed is not None and seed >= 0 else None


def as_text(value: object) -> str:
    """A text, empty for anything else."""
    return value.strip() if isinstance(value, str) else ""


def as_objects(value: object) -> list[dict[str, Any]]:
    """The objects in a list, empty for anything else."""
    items = cast("list[object]", value) if isinstance(value, list) else []
    return [cast("dict[str, Any]", item) for item in items if isinstance(item, dict)]


def short(value: object) -> str:
    """A foreign word inside a message."""
    text = str(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def lora_remark(name: object, strength: object) -> str:
    number = as_number(strength)
    amount = "" if number is None else f" ({number:g})"
    return f"LoRA {short(name)}{amount}: only its name is in the file; give the LoRA itself with --lora"


def init_remark(what: str = "the picture it starts from") -> str:
    return f"{what}: it is not in the file; give it with --init-image to generate"

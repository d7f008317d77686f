"""How a picture of another tool was made, in our terms: what maps onto a request, and what does not.

A file's words are anybody's: numbers are taken only where they are numbers, texts only where they are texts, and what
is missing or absurd is left out rather than refused. Nothing here imports torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from latentgen.images.files import PictureText

MAX_JSON_CHARACTERS = 8 * 2**20
"""Of one JSON text; large ComfyUI workflows have some hundred thousand."""
MAX_SHOWN = 200
"""Characters of a foreign word inside a message."""
_EMBEDDING = re.compile(r"\bembedding:(?:[^\s,:()\[\]<>/\\]++[/\\])*([^\s,:()\[\]<>/\\]+)")
"""ComfyUI's way of naming a textual inversion in a prompt, with folders or without."""
_ENDINGS = (".safetensors", ".pt", ".bin", ".ckpt")


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
    unguided: float | None = None
    """The share of the steps, 0 to 1, up to and with which a step is not guided: the first always, if it is said."""
    clip_skip: int | None = None
    hires_scale: float | None = None
    """Of a second pass at a larger size; None is no such pass."""
    hires_strength: float | None = None
    rng: str | None = None
    """`GenerationRequest.rng`."""


@dataclass(frozen=True, slots=True)
class NamedLoRA:
    """A LoRA as a picture's file names it."""

    title: str
    """Its name there, perhaps with an ending or a folder."""
    scale: float | None = None
    """None is what the file does not say."""

    @property
    def name(self) -> str:
        """The name that its file has, without folder and ending."""
        return own_name(self.title)


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPicture:
    """What a picture's file says of the picture that drawing started from. None is what it does not say."""

    title: str = ""
    """Its name there."""
    strength: float | None = None
    """As `InitPicture.strength`."""
    is_masked: bool | None = None
    mask_blur_px: int | None = None
    invert_mask: bool = False
    outpaint: tuple[int, int, int, int] = (0, 0, 0, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedFiles:
    """What a picture was drawn with and its file only names: to be drawn again it must be given."""

    loras: tuple[NamedLoRA, ...] = ()
    embeddings: tuple[str, ...] = ()
    """Textual inversions, by their names in the prompts."""
    vae: str | None = None
    """None is the model's own."""
    start: StartingPicture | None = None

    @property
    def scales(self) -> dict[str, float]:
        """The LoRAs by the names of their files; what is not said is 1."""
        return {lora.name: 1.0 if lora.scale is None else lora.scale for lora in self.loras}

    def missing(
        self,
        *,
        loras: Collection[str] = (),
        embeddings: Collection[str] = (),
        vae: bool = False,
        init_image: bool = False,
        mask: bool = False,
    ) -> list[str]:
        """A line for each that is not given: names of LoRAs and embeddings that are, and whether the others are."""
        given = {name.lower() for name in embeddings}
        lines = [
            f"LoRA {short(lora.title)}{_amount(lora.scale)}: only its name is in the file; "
            "give the LoRA itself with --lora"
            for lora in self.loras
            if lora.name not in loras
        ]
        lines += [
            f"embedding {short(name)}: only its name is in the file; give it with --embedding"
            for name in self.embeddings
            if name.lower() not in given
        ]
        if self.vae is not None and not vae:
            lines.append(f"VAE {short(self.vae)}: the model's own is used; give it with --vae")
        if self.start is not None and not init_image:
            title = f"the picture {short(self.start.title)} that" if self.start.title else "the picture"
            strength = _amount(self.start.strength)
            lines.append(f"{title} it starts from{strength}: it is not in the file; give it with --init-image")
        if self.start is not None and self.start.is_masked and not mask:
            lines.append("the mask: it is not in the file; give it with --mask")
        return lines


@dataclass(frozen=True, slots=True)
class ForeignMetadata:
    """One tool's account of a picture."""

    tool: str
    prompt: str
    negative_prompt: str = ""
    settings: ForeignSettings = field(default_factory=ForeignSettings)
    model: str | None = None
    """The checkpoint's name there."""
    named: NamedFiles = field(default_factory=NamedFiles)
    could_not: tuple[str, ...] = ()
    """What else another program can't do again from this, each with its reason: "ControlNet: not supported"."""
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
            names = [
                *found.named.embeddings,
                *map(own_name, _EMBEDDING.findall(f"{found.prompt}\n{found.negative_prompt}")),
            ]
            return replace(found, named=replace(found.named, embeddings=tuple(dict.fromkeys(names))))
    return None


def plain_embeddings(prompt: str) -> str:
    """A prompt in which textual inversions are named by their bare names, as they are here."""
    return _EMBEDDING.sub(lambda match: own_name(match[1]), prompt)


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


def as_share(value: object) -> float | None:
    """A number above 0, up to 1."""
    number = as_number(value)
    return number if number is not None and 0 < number <= 1 else None


def own_name(title: str) -> str:
    """A file's own name, without folder and ending, as it is on any system."""
    name = title.replace("\\", "/").rsplit("/", 1)[-1]
    return next((name.removesuffix(ending) for ending in _ENDINGS if name.endswith(ending)), name)


def _amount(number: float | None) -> str:
    return "" if number is None else f" ({number:g})"

"""The `parameters` text of AUTOMATIC1111's stable-diffusion-webui, which most tools of the field write and read.

Prompt lines; `Negative prompt: ...` if there is one; then `Steps: 20, Sampler: Euler a, ...` on the last line. A value
that holds a comma, a colon or a line break is written as a JSON string.
Source: `create_infotext` and `parse_generation_parameters` in that project, whose files the tests hold samples of.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from latentgen.images.foreign import (
    ForeignMetadata,
    ForeignSettings,
    NamedFiles,
    NamedLoRA,
    StartingPicture,
    as_number,
    as_seed,
    as_share,
    as_whole,
    short,
)
from latentgen.images.foreign_names import LEADING, UNIFORM, schedule_word
from latentgen.request import MAX_MASK_BLUR_PX

if TYPE_CHECKING:
    from latentgen.images.files import PictureText

_NEGATIVE = "Negative prompt:"
_MIN_FIELDS = 3
"""A last line of fewer fields is prompt, as in that project: "Steps: two" may be words."""
_MAX_FIELDS = 1000
"""No tool writes a tenth of it. A field whose JSON is none costs a look at all that stands before it."""
_KEY = re.compile(r"\s*(\w[\w \-/+.()]*+)\s*:\s*")
_FIRST_FIELD = re.compile(r"Steps: [0-9]+(,|$)")
_JSON = json.JSONDecoder()
_ADD_ON = re.compile(r"<(lora|lyco|hypernet):([^:<>]+)(?::([^<>]*))?>")
_MAX_TEXT = 1_000_000


@dataclass(frozen=True, slots=True)
class A1111Parameters:
    prompt: str
    negative_prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the last line, in its order: "Steps", "Sampler", "CFG scale", "Seed", "Size" ..."""


def format_parameters(parameters: A1111Parameters) -> str:
    """The text of the PNG chunk."""
    lines = [parameters.prompt]
    if parameters.negative_prompt:
        lines.append(f"{_NEGATIVE} {parameters.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in parameters.fields.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> A1111Parameters:
    """Read a `parameters` text, ours or another tool's. What is not a list of fields counts as prompt.

    The fields begin at the last line that starts with "Steps: ", because some tools add lines of their own below it,
    or are the last line; so a prompt may itself hold such words.
    """
    lines = text[:_MAX_TEXT].strip().splitlines()
    starts = [k for k, line in enumerate(lines) if _FIRST_FIELD.match(line.strip())]
    fields: dict[str, str] = {}
    for start in (*starts[-1:], len(lines) - 1):
        fields = _parse_fields("\n".join(lines[start:])) if lines else {}
        if len(fields) >= _MIN_FIELDS:
            lines = lines[:start]
            break
        fields = {}
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        if target is prompt and line.strip().startswith(_NEGATIVE):
            target = negative
            line = line.strip().removeprefix(_NEGATIVE)
        target.append(line.strip())
    return A1111Parameters("\n".join(prompt).strip(), "\n".join(negative).strip(), fields)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ',:\n"') else value


def _parse_fields(line: str) -> dict[str, str]:
    """`Key: value, Key: "quoted, value", Key: {"json": 1}, ...`; what has no key ends the list."""
    fields: dict[str, str] = {}
    position = 0
    for _ in range(_MAX_FIELDS):
        match = _KEY.match(line, position)
        if match is None:
            break
        value, position = _value(line, match.end())
        fields[match[1].strip()] = value
    return fields


def _value(line: str, start: int) -> tuple[str, int]:
    """The value that begins at `start`, and where the next key may begin."""
    if line[start : start + 1] in ('"', "{", "["):
        try:
            value, end = _JSON.raw_decode(line, start)
        except (ValueError, RecursionError):
            pass
        else:
            comma = re.compile(r"\s*(,|\n|$)").match(line, end)
            if comma is not None:
                return value if isinstance(value, str) else line[start:end], comma.end()
    end = min((at for at in (line.find(",", start), line.find("\n", start)) if at >= 0), default=len(line))
    return line[start:end].strip(), end + 1


# What it means to us

_RESCALES = ("CFG Rescale phi", "CFG Rescale φ", "CFG rescale")
_UNGUIDED = "Skip Early CFG"
_USED = {
    "Steps",
    "Sampler",
    "Schedule type",
    "CFG scale",
    "Seed",
    "Size",
    "Clip skip",
    "Eta",
    "Eta DDIM",
    *_RESCALES,
    _UNGUIDED,
    "Model",
    "Denoising strength",
    "Hires upscale",
    "Hires resize",
    "RNG",
    "Mask blur",
    "Mask mode",
}
_SAID = ("Model hash", "VAE", "VAE hash", "Lora hashes", "TI hashes", "Version", "App", "Hashes", "User")
"""Fields that change nothing by themselves, or name files."""
REASONS = {
    "Hires upscaler": "the second pass enlarges the latents or the picture in its own way",
    "Hires steps": "the second pass takes as many steps as the first, times its strength",
    "Hires prompt": "both passes draw the same prompt",
    "Hires negative prompt": "both passes draw the same prompt",
    "Variation seed": "the noise follows from one seed",
    "Variation seed strength": "the noise follows from one seed",
    "ENSD": "the noise of every step follows from the seed itself",
    "Eta": "ancestral samplers add all of their noise",
    "Face restoration": "no other model works on a finished picture",
    "Tiling": "pictures have edges",
    "Refiner": "one model draws all steps",
    "Refiner switch at": "one model draws all steps",
}
"""Why a field of that program is not honoured."""


def read(text: PictureText) -> ForeignMetadata | None:
    """The account of A1111, Forge, SD.Next and all who write as they do. None if the text names no settings."""
    if text.parameters is None:
        return None
    return interpret(parse_parameters(text.parameters))


def interpret(parameters: A1111Parameters) -> ForeignMetadata | None:
    """None if there are no settings: then it may be any text."""
    fields = parameters.fields
    if not fields:
        return None
    remarks: list[str] = []
    prompt, loras = _without_add_ons(parameters.prompt, remarks)
    sampler, schedule = _walk(fields)
    width_px, height_px = _size(fields.get("Size", ""))
    strength = as_number(fields.get("Denoising strength"))
    hires_scale = _hires_scale(fields, width_px, height_px)
    start = _start(fields) if strength is not None and hires_scale is None else None
    rng = _rng(fields, remarks)
    remarks += [_remark(key, value) for key, value in fields.items() if key not in _USED and key not in _SAID]
    if as_number(fields.get("Eta")) not in (None, 1) and sampler != "DDIM":
        remarks.append(_remark("Eta", fields["Eta"]))
    return ForeignMetadata(
        tool=_tool(fields),
        prompt=prompt,
        negative_prompt=parameters.negative_prompt,
        settings=ForeignSettings(
            seed=as_seed(fields.get("Seed")),
            steps=as_whole(fields.get("Steps")),
            guidance=as_number(fields.get("CFG scale")),
            sampler=sampler,
            schedule=schedule,
            width_px=width_px,
            height_px=height_px,
            eta=as_number(fields.get("Eta DDIM") or (fields.get("Eta") if sampler == "DDIM" else None)),
            guidance_rescale=as_number(next((fields[key] for key in _RESCALES if key in fields), None)),
            unguided=as_share(fields.get(_UNGUIDED)),
            clip_skip=as_whole(fields.get("Clip skip")),
            hires_scale=hires_scale,
            hires_strength=strength if hires_scale is not None else None,
            rng=rng,
        ),
        model=fields.get("Model"),
        named=NamedFiles(
            loras=tuple(loras), embeddings=_hashed(fields.get("TI hashes", "")), vae=fields.get("VAE"), start=start
        ),
        could_not=tuple(remarks),
        also={key: fields[key] for key in _SAID if key in fields},
    )


def _rng(fields: Mapping[str, str], remarks: list[str]) -> str:
    """Whose noise it was: where the file does not say, the GPU's, which is taken for one of NVIDIA's."""
    said = fields.get("RNG", "GPU")
    if said not in ("CPU", "NV"):
        remarks.append(f"starting noise: {short(said)} noise there; an NVIDIA GPU's is drawn")
    return "cpu" if said == "CPU" else "nv"


def _remark(key: str, value: str) -> str:
    return f"{short(key)} {short(value)}: {REASONS.get(key, 'not a setting that latentgen has')}"


def _start(fields: Mapping[str, str]) -> StartingPicture:
    """The picture that it started from. "Mask blur" is said of every mask, also where it is 0."""
    blur = as_whole(fields.get("Mask blur"))
    return StartingPicture(
        strength=as_share(fields.get("Denoising strength")),
        is_masked="Mask blur" in fields or "Mask mode" in fields,
        mask_blur_px=blur if blur is not None and 0 <= blur <= MAX_MASK_BLUR_PX else None,
        invert_mask=fields.get("Mask mode") == "Inpaint not masked",
    )


def _hashed(text: str) -> tuple[str, ...]:
    """The names in `name: hash, name: hash`."""
    return tuple(name for each in text.split(",") if (name := each.partition(":")[0].strip()))


def _without_add_ons(prompt: str, remarks: list[str]) -> tuple[str, list[NamedLoRA]]:
    """The prompt without <lora:name:0.8> and its like, and the LoRAs that were taken out."""
    loras: list[NamedLoRA] = []

    def take(match: re.Match[str]) -> str:
        kind, name, strength = match.groups()
        if kind == "hypernet":
            remarks.append(f"hypernetwork {short(name)}: not supported")
            return ""
        loras.append(NamedLoRA(name, as_number(strength)))
        if strength and loras[-1].scale is None:
            remarks.append(f"LoRA {short(name)}: its weight {short(strength)} is not one number; 1 is taken")
        return ""

    return re.sub(r"[ \t]{2,}", " ", _ADD_ON.sub(take, prompt)).strip(), loras


def _walk(fields: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Sampler and schedule. Before version 1.9 the sampler's title held the schedule too: "DPM++ 2M Karras"."""
    sampler, schedule = fields.get("Sampler"), fields.get("Schedule type")
    if sampler in ("DDIM", "PLMS") and not fields.get("Version", "").startswith("latentgen "):
        return sampler, LEADING  # CompVis' samplers, which know no other levels
    for ending in ("Karras", "Exponential"):
        if sampler is not None and sampler.endswith(f" {ending}"):
            return sampler.removesuffix(f" {ending}"), ending
    return sampler, UNIFORM if schedule is None else schedule_word(schedule)


def _size(text: str) -> tuple[int | None, int | None]:
    match = re.fullmatch(r"([0-9]{1,6})x([0-9]{1,6})", text.strip())
    return (int(match[1]), int(match[2])) if match else (None, None)


def _hires_scale(fields: Mapping[str, str], width_px: int | None, height_px: int | None) -> float | None:
    """Of the second pass: told as a factor or as the size it ends in."""
    scale = as_number(fields.get("Hires upscale"))
    resized = zip(_size(fields.get("Hires resize", "")), (width_px, height_px), strict=True)
    factors = [after / before for after, before in resized if after and before]  # a side that is 0 follows the other
    return max(factors) if scale is None and factors else scale


def _tool(fields: Mapping[str, str]) -> str:
    version = fields.get("Version", "")
    if "App" in fields:
        return short(fields["App"])
    if version.startswith("latentgen "):
        return "latentgen"
    if re.match(r"f[0-9]", version):
        return "Forge"
    if version == "ComfyUI" or "Fooocus" in version:
        return short(version.split()[0])
    return "AUTOMATIC1111" if re.match(r"v?[0-9]", version) else "a tool that writes A1111 parameters"

"""Tools that write one JSON object of settings: mflux, SwarmUI, Fooocus, Draw Things and NovelAI.

They differ in where the object stands and what its keys are called, so each is a row of a table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from latentgen.images.foreign import (
    ForeignMetadata,
    ForeignSettings,
    NamedFiles,
    NamedLoRA,
    StartingPicture,
    as_number,
    as_objects,
    as_seed,
    as_share,
    as_text,
    as_whole,
    parse_object,
    short,
)
from latentgen.images.foreign_names import sampler_word, schedule_word

if TYPE_CHECKING:
    from latentgen.images.files import PictureText

OFF = ("None", "none", "[]", "False")
"""What these tools write, in words, where a setting is not used."""
Keys = Mapping[str, str]
"""Our name of a setting to the tool's."""


@dataclass(frozen=True, slots=True)
class FlatForm:
    tool: str
    find: Callable[[PictureText], dict[str, Any] | None]
    """The object, None if the file is not this tool's."""
    keys: Keys
    init: Sequence[str] = field(default=())
    """Keys that name a picture it started from."""
    mask: str | None = None
    """The key that names a mask; None where the tool does not say."""
    noise: str | None = None
    """Where the starting noise is not that of torch's CPU generator."""
    changes: Sequence[str] = field(default=())
    """Further keys that change a picture and are not here."""


def read(text: PictureText) -> ForeignMetadata | None:
    """The account of the first form that fits."""
    for form in FORMS:
        said = form.find(text)
        if said is not None:
            return _interpret(form, said)
    return None


def _interpret(form: FlatForm, said: Mapping[str, Any]) -> ForeignMetadata:
    def at(name: str) -> object:
        return said.get(form.keys.get(name, ""))

    sampler, schedule = as_text(at("sampler")), as_text(at("schedule"))
    # Fooocus writes "(1024, 1024)", Draw Things "512x768".
    sides = re.findall(r"[0-9]{1,6}", as_text(at("size")))
    width_px, height_px = sides if len(sides) == 2 else (at("width"), at("height"))
    skipped = as_whole(at("clip_skip"))  # SwarmUI counts from the end, -1
    start = None
    if any(said.get(name) for name in form.init):
        is_masked = None if form.mask is None else bool(said.get(form.mask))
        start = StartingPicture(strength=as_share(at("strength")), is_masked=is_masked)
    vae = as_text(said.get("vae"))
    in_use = [key for key in form.changes if said.get(key) and str(said[key]) not in OFF]
    remarks = [f"{key} {short(str(said[key]))}: not a setting that latentgen has" for key in in_use]
    if form.noise is not None:
        remarks.append(f"starting noise: {form.noise}; here the CPU draws other noise for the same seed")
    return ForeignMetadata(
        tool=form.tool,
        prompt=as_text(at("prompt")),
        negative_prompt=as_text(at("negative_prompt")),
        settings=ForeignSettings(
            seed=as_seed(at("seed")),
            steps=as_whole(at("steps")),
            guidance=as_number(at("guidance")),
            sampler=sampler_word(sampler) if sampler else None,
            schedule=schedule_word(schedule) if schedule else None,
            width_px=as_whole(width_px),
            height_px=as_whole(height_px),
            guidance_rescale=as_number(at("guidance_rescale")) or None,
            clip_skip=abs(skipped) if skipped else None,
        ),
        model=as_text(at("model")) or None,
        named=NamedFiles(
            loras=tuple(NamedLoRA(str(name), as_number(scale)) for name, scale in _loras(said)),
            vae=vae if vae and vae not in OFF else None,
            start=start,
        ),
        could_not=tuple(remarks),
        also={"Version": as_text(at("version"))} if as_text(at("version")) else {},
    )


def _loras(said: Mapping[str, Any]) -> list[tuple[object, object]]:
    """Names and strengths, in the two ways these tools list them: side by side, or as objects."""
    found: list[tuple[object, object]] = []
    for names, weights in (("lora_paths", "lora_scales"), ("loras", "loraweights")):
        listed = [_list(said.get(key)) for key in (names, weights)]
        if listed[0] and not isinstance(listed[0][0], dict):
            strengths = [*listed[1], *[None] * len(listed[0])]
            for name, strength in zip(listed[0], strengths, strict=False):
                if len(pair := _list(name)) >= 2:  # Fooocus: name, strength, hash
                    name, strength = pair[0], pair[1]
                found.append((str(name).rsplit("/", 1)[-1], strength))
    for key in ("lora", "loras"):
        found += [
            (each.get("model", each.get("name", "")), each.get("weight", each.get("strength")))
            for each in as_objects(said.get(key))
        ]
    return found


def _list(value: object) -> list[object]:
    return cast("list[object]", value) if isinstance(value, list) else []


def _mflux(text: PictureText) -> dict[str, Any] | None:
    said = parse_object(text.chunks.get("UserComment"))
    if said is None or "mflux_version" not in said:
        return None
    kept = as_number(said.get("image_strength"))  # the share of the steps that is left out
    return said if kept is None else {**said, "strength": 1 - kept}


def _swarm(text: PictureText) -> dict[str, Any] | None:
    said = parse_object(text.parameters) or parse_object(text.chunks.get("UserComment"))
    inner = None if said is None else said.get("sui_image_params")
    return cast("dict[str, Any]", inner) if isinstance(inner, dict) else None


def _fooocus(text: PictureText) -> dict[str, Any] | None:
    if text.chunks.get("fooocus_scheme") != "fooocus":
        return None
    return parse_object(text.parameters)


def _draw_things(text: PictureText) -> dict[str, Any] | None:
    """JSON in the XMP's exif:UserComment, beside its name as the creator tool."""
    xmp = text.chunks.get("XMP", "")
    if "Draw Things" not in xmp:
        return None
    comment = xmp.partition("<exif:UserComment>")[2]
    start = comment.find("{")
    end = None if start < 0 else re.compile(r"\}\s*</").search(comment, start)
    return None if end is None else parse_object(_unescape(comment[start : end.start() + 1]))


def _unescape(text: str) -> str:
    for sign, name in (
        ("<", "lt"),
        (">", "gt"),
        ('"', "quot"),
        ("'", "apos"),
        ('"', "#34"),
        ("'", "#39"),
        ("&", "amp"),
    ):
        text = text.replace(f"&{name};", sign)
    return text


def _novelai(text: PictureText) -> dict[str, Any] | None:
    if text.chunks.get("Software") != "NovelAI":
        return None
    said = parse_object(text.chunks.get("Comment"))
    if said is None:
        return None
    kind = str(said.get("request_type", ""))
    from_a_picture = kind.startswith(("Img2Img", "NativeInfilling"))
    return {
        **said,
        "model": text.chunks.get("Source", ""),
        "image": said.get("image") or from_a_picture,
        "mask": kind.startswith("NativeInfilling"),
    }


_COMMON: Keys = {"prompt": "prompt", "negative_prompt": "negative_prompt", "seed": "seed", "steps": "steps"}
_SIZE: Keys = {"width": "width", "height": "height"}

FORMS: tuple[FlatForm, ...] = (
    FlatForm(
        "mflux",
        _mflux,
        {
            **_COMMON,
            **_SIZE,
            "guidance": "guidance",
            "model": "model",
            "strength": "strength",
            "version": "mflux_version",
        },
        init=("image_path", "image_paths", "masked_image_path", "controlnet_image_path", "depth_image_path"),
        mask="masked_image_path",
        noise="MLX's there",
    ),
    FlatForm(
        "SwarmUI",
        _swarm,
        {
            **_COMMON,
            **_SIZE,
            "negative_prompt": "negativeprompt",
            "guidance": "cfgscale",
            "sampler": "sampler",
            "schedule": "scheduler",
            "model": "model",
            "clip_skip": "clipstopatlayer",
            "strength": "initimagecreativity",
            "version": "swarm_version",
        },
        init=("initimage", "initimagecreativity"),
        changes=("variationseed", "variationseedstrength", "refinermodel", "refinerupscale", "controlnetmodel"),
    ),
    FlatForm(
        "Fooocus",
        _fooocus,
        {
            **_COMMON,
            "size": "resolution",
            "guidance": "guidance_scale",
            "sampler": "sampler",
            "schedule": "scheduler",
            "model": "base_model",
            "clip_skip": "clip_skip",
            "version": "version",
        },
        changes=("refiner_model", "styles", "sharpness", "adm_guidance", "freeu"),
    ),
    FlatForm(
        "Draw Things",
        _draw_things,
        {
            "prompt": "c",
            "negative_prompt": "uc",
            "seed": "seed",
            "steps": "steps",
            "guidance": "scale",
            "sampler": "sampler",
            "size": "size",
            "model": "model",
        },
        noise="drawn on a GPU there",
    ),
    FlatForm(
        "NovelAI",
        _novelai,
        {
            **_COMMON,
            **_SIZE,
            "negative_prompt": "uc",
            "guidance": "scale",
            "sampler": "sampler",
            "schedule": "noise_schedule",
            "guidance_rescale": "cfg_rescale",
            "model": "model",
            "strength": "strength",
        },
        init=("image",),
        mask="mask",
        noise="drawn on a GPU there",
        changes=("sm", "sm_dyn", "dynamic_thresholding", "skip_cfg_above_sigma"),
    ),
)

"""InvokeAI's three forms: `invokeai_metadata` (3.x on), `sd-metadata` (2.x) and the command line of `Dream` (1.x)."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from itertools import pairwise
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
from latentgen.images.foreign_names import LEADING, LINSPACE, sampler_word

if TYPE_CHECKING:
    from latentgen.images.files import PictureText

TOOL = "InvokeAI"
_IGNORED = {
    "controlnets": "ControlNet",
    "ipAdapters": "IP adapter",
    "t2iAdapters": "T2I adapter",
    "control_layers": "control layers",
    "refiner_model": "refiner",
    "hrf_enabled": "second pass at a larger size",
    "seamless_x": "tiling",
    "seamless_y": "tiling",
}


def read(text: PictureText) -> ForeignMetadata | None:
    """The account of InvokeAI, the newest form first; None if there is none."""
    newest = parse_object(text.chunks.get("invokeai_metadata"))
    if newest is not None and "positive_prompt" in newest:
        return _read_newest(newest)
    older = parse_object(text.chunks.get("sd-metadata"))
    if older is not None and isinstance(older.get("image"), dict):
        return _read_older(older, cast("dict[str, Any]", older["image"]))
    oldest = text.chunks.get("Dream")
    return None if oldest is None else _read_oldest(oldest)


def _read_newest(said: Mapping[str, Any]) -> ForeignMetadata:
    loras = (
        NamedLoRA(_name(each.get("lora", each.get("model"))), as_number(each.get("weight")))
        for each in as_objects(said.get("loras"))
    )
    remarks = list(dict.fromkeys(f"{what}: not supported" for name, what in _IGNORED.items() if said.get(name)))
    start = _start(as_text(said.get("generation_mode")), said.get("strength"))
    device = said.get("rand_device", "cpu")
    if device not in ("cpu", "cuda"):
        remarks.append(f"starting noise: {short(device)} noise there, the CPU's here")
    prompt, negative = as_text(said["positive_prompt"]), as_text(said.get("negative_prompt"))
    skipped = as_whole(said.get("clip_skip"))
    sampler, schedule = _walk(as_text(said.get("scheduler")))
    return ForeignMetadata(
        tool=TOOL,
        prompt=prompt,
        negative_prompt=negative,
        settings=ForeignSettings(
            seed=as_seed(said.get("seed")),
            steps=as_whole(said.get("steps")),
            guidance=as_number(said.get("cfg_scale")),
            sampler=sampler,
            schedule=schedule,
            width_px=as_whole(said.get("width")),
            height_px=as_whole(said.get("height")),
            guidance_rescale=as_number(said.get("cfg_rescale_multiplier")) or None,
            # Layers left out there; here the layer read, counted from 1.
            clip_skip=None if not skipped else skipped + 1,
            rng="nv" if device == "cuda" else "cpu",
        ),
        model=_name(said.get("model")) or None,
        named=NamedFiles(loras=tuple(loras), vae=_name(said.get("vae")) or None, start=start),
        could_not=(*remarks, *_compel(prompt, negative)),
        also=_version(said),
    )


def _read_older(said: Mapping[str, Any], image: Mapping[str, Any]) -> ForeignMetadata:
    value = image.get("prompt")
    texts = [value] if isinstance(value, str) else [as_text(each.get("prompt")) for each in as_objects(value)]
    prompt, negative = _split_negative(", ".join(text for text in texts if text))
    unsupported = ("hires_fix", "seamless", "variations", "postprocessing", "threshold", "perlin")
    remarks = [f"{name}: not supported" for name in unsupported if image.get(name)]
    sampler, schedule = _walk(as_text(image.get("sampler")))
    return ForeignMetadata(
        tool=TOOL,
        prompt=prompt,
        negative_prompt=negative,
        settings=ForeignSettings(
            seed=as_seed(image.get("seed")),
            steps=as_whole(image.get("steps")),
            guidance=as_number(image.get("cfg_scale")),
            sampler=sampler,
            schedule=schedule,
            width_px=as_whole(image.get("width")),
            height_px=as_whole(image.get("height")),
        ),
        model=as_text(said.get("model_weights")) or None,
        named=NamedFiles(start=_start(as_text(image.get("type")), image.get("strength"))),
        could_not=(*remarks, *_compel(prompt, negative)),
        also=_version(said),
    )


def _read_oldest(line: str) -> ForeignMetadata | None:
    """`"a cat" -s 50 -S 123 -W 512 -H 512 -C 7.5 -A k_lms`: the command it was drawn with."""
    try:
        words = shlex.split(line[:100_000])
    except ValueError:
        return None
    if not words:
        return None
    flags = {word[:2]: (word[2:] or following) for word, following in pairwise([*words[1:], ""])}
    prompt, negative = _split_negative(words[0])
    mode = "inpaint" if "-M" in flags else "img2img" if "-I" in flags else ""
    sampler, schedule = _walk(flags.get("-A", ""))
    return ForeignMetadata(
        tool=TOOL,
        prompt=prompt,
        negative_prompt=negative,
        settings=ForeignSettings(
            seed=as_seed(flags.get("-S")),
            steps=as_whole(flags.get("-s")),
            guidance=as_number(flags.get("-C")),
            sampler=sampler,
            schedule=schedule,
            width_px=as_whole(flags.get("-W")),
            height_px=as_whole(flags.get("-H")),
        ),
        named=NamedFiles(start=_start(mode, flags.get("-f"))),
        could_not=tuple(_compel(prompt, negative)),
    )


def _start(mode: str, strength: object) -> StartingPicture | None:
    """The picture that it started from, by the mode, such as "txt2img", "sdxl_img2img" or "inpaint"."""
    if not mode.endswith(("img2img", "inpaint", "outpaint")):
        return None
    return StartingPicture(strength=as_share(strength), is_masked=mode.endswith(("inpaint", "outpaint")))


def _walk(name: str) -> tuple[str | None, str | None]:
    """Sampler and schedule: diffusers' schedulers, whose own spacing is "leading" for DDIM and PNDM."""
    if not name:
        return None, None
    if name.endswith("_k"):  # Karras, which the registry reads from the name
        return name, None
    return sampler_word(name), LEADING if name in ("ddim", "pndm", "plms", "ddpm", "lcm") else LINSPACE


def _split_negative(prompt: str) -> tuple[str, str]:
    """Before 3.0 the negative prompt stood in brackets inside the prompt."""
    parts = re.split(r"\[([^\[\]]*)\]", prompt)
    *before, rest = parts[::2]
    kept = "".join([*(text.rstrip() for text in before), rest]).strip() if before else prompt
    return kept, ", ".join(text.strip() for text in parts[1::2])


def _compel(*texts: str) -> list[str]:
    """Weights as in `a (red fox)++` or `(fox)1.3` are Compel's, whose meaning is not A1111's."""
    has_weights = any(re.search(r"[\w)](\+{1,6}|-{2,6})(\W|$)|\)[0-9]", text) for text in texts)
    return ["prompt weights: Compel's ++ and -- are read as plain signs"] if has_weights else []


def _name(value: object) -> str:
    """Of a model: a text, or an object whose key for it changed between versions."""
    if not isinstance(value, dict):
        return as_text(value)
    said = cast("dict[str, Any]", value)
    return as_text(said.get("name")) or as_text(said.get("model_name"))


def _version(said: Mapping[str, Any]) -> dict[str, str]:
    version = as_text(said.get("app_version"))
    return {"Version": version} if version else {}

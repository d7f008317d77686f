"""The graph that ComfyUI writes into a picture: the `prompt` chunk, nodes by id with their inputs.

An input is a value or a link `[id, output]`. What was drawn is found by walking up from the sampler: `model` to the
checkpoint past every LoRA, `positive` and `negative` to the texts, `latent_image` to the size. The second chunk,
`workflow`, is the same for the screen and says nothing more.
Source: the core nodes' declarations in that project (`nodes.py`, `comfy_extras/nodes_custom_sampler.py`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from latentgen.images.foreign import (
    ForeignMetadata,
    ForeignSettings,
    NamedFiles,
    NamedLoRA,
    StartingPicture,
    as_number,
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

MAX_NODES = 10_000
MAX_WALK = 200
"""Nodes on the way up from one input; a graph has no rings, but a file may."""

SAMPLERS = ("KSampler", "KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced")
_SAVERS = ("SaveImage", "PreviewImage", "SaveAnimatedWEBP", "SaveAnimatedPNG")
_TRANSPARENT = (*_SAVERS, "VAEDecode", "VAEDecodeTiled", "Reroute")
"""Nodes behind the last sampler that do nothing to a picture which is not done here too."""
_TEXTS = (
    "text",
    "text_g",
    "text_l",
    "prompt",
    "positive",
    "string",
    "value",
    "populated_text",
    "wildcard_text",
    "STRING",
)
_NUMBERS = ("seed", "noise_seed", "value", "int", "float", "number", "Number", "Value", "INT", "FLOAT")
_LATENTS = ("samples", "latent", "pixels", "image")
"""Inputs that lead from a sampler's latents to where they come from."""
_PICTURES = re.compile("LoadImage|ImageLoad")
_PASSES_MODEL = {"ModelSamplingDiscrete": "prediction type and schedule come from the model here"}


@dataclass(frozen=True, slots=True)
class Node:
    kind: str
    inputs: Mapping[str, Any]


@dataclass(slots=True)
class _Reading:
    """A walk through one graph, and what it met that cannot be done again."""

    nodes: Mapping[str, Node]
    remarks: list[str] = field(default_factory=list[str])
    loras: list[NamedLoRA] = field(default_factory=list[NamedLoRA])

    def remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def linked(self, value: object) -> Node | None:
        """The node at the other end of a link; None for a value, or a link to nowhere."""
        if isinstance(value, list):
            link = cast("list[object]", value)
            if len(link) == 2 and isinstance(link[0], str | int):
                return self.nodes.get(str(link[0]))
        return None

    def up(self, node: Node | None, *names: str) -> Iterator[Node]:
        """A node, and those that come before it along the first of the named inputs that is a link."""
        for _ in range(MAX_WALK):
            if node is None:
                return
            yield node
            found = (self.linked(node.inputs.get(name)) for name in names)
            node = next((each for each in found if each is not None), None)

    def value(self, node: Node | None, name: str, kinds: tuple[str, ...] = _NUMBERS) -> object:
        """An input's value; behind links, what the last node there holds under one of the usual names."""
        if node is None:
            return None
        value: object = node.inputs.get(name)
        for _ in range(MAX_WALK):
            behind = self.linked(value)
            if behind is None:
                return None if isinstance(value, list) else value
            value = next((behind.inputs[each] for each in kinds if each in behind.inputs), None)
        return None


def read(text: PictureText) -> ForeignMetadata | None:
    """The account of ComfyUI and of everything that runs its graphs; None if there is no graph with a sampler."""
    reading = _Reading(_nodes(parse_object(text.chunks.get("prompt"))))
    sampler = _first_sampler(reading)
    if sampler is None:
        return None
    guider = reading.linked(sampler.inputs.get("guider"))
    conditioned = guider or sampler
    positive = conditioned.inputs.get("positive", conditioned.inputs.get("conditioning"))
    prompt = _text(reading, positive)
    negative = _text(reading, conditioned.inputs.get("negative"))
    model, rescale = _model(reading, conditioned)
    clip_skip = _clip_skip(reading, positive)
    width_px, height_px = _size(reading, sampler)
    start = _start(reading, sampler)
    name, schedule, steps = _walk(reading, sampler, is_from_picture=start is not None)
    seed_node = reading.linked(sampler.inputs.get("noise")) or sampler
    guidance = as_number(reading.value(conditioned, "cfg"))
    return ForeignMetadata(
        tool="ComfyUI",
        prompt=prompt,
        negative_prompt=negative,
        settings=ForeignSettings(
            seed=as_seed(reading.value(seed_node, "noise_seed" if "noise_seed" in seed_node.inputs else "seed")),
            steps=steps,
            # A guider of one conditioning does not guide.
            guidance=1.0 if guidance is None and guider is not None and "conditioning" in guider.inputs else guidance,
            sampler=None if name is None else sampler_word(name),
            schedule=None if schedule is None else schedule_word(schedule),
            width_px=width_px,
            height_px=height_px,
            guidance_rescale=rescale,
            clip_skip=clip_skip,
        ),
        model=model,
        named=NamedFiles(loras=tuple(reading.loras), vae=_vae(reading), start=start),
        could_not=tuple(reading.remarks),
    )


def _nodes(graph: Mapping[str, Any] | None) -> dict[str, Node]:
    """The nodes of a graph; what is none is left out."""
    nodes: dict[str, Node] = {}
    for name, value in list((graph or {}).items())[:MAX_NODES]:
        if isinstance(value, dict):
            kind, inputs = cast("dict[str, Any]", value).get("class_type"), cast("dict[str, Any]", value).get("inputs")
            if isinstance(kind, str) and isinstance(inputs, dict):
                nodes[name] = Node(kind, cast("dict[str, Any]", inputs))
    return nodes


def _first_sampler(reading: _Reading) -> Node | None:
    """The sampler that starts the saved picture: the last one on the way up from it. Later passes are remarked on."""
    saved = [node for node in reading.nodes.values() if node.kind in _SAVERS]
    for saver in saved or reading.nodes.values():
        way = list(reading.up(saver, "images", "image", "pixels", "samples", "latent_image", "latent"))
        samplers = [node for node in way if node.kind in SAMPLERS]
        if saved and samplers:
            for node in way[: way.index(samplers[0])]:
                if node.kind not in _TRANSPARENT:
                    reading.remark(f"{short(node.kind)}: what it does to the picture is not done here")
        for later in samplers[:-1]:
            strength = as_number(reading.value(later, "denoise"))
            amount = "" if strength is None else f" of strength {strength:g}"
            reading.remark(f"a second pass{amount}: only the first is drawn; --hires is the like of it")
        if samplers:
            return samplers[-1]
    return None


def _walk(reading: _Reading, sampler: Node, *, is_from_picture: bool) -> tuple[str | None, str | None, int | None]:
    """Sampler, schedule and steps."""
    chosen, sigmas = reading.linked(sampler.inputs.get("sampler")), reading.linked(sampler.inputs.get("sigmas"))
    strength = _denoise(reading, sampler)
    if strength is not None and strength < 1 and not is_from_picture:
        reading.remark(f"denoise {strength:g}: all steps are drawn")
    for name in ("start_at_step", "end_at_step"):
        at = as_whole(reading.value(sampler, name))
        steps = as_whole(reading.value(sampler, "steps"))
        if at is not None and (at > 0 if name == "start_at_step" else steps is not None and at < steps):
            reading.remark(f"{name} {at}: all steps are drawn")
    if sigmas is None:
        return (
            as_text(reading.value(sampler, "sampler_name", _TEXTS)) or None,
            as_text(reading.value(sampler, "scheduler", _TEXTS)) or None,
            as_whole(reading.value(sampler, "steps")),
        )
    scheduler = as_text(reading.value(sigmas, "scheduler", _TEXTS)) or sigmas.kind.removesuffix("Scheduler").lower()
    name = None
    if chosen is not None:
        named = as_text(reading.value(chosen, "sampler_name", _TEXTS))
        # SamplerDPMPP_2M_SDE and its like are nodes of their own.
        name = named or chosen.kind.removeprefix("Sampler").lower()
    return name, scheduler, as_whole(reading.value(sigmas, "steps"))


def _text(reading: _Reading, value: object) -> str:
    """The words of a conditioning, through whatever combines or changes conditionings on the way."""
    waiting, texts, seen = [value], list[str](), 0
    while waiting and seen < MAX_WALK:
        seen += 1
        node = reading.linked(waiting.pop(0))
        if node is None or node.kind == "ConditioningZeroOut":
            continue
        if node.kind.startswith(("CLIPTextEncode", "BNK_CLIPTextEncode", "smZ CLIPTextEncode")):
            said = [as_text(reading.value(node, name, _TEXTS)) for name in ("text", "text_g", "text_l")]
            texts += [text for text in dict.fromkeys(said) if text and text not in texts]
            continue
        if node.kind != "ConditioningCombine":
            reading.remark(f"{short(node.kind)}: only its texts are used")
        elif len([each for each in node.inputs.values() if isinstance(each, list)]) > 1:
            reading.remark("ConditioningCombine: its texts are joined into one")
        waiting += [
            each
            for name, each in node.inputs.items()
            if isinstance(each, list) and name.startswith(("conditioning", "positive", "cond"))
        ]
    return ", ".join(texts)


def _model(reading: _Reading, sampler: Node) -> tuple[str | None, float | None]:
    """The checkpoint's name and the guidance rescale; LoRAs and other changes on the way are remarked on."""
    rescale = None
    for node in list(reading.up(reading.linked(sampler.inputs.get("model")), "model"))[:MAX_WALK]:
        name = next(
            (
                reading.value(node, key, _TEXTS)
                for key in ("ckpt_name", "unet_name", "model_path")
                if key in node.inputs
            ),
            None,
        )
        if isinstance(name, str):
            return name, rescale
        if "lora_name" in node.inputs:
            scale = as_number(reading.value(node, "strength_model"))
            reading.loras.append(NamedLoRA(as_text(reading.value(node, "lora_name", _TEXTS)), scale))
        elif node.kind == "RescaleCFG":
            rescale = as_number(reading.value(node, "multiplier"))
        else:
            reading.remark(f"{short(node.kind)}: {_PASSES_MODEL.get(node.kind, 'the model is used as it is')}")
    return None, rescale


def _clip_skip(reading: _Reading, positive: object) -> int | None:
    """Of `CLIPSetLastLayer`, whose -1 is the last layer."""
    encoder = next(
        (node for node in reading.up(reading.linked(positive), "conditioning", "positive") if "clip" in node.inputs),
        None,
    )
    for node in reading.up(encoder, "clip"):
        layer = as_whole(reading.value(node, "stop_at_clip_layer"))
        if layer is not None:
            return -layer
    return None


def _size(reading: _Reading, sampler: Node) -> tuple[int | None, int | None]:
    latent = reading.linked(sampler.inputs.get("latent_image"))
    for node in reading.up(latent, *_LATENTS):
        if _PICTURES.search(node.kind):
            break
        width_px, height_px = as_whole(reading.value(node, "width")), as_whole(reading.value(node, "height"))
        if width_px is not None and height_px is not None:
            count = as_whole(reading.value(node, "batch_size"))
            if count is not None and count > 1:
                reading.remark(f"batch_size {count}: the noise is that of the batch's first picture")
            return width_px, height_px
    return None, None


def _start(reading: _Reading, sampler: Node) -> StartingPicture | None:
    """The loaded picture that the latents come from, and whether a node on the way there takes a mask."""
    way = list(reading.up(reading.linked(sampler.inputs.get("latent_image")), *_LATENTS))
    pictures = [k for k, node in enumerate(way) if _PICTURES.search(node.kind)]
    if not pictures:
        return None
    is_masked = any(reading.linked(node.inputs.get("mask")) is not None for node in way[: pictures[0]])
    title = as_text(reading.value(way[pictures[0]], "image", _TEXTS))
    return StartingPicture(title=title, strength=as_share(_denoise(reading, sampler)), is_masked=is_masked)


def _denoise(reading: _Reading, sampler: Node) -> float | None:
    return as_number(reading.value(reading.linked(sampler.inputs.get("sigmas")) or sampler, "denoise"))


def _vae(reading: _Reading) -> str | None:
    """The name of one that is loaded by itself."""
    names = (
        as_text(reading.value(node, "vae_name", _TEXTS)) for node in reading.nodes.values() if node.kind == "VAELoader"
    )
    return next((name for name in names if name), None)

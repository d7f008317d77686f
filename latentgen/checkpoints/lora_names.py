"""Which layers a LoRA may adapt, and what they are called in the files of others. No torch here.

A layer's name here is its part and its path in our networks, `unet.down_blocks.0.attentions.0.proj_in`: the same as in
diffusers' files, since our paths are diffusers' and transformers'. kohya writes the path with underscores after
`lora_unet_` or `lora_te_`, which cannot be undone by replacing characters: so the layers are listed, as templates in
which `{}` stands for a number.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from typing import Final, Literal

from latentgen.config import ModelConfig

Targets = Literal["attention", "attention+ff", "all"]

KOHYA_PREFIXES: Final[Mapping[str, str]] = {"unet": "lora_unet_", "text_encoder": "lora_te_"}

PEFT_PREFIX: Final = "base_model.model."
"""Of every name in `adapter_model.safetensors`, which peft's `save_pretrained` writes."""

_BLOCKS: Final = ("unet.down_blocks.{}", "unet.mid_block", "unet.up_blocks.{}")
_ATTENTION: Final = tuple(
    f"{block}.attentions.{{}}.transformer_blocks.{{}}.{attention}.{layer}"
    for block in _BLOCKS
    for attention in ("attn1", "attn2")
    for layer in ("to_q", "to_k", "to_v", "to_out.0")
)
_REST_OF_TRANSFORMER: Final = tuple(
    f"{block}.attentions.{{}}.{layer}"
    for block in _BLOCKS
    for layer in ("proj_in", "proj_out", "transformer_blocks.{}.ff.net.0.proj", "transformer_blocks.{}.ff.net.2")
)
_CONVOLUTIONS: Final = (
    *(
        f"{block}.resnets.{{}}.{layer}"
        for block in _BLOCKS
        for layer in ("conv1", "conv2", "conv_shortcut", "time_emb_proj")
    ),
    "unet.down_blocks.{}.downsamplers.0.conv",
    "unet.up_blocks.{}.upsamplers.0.conv",
)
_ENDS: Final = ("unet.conv_in", "unet.conv_out", "unet.time_embedding.linear_1", "unet.time_embedding.linear_2")
"""Read from files that have them; not trained, as kohya does not."""
_TEXT_LAYER: Final = "text_encoder.text_model.encoder.layers.{}"
_TEXT: Final = (
    *(f"{_TEXT_LAYER}.self_attn.{layer}" for layer in ("q_proj", "k_proj", "v_proj", "out_proj")),
    *(f"{_TEXT_LAYER}.mlp.{layer}" for layer in ("fc1", "fc2")),
)

TARGETS: Final[Mapping[Targets, tuple[str, ...]]] = {
    "attention": _ATTENTION,
    "attention+ff": (*_ATTENTION, *_REST_OF_TRANSFORMER),
    "all": (*_ATTENTION, *_REST_OF_TRANSFORMER, *_CONVOLUTIONS),
}
"""Layers of the U-Net that are trained.

attention: diffusers' default, the queries, keys, values and outputs. attention+ff: kohya's default, every layer of a
transformer (`networks/lora.py`, UNET_TARGET_REPLACE_MODULE). all: what kohya adds with `conv_dim`
(UNET_TARGET_REPLACE_MODULE_CONV2D_3X3). Of SD 1.5 these are 128, 192 and 278 layers; of its text encoder, 72.
"""


@cache
def _pattern(templates: tuple[str, ...]) -> re.Pattern[str]:
    """What matches any of these. Compiled when a LoRA asks for it: all of them are many, and most starts want none."""
    return re.compile("|".join(re.escape(template).replace(r"\{\}", r"\d+") for template in templates))


_KNOWN: Final = (*TARGETS["all"], *_ENDS, *_TEXT)


def kohya_name(name: str) -> str:
    """`unet.mid_block.attentions.0.proj_in` -> `lora_unet_mid_block_attentions_0_proj_in`."""
    part, _, path = name.partition(".")
    return KOHYA_PREFIXES[part] + path.replace(".", "_")


@cache
def _kohya_patterns() -> tuple[tuple[re.Pattern[str], str], ...]:
    return tuple(
        # The text encoder's `text_model` is left out where transformers 5 wrote the file.
        (re.compile(kohya_name(template).replace("{}", r"(\d+)").replace("text_model_", "(?:text_model_)?")), template)
        for template in _KNOWN
    )


def is_target(name: str, targets: Targets) -> bool:
    """Whether a layer is trained; of the text encoder all are that can be, its attention and its MLPs."""
    return _pattern((*TARGETS[targets], *_TEXT)).fullmatch(name) is not None


def from_kohya(name: str) -> str | None:
    """Our name of a layer that kohya calls `name`; None if our networks have no such layer."""
    for pattern, template in _kohya_patterns():
        if match := pattern.fullmatch(name):
            return template.format(*match.groups())
    return None


def from_diffusers(name: str) -> str | None:
    """Our name of a layer that diffusers calls `name`; None if our networks have no such layer."""
    if name.startswith("text_encoder.encoder."):
        name = name.replace("text_encoder.", "text_encoder.text_model.", 1)
    if name.startswith(("down_blocks.", "mid_block.", "up_blocks.")):  # `unet.save_attn_procs` did not say of what
        name = f"unet.{name}"
    if ".processor." in name:  # diffusers before 0.18, where the matrices were the attention processors'
        name = name.replace(".processor.", ".")
        name = f"{name}.0" if name.endswith(".to_out") else name
    if name.startswith("text_encoder.") and ".self_attn.to_" in name:  # the text encoder's of the same time
        name = f"{name.replace('.self_attn.to_', '.self_attn.')}_proj"
    return name if _pattern(_KNOWN).fullmatch(name) else None


def from_peft(name: str) -> str:
    """What diffusers calls what peft's own file calls `name`; that does not say which network it was trained in."""
    if not name.startswith(PEFT_PREFIX):
        return name
    name = name.removeprefix(PEFT_PREFIX)
    part = "text_encoder" if name.startswith(("text_model.", "encoder.layers.")) else "unet"
    return f"{part}.{name}"


def narrowest_layer(config: ModelConfig, targets: Targets, *, text_encoder: bool) -> int:
    """The fewest inputs or outputs of any layer that is trained: no rank can be larger."""
    unet = config.unet
    # The middle block attends with the last level's width whether or not that level's own blocks do.
    attends_at = (*unet.attention_levels[:-1], True)
    widths = {width for width, attends in zip(unet.block_out_channels, attends_at, strict=True) if attends}
    widths.add(unet.cross_attention_dim)
    if targets == "all":
        widths |= set(unet.block_out_channels)
    if text_encoder:
        widths.add(config.text_encoder.hidden_size)
    return min(widths)

"""Foreign parameter names to ours (those of diffusers and transformers), as tables that can be read.

A rule is a template of a foreign name -> the names it becomes. `{}` stands for a layer number. A rule with several
targets splits the tensor evenly along its first side; one without targets is known and dropped. A name that no rule
matches is an error, so nothing is ever lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.errors import ModelLoadError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Rule:
    """What becomes of a foreign tensor."""

    targets: tuple[str, ...] = ()
    transform: Callable[[Tensor], Tensor] | None = None
    """Applied before splitting."""


def to(*targets: str, transform: Callable[[Tensor], Tensor] | None = None) -> Rule:
    """A rule: rename to one target, or split over several."""
    return Rule(targets, transform)


DROP = Rule()
"""Known, and of no use to the module."""


def flatten_conv1x1(weight: Tensor) -> Tensor:
    """A 1x1 convolution's weight (Cout, Cin, 1, 1) as a linear layer's (Cout, Cin); a linear one stays as it is."""
    return weight.flatten(1) if weight.ndim == 4 else weight


_LAYER = "text_model.encoder.layers.{}"

OPEN_CLIP_TEXT: Mapping[str, Rule] = {
    "token_embedding.weight": to("text_model.embeddings.token_embedding.weight"),
    "positional_embedding": to("text_model.embeddings.position_embedding.weight"),
    "transformer.resblocks.{}.ln_1.weight": to(f"{_LAYER}.layer_norm1.weight"),
    "transformer.resblocks.{}.ln_1.bias": to(f"{_LAYER}.layer_norm1.bias"),
    "transformer.resblocks.{}.attn.in_proj_weight": to(
        f"{_LAYER}.self_attn.q_proj.weight", f"{_LAYER}.self_attn.k_proj.weight", f"{_LAYER}.self_attn.v_proj.weight"
    ),
    "transformer.resblocks.{}.attn.in_proj_bias": to(
        f"{_LAYER}.self_attn.q_proj.bias", f"{_LAYER}.self_attn.k_proj.bias", f"{_LAYER}.self_attn.v_proj.bias"
    ),
    "transformer.resblocks.{}.attn.out_proj.weight": to(f"{_LAYER}.self_attn.out_proj.weight"),
    "transformer.resblocks.{}.attn.out_proj.bias": to(f"{_LAYER}.self_attn.out_proj.bias"),
    "transformer.resblocks.{}.ln_2.weight": to(f"{_LAYER}.layer_norm2.weight"),
    "transformer.resblocks.{}.ln_2.bias": to(f"{_LAYER}.layer_norm2.bias"),
    "transformer.resblocks.{}.mlp.c_fc.weight": to(f"{_LAYER}.mlp.fc1.weight"),
    "transformer.resblocks.{}.mlp.c_fc.bias": to(f"{_LAYER}.mlp.fc1.bias"),
    "transformer.resblocks.{}.mlp.c_proj.weight": to(f"{_LAYER}.mlp.fc2.weight"),
    "transformer.resblocks.{}.mlp.c_proj.bias": to(f"{_LAYER}.mlp.fc2.bias"),
    "ln_final.weight": to("text_model.final_layer_norm.weight"),
    "ln_final.bias": to("text_model.final_layer_norm.bias"),
    # Diffusion conditions on the states before the projection into the space shared with pictures.
    "text_projection": DROP,
    "text_projection.weight": DROP,
    "text_projection.bias": DROP,
    "attn_mask": DROP,
    "logit_scale": DROP,
    "logit_bias": DROP,
}
"""open_clip's text tower (`open_clip/transformer.py`, TextTransformer; the same names without a prefix in CLIP)."""

HUGGING_FACE_TEXT = frozenset(
    {
        "text_model.embeddings.position_ids",
        "embeddings.position_ids",
        "text_projection.weight",
        "logit_scale",
    }
)
"""What published CLIPs hold beside the network: counted positions (before transformers 4.31), projection, scale."""

LEGACY_VAE_ATTENTION: Mapping[str, str] = {
    f"{side}.mid_block.attentions.0.{old}.{kind}": f"{side}.mid_block.attentions.0.{new}.{kind}"
    for side in ("encoder", "decoder")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for kind in ("weight", "bias")
}
"""Names of the VAE's attention before diffusers 0.15, which SD 1.x and `sd-vae-ft-mse` are still published under."""


def apply_rules(rules: Mapping[str, Rule], tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Rename, transform, split and drop tensors as the table says.

    Raises ModelLoadError for names without a rule, all of them at once; `source` is for its message.
    """
    patterns = [(re.compile(re.escape(template).replace(r"\{\}", r"(\d+)")), rule) for template, rule in rules.items()]
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        found = next(((match, rule) for pattern, rule in patterns if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
            continue
        match, rule = found
        value = tensor if rule.transform is None else rule.transform(tensor)
        if len(rule.targets) == 1:
            renamed[rule.targets[0].format(*match.groups())] = value
        elif rule.targets:
            for target, part in zip(rule.targets, _split(value, len(rule.targets), name, source), strict=True):
                renamed[target.format(*match.groups())] = part
    if unknown:
        shown = ", ".join(unknown[:3]) + (" ..." if len(unknown) > 3 else "")
        raise ModelLoadError(f"{source}: {len(unknown)} tensors have unknown names ({shown})")
    return renamed


def reverse_rules(rules: Mapping[str, Rule], tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Our tensors under the foreign names of a table without transforms: what was split is joined again.

    Raises ModelLoadError for tensors that no rule leads to; `source` is for its message.
    """
    import torch

    found: dict[str, Tensor] = {}
    left = set(tensors)
    for template, rule in rules.items():
        assert rule.transform is None, "a transform has no reverse"
        if not rule.targets:
            continue
        pattern = re.compile(re.escape(rule.targets[0]).replace(r"\{\}", r"(\d+)"))
        for match in filter(None, map(pattern.fullmatch, tensors)):
            names = [target.format(*match.groups()) for target in rule.targets]
            if all(name in tensors for name in names):
                values = [tensors[name] for name in names]
                found[template.format(*match.groups())] = values[0] if len(values) == 1 else torch.cat(values)
                left -= set(names)
    if left:
        raise ModelLoadError(f"{source}: {len(left)} tensors have no foreign name ({', '.join(sorted(left)[:3])})")
    return found


def _split(value: Tensor, parts: int, name: str, source: str | Path) -> list[Tensor]:
    if value.ndim == 0 or value.shape[0] % parts:
        raise ModelLoadError(f"{source}: {name} is {tuple(value.shape)} and does not split into {parts} equal parts")
    # Tensors of their own: views would keep the whole alive.
    return [part.clone() for part in value.chunk(parts)]


def text_tower_from_open_clip(tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """An open_clip text tower's state dict in the names of `CLIPTextModel`.

    Takes a TextTransformer's own names, or a whole CLIP model's: then the image tower (`visual.`) is left out and a
    `text.` prefix removed. Raises ModelLoadError for anything else, such as a Hugging Face text tower inside open_clip.
    """
    tower = {name.removeprefix("text."): tensor for name, tensor in tensors.items() if not name.startswith("visual.")}
    return apply_rules(OPEN_CLIP_TEXT, tower, source)


def published_names(part: str, names: Iterable[str]) -> dict[str, str]:
    """The tensors of a published folder's part (unet, vae, text_encoder), and their present names.

    What the network has no use for is left out. Older VAEs name the mid block's attention otherwise. Text encoders hold
    more than the network, a whole CLIP its image tower, and transformers 5 may leave out the `text_model.` prefix.
    """
    if part == "vae":
        return {name: LEGACY_VAE_ATTENTION.get(name, name) for name in names}
    if part != "text_encoder":
        return {name: name for name in names}
    others = ("vision_model.", "visual_projection.")
    kept = [name for name in names if name not in HUGGING_FACE_TEXT and not name.startswith(others)]
    prefix = "" if any(name.startswith("text_model.") for name in kept) else "text_model."
    return {name: f"{prefix}{name}" for name in kept}


def published(part: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same of the tensors themselves; older VAEs' attention is of 1x1 convolutions, and becomes linear layers."""
    return {
        name: flatten_conv1x1(tensors[theirs]) if theirs in LEGACY_VAE_ATTENTION else tensors[theirs]
        for theirs, name in published_names(part, tensors).items()
    }

"""Foreign parameter names to ours (those of diffusers and transformers), as tables that can be read.

A rule is a template of a foreign name -> the names it becomes. `{}` stands for a layer number. A rule with several
targets splits the tensor evenly along its first side; one without targets is known and dropped. A name that no rule
matches is an error, so nothing is ever lost in silence.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
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

HUGGING_FACE_TEXT: Mapping[str, Rule] = {
    "text_model.embeddings.position_ids": DROP,
    "embeddings.position_ids": DROP,
    "text_projection.weight": DROP,
    "logit_scale": DROP,
}
"""What published CLIPs hold beside the network: counted positions (before transformers 4.31), projection, scale."""

LEGACY_VAE_ATTENTION: Mapping[str, Rule] = {
    f"{side}.mid_block.attentions.0.{old}.{kind}": to(
        f"{side}.mid_block.attentions.0.{new}.{kind}", transform=flatten_conv1x1
    )
    for side in ("encoder", "decoder")
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))
    for kind in ("weight", "bias")
}
"""Names of the VAE's attention before diffusers 0.15, which SD 1.x and `sd-vae-ft-mse` are still published under."""


def apply_rules(
    rules: Mapping[str, Rule], tensors: Mapping[str, Tensor], source: str | Path, *, keep_unknown: bool = False
) -> dict[str, Tensor]:
    """Rename, transform, split and drop tensors as the table says.

    `keep_unknown` passes names without a rule through, for tables that only list exceptions. Otherwise they raise
    ModelLoadError, all of them at once; `source` is for its message.
    """
    patterns = [(re.compile(re.escape(template).replace(r"\{\}", r"(\d+)")), rule) for template, rule in rules.items()]
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        found = next(((match, rule) for pattern, rule in patterns if (match := pattern.fullmatch(name))), None)
        if found is None:
            unknown.append(name)
            if keep_unknown:
                renamed[name] = tensor
            continue
        match, rule = found
        value = tensor if rule.transform is None else rule.transform(tensor)
        if len(rule.targets) == 1:
            renamed[rule.targets[0].format(*match.groups())] = value
        elif rule.targets:
            for target, part in zip(rule.targets, _split(value, len(rule.targets), name, source), strict=True):
                renamed[target.format(*match.groups())] = part
    if unknown and not keep_unknown:
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


def published_text_encoder(tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """A `text_encoder` folder's tensors without the extras; transformers 5 may leave out the `text_model.` prefix.

    Of a whole CLIP's tensors those of the image tower are left out too.
    """
    text = {n: tensor for n, tensor in tensors.items() if not n.startswith(("vision_model.", "visual_projection."))}
    kept = apply_rules(HUGGING_FACE_TEXT, text, source, keep_unknown=True)
    if any(name.startswith("text_model.") for name in kept):
        return kept
    return {f"text_model.{name}": tensor for name, tensor in kept.items()}


def published_vae(tensors: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """A `vae` folder's tensors with the mid block's attention in its present names."""
    return apply_rules(LEGACY_VAE_ATTENTION, tensors, source, keep_unknown=True)

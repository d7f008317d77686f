"""LoRA files: kohya's form, which A1111 and ComfyUI read, and diffusers' form (peft's names); in, out, and merged.

    kohya        lora_unet_<path with underscores>.lora_down.weight, .lora_up.weight, .alpha; lora_te_<...>
    diffusers    unet.<path>.lora_A.weight, .lora_B.weight; text_encoder.<path>. ...; the alphas as JSON in the header

Older diffusers files say `lora.down` and `lora.up`, or `lora_linear_layer.down` and `.up`, and the oldest
`attn1.processor.to_q_lora.down`, in the text encoder `self_attn.to_q_lora.down`; they are read too.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, cast

import torch
from torch import Tensor

from latentgen.checkpoints.folder import ModelBundle
from latentgen.checkpoints.header import read_header
from latentgen.checkpoints.io import is_finite, read_tensors, write_tensors
from latentgen.checkpoints.lora_names import (
    KOHYA_PREFIXES,
    PEFT_PREFIX,
    from_diffusers,
    from_kohya,
    from_peft,
    kohya_name,
)
from latentgen.config import DiffusionConfig, ModelConfig
from latentgen.errors import ModelLoadError, ModelNotFoundError
from latentgen.jsonfile import read_json
from latentgen.models.lora import LowRankUpdate, layers_of
from latentgen.presets import EMBEDDED, SD15, SD21_BASE

Form = Literal["kohya", "diffusers"]

FILE_NAMES: Final[Mapping[Form, str]] = {
    "kohya": "lora.safetensors",
    "diffusers": "pytorch_lora_weights.safetensors",
}
"""How training names its files. The second is what diffusers looks for in a folder."""

ADAPTER_METADATA: Final = "lora_adapter_metadata"
"""Header entry with peft's settings (diffusers, `loaders/lora_base.py`, LORA_ADAPTER_METADATA_KEY)."""
_OF_THE_FORM: Final = frozenset({"format", ADAPTER_METADATA, "ss_network_module", "ss_network_dim", "ss_network_alpha"})
"""Header entries that say how the file is written and not what it is."""

_ENDINGS: Final[Mapping[str, str]] = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".alpha": "alpha",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
}


_BASES: Final[Mapping[int, str]] = {
    EMBEDDED.unet.cross_attention_dim: "the embedded model",
    SD15.unet.cross_attention_dim: "Stable Diffusion 1.x",
    SD21_BASE.unet.cross_attention_dim: "Stable Diffusion 2.x",
    2048: "SDXL",
}
"""By the width of the text encoder's states; SDXL's are two encoders' side by side (arXiv:2307.01952, table 1)."""


@dataclass(frozen=True, slots=True, eq=False)
class LoRAWeights:
    """A LoRA as its file holds it."""

    modules: Mapping[str, LowRankUpdate]
    """By layer: `unet.down_blocks.0.attentions.0.proj_in`, `text_encoder.text_model.encoder.layers.0.mlp.fc1`."""
    kind: Form
    """The form of the file it was read from."""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the file's header says of it, beyond its form."""
    unmatched: tuple[str, ...] = ()
    """Modules of the file that no network of the SD 1.x and 2.x family has, in the file's own names."""

    @property
    def ranks(self) -> list[int]:
        """The ranks that occur, ascending."""
        return sorted({update.rank for update in self.modules.values()})

    @property
    def total(self) -> int:
        """Modules of the file, those that no network has included."""
        return len(self.modules) + len(self.unmatched)


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What became of a LoRA's modules."""

    applied: int
    unmatched: tuple[str, ...]
    """Modules for which the model has no layer."""

    @property
    def total(self) -> int:
        return self.applied + len(self.unmatched)

    def __str__(self) -> str:
        left_out = f"; not in this model: {_some(self.unmatched)}" if self.unmatched else ""
        return f"{self.applied}/{self.total} modules applied{left_out}"


def read_lora(path: Path) -> LoRAWeights:
    """Read a LoRA file of kohya's, diffusers' or peft's form.

    A file without alphas has alpha = rank, so that its scale is 1, as in all tools. peft keeps them beside the file, in
    `adapter_config.json`.
    Raises ModelNotFoundError if there is no such file, ModelLoadError if it is no LoRA for U-Nets of Stable Diffusion's
    family, or one of which a part is missing, damaged or of a kind that cannot be merged (DoRA, LoHa, LoKr).
    """
    tensors = read_tensors(path)
    header = _read_metadata(path)
    if any(name.startswith(PEFT_PREFIX) for name in tensors):
        tensors = {from_peft(name): tensor for name, tensor in tensors.items()}
        header = {**header, ADAPTER_METADATA: _peft_settings(path.with_name("adapter_config.json"))}
    kind: Form = "kohya" if any(name.startswith("lora_") for name in tensors) else "diffusers"
    found: dict[str, dict[str, Tensor]] = {}
    strange: list[str] = []
    for name, tensor in tensors.items():
        ending = next((ending for ending in _ENDINGS if name.endswith(ending)), None)
        if ending is None:
            strange.append(name)
        else:
            found.setdefault(name.removesuffix(ending), {})[_ENDINGS[ending]] = tensor
    if not found:
        raise ModelLoadError(f"{path} is not a LoRA: no tensor in it is named as one ({_some(strange)})")
    if strange:
        hint = "low-rank matrices alone can be read: no DoRA, LoHa, LoKr or biases"
        raise ModelLoadError(f"{path}: {len(strange)} tensors are not understood ({_some(strange)})", hint=hint)
    settings = _adapter_settings(header, path)
    modules: dict[str, LowRankUpdate] = {}
    unmatched: list[str] = []
    for foreign, parts in found.items():
        name = from_kohya(foreign) if kind == "kohya" else from_diffusers(foreign)
        if name is None:
            unmatched.append(foreign)
        else:
            modules[name] = _update(foreign, parts, settings, path)
    if not modules:
        raise ModelLoadError(
            f"{path} is a LoRA for another kind of model: it adapts {_some(unmatched)}",
            hint="LoRAs for Stable Diffusion 1.x and 2.x can be read",
        )
    metadata = {key: value for key, value in header.items() if key not in _OF_THE_FORM}
    return LoRAWeights(modules, kind, metadata, tuple(unmatched))


def write_lora(path: Path, lora: LoRAWeights, form: Form) -> None:
    """Write a LoRA in one of the forms; the same LoRA always gives the same bytes.

    Raises RuntimeFailure if the disk refuses, leaving no partial file.
    """
    if form == "kohya":
        tensors = {f"{kohya_name(name)}.{part}": t for name, u in lora.modules.items() for part, t in _kohya(u)}
        write_tensors(path, tensors, {**lora.metadata, **_kohya_metadata(lora)})
        return
    tensors = {
        f"{name}.{part}.weight": tensor
        for name, update in lora.modules.items()
        for part, tensor in (("lora_A", update.down), ("lora_B", update.up))
    }
    settings = json.dumps(_diffusers_metadata(lora), sort_keys=True)
    write_tensors(path, tensors, {**lora.metadata, "format": "pt", ADAPTER_METADATA: settings})


def merged_weight(weight: Tensor, updates: Iterable[tuple[LowRankUpdate, float]]) -> Tensor:
    """W + the sum of scale * alpha / rank * up @ down, of W's shape, device and dtype (arXiv:2106.09685, section 4.1).

    Added up in float32 in the order given and rounded to the weight's own dtype once.
    """
    total = weight.float()
    for update, scale in updates:
        total = total + scale * update.delta(weight.shape).to(weight.device)
    return total.to(weight.dtype)


def match_lora(bundle: ModelBundle, lora: LoRAWeights) -> LoadReport:
    """Hold a LoRA against a model, and change nothing.

    Raises ModelLoadError if one of its modules has another shape than its layer, or none has a layer at all.
    """
    layers = layers_of(bundle.unet, bundle.text_encoder)
    missing = [name for name in lora.modules if name not in layers]
    if len(missing) == len(lora.modules):
        raise ModelLoadError(
            f"none of the LoRA's {lora.total} modules is in this model ({_some(missing)})", hint=_likely_base(lora)
        )
    wrong: list[str] = []
    for name, update in lora.modules.items():
        if name in layers and not update.fits(weight := layers[name].weight):
            there, here = (len(update.up), update.down.shape[1]), (len(weight), weight.shape[1])
            wrong.append(f"{name} from {there[1]} to {there[0]}, here from {here[1]} to {here[0]}")
    if wrong:
        raise ModelLoadError(
            f"the LoRA was made for another base model: {len(wrong)} of its modules have another shape ({wrong[0]})",
            hint=_likely_base(lora),
        )
    return LoadReport(len(lora.modules) - len(missing), (*missing, *lora.unmatched))


def base_metadata(config: ModelConfig) -> dict[str, str]:
    """What kohya's header says of the base model, for those bases that it has a name for (`train_network.py`).

    A1111 goes by `ss_v2` when it lists LoRAs for the model in use.
    """
    family = {(p.unet.block_out_channels, p.unet.cross_attention_dim): p for p in (SD15, SD21_BASE)}
    preset = family.get((config.unet.block_out_channels, config.unet.cross_attention_dim))
    if preset is None:
        return {}
    if preset is SD15:
        return {"ss_base_model_version": "sd_v1", "ss_v2": "False"}
    return {"ss_base_model_version": f"sd_v2{_v_suffix(config.diffusion)}", "ss_v2": "True"}


def _likely_base(lora: LoRAWeights) -> str | None:
    """What a LoRA seems to be made for, told by the width of the text that its cross-attention reads."""
    widths = {u.down.shape[1] for name, u in lora.modules.items() if name.endswith((".attn2.to_k", ".attn2.to_v"))}
    bases = [_BASES[width] for width in sorted(widths) if width in _BASES]
    return f"it seems to be made for {bases[0]}" if bases else None


def _v_suffix(diffusion: DiffusionConfig) -> str:
    return "_v" if diffusion.prediction_type == "v_prediction" else ""


def _update(foreign: str, parts: Mapping[str, Tensor], settings: Mapping[str, Any], path: Path) -> LowRankUpdate:
    if not {"down", "up"} <= parts.keys():
        missing = "up" if "down" in parts else "down"
        raise ModelLoadError(f"{path}: {foreign} lacks its matrix {missing}", hint="the file is incomplete")
    down, up = parts["down"], parts["up"]
    if not down.is_floating_point() or not up.is_floating_point() or not is_finite(down) or not is_finite(up):
        raise ModelLoadError(f"{path}: {foreign} holds what is not a finite fraction", hint="the file is damaged")
    if "alpha" in parts:
        alpha = float(parts["alpha"]) if parts["alpha"].numel() == 1 and is_finite(parts["alpha"]) else None
    else:
        alpha = _peft_alpha(foreign, rank=down.shape[0] if down.ndim else 0, settings=settings)
    if alpha is None:
        raise ModelLoadError(f"{path}: the alpha of {foreign} is not a number", hint="the file is damaged")
    update = LowRankUpdate(down, up, alpha)
    if not update.is_whole:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise ModelLoadError(f"{path}: the matrices of {foreign} are {shapes}, which do not multiply")
    return update


def _peft_alpha(name: str, *, rank: int, settings: Mapping[str, Any]) -> float | None:
    """alpha by peft's settings: `lora_alpha` but for the layers of `alpha_pattern`, which names them by their ends.

    Source: peft `tuners/lora/model.py`, `_create_and_replace`; rank-stabilised LoRA (arXiv:2312.03732) divides by the
    root of the rank, which is another alpha for the same scale.
    """
    part, _, path = name.partition(".")
    pattern = settings.get(f"{part}.alpha_pattern")
    alpha: object = settings.get(f"{part}.lora_alpha", rank)
    if isinstance(pattern, dict):
        named = cast("dict[str, object]", pattern)
        alpha = next((value for end, value in named.items() if path == end or path.endswith(f".{end}")), alpha)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float):
        return None
    return float(alpha) * (rank**0.5 if settings.get(f"{part}.use_rslora") is True else 1.0)


def _adapter_settings(header: Mapping[str, str], path: Path) -> Mapping[str, Any]:
    """peft's settings by `unet.` and `text_encoder.`; empty if the file has none."""
    text = header.get(ADAPTER_METADATA, "{}")
    try:
        settings = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path}: its {ADAPTER_METADATA} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise ModelLoadError(f"{path}: its {ADAPTER_METADATA} is not an object")
    return cast("dict[str, Any]", settings)


def _peft_settings(path: Path) -> str:
    """The settings beside a file of peft's own, in the words of diffusers' metadata; none if the file is not there."""
    settings = read_json(path) if path.exists() else {}
    return json.dumps({f"{part}.{key}": value for part in KOHYA_PREFIXES for key, value in settings.items()})


def _kohya(update: LowRankUpdate) -> Iterable[tuple[str, Tensor]]:
    return (
        ("lora_down.weight", update.down),
        ("lora_up.weight", update.up),
        ("alpha", torch.tensor(update.alpha, dtype=torch.float32)),
    )


def _kohya_metadata(lora: LoRAWeights) -> dict[str, str]:
    alphas = {update.alpha for update in lora.modules.values()}
    return {
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(lora.ranks[0]) if len(lora.ranks) == 1 else "Dynamic",
        "ss_network_alpha": str(alphas.pop()) if len(alphas) == 1 else "Dynamic",
    }


def _diffusers_metadata(lora: LoRAWeights) -> dict[str, Any]:
    """peft's LoraConfig of each part, as diffusers' `_pack_dict_with_prefix` writes it.

    peft compares names by their ends, so that those without `text_model.` hold for every version of transformers.
    """
    packed: dict[str, Any] = {}
    for part in ("unet", "text_encoder"):
        updates = {
            name.removeprefix(f"{part}.").removeprefix("text_model."): update
            for name, update in lora.modules.items()
            if name.startswith(f"{part}.")
        }
        if not updates:
            continue
        rank = Counter(update.rank for update in updates.values()).most_common(1)[0][0]
        alpha = Counter(update.alpha for update in updates.values()).most_common(1)[0][0]
        packed |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": alpha,
            f"{part}.rank_pattern": {name: u.rank for name, u in updates.items() if u.rank != rank},
            f"{part}.alpha_pattern": {name: u.alpha for name, u in updates.items() if u.alpha != alpha},
            f"{part}.target_modules": sorted(updates),
        }
    return packed


def _read_metadata(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            return read_header(file, os.fstat(file.fileno()).st_size, path).metadata
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror}") from None


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:3]) + (" ..." if len(listed) > 3 else "")

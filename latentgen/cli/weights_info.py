"""What `info` says of a weights file: read from its header, without torch and without tensors, in milliseconds."""

from __future__ import annotations

import json
import math
import re
import struct
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from shlex import quote
from typing import Any, Final, cast

from latentgen.checkpoints.header import Header, open_header
from latentgen.checkpoints.identify import SUPPORTED, Identity, identify
from latentgen.errors import ModelLoadError

Summary = dict[str, Any]
"""Plain values by name, for a table or JSON."""

MAX_TAGS: Final = 10
"""Of the words that a LoRA was trained on; --json has all."""

_LAYER_END: Final = re.compile(
    r"\.(lora_(down|up|mid|A|B)|lora\.(down|up)|lora_linear_layer\.(down|up))\.(default\.)?weight"
    r"|_lora\.(down|up)\.weight|\.(hada_w[12]_[ab]|hada_t[12]|lokr_w[12](_[ab])?|lokr_t2|oft_blocks|dora_scale|alpha)"
)
_DOWN: Final = ("lora_down.weight", "lora_A.weight", "lora_A.default.weight", "lora.down.weight", "layer.down.weight")
_FORMS: Final = (
    ("lora_unet_", "kohya"),
    ("lora_te", "kohya"),
    ("lora_transformer_", "kohya"),
    ("base_model.model.", "peft"),
    ("unet.", "diffusers"),
    ("text_encoder", "diffusers"),
    ("transformer.", "diffusers"),
)
"""How a LoRA's names begin, and who writes them so."""
_LYCORIS: Final = ((".hada_w1_", "LoHa"), (".lokr_w1", "LoKr"), (".oft_blocks", "OFT"))
_OF_TEXT: Final = re.compile(r"(base_model\.model\.)?(lora_te|text_encoder|text_model)")

_KOHYA: Final[Mapping[str, str]] = {
    "trained on": "ss_sd_model_name",
    "base version": "ss_base_model_version",
    "network": "ss_network_module",
    "network dim": "ss_network_dim",
    "network alpha": "ss_network_alpha",
    "training pictures": "ss_num_train_images",
    "training epochs": "ss_epoch",
    "training steps": "ss_steps",
    "clip skip": "ss_clip_skip",
    "trigger phrase": "modelspec.trigger_phrase",
}
"""What kohya's trainer writes about a run, the part that helps to use the file (`sd-scripts/train_network.py`)."""
_SPLIT_CODES: Final = {"F32": "<f", "F16": "<e", "F64": "<d", "I64": "<q", "I32": "<i"}


def weights_summary(path: Path) -> Summary:
    """A weights file: what it is, for which model, its size and numbers, and what its writer says of it.

    Raises ModelNotFoundError, and ModelLoadError for a damaged file and for what is no weights file.
    """
    identity = identify(path)
    if identity.format == "pickle":
        return _pickle(identity)
    header = open_header(path, quantised=True)
    details = {
        "lora": _lora,
        "textual_inversion": _textual_inversion,
        "vae": _vae,
    }.get(identity.kind, lambda header, path: {})(header, path)
    return {**_basics(identity), **details, **_checks(identity), "metadata": dict(identity.metadata)}


def parts_summary(path: Path) -> Summary:
    """Parameters and element types by the first word of the tensors' names, as the parts of a single file have one."""
    counts: dict[str, Counter[str]] = {}
    for entry in open_header(path, quantised=True).entries:
        part = entry.name.partition(".")[0] if "." in entry.name else "others"
        counts.setdefault(part, Counter())[entry.dtype] += math.prod(entry.shape)
    return {
        f"part {part}": {"parameters": sum(types.values()), "dtypes": sorted(types)}
        for part, types in sorted(counts.items(), key=lambda item: -sum(item[1].values()))[:12]
    }


def use_of(path: Path, name: str) -> str:
    """What to do with a file that was pulled as `name`, in one line."""
    identity = identify(path)
    if not identity.is_supported:
        return f"{name} is {identity.title}; latentgen draws with {', '.join(sorted(SUPPORTED))} only"
    quoted = quote(str(path))
    flag = {
        "model": f"--model {quote(name)}",
        "lora": f"--lora {quoted}",
        "textual_inversion": f"--embedding {quoted}",
        "vae": f"--vae {quoted}",
    }.get(identity.kind)
    use = f"see: latentgen info {quoted}" if flag is None else f"to draw with it: latentgen generate … {flag}"
    return f"{name} is {identity.title}; {use}"


def _basics(identity: Identity) -> Summary:
    summary: Summary = {
        "file": identity.path.name,
        "what": identity.title,
        "kind": identity.kind,
        "architecture": identity.architecture or "unknown",
        "bytes": identity.path.stat().st_size,
    }
    if not identity.is_supported:
        able = ", ".join(sorted(SUPPORTED))
        summary["note"] = f"latentgen does not run {identity.architecture}; it draws with {able}"
    if identity.format == "pickle":
        return summary
    summary |= {"tensors": identity.tensors, "parameters": identity.parameters, "dtypes": dict(identity.dtypes)}
    optional = {
        "input channels": identity.in_channels,
        "prediction type": identity.prediction_type,
        "context width": identity.context_width,
    }
    return summary | {key: value for key, value in optional.items() if value is not None}


def _pickle(identity: Identity) -> Summary:
    """The little that the words in it tell. Raises ModelLoadError where they tell nothing: it may be anything."""
    if identity.kind == "unknown":
        raise ModelLoadError(
            f"{identity.path} is a pickle, which could run code, of unknown content; it is not opened as it is",
            hint="get it as .safetensors",
        )
    way = f"latentgen convert {quote(str(identity.path))} {quote(identity.path.stem + '.safetensors')}"
    return {**_basics(identity), "note": f"a pickle is not opened as it is; run: {way}"}


def _checks(identity: Identity) -> Summary:
    """Whether a whole model is whole; of other kinds nothing is known."""
    if identity.kind != "model" or not identity.is_supported:
        return {}
    return {"missing tensors": identity.missing, "unexpected tensors": identity.unexpected}


# LoRA


def _lora(header: Header, path: Path) -> Summary:
    names = [entry.name for entry in header.entries]
    layers = {_LAYER_END.sub("", name) for name in names if _LAYER_END.search(name)}
    of_text = {layer for layer in layers if _OF_TEXT.match(layer)}
    ranks = {min(entry.shape[:2]) for entry in header.entries if len(entry.shape) >= 2 and entry.name.endswith(_DOWN)}
    alphas = _read_alphas(header, path)
    summary: Summary = {
        "form": _lora_form(names),
        "layers": {"U-Net": len(layers) - len(of_text), "text encoder": len(of_text)},
        "rank": sorted(ranks),
        "alpha": sorted(alphas) if alphas else "not in the file: the rank, so the scale is 1",
    }
    return summary | _training(header.metadata)


def _lora_form(names: Iterable[str]) -> str:
    found = list(names)
    writer = next((form for start, form in _FORMS if any(name.startswith(start) for name in found)), "unknown")
    kind = next((kind for part, kind in _LYCORIS if any(part in name for name in found)), None)
    return writer if kind is None else f"{kind} of LyCORIS"


def _read_alphas(header: Header, path: Path) -> set[float]:
    """The scalars by which kohya's files are scaled (over the rank): a few bytes of each layer."""
    alphas: set[float] = set()
    with path.open("rb") as file:
        for entry in header.entries:
            size = entry.end - entry.begin
            if not entry.name.endswith(".alpha") or not 0 < size <= 8:
                continue
            file.seek(entry.begin)
            data = file.read(size)
            if entry.dtype == "BF16":  # the upper half of a float32
                alphas.add(struct.unpack("<f", b"\0\0" + data)[0])
            elif entry.dtype in _SPLIT_CODES and struct.calcsize(_SPLIT_CODES[entry.dtype]) == size:
                alphas.add(float(struct.unpack(_SPLIT_CODES[entry.dtype], data)[0]))
    return alphas


def _training(metadata: Mapping[str, str]) -> Summary:
    """What the trainer says, in a few lines."""
    said = {what: metadata[key] for what, key in _KOHYA.items() if metadata.get(key) not in (None, "", "None")}
    tags = _most_frequent_tags(metadata.get("ss_tag_frequency", ""))
    return said | ({"most frequent tags": tags} if tags else {})


def _most_frequent_tags(text: str) -> dict[str, int]:
    """kohya counts the tags of each folder of pictures: `{"10_fox": {"fox": 120, ...}, ...}`."""
    try:
        folders = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    counts: Counter[str] = Counter()
    for tags in cast("dict[str, object]", folders).values() if isinstance(folders, dict) else ():
        for tag, count in cast("dict[str, object]", tags).items() if isinstance(tags, dict) else ():
            if type(count) is int:
                counts[tag.strip()] += count
    return dict(counts.most_common(MAX_TAGS))


# Other kinds


def _textual_inversion(header: Header, path: Path) -> Summary:
    """The word for a prompt, and how many vectors stand for it; A1111's files are named after their word."""
    entry = header.entries[0]
    token = path.stem if entry.name in ("emb_params", "clip_l", "clip_g") else entry.name
    vectors, *_, width = entry.shape if len(entry.shape) > 1 else (1, math.prod(entry.shape))
    return {"token": token, "vectors": vectors, "width": width}


def _vae(header: Header, path: Path) -> Summary:
    """Of the decoder, whose first convolution takes the latents and whose blocks double the size."""
    shapes = {entry.name.removeprefix("first_stage_model."): entry.shape for entry in header.entries}
    first = shapes.get("decoder.conv_in.weight", ())
    levels = {match[1] for name in shapes if (match := re.match(r"decoder\.(?:up_blocks|up)\.(\d+)\.", name))}
    summary: Summary = {}
    if len(first) == 4:
        summary |= {"latent channels": first[1], "widest layer": first[0]}
    if levels:
        summary["pixels per latent"] = 2 ** (len(levels) - 1)
    return summary

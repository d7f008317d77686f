"""What `info` and `models show` say of weights: read from configs and headers, without torch, in milliseconds."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path
from typing import Any

from latentgen.checkpoints.header import Header, TensorEntry, read_header
from latentgen.errors import ModelLoadError, ModelNotFoundError

MAX_TEXT = 2000
"""Characters of one value in a table: some LoRA files carry a whole data set's tags."""

Summary = dict[str, Any]
"""Plain values by name, for a table or JSON."""

# Tensor names that tell what a file is for, the more specific first. Source: the key maps of `checkpoints/keymap.py`.
_KINDS = (
    ("lora_unet_", "LoRA for a U-Net (kohya)"),
    ("lora_te", "LoRA for a text encoder (kohya)"),
    ("lora_A.", "LoRA (diffusers)"),
    ("conditioner.embedders.", "SDXL, one file"),
    ("double_blocks.", "Flux transformer"),
    ("model.diffusion_model.", "Stable Diffusion, one file"),
    ("text_model.", "CLIP text encoder"),
    ("quant_conv.", "VAE"),
    ("decoder.up_blocks.", "VAE"),
    ("time_embedding.", "U-Net"),
    ("token_embedding.", "CLIP, open_clip's names"),
)


def weights_summary(path: Path) -> Summary:
    """A safetensors file: kind, parameters, dtypes, what the U-Net attends to, metadata. Raises ModelLoadError."""
    header = open_header(path)
    summary: Summary = {
        "file": path.name,
        "kind": next((kind for part, kind in _KINDS if any(part in entry.name for entry in header.entries)), "unknown"),
        "bytes": path.stat().st_size,
        "tensors": len(header.entries),
        "parameters": sum(math.prod(entry.shape) for entry in header.entries),
        "dtypes": dict(Counter(entry.dtype for entry in header.entries)),
    }
    context = _shape(header, "attn2.to_k.weight")
    if context is not None:
        summary["context width"] = context[-1]
    first = _shape(header, "conv_in.weight") or _shape(header, "input_blocks.0.0.weight")
    if first is not None:
        summary["input channels"] = first[1]
    ranks = {
        min(entry.shape[:2])
        for entry in header.entries
        if len(entry.shape) >= 2 and ("lora_down.weight" in entry.name or "lora_A." in entry.name)
    }
    if ranks:
        summary["LoRA rank"] = ", ".join(map(str, sorted(ranks)))
    return {**summary, **{f"metadata {key}": value for key, value in header.metadata.items()}}


def model_summary(folder: Path) -> Summary:
    """A model folder: its numbers, its defaults, and what it weighs. Raises ModelLoadError if it is not one."""
    from latentgen.checkpoints.layout import read_config

    config = read_config(folder)
    unet, vae, text, defaults = config.unet, config.vae, config.text_encoder, config.defaults
    summary: Summary = {
        "model": folder.resolve().name,
        "U-Net": f"widths {_list(unet.block_out_channels)}, context {unet.cross_attention_dim}",
        "VAE": f"f{vae.downscale}, {vae.latent_channels} channels, scale {vae.scaling_factor:g}",
        "text encoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.vocab_size} tokens",
        "diffusion": f"{config.diffusion.prediction_type}, {config.diffusion.beta_schedule}, "
        f"{config.diffusion.num_train_timesteps} timesteps",
        "sizes": f"multiples of {config.size_multiple_px} px, {defaults.width_px}x{defaults.height_px} by default",
        "defaults": f"{defaults.steps} steps, {defaults.sampler} {defaults.schedule}, guidance {defaults.guidance:g}",
    }
    for path in sorted(folder.glob("*/*.safetensors")):
        header = open_header(path)
        count = sum(math.prod(entry.shape) for entry in header.entries)
        dtypes = _list(sorted({entry.dtype for entry in header.entries}))
        summary[str(path.relative_to(folder))] = f"{count:,} parameters, {dtypes}, {path.stat().st_size / 1e6:.1f} MB"
    return summary


def open_header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            return read_header(file, os.fstat(file.fileno()).st_size, path)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None


def print_summary(summary: Summary) -> None:
    """A table of two columns on stdout, control characters escaped; texts of several lines are indented below."""
    from latentgen.cli.boundary import escape

    width = max(len(key) for key in summary)
    for key, value in summary.items():
        text = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        if len(text) > MAX_TEXT:
            text = f"{text[:MAX_TEXT]}… ({len(text)} characters; --json prints all)"
        first, *rest = [escape(line) for line in text.split("\n")]
        print(f"{escape(key):{width}}  {first}")
        for line in rest:
            print(f"{'':{width}}  {line}")


def _shape(header: Header, ending: str) -> tuple[int, ...] | None:
    """Of the first tensor of that name; None if there is none, or if it is no matrix or kernel."""
    entry: TensorEntry | None = next((each for each in header.entries if each.name.endswith(ending)), None)
    return None if entry is None or len(entry.shape) < 2 else entry.shape


def _list(values: Any) -> str:
    return ", ".join(str(value) for value in values)

"""What `info` and `models` say of models: read from configs and headers, without torch, in milliseconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from latentgen.checkpoints.header import open_header
from latentgen.cli.seen_words import known_words
from latentgen.cli.weights_info import Summary, parts_summary, weights_summary
from latentgen.config import GenerationDefaults

MAX_TEXT = 2000
"""Characters of one value in a table: some LoRA files carry a whole data set's tags."""
MAX_METADATA = 200
"""The same of what a file's writer says in its header."""
MAX_LISTED = 5
"""Tensors that a table names; --json names all."""


def model_summary(path: Path) -> Summary:
    """A model folder or a single file: its numbers, its defaults, its weights. Raises ModelLoadError if it is none."""
    if path.is_file():
        return weights_summary(path)
    from latentgen.checkpoints.identify import SUPPORTED, foreign_folder
    from latentgen.checkpoints.layout import read_config

    foreign = foreign_folder(path)
    if foreign is not None:
        note = f"latentgen does not run {foreign.architecture}; it draws with {', '.join(sorted(SUPPORTED))}"
        return {"model": model_title(path), "what": foreign.title, "architecture": foreign.architecture, "note": note}
    config = read_config(path)
    unet, vae, text, defaults = config.unet, config.vae, config.text_encoder, config.defaults
    summary: Summary = {
        "model": model_title(path),
        "U-Net": f"widths {_list(unet.block_out_channels)}, context {unet.cross_attention_dim}",
        "VAE": f"f{vae.downscale}, {vae.latent_channels} channels, scale {vae.scaling_factor:g}",
        "text encoder": f"{text.num_hidden_layers} layers of {text.hidden_size}, {text.vocab_size} tokens",
        "diffusion": f"{config.diffusion.prediction_type}, {config.diffusion.beta_schedule}, "
        f"{config.diffusion.num_train_timesteps} timesteps",
        "sizes": f"multiples of {config.size_multiple_px} px, {defaults.width_px}x{defaults.height_px} by default",
        "defaults": f"{defaults.steps} steps, {defaults.sampler} {defaults.schedule}, {_guidance(defaults)}",
    }
    summary |= known_words(path)
    for file in sorted(path.glob("*/*.safetensors")):
        header = open_header(file)
        count = sum(math.prod(entry.shape) for entry in header.entries)
        dtypes = _list(sorted({entry.dtype for entry in header.entries}))
        summary[str(file.relative_to(path))] = f"{count:,} parameters, {dtypes}, {file.stat().st_size / 1e6:.1f} MB"
    return summary


def _guidance(defaults: GenerationDefaults) -> str:
    start, end = defaults.guidance_interval
    part = "" if (start, end) == (0, 1) else f" from {start:.0%} to {end:.0%} of the steps"
    return f"guidance {defaults.guidance:g}{part}"


def deep_summary(path: Path) -> Summary:
    """The same with what every tensor's name is held against, and the parts of a single file. Raises as `identify`."""
    from latentgen.checkpoints.identify import identify

    if path.is_file():
        return model_summary(path) | parts_summary(path)
    identity = identify(path)
    return model_summary(path) | {
        "architecture": identity.architecture,
        "prediction type": identity.prediction_type,
        "input channels": identity.in_channels,
        "context width": identity.context_width,
        "parameters": identity.parameters,
        "dtypes": dict(identity.dtypes),
        "missing tensors": identity.missing,
        "unexpected tensors": identity.unexpected,
        "metadata": dict(identity.metadata),
    }


def model_title(path: Path) -> str:
    """What a model is called: by its name on the hub if it lies in the hub's cache, whose folders are commits."""
    from latentgen.checkpoints.hub_cache import cached_name

    name = cached_name(path)
    return path.resolve().name if name is None else str(name)


def print_summary(summary: Summary) -> None:
    """A table of two columns on stdout, control characters escaped; texts of several lines are indented below."""
    from latentgen.cli.boundary import escape

    rows = [(key, _shown(key, value)) for key, value in summary.items() if key != "metadata"]
    rows += _metadata_rows(cast("Mapping[str, str]", summary.get("metadata", {})))
    width = max(len(escape(key)) for key, _ in rows)
    for key, text in rows:
        first, *rest = [escape(line) for line in text.split("\n")]
        print(f"{escape(key):{width}}  {first}")
        for line in rest:
            print(f"{'':{width}}  {line}")


def _shown(key: str, value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        return _cut(", ".join(f"{inner} {_shown(inner, each)}" for inner, each in pairs), MAX_TEXT)
    if isinstance(value, list | tuple):
        items = cast("list[Any] | tuple[Any, ...]", value)
        more = f" … ({len(items)} in all)" if len(items) > MAX_LISTED else ""
        return _cut(_list(items[:MAX_LISTED]) + more, MAX_TEXT) if items else "none"
    return f"{value:,}" if key in ("parameters", "bytes") and value is not None else _cut(str(value), MAX_TEXT)


def _metadata_rows(metadata: Mapping[str, str]) -> list[tuple[str, str]]:
    """Each value in short; kohya's many only as their number, because what helps of them stands above."""
    rows = [
        (f"metadata {key}", _cut(" ".join(value.split()), MAX_METADATA))
        for key, value in sorted(metadata.items())
        if not key.startswith(("ss_", "sshs_"))
    ]
    training = sum(key.startswith(("ss_", "sshs_")) for key in metadata)
    if training:
        rows.append(("metadata ss_*", f"{training} values of the training run; --json prints them"))
    return rows


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[:length]}… ({len(text)} characters; --json prints all)"


def _list(values: Any) -> str:
    return ", ".join(str(value) for value in values)

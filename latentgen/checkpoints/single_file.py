"""Single-file models, in and out: CompVis' format, as SD 1.x and 2.x are traded in.

Names are mapped by `compvis_names.py`, what lies where is `single_layout.py`'s business; here are the tensors. Reading
is strict: every parameter there, and nothing left over but what is known to be of no use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from latentgen.checkpoints.compvis_names import unet_names, vae_names
from latentgen.checkpoints.header import open_header
from latentgen.checkpoints.io import list_names, read_tensors, write_tensors
from latentgen.checkpoints.keymap import OPEN_CLIP_TEXT, apply_rules, flatten_conv1x1, published, reverse_rules
from latentgen.checkpoints.single_layout import (
    CLIP_PREFIX,
    OPEN_CLIP_PREFIX,
    OPEN_CLIP_PREFIXES,
    UNET_PREFIX,
    VAE_PREFIX,
    SingleFile,
    family_of,
    find_vae,
    is_ignored,
    written_metadata,
)
from latentgen.config import ModelConfig, PredictionType, VAEConfig
from latentgen.errors import ModelLoadError
from latentgen.presets import SD21_BASE, SD21_V

ModelPart = Literal["unet", "vae", "text_encoder"]
MODEL_PARTS: tuple[ModelPart, ...] = ("unet", "vae", "text_encoder")

EPS_OR_V: float = -1.0
"""A network whose answer to the probe lies further below its input than this, on average, predicts v."""


def open_single_file(path: Path) -> SingleFile:
    """The header of a single-file model that is complete and holds nothing unknown; else ModelLoadError names both."""
    file = SingleFile.open(path)
    problems = [list_names("missing", file.missing()), list_names("unknown", file.unexpected())]
    if any(problems):
        raise ModelLoadError(
            f"{path} is no whole {family_of(file.config)} model: {'; '.join(filter(None, problems))}",
            hint="the file is incomplete, or of another model",
        )
    return file


def read_part(file: SingleFile, part: ModelPart, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """One network's tensors under our names, fractions in `dtype` (None: as in the file). Raises as `read_tensors`."""
    names = file.names()[part]
    found = read_tensors(file.path, set(names.values()), dtype=dtype)
    tensors = {ours: found[theirs] for ours, theirs in names.items() if theirs in found}
    if part == "vae":
        return _matrices(tensors)
    if part == "text_encoder" and file.text_form in OPEN_CLIP_PREFIXES:
        return apply_rules(OPEN_CLIP_TEXT, tensors, file.path)
    return tensors


def read_vae_file(path: Path, *, dtype: torch.dtype | None = None) -> tuple[VAEConfig, dict[str, Tensor]]:
    """The autoencoder of a whole single-file model, or of a file of its own, under our names.

    Raises ModelLoadError if there is none of Stable Diffusion 1.x, 2.x or ours.
    """
    header = open_header(path)
    config, names = find_vae(header, path)
    if all(ours == theirs for ours, theirs in names.items()):
        return config, published("vae", read_tensors(path, dtype=dtype))
    is_whole = any(entry.name.startswith(UNET_PREFIX) for entry in header.entries)
    taken = set(names.values())
    wanted = {e.name for e in header.entries if e.name in taken or not (is_whole or is_ignored(e.name))}
    found, ours_of = read_tensors(path, wanted, dtype=dtype), {theirs: ours for ours, theirs in names.items()}
    # A name that is no parameter's keeps its own, so that loading tells of it.
    return config, _matrices({ours_of.get(name, name): tensor for name, tensor in found.items()})


def write_single_file(
    path: Path, config: ModelConfig, parts: Mapping[ModelPart, Mapping[str, Tensor]], *, title: str
) -> None:
    """Write a whole model as one file, from tensors under our names. Written aside; raises as `write_tensors`.

    OpenCLIP's text encoders (SD 2.x and ours) get its own names, OpenAI's (SD 1.x) those of transformers, as the
    published files have them; the exact GELU tells the former.
    """
    tensors = {UNET_PREFIX + theirs: parts["unet"][ours] for ours, theirs in unet_names(config.unet).items()}
    for ours, theirs in vae_names(config.vae).items():
        tensors[VAE_PREFIX + theirs] = _as_conv1x1(ours, parts["vae"][ours])
    if config.text_encoder.hidden_act == "gelu":
        text = reverse_rules(OPEN_CLIP_TEXT, parts["text_encoder"], path)
        tensors |= {OPEN_CLIP_PREFIX + name: tensor for name, tensor in text.items()}
    else:
        tensors |= {CLIP_PREFIX + name: tensor for name, tensor in parts["text_encoder"].items()}
    write_tensors(path, tensors, written_metadata(config, title))


@torch.no_grad()
def probe_prediction_type(
    predict: Callable[[Tensor, Tensor, Tensor], Tensor], config: ModelConfig, like: Tensor
) -> PredictionType:
    """Ask an SD 2.x U-Net what it predicts, by the answer to a constant input at the last timestep.

    There the latents are almost all noise: one that predicts eps gives its input back, one that predicts v gives about
    minus the clean picture, far below a positive input. `like` says on which device and in which dtype to ask.
    Source: stable-diffusion-webui, `modules/sd_models_config.py` (x = context = 0.5, t = 999, 8x8 latents).
    """
    x = torch.full((1, config.unet.in_channels, 8, 8), 0.5, device=like.device, dtype=like.dtype)
    context = torch.full((1, 2, config.unet.cross_attention_dim), 0.5, device=like.device, dtype=like.dtype)
    t = torch.tensor([config.diffusion.num_train_timesteps - 1], device=like.device)
    answer = predict(x, t, context)
    return "v_prediction" if (answer - x).float().mean().item() < EPS_OR_V else "epsilon"


def with_prediction_type(config: ModelConfig, prediction_type: PredictionType) -> ModelConfig:
    """An SD 2.x model that predicts this, with the size it was then trained at. Unchanged if it said so already."""
    if config.diffusion.prediction_type == prediction_type:
        return config
    preset = SD21_V if prediction_type == "v_prediction" else SD21_BASE
    return replace(
        config,
        unet=replace(config.unet, sample_size=preset.unet.sample_size),
        diffusion=replace(config.diffusion, prediction_type=prediction_type),
        defaults=preset.defaults,
    )


def _matrices(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The autoencoder's attention as matrices, whichever of both it is stored as."""
    return {name: flatten_conv1x1(t) if _is_attention(name) else t for name, t in tensors.items()}


def _as_conv1x1(ours: str, tensor: Tensor) -> Tensor:
    return tensor[:, :, None, None] if _is_attention(ours) and tensor.ndim == 2 else tensor


def _is_attention(ours: str) -> bool:
    return ".attentions." in ours and ours.endswith(".weight")

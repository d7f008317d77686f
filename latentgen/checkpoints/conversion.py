"""One model format into another: single file, model folder and pickle in, single file or model folder out.

Tensors keep their bytes unless another dtype is asked for, so there and back again gives what one began with. They are
checked against the networks they are for before anything is written, though no network is built.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latentgen.checkpoints.folder import (
    load_unet,
    read_config,
    read_folder_part,
    write_model_folder,
)
from latentgen.checkpoints.header import is_pickle, open_header
from latentgen.checkpoints.identify import kind_of_names
from latentgen.checkpoints.io import (
    as_dtype,
    check_fit,
    is_finite,
    list_names,
    read_tensors,
    without_numbers,
    write_tensors,
)
from latentgen.checkpoints.keymap import published
from latentgen.checkpoints.layout import VOCABULARY, WEIGHTS
from latentgen.checkpoints.pickles import copy_tensors
from latentgen.checkpoints.single_file import (
    MODEL_PARTS,
    ModelPart,
    open_single_file,
    probe_prediction_type,
    read_part,
    with_prediction_type,
    write_single_file,
)
from latentgen.checkpoints.tokenizers import load_tokenizer, published_tokenizer
from latentgen.config import ModelConfig
from latentgen.errors import InputError, ModelLoadError
from latentgen.jsonfile import read_json
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL

SAFETENSORS: Final = ".safetensors"


@dataclass(frozen=True, slots=True)
class Source:
    """A model to convert: its numbers, its tokenizer, and its tensors by part, under our names, read when asked for."""

    config: ModelConfig
    tokenizer: Tokenizer
    read: Callable[[ModelPart], dict[str, Tensor]]
    place: Path
    vocabulary: dict[str, Any] | None = None
    """Of a folder that has one; a single file cannot hold it."""

    def part(self, name: ModelPart, dtype: torch.dtype | None) -> dict[str, Tensor]:
        """A part's tensors in `dtype`, after checking that they are its network's. Raises ModelLoadError."""
        tensors = self.read(name)
        check_part(self.config, name, tensors, self.place)
        return {key: as_dtype(tensors[key], dtype, f"{self.place}: tensor {key}") for key in tensors}


def convert(source: Path, target: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write the model at `source` as `target`: one file if it ends with `.safetensors`, else a model folder.

    `dtype` None keeps every tensor's own. A pickle that holds no whole model, such as a VAE, becomes a safetensors file
    under its own names. Nothing is left half-written; an older `target` is replaced.
    Raises as `load_model`, InputError for a model that a single file cannot hold, RuntimeFailure if the disk refuses.
    """
    to_file = target.suffix.lower() == SAFETENSORS
    place = target.parent if target.parent.is_dir() else None
    with tempfile.TemporaryDirectory(prefix=".latentgen-", dir=place) as scratch:
        if source.is_file() and _is_pickle(source):
            unpacked = Path(scratch, "model.safetensors")
            copy_tensors(source, unpacked)
            kind = kind_of_names(entry.name for entry in open_header(unpacked).entries)
            if kind != "model":
                if not to_file:
                    raise InputError(f"{source} holds no whole model ({kind}), which makes no folder")
                _convert_loose(unpacked, target, dtype, source)
                return
            try:
                opened = _open_single(unpacked, source)
            except ModelLoadError as error:  # it names the file that the user knows
                raise ModelLoadError(error.message.replace(str(unpacked), str(source)), hint=error.hint) from None
        else:
            opened = _open_single(source, source) if source.is_file() else _open_folder(source, Path(scratch))
        if not to_file:
            write_model_folder(
                opened.config,
                lambda name: opened.part(name, dtype),
                opened.tokenizer,
                target,
                vocabulary=opened.vocabulary,
            )
            return
        _check_tokenizer(opened)
        write_single_file(
            target, opened.config, {name: opened.part(name, dtype) for name in MODEL_PARTS}, title=target.stem
        )


def check_part(config: ModelConfig, part: ModelPart, tensors: dict[str, Tensor], source: Path) -> None:
    """Raise ModelLoadError unless these are the finite tensors of the network that `config` describes."""
    with without_numbers():
        module: nn.Module
        if part == "unet":
            module = UNet(config.unet)
        elif part == "vae":
            module = AutoencoderKL(config.vae)
        else:
            module = CLIPTextModel(config.text_encoder)
    what = type(module).__name__
    check_fit(module.state_dict(), tensors, source, what)
    if broken := list_names(
        "with infinite or NaN values", [n for n, tensor in tensors.items() if not is_finite(tensor)]
    ):
        raise ModelLoadError(f"{source}: {what} tensors {broken}", hint="the file is damaged")


def _open_single(path: Path, place: Path) -> Source:
    file = open_single_file(path)
    config = file.config
    if not file.is_prediction_known:
        unet = load_unet(path)
        config = with_prediction_type(config, probe_prediction_type(unet, config, next(unet.parameters())))
    return Source(config, published_tokenizer(config.text_encoder), lambda part: read_part(file, part), place)


def _open_folder(folder: Path, scratch: Path) -> Source:
    def read(part: ModelPart) -> dict[str, Tensor]:
        own = folder / part
        if any(own.glob("*.safetensors")):
            return read_folder_part(own, part)
        pickle = _find_pickle(own, part)
        unpacked = scratch / f"{part}.safetensors"
        copy_tensors(pickle, unpacked)
        tensors = read_tensors(unpacked)
        unpacked.unlink()
        return published(part, tensors)

    words = folder / VOCABULARY
    vocabulary = read_json(words) if words.exists() else None
    return Source(read_config(folder), load_tokenizer(folder), read, folder, vocabulary)


def _find_pickle(folder: Path, part: ModelPart) -> Path:
    """Where diffusers and transformers put a part's weights before they wrote safetensors, full precision first."""
    stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
    for name in (f"{stem}.bin", f"{stem}.fp16.bin"):
        if (folder / name).exists():
            return folder / name
    raise ModelLoadError(
        f"{folder / WEIGHTS[part]} is missing", hint="the model folder is incomplete; copy or download it again"
    )


def _check_tokenizer(source: Source) -> None:
    """A single file holds no tokenizer, so it can only be of a model that has CLIP's."""
    with tempfile.TemporaryDirectory() as scratch:
        written: list[tuple[object, ...]] = []
        for number, tokenizer in enumerate((source.tokenizer, published_tokenizer(source.config.text_encoder))):
            folder = Path(scratch, str(number))
            tokenizer.save(folder)
            # What they say: published vocabularies are sorted by token or by number.
            vocabulary, settings = (read_json(folder / name) for name in ("vocab.json", "tokenizer_config.json"))
            written.append((vocabulary, settings, (folder / "merges.txt").read_bytes()))
    if written[0] != written[1]:
        raise InputError(
            f"{source.place} has a tokenizer of its own, which a single file cannot hold",
            hint="convert it to a folder: give a TARGET without an ending",
        )


def _convert_loose(tensors: Path, target: Path, dtype: torch.dtype | None, source: Path) -> None:
    """Tensors that are no whole model, under the names they came with."""
    found = read_tensors(tensors)
    if broken := list_names("with infinite or NaN values", [n for n, tensor in found.items() if not is_finite(tensor)]):
        raise ModelLoadError(f"{source}: tensors {broken}", hint="the file is damaged")
    write_tensors(target, {n: as_dtype(found[n], dtype, f"{source}: tensor {n}") for n in found}, {"format": "pt"})


def _is_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        return is_pickle(file.read(1024))

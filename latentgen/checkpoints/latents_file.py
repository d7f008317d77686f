"""Pictures as latents in a safetensors file, with what is needed to read them back.

`latents.00000`, `latents.00001` ...: (C, h, w) float32, scaled as the diffusion sees them. The metadata's `latentgen`
is JSON: the autoencoder's fingerprint, pixels per latent pixel, and the pictures' names and sizes.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from latentgen.checkpoints.header import read_account
from latentgen.checkpoints.io import is_finite, read_tensors, write_tensors
from latentgen.errors import ModelLoadError, ModelNotFoundError

FORMAT = 1
KIND = "latents"


@dataclass(frozen=True, slots=True)
class EncodedPicture:
    name: str
    """The picture file's own name, without its folder."""
    width_px: int
    height_px: int


@dataclass(frozen=True, slots=True, eq=False)
class LatentsFile:
    pictures: tuple[EncodedPicture, ...]
    latents: tuple[Tensor, ...]
    """(C, h, w) float32 of each picture."""
    model: str
    """Name of the model whose autoencoder encoded them."""
    fingerprint: str
    """Of that autoencoder's weights file."""
    downscale: int
    """Pixels per latent pixel along one side."""


def write_latents(path: Path, file: LatentsFile) -> None:
    """Raises RuntimeFailure if the disk refuses, leaving no partial file."""
    about = {
        "format": FORMAT,
        "kind": KIND,
        "model": file.model,
        "fingerprint": file.fingerprint,
        "downscale": file.downscale,
        "pictures": [asdict(picture) for picture in file.pictures],
    }
    tensors = {_name(i): latents.float() for i, latents in enumerate(file.latents)}
    write_tensors(path, tensors, {"latentgen": json.dumps(about)})


def read_latents(path: Path) -> LatentsFile:
    """Raises ModelNotFoundError if there is no file, ModelLoadError if it is not, in every detail, one of ours."""
    about = _about(path)
    pictures = tuple(_picture(each, path) for each in _list(about.get("pictures"), path))
    downscale, texts = about.get("downscale"), (about.get("model"), about.get("fingerprint"))
    if type(downscale) is not int or downscale < 1 or not all(isinstance(text, str) for text in texts):
        raise _damaged(path, "its metadata are incomplete")
    tensors = read_tensors(path)
    names = [_name(i) for i in range(len(pictures))]
    if sorted(tensors) != names:
        raise _damaged(path, f"it names {len(pictures)} pictures and holds {len(tensors)} tensors")
    for name, picture in zip(names, pictures, strict=True):
        tensor = tensors[name]
        size = (picture.height_px // downscale, picture.width_px // downscale)
        if tensor.dtype != torch.float32 or tensor.ndim != 3 or tuple(tensor.shape[1:]) != size:
            raise _damaged(path, f"{name} is not (C, {size[0]}, {size[1]}) float32")
        if not is_finite(tensor):
            raise _damaged(path, f"{name} holds infinite or NaN values")
    model, fingerprint = cast("tuple[str, str]", texts)
    return LatentsFile(pictures, tuple(tensors[name] for name in names), model, fingerprint, downscale)


def _about(path: Path) -> dict[str, Any]:
    """The JSON of the header's metadata."""
    try:
        about = read_account(path, KIND)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {path}") from None
    if about is None:
        raise ModelLoadError(f"{path} does not hold latents", hint="they are made by: latentgen encode")
    if about.get("format") != FORMAT:
        raise ModelLoadError(
            f"{path} has format {about.get('format')!r}; this version reads {FORMAT}",
            hint="use the version of latentgen that made it",
        )
    return about


def _picture(value: object, path: Path) -> EncodedPicture:
    try:
        picture = EncodedPicture(**cast("dict[str, Any]", value))
    except TypeError:
        raise _damaged(path, "its metadata are incomplete") from None
    sides = (picture.width_px, picture.height_px)
    if type(picture.name) is not str or any(type(side) is not int or side < 1 for side in sides):
        raise _damaged(path, "its metadata are incomplete")
    return picture


def _list(value: object, path: Path) -> list[object]:
    if not isinstance(value, list) or not value:
        raise _damaged(path, "it names no picture")
    return cast("list[object]", value)


def _damaged(path: Path, problem: str) -> ModelLoadError:
    return ModelLoadError(f"{path} cannot be used as latents: {problem}", hint="encode the pictures again")


def _name(index: int) -> str:
    return f"latents.{index:05}"

"""Textual inversions: vectors that stand in for a word of the prompt (arXiv:2208.01618). Importable without torch.

    A1111        one tensor `emb_params` (n, D); the word is the file's name without its ending
    kohya        the same, sometimes under `string_to_param.*`
    diffusers    one tensor (n, D) or (D,), whose name is the word, as in `<cat-toy>`

Only safetensors is read: A1111's `.pt` is a pickle.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Final

from latentgen.checkpoints.header import TensorEntry, read_header
from latentgen.errors import LatentgenError, ModelLoadError, ModelNotFoundError
from latentgen.request import EmbeddingUse

if TYPE_CHECKING:
    from torch import Tensor

MAX_VECTORS: Final = 75
"""An embedding stays within one chunk of the prompt."""

_NAMELESS: Final = ("emb_params", "string_to_param.*", "*")
"""Tensor names that do not say which word is meant."""
_OF_SDXL: Final = frozenset({"clip_l", "clip_g"})


@dataclass(frozen=True, slots=True)
class EmbeddingFile:
    """A textual inversion as its file's header tells it."""

    path: Path
    name: str
    """The word that stands for it in a prompt."""
    tensor: str
    """What the file calls its vectors."""
    vectors: int
    """How many tokens it takes up."""
    width: int
    """Of one vector; must be the text encoder's."""
    fingerprint: str
    """The first ten hexadecimal digits of the file's SHA-256."""

    @property
    def use(self) -> EmbeddingUse:
        return EmbeddingUse(name=self.name, fingerprint=self.fingerprint)

    def check_width(self, width: int) -> None:
        """Raise ModelLoadError unless it was made for a text encoder of this width."""
        if self.width != width:
            raise ModelLoadError(
                f"{self.path} does not fit this model: its vectors are {self.width} wide, the text encoder's {width}",
                hint="768 is for Stable Diffusion 1.x, 1024 for 2.x",
            )


def look_at_embedding(path: Path) -> EmbeddingFile:
    """What a file says of itself, without torch.

    Raises ModelNotFoundError if there is no such file, ModelLoadError if it is not a textual inversion for one text
    encoder, or is damaged.
    """
    try:
        with path.open("rb") as file:
            entries = read_header(file, os.fstat(file.fileno()).st_size, path).entries
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no embedding file {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    entry = _find_vectors(entries, path)
    shape = entry.shape if len(entry.shape) == 2 else (1, *entry.shape)
    if len(shape) != 2 or not 1 <= shape[0] <= MAX_VECTORS or shape[1] < 1:
        raise ModelLoadError(
            f"{path} is not a textual inversion: its tensor is {tuple(entry.shape)}",
            hint=f"1 to {MAX_VECTORS} vectors of the text encoder's width are expected",
        )
    name = path.stem if entry.name in _NAMELESS else entry.name
    embedding = EmbeddingFile(path, name, entry.name, shape[0], shape[1], digest[:10])
    try:
        _ = embedding.use
    except LatentgenError as error:
        raise ModelLoadError(f"{path}: its name cannot stand in a prompt: {error.message}") from None
    if not name.strip():
        raise ModelLoadError(f"{path}: its name is empty")
    return embedding


def read_embedding(embedding: EmbeddingFile) -> Tensor:
    """The vectors (n, D) in float32. Raises ModelLoadError if they are not finite."""
    import torch

    from latentgen.checkpoints.io import is_finite, read_tensors

    vectors = read_tensors(embedding.path)[embedding.tensor]
    if not vectors.is_floating_point() or not is_finite(vectors):
        raise ModelLoadError(f"{embedding.path} holds what is not a finite fraction", hint="the file is damaged")
    return vectors.reshape(embedding.vectors, embedding.width).to(torch.float32)


def _find_vectors(entries: tuple[TensorEntry, ...], path: Path) -> TensorEntry:
    names = [entry.name for entry in entries]
    if _OF_SDXL & set(names):
        raise ModelLoadError(
            f"{path} is a textual inversion for two text encoders ({', '.join(sorted(names)[:2])}), as SDXL has",
            hint="those for Stable Diffusion 1.x and 2.x can be read",
        )
    for entry in entries:
        if entry.name in _NAMELESS:
            return entry
    if len(entries) != 1:
        raise ModelLoadError(
            f"{path} is not a textual inversion: it holds {len(entries)} tensors, not one",
            hint=f"see: latentgen info {quote(str(path))}",
        )
    return entries[0]

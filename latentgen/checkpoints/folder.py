"""Models opened and saved, whole or by parts. Our native format is the diffusers folder; single files open as well.

A folder saved here opens in `diffusers.StableDiffusionPipeline.from_pretrained` unchanged, and the reverse; our modules
carry the published parameter names, so nothing is mapped but two leftovers of old files (`keymap.py`). One exception: a
VAE's `shift_factor` is honoured here but ignored by diffusers' Stable Diffusion pipelines, so train ours with 0.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from latentgen.checkpoints.diffusers_config import (
    read_text_encoder,
    read_unet,
    read_vae,
    write_model_index,
    write_run_defaults,
    write_scheduler,
    write_text_encoder,
    write_unet,
    write_vae,
)
from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.hub_cache import cached_name
from latentgen.checkpoints.io import (
    is_finite,
    load_strict,
    raw_bytes,
    read_tensors,
    sync_folder,
    without_numbers,
    write_tensors,
)
from latentgen.checkpoints.keymap import published
from latentgen.checkpoints.layout import (
    CONFIG,
    INDEX,
    RUN_DEFAULTS,
    SCHEDULER,
    VOCABULARY,
    WEIGHTS,
    Part,
    as_text,
    check_replaceable,
    part_folder,
    read_config,
    weight_files,
)
from latentgen.checkpoints.single_file import (
    MODEL_PARTS,
    ModelPart,
    open_single_file,
    probe_prediction_type,
    read_part,
    read_vae_file,
    with_prediction_type,
)
from latentgen.checkpoints.single_layout import SingleFile
from latentgen.checkpoints.tokenizers import load_tokenizer, published_tokenizer, unusual_tokens
from latentgen.config import DiffusionConfig, GenerationDefaults, ModelConfig
from latentgen.errors import ModelLoadError, RuntimeFailure
from latentgen.jsonfile import write_json
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import CONTEXT_LENGTH, Tokenizer
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL

__all__ = [
    "ModelBundle",
    "check_replaceable",
    "copied_without",
    "load_config",
    "load_model",
    "load_text_encoder",
    "load_unet",
    "load_vae",
    "predicted_type",
    "read_config",
    "read_folder_part",
    "save_clip",
    "save_defaults",
    "save_diffusion",
    "save_model",
    "save_text_encoder",
    "save_unet",
    "save_vae",
    "save_vocabulary",
    "write_model_folder",
]

FINGERPRINT_DIGITS = 10
"""Hexadecimal digits of a model's fingerprint, as many as A1111 shows."""

M = TypeVar("M", bound=nn.Module)
C = TypeVar("C")


@dataclass(slots=True, eq=False)
class ModelBundle:
    """A model ready to draw with: networks on one device, tokenizer, and the numbers they were built from."""

    unet: UNet
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: Tokenizer
    config: ModelConfig
    folder: Path | None = None
    """Where it was loaded from, a folder or a single file; None for a model made in memory."""
    _fingerprint: str | None = field(default=None, init=False, repr=False)

    @property
    def name(self) -> str:
        """On the hub if it lies in the hub's cache; else the folder's own name, or a file's without its ending."""
        if self.folder is None:
            return "unsaved"
        if (hub_name := cached_name(self.folder)) is not None:
            return str(hub_name)
        return as_text(self.folder.stem if self.folder.is_file() else self.folder.resolve().name)

    @property
    def device(self) -> torch.device:
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.unet.parameters()).dtype

    def fingerprint(self, *, remembered: bool = True) -> str:
        """Ten hexadecimal digits that tell this model from any other; computed once, when first asked for.

        SHA-256 over the folder's files, so device and dtype it was loaded with do not change it, and over what is
        unusual about its tokens; over a single file, which makes it A1111's model hash; over the numbers themselves for
        a model made in memory.
        remembered: files that have not changed since they were last hashed are not read again (`hashes.py`).
        """
        if self._fingerprint is None:
            if self.folder is None:
                digest = self._hash_numbers()
            else:
                digest = sha256(*_model_files(self.folder), remembered=remembered)
                is_file, text = self.folder.is_file(), self.config.text_encoder
                unusual = "" if is_file else unusual_tokens(self.folder, self.tokenizer, text)
                if unusual:
                    digest = hashlib.sha256(f"{digest} {unusual}".encode()).hexdigest()
            self._fingerprint = digest[:FINGERPRINT_DIGITS]
        return self._fingerprint

    def outline(self) -> ModelBundle:
        """A model of the same layers and shapes; its numbers may be missing (`pipeline/low_memory.py`)."""
        return self

    def _hash_numbers(self) -> str:
        digest = hashlib.sha256(repr(self.config).encode())
        for module in (self.unet, self.vae, self.text_encoder):
            for name, tensor in sorted(module.state_dict().items()):
                digest.update(name.encode())
                digest.update(raw_bytes(tensor.cpu().contiguous()))
        return digest.hexdigest()


def load_model(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ModelBundle:
    """Open a model folder or a single file strictly: every tensor there, of the right shape, finite, none left over.

    An SD 2.x file that does not say what it predicts is asked (`probe_prediction_type`).
    Raises ModelNotFoundError if there is no such path, ModelLoadError naming the file and what is wrong with it.
    """
    if path.is_file():
        return _load_single_file(path, device, dtype)
    config, tokenizer = load_config(path)
    return ModelBundle(
        unet=load_unet(path, device=device, dtype=dtype),
        vae=load_vae(path, device=device, dtype=dtype),
        text_encoder=load_text_encoder(path, device=device, dtype=dtype),
        tokenizer=tokenizer,
        config=config,
        folder=path,
    )


def load_config(path: Path) -> tuple[ModelConfig, Tokenizer]:
    """What a model is without its networks. Raises ModelLoadError if its tokenizer is not for its text encoder."""
    config, tokenizer = read_config(path), load_tokenizer(path)
    text = config.text_encoder
    if tokenizer.vocab_size > text.vocab_size or text.max_position_embeddings != CONTEXT_LENGTH:
        raise ModelLoadError(
            f"{path}: the text encoder takes {text.max_position_embeddings} tokens out of {text.vocab_size}, "
            f"but the tokenizer gives {CONTEXT_LENGTH} out of {tokenizer.vocab_size}"
        )
    return config, tokenizer


def load_unet(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> UNet:
    """The U-Net alone, in evaluation mode, from a model, or from a folder that holds just it."""
    if path.is_file():
        file = open_single_file(path)
        return build_network(UNet, file.config.unet, read_part(file, "unet", dtype=dtype), path, device, dtype)
    own = part_folder(path, "unet")
    config, tensors = read_unet(own / CONFIG), read_folder_part(own, "unet", dtype=dtype)
    return build_network(UNet, config, tensors, weight_files(own, "unet")[0], device, dtype)


def load_vae(path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> AutoencoderKL:
    """The VAE alone, in evaluation mode, from a model, or from a folder or a file that holds just it."""
    if path.is_file():
        return build_network(AutoencoderKL, *read_vae_file(path, dtype=dtype), path, device, dtype)
    own = part_folder(path, "vae")
    config, tensors = read_vae(own / CONFIG), read_folder_part(own, "vae", dtype=dtype)
    return build_network(AutoencoderKL, config, tensors, weight_files(own, "vae")[0], device, dtype)


def load_text_encoder(
    path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> CLIPTextModel:
    """The text encoder alone, in evaluation mode, from a model, or from a folder that holds just it."""
    if path.is_file():
        file = open_single_file(path)
        tensors = read_part(file, "text_encoder", dtype=dtype)
        return build_network(CLIPTextModel, file.config.text_encoder, tensors, path, device, dtype)
    own = part_folder(path, "text_encoder")
    config, tensors = read_text_encoder(own / CONFIG), read_folder_part(own, "text_encoder", dtype=dtype)
    return build_network(CLIPTextModel, config, tensors, weight_files(own, "text_encoder")[0], device, dtype)


def build_network(
    kind: Callable[[C], M],
    config: C,
    tensors: Mapping[str, Tensor],
    source: Path | str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> M:
    """A network of these tensors, in evaluation mode; they become its parameters, uncopied where they fit.

    source: where they are from, for messages. Raises ModelLoadError if they are not those of such a network.
    """
    with without_numbers():
        module = kind(config)
    load_strict(module, tensors, source, device=device, dtype=dtype)
    return module.eval()


def read_folder_part(own: Path, part: ModelPart, *, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """A part's tensors out of its folder, from all shards, under present names. Raises as `read_tensors`."""
    tensors: dict[str, Tensor] = {}
    for file in weight_files(own, part):
        tensors |= read_tensors(file, dtype=dtype)
    return published(part, tensors)


def _load_single_file(path: Path, device: torch.device | str, dtype: torch.dtype) -> ModelBundle:
    file = open_single_file(path)
    config = file.config
    unet = build_network(UNet, config.unet, read_part(file, "unet", dtype=dtype), path, device, dtype)
    config = _asked(file, config, unet)
    vae = build_network(AutoencoderKL, config.vae, read_part(file, "vae", dtype=dtype), path, device, dtype)
    text = build_network(
        CLIPTextModel, config.text_encoder, read_part(file, "text_encoder", dtype=dtype), path, device, dtype
    )
    return ModelBundle(unet, vae, text, published_tokenizer(config.text_encoder), config, path)


def predicted_type(path: Path, config: ModelConfig, unet: UNet) -> ModelConfig:
    """The config of a model with what its U-Net predicts, which an SD 2.x file that does not say is asked."""
    return _asked(open_single_file(path), config, unet) if path.is_file() else config


def _asked(file: SingleFile, config: ModelConfig, unet: UNet) -> ModelConfig:
    if file.is_prediction_known:
        return config
    return with_prediction_type(config, probe_prediction_type(unet, config, next(unet.parameters())))


def save_model(
    bundle: ModelBundle,
    folder: Path,
    *,
    dtype: torch.dtype | None = None,
    vocabulary: dict[str, Any] | None = None,
) -> None:
    """Write a whole model folder, in `dtype` (None: as the networks are), with its `vocabulary.json` if there is one.

    It is written aside and renamed, so there is never half a model. An older model in its place is replaced.
    Raises InputError if `folder` holds anything else (`check_replaceable`), RuntimeFailure if the disk refuses or a
    number is not finite.
    """
    check_replaceable(folder)
    parts: dict[ModelPart, dict[str, Tensor]] = {
        "unet": _state(bundle.unet, dtype),
        "vae": _state(bundle.vae, dtype),
        "text_encoder": _state(bundle.text_encoder, dtype),
    }
    write_model_folder(bundle.config, parts.__getitem__, bundle.tokenizer, folder, vocabulary=vocabulary)


def write_model_folder(
    config: ModelConfig,
    part: Callable[[ModelPart], Mapping[str, Tensor]],
    tokenizer: Tokenizer,
    folder: Path,
    *,
    vocabulary: dict[str, Any] | None = None,
) -> None:
    """Write a whole model folder of tensors under our names, asking for one part at a time.

    Written aside and raises as `save_model`.
    """
    with _written_aside(folder, None) as aside:
        for name in MODEL_PARTS:
            tensors = part(name)
            if name == "unet":
                file = write_unet(config.unet)
            elif name == "vae":
                file = write_vae(config.vae)
            else:
                file = write_text_encoder(config.text_encoder, _name_dtype(tensors))
            _write_part(aside / name, name, file, tensors)
        tokenizer.save(aside / "tokenizer")
        (aside / SCHEDULER).parent.mkdir()
        write_json(aside / SCHEDULER, write_scheduler(config.diffusion))
        write_json(aside / INDEX, write_model_index(config.defaults))
        if vocabulary is not None:
            write_json(aside / VOCABULARY, vocabulary)


def save_unet(unet: UNet, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config and weights of a U-Net into `folder` itself. Written aside and raises as `save_model`."""
    with _written_aside(folder, "unet") as aside:
        _write_part(aside, "unet", write_unet(unet.config), _state(unet, dtype))


def save_vae(vae: AutoencoderKL, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config and weights of a VAE into `folder` itself. Written aside and raises as `save_model`."""
    with _written_aside(folder, "vae") as aside:
        _write_part(aside, "vae", write_vae(vae.config), _state(vae, dtype))


def save_text_encoder(text_encoder: CLIPTextModel, folder: Path, *, dtype: torch.dtype | None = None) -> None:
    """Write config and weights of a text encoder into `folder` itself. Written aside and raises as `save_model`."""
    tensors = _state(text_encoder, dtype)
    with _written_aside(folder, "text_encoder") as aside:
        _write_part(aside, "text_encoder", write_text_encoder(text_encoder.config, _name_dtype(tensors)), tensors)


def save_clip(config: dict[str, object], tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write both towers of CLIP, in transformers' names, into `folder` itself. Written aside as `save_model`."""
    with _written_aside(folder, "clip") as aside:
        _write_part(aside, "clip", config, tensors)


def save_diffusion(diffusion: DiffusionConfig, folder: Path) -> None:
    """Write `scheduler_config.json` into `folder` itself. Written aside and raises as `save_model`."""
    with _written_aside(folder, "scheduler") as aside:
        write_json(aside / SCHEDULER.name, write_scheduler(diffusion))


def save_defaults(defaults: GenerationDefaults, folder: Path) -> None:
    """Write what a run's U-Net should be drawn with into `folder`. Raises RuntimeFailure if the disk refuses."""
    _write_beside_parts(folder / RUN_DEFAULTS, write_run_defaults(defaults))


def save_vocabulary(vocabulary: dict[str, Any], folder: Path) -> None:
    """Write the words that a run's captions held into `folder`. Raises RuntimeFailure if the disk refuses."""
    _write_beside_parts(folder / VOCABULARY, vocabulary)


def _write_beside_parts(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    except OSError as error:
        raise RuntimeFailure(f"cannot write {path}: {error.strerror}") from None


def _write_part(folder: Path, part: Part, config: dict[str, object], tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir(exist_ok=True)
    write_json(folder / CONFIG, config)
    # diffusers and transformers refuse files that do not say that torch wrote them.
    write_tensors(folder / WEIGHTS[part], tensors, {"format": "pt"})


def _state(module: nn.Module, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """A module's tensors as they will be written. Raises RuntimeFailure rather than save what could never be loaded."""
    tensors = {name: tensor.to(dtype or tensor.dtype) for name, tensor in module.state_dict().items()}
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise RuntimeFailure(
            f"{type(module).__name__} is not saved: {len(broken)} tensors hold infinite or NaN values ({broken[0]} ...)"
        )
    return tensors


def _name_dtype(tensors: Mapping[str, Tensor]) -> str:
    return str(next(iter(tensors.values())).dtype).removeprefix("torch.")


@contextmanager
def _written_aside(folder: Path, part: Part | Literal["scheduler"] | None) -> Generator[Path]:
    """An empty folder beside `folder` that takes its place when the block ends well, and vanishes when it does not."""
    check_replaceable(folder, part)
    folder = Path(os.path.realpath(folder))  # a link goes on pointing at the model, and `.` has a name
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    old = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        yield aside
        for inner in (aside, *(path for path in aside.iterdir() if path.is_dir())):
            sync_folder(inner)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise RuntimeFailure(f"cannot write {folder}: {error.strerror}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        if old.exists() and not folder.exists():
            old.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def copied_without(model: Path, out: Path, *parts: str) -> Generator[Path]:
    """A copy of a model folder without these folders, for the block to add them anew; `out` when the block ends well.

    Raises as `save_model`.
    """
    with _written_aside(out, None) as aside:
        shutil.copytree(model, aside, ignore=shutil.ignore_patterns(*parts), dirs_exist_ok=True)
        yield aside


def _model_files(path: Path) -> list[Path]:
    """The files that decide what the model draws, in a fixed order."""
    if path.is_file():
        return [path]
    weights = [file for part in MODEL_PARTS for file in weight_files(path / part, part)]
    tokenizer = [path / "tokenizer" / name for name in ("vocab.json", "merges.txt", "tokenizer.json")]
    configs = [*(path / part / CONFIG for part in MODEL_PARTS), path / SCHEDULER]
    return weights + configs + [file for file in tokenizer if file.exists()]

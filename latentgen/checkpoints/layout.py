"""What lies where in a diffusers model folder, and its config files as one ModelConfig. No torch, no weights."""

from __future__ import annotations

import os
from pathlib import Path
from shlex import quote
from typing import Final, Literal

from latentgen.checkpoints.diffusers_config import (
    check_pipeline,
    read_defaults,
    read_run_defaults,
    read_scheduler,
    read_text_encoder,
    read_unet,
    read_vae,
)
from latentgen.checkpoints.header import open_header, recognise_foreign
from latentgen.checkpoints.shards import find_shards
from latentgen.checkpoints.single_layout import find_vae, read_single_config
from latentgen.config import DiffusionConfig, GenerationDefaults, ModelConfig, UNetConfig, VAEConfig
from latentgen.errors import ConfigError, InputError, ModelLoadError, ModelNotFoundError

Part = Literal["unet", "vae", "text_encoder", "clip"]

INDEX: Final = "model_index.json"
CONFIG: Final = "config.json"
SCHEDULER: Final = Path("scheduler", "scheduler_config.json")
RUN_DEFAULTS: Final = "defaults.json"
"""Beside the U-Net of a training run: what the model should draw with, for `export` to take over."""
WEIGHTS: Final[dict[Part, str]] = {
    "unet": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
    "clip": "model.safetensors",
}
TOKENIZER_FILES: Final = (
    "vocab.json", "merges.txt", "added_tokens.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json",
)  # fmt: skip
"""Of a published `tokenizer/`, which holds some of them."""
RUN_MODEL: Final = "model"
"""What a training run calls the folder of the parts it has trained."""
VOCABULARY: Final = "vocabulary.json"
"""The words a model's captions held, where it was trained by latentgen (`prompts/vocabulary.py`). diffusers ignores it;
it says nothing of what is drawn, so it is no part of the fingerprint."""
WHOLE_MODEL: Final = frozenset({INDEX, "unet", "vae", "text_encoder", "tokenizer", "scheduler", VOCABULARY})
"""What `save_model` writes. A folder that holds anything else is never replaced, not even for a README."""
_INSIDE: Final[dict[str, frozenset[str]]] = {
    **{part: frozenset({CONFIG, WEIGHTS[part]}) for part in WEIGHTS},
    "tokenizer": frozenset(
        {"vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json", "tokenizer_config.json"}
    ),
    SCHEDULER.parent.name: frozenset({SCHEDULER.name}),
}
"""What it writes into its folders."""


def read_config(path: Path) -> ModelConfig:
    """A model in numbers: a folder from its JSON files alone, a single file from its header.

    Raises ModelNotFoundError if there is no such path, ModelLoadError naming file and key for anything in it that our
    networks cannot be. What an SD 2.x file predicts is the likelier answer where it does not say (`SingleFile`).
    """
    if path.is_file():
        return read_single_config(path)
    folder = path
    check_folder(folder)
    if not (folder / INDEX).exists():
        if next(folder.iterdir(), None) is None:
            raise ModelLoadError(f"{folder} is an empty folder, not a model")
        trained = any(path.is_dir() for path in (folder / RUN_MODEL, folder / "unet")) and not (folder / "vae").is_dir()
        hint = "pass the folder that holds unet/, vae/ and the others"
        if trained:
            hint = "`latentgen export` makes one of a trained U-Net, a VAE and a text encoder"
        raise ModelLoadError(f"{folder} is not a model folder: it has no {INDEX}", hint=hint)
    check_pipeline(folder / INDEX)
    unet = read_unet(folder / "unet" / CONFIG)
    vae = read_vae(folder / "vae" / CONFIG)
    diffusion = read_scheduler(folder / SCHEDULER)
    try:
        return ModelConfig(
            unet=unet,
            vae=vae,
            text_encoder=read_text_encoder(folder / "text_encoder" / CONFIG),
            diffusion=diffusion,
            defaults=read_defaults(folder / INDEX, unet.sample_size * vae.downscale, diffusion),
        )
    except ConfigError as error:
        raise ModelLoadError(f"{folder}: {error.message}", hint="its parts belong to different models") from None


def read_unet_part(folder: Path) -> UNetConfig:
    """The U-Net of a model, or of a folder that holds it alone, in numbers. Raises if its weights are missing too."""
    if folder.is_file():
        return read_single_config(folder).unet
    own = part_folder(folder, "unet")
    config = read_unet(own / CONFIG)
    weight_files(own, "unet")
    return config


def read_vae_part(folder: Path) -> VAEConfig:
    """The same of the VAE, which may also be a file of its own."""
    if folder.is_file():
        return find_vae(open_header(folder), folder)[0]
    own = part_folder(folder, "vae")
    config = read_vae(own / CONFIG)
    weight_files(own, "vae")
    return config


def read_diffusion(folder: Path) -> DiffusionConfig:
    """The forward process of a model, or of a folder that holds its `scheduler/` or the file itself."""
    if folder.is_file():
        return read_single_config(folder).diffusion
    check_folder(folder)
    own = folder / SCHEDULER.parent
    return read_scheduler((own if own.is_dir() else folder) / SCHEDULER.name)


def find_defaults(folder: Path, size_px: int) -> GenerationDefaults:
    """What a model or a run's `model/` says of drawing; `size_px` squared and our usual settings if nothing."""
    if folder.is_file():
        return read_single_config(folder).defaults
    diffusion = read_diffusion(folder)
    if (folder / INDEX).exists():
        return read_defaults(folder / INDEX, size_px, diffusion)
    if (folder / RUN_DEFAULTS).exists():
        return read_run_defaults(folder / RUN_DEFAULTS, size_px, diffusion)
    return GenerationDefaults(size_px, size_px, schedule=diffusion.usual_schedule)


def check_folder(folder: Path) -> None:
    """Raise unless `folder` is a folder that can be read. A name is never looked up anywhere but on this machine."""
    try:
        if folder.is_dir():
            next(folder.iterdir(), None)
            return
        if not folder.exists():
            raise ModelNotFoundError(f"no such path: {folder}")
        with folder.open("rb") as file:
            foreign = recognise_foreign(file.read(1024), folder)
    except OSError as error:
        raise ModelLoadError(f"{folder} cannot be read: {error.strerror}") from None
    if foreign is not None:
        raise ModelLoadError(f"{folder} {foreign[0]}", hint=foreign[1])
    raise ModelLoadError(f"{folder} is a file, not a model folder", hint=f"see: latentgen info {quote(str(folder))}")


def check_replaceable(folder: Path, part: Part | Literal["scheduler"] | None = None) -> None:
    """Raise InputError unless a model, or the one `part` of it, may be written as `folder`; call it before the work.

    It may where there is nothing, an empty folder, or only files of the names that an earlier call wrote: replacing
    deletes the old folder, so one that holds a file of the user's, even in a part, or a training run, is refused.
    """
    place = Path(os.path.realpath(folder))  # `new/..` is the current folder, though `new` does not exist
    try:
        if not place.exists():
            return
        is_folder = place.is_dir()
        found = {path.name for path in place.iterdir()} if is_folder else set[str]()
        inner = {f"{name}/{path.name}" for name in found & _INSIDE.keys() for path in _files_in(place / name)}
        is_current = place.samefile(Path())
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror}") from None
    if is_current:
        raise InputError(f"{folder} is the current folder", hint="name a folder inside it")
    ours = WHOLE_MODEL | {f"{name}/{file}" for name, files in _INSIDE.items() for file in files}
    is_ours = INDEX in found and found | inner <= ours if part is None else found == set(_INSIDE[part])
    if not is_folder:
        raise InputError(f"{folder} is a file, not a folder", hint="choose another name")
    if found and not is_ours:
        what = "model" if part is None else part
        other = min((found | inner) - ours, default=min(found))
        raise InputError(f"{folder} holds {other} and is no {what} that latentgen wrote", hint="choose another name")


def _files_in(folder: Path) -> list[Path]:
    """What lies in it; nothing if it is a file."""
    return list(folder.iterdir()) if folder.is_dir() else []


def part_folder(folder: Path, part: Part | Literal["tokenizer"]) -> Path:
    """Where a part lies: `folder/part` of a whole model, or `folder` itself if it holds the part alone.

    Raises as `check_folder`, and ModelLoadError for a training run's folder and for a model without this part.
    """
    check_folder(folder)
    if (folder / part).is_dir():
        return folder / part
    if (folder / RUN_MODEL / part).is_dir():
        raise ModelLoadError(f"{folder} is a training run, not a model", hint=f"its model is {folder / RUN_MODEL}")
    others = sorted(name for name in WHOLE_MODEL - {INDEX} if (folder / name).is_dir())
    if others and not (folder / CONFIG).exists():
        raise ModelLoadError(f"{folder} holds no {part}: only {', '.join(others)}")
    return folder


def weight_files(folder: Path, part: Part) -> tuple[Path, ...]:
    """A part's weights: the plain file or its shards, else the half-precision variant beside them.

    Raises ModelLoadError naming the file that is missing, a shard that may not be opened, or the way out for pickles.
    """
    plain = folder / WEIGHTS[part]
    for file, index in (
        (plain, plain.with_suffix(".safetensors.index.json")),
        (plain.with_suffix(".fp16.safetensors"), plain.with_suffix(".safetensors.index.fp16.json")),
    ):
        if file.exists():
            return (file,)
        if index.exists():
            return find_shards(index)
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if pickles:
        raise ModelLoadError(
            f"{folder} holds pickled weights only ({pickles[0]}), which are not opened as they are",
            hint="run: latentgen convert MODEL NEW-FOLDER",
        )
    raise ModelLoadError(f"{plain} is missing", hint="the model folder is incomplete; copy or download it again")


def find_weights(folder: Path, part: Part) -> Path:
    """A part's weights where they are one file. Raises as `weight_files`, and ModelLoadError for shards."""
    first, *others = weight_files(folder, part)
    if others:
        raise ModelLoadError(f"{folder}: weights split over {1 + len(others)} files", hint="save them as one file")
    return first


def as_text(name: str) -> str:
    """A file's name as text that can be written anywhere: what of it is no UTF-8 becomes a question mark."""
    return name.encode("utf-8", "replace").decode()

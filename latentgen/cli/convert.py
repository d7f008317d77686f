"""`latentgen convert`: a single weights file into a model folder, or back, or into another precision."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentgen.checkpoints.layout import VOCABULARY
from latentgen.cli.console import Console
from latentgen.errors import InputError, ModelLoadError

DTYPES = ("float16", "bfloat16", "float32")
SAFETENSORS = ".safetensors"
OTHER_ENDINGS = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".zip")


def convert(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="A .safetensors or .ckpt file, or a model folder.")],
    target: Annotated[
        Path, typer.Argument(metavar="TARGET", help="What to write: a name ending in .safetensors, else a folder.")
    ],
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", help="Precision of the numbers: float16, bfloat16 or float32 (as they are)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET if it is there.")] = False,
) -> None:
    """Turn a single weights file into a model folder, or back; a pickle (.ckpt) is read as data only.

    latentgen convert v1-5-pruned.ckpt sd15.safetensors --dtype float16

    latentgen convert sd15.safetensors my-model
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}")
    _check_target(source, target, overwrite)
    _check_source(source)
    import torch

    from latentgen.checkpoints.conversion import convert as write

    write(source, target, dtype=None if dtype is None else getattr(torch, dtype))
    if target.suffix.lower() == SAFETENSORS and (source / VOCABULARY).exists():
        Console().note(f"left out, as a file cannot hold it: {VOCABULARY}, by which `generate` tells of new words")
    print(target)


def _check_target(source: Path, target: Path, overwrite: bool) -> None:
    from latentgen.checkpoints.layout import check_replaceable

    suffix = target.suffix.lower()
    if suffix in OTHER_ENDINGS:
        raise InputError(f"{target}: {suffix} files are never written", hint="end the name with .safetensors")
    try:
        is_there, is_folder = target.exists(), target.is_dir()
        is_empty = is_folder and next(target.iterdir(), None) is None
        is_source = is_there and source.exists() and target.samefile(source)
        is_inside = source.is_dir() and target.resolve().is_relative_to(source.resolve())
    except (OSError, ValueError) as error:
        raise InputError(f"{target} cannot be written: {getattr(error, 'strerror', None) or error}") from None
    if is_source or is_inside:
        raise InputError(f"TARGET {target} is SOURCE, or inside it", hint="choose another name")
    if suffix == SAFETENSORS and is_folder:
        raise InputError(f"{target} is a folder", hint="choose another name")
    if is_there and not is_empty and not overwrite:
        raise InputError(f"{target} exists", hint="--overwrite replaces it")
    if suffix != SAFETENSORS:
        check_replaceable(target)


def _check_source(source: Path) -> None:
    """Refuse what is no model of ours while nothing but a header has been read."""
    if source.is_dir():
        from latentgen.checkpoints.layout import read_config

        read_config(source)
        return
    from latentgen.checkpoints.identify import identify
    from latentgen.checkpoints.pickles import check_pickle

    found = identify(source)
    if found.format == "pickle":
        check_pickle(source)
    elif found.kind != "model":
        raise ModelLoadError(f"{source} is {found.title}, not a whole model", hint="there is nothing to convert")
    if not found.is_supported:
        raise ModelLoadError(
            f"{source} is {found.title}", hint="only models of Stable Diffusion 1.x and 2.x can be used"
        )

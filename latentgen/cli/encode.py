"""`latentgen encode`: pictures to a file of latents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli import options
from latentgen.cli.autoencoder import check_output, load_autoencoder, on_grid, read_pictures, telling_warnings
from latentgen.cli.console import Console
from latentgen.cli.init_options import VaeTiling
from latentgen.errors import InputError


def encode(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP; several are one file.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", rich_help_panel=options.FILES, help="A .safetensors file.")
    ],
    model: options.Model = None,
    overwrite: options.Overwrite = False,
    vae_tiling: VaeTiling = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Turn pictures into the latents that a model works in: the mean of what its autoencoder gives.

    latentgen encode photo.jpg -o photo.safetensors

    latentgen encode photos/*.png -o latents.safetensors --model my-model/
    """
    console = Console(quiet)
    # Parse
    if output.suffix != ".safetensors":
        raise InputError(f"--output {output} is not a safetensors file", hint=f"{output.stem}.safetensors")
    check_output(output, overwrite=overwrite)
    read = read_pictures(pictures)
    # Build
    autoencoder = load_autoencoder(model, device=device, dtype=dtype, threads=threads, tiling=vae_tiling)
    from latentgen.checkpoints.latents_file import EncodedPicture, LatentsFile, write_latents

    # Run and save
    downscale = autoencoder.space.downscale
    fitted = [on_grid(each, path.name, downscale, console) for path, each in zip(pictures, read, strict=True)]
    with telling_warnings(console):
        latents = tuple(autoencoder.encode(each)[0].cpu() for each in fitted)
    encoded = tuple(
        EncodedPicture(path.name, each.shape[1], each.shape[0]) for path, each in zip(pictures, fitted, strict=True)
    )
    write_latents(output, LatentsFile(encoded, latents, autoencoder.model, autoencoder.fingerprint, downscale))
    console.result(output)

"""`latentgen decode`: a file of latents to pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli import options
from latentgen.cli.autoencoder import load_autoencoder, picture_paths, telling_warnings, write_picture
from latentgen.cli.console import Console
from latentgen.cli.init_options import VaeTiling
from latentgen.errors import InputError


def decode(
    latents: Annotated[Path, typer.Argument(metavar="FILE", help="What latentgen encode wrote.")],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=options.FILES,
            help="A picture file, or for several pictures a folder.",
        ),
    ],
    model: options.Model = None,
    overwrite: options.Overwrite = False,
    vae_tiling: VaeTiling = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Turn latents back into pictures.

    latentgen decode photo.safetensors -o again.png
    """
    console = Console(quiet)
    # Parse
    from latentgen.checkpoints.latents_file import read_latents

    file = read_latents(latents)
    paths = picture_paths(output, [picture.name for picture in file.pictures], overwrite=overwrite)
    # Build
    autoencoder = load_autoencoder(model, device=device, dtype=dtype, threads=threads, tiling=vae_tiling)
    space = autoencoder.space
    channels = file.latents[0].shape[0]
    if (channels, file.downscale) != (space.channels, space.downscale):
        raise InputError(
            f"{latents} was encoded with {file.model} into {channels} channels at 1/{file.downscale}; "
            f"{autoencoder.model} works with {space.channels} at 1/{space.downscale}",
            hint="--model names the model it was encoded with",
        )
    if file.fingerprint != autoencoder.fingerprint:
        console.warn(f"{latents} was encoded with {file.model}, another autoencoder than {autoencoder.model}'s")
    # Run and save
    for path, each in zip(paths, file.latents, strict=True):
        with telling_warnings(console):
            pixels = autoencoder.decode(each[None])
        write_picture(path, pixels, overwrite=overwrite)
        console.result(path)

"""`latentgen reconstruct`: pictures through a model's autoencoder and back, and what that loses."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli import options
from latentgen.cli.autoencoder import (
    load_autoencoder,
    on_grid,
    picture_paths,
    read_pictures,
    telling_warnings,
    write_picture,
)
from latentgen.cli.boundary import escape
from latentgen.cli.console import Console
from latentgen.cli.init_options import VaeTiling
from latentgen.errors import InputError

if TYPE_CHECKING:
    from latentgen.images.pixels import Pixels


def reconstruct(
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURE", help="PNG, JPEG or WebP.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="PATH",
            rich_help_panel=options.FILES,
            help="A picture file, or for several pictures a folder. Without it only the figures are shown.",
        ),
    ] = None,
    model: options.Model = None,
    overwrite: options.Overwrite = False,
    vae_tiling: VaeTiling = "auto",
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Encode and decode pictures, and say how much of them comes back: PSNR in dB and SSIM.

    It is the best that a model can draw: what its autoencoder loses, no prompt brings back.

    latentgen reconstruct photo.jpg -o again.png
    """
    console = Console(quiet, json_events=json_events)
    # Parse
    names = [path.name for path in pictures]
    paths = [] if output is None else picture_paths(output, names, overwrite=overwrite)
    read = read_pictures(pictures)
    # Build
    autoencoder = load_autoencoder(model, device=device, dtype=dtype, threads=threads, tiling=vae_tiling)
    # Run and save
    width = max(len(escape(name)) for name in [*names, "mean"])
    figures: list[tuple[float, float]] = []
    for i, (name, picture) in enumerate(zip(names, read, strict=True)):
        original = on_grid(picture, name, autoencoder.space.downscale, console)
        with telling_warnings(console):
            again = autoencoder.decode(autoencoder.encode(original))
        figures.append(_likeness(name, original, again))
        if paths:
            write_picture(paths[i], again, overwrite=overwrite)
        _say(console, name, width, figures[-1], paths[i] if paths else None)
    if len(figures) > 1:
        psnr, ssim = (sum(column) / len(figures) for column in zip(*figures, strict=True))
        _say(console, "mean", width, (psnr, ssim), None)


def _likeness(name: str, original: Pixels, again: Pixels) -> tuple[float, float]:
    """PSNR in dB and SSIM. Raises InputError for a picture that SSIM's window does not fit into."""
    import torch

    from latentgen.images.similarity import SSIM_WINDOW, psnr_db, ssim

    if min(original.shape[:2]) < SSIM_WINDOW:
        raise InputError(f"{name} is too small to be compared", hint=f"sides are at least {SSIM_WINDOW} px")
    a, b = torch.from_numpy(original.copy()), torch.from_numpy(again.copy())
    return psnr_db(a, b), ssim(a, b)


def _say(console: Console, name: str, width: int, figures: tuple[float, float], path: Path | None) -> None:
    psnr, ssim = figures
    if console.json_events:
        written = {} if path is None else {"path": str(path)}
        console.event("reconstruction", picture=name, psnr_db=round(psnr, 2), ssim=round(ssim, 4), **written)
    else:
        print(f"{escape(name):{width}}  PSNR {psnr:5.2f} dB  SSIM {ssim:.4f}", flush=True)

"""`latentgen evaluate vae`: what a model's autoencoder loses of a set of pictures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli import options
from latentgen.cli.autoencoder import load_autoencoder
from latentgen.cli.console import Console
from latentgen.errors import ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from latentgen.images.pixels import Pixels


def vae(
    data: Annotated[Path, typer.Option("--data", help="Pictures that it was not trained on: shards or a folder.")],
    model: options.Model = None,
    size: Annotated[
        int, typer.Option("--size", min=16, help="Side in pixels; others are resized and cut to a square.")
    ] = 256,
    limit: Annotated[int, typer.Option("--limit", min=1, metavar="N", help="At most the first N pictures.")] = 200,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Measure an autoencoder: PSNR, SSIM, and where the posterior's log-variance runs off.

    A log-variance above 0 is wider than the prior: latents sampled there are noise.

    latentgen evaluate vae -m my-model --data test-pictures
    """
    console = Console(quiet, json_events=json_events)
    from latentgen.data.decode import decode, ordered_map
    from latentgen.data.records import list_records

    records = list_records(data, captions=False)[:limit]
    autoencoder = load_autoencoder(model, device=device, dtype=dtype, threads=threads, tiling="off")

    from latentgen.evaluation.autoencoder import measure_autoencoder
    from latentgen.images.similarity import SSIM_WINDOW

    multiple_px = autoencoder.space.downscale
    if size % multiple_px or size < SSIM_WINDOW:
        raise ShapeError(
            f"--size {size} does not fit this autoencoder", hint=f"a multiple of {multiple_px}, at least 16"
        )
    with console.progress() as report:

        def pictures() -> Iterator[Pixels]:
            for done, picture in enumerate(ordered_map(lambda each: decode(each, (size, size)), records, 1)):
                yield picture
                report(done + 1, len(records), "reconstructing")

        figures = asdict(measure_autoencoder(autoencoder.vae, pictures()))
    if json_events:
        console.event("autoencoder", model=autoencoder.model, fingerprint=autoencoder.fingerprint, **figures)
        return
    print(f"{autoencoder.model}, {figures['pictures']} pictures at {size} px")
    print(f"PSNR      {figures['psnr_db']:.2f} dB (lowest {figures['psnr_db_lowest']:.2f})")
    print(f"SSIM      {figures['ssim']:.4f}")
    print(
        f"log-variance above 0 in {figures['overflow_pictures']} of {figures['pictures']} pictures,"
        f" {figures['overflow_places']} places; highest {figures['logvar_max']:.2f}"
    )

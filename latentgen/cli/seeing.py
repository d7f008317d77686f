"""The options for watching a picture come about, and what they set going around one run."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli.options import SEEING
from latentgen.cli.preview import (
    TERMINAL,
    Preview,
    StepPictures,
    check_preview,
    linear_decoder,
    open_target,
    vae_decoder,
)
from latentgen.errors import InputError

if TYPE_CHECKING:
    from latentgen.cli.console import Console
    from latentgen.images.pixels import Pixels
    from latentgen.pipeline import TextToImage
    from latentgen.samplers.step import Step


@dataclass(frozen=True, kw_only=True)
class SeeingOptions:
    preview: Annotated[
        str | None,
        typer.Option(
            "--preview",
            metavar="FILE|term",
            rich_help_panel=SEEING,
            help="Show the picture as it forms: in the terminal, or in a file that is replaced again and again.",
        ),
    ] = None
    preview_every: Annotated[
        int | None,
        typer.Option(
            "--preview-every",
            metavar="K",
            rich_help_panel=SEEING,
            help="Preview every k-th step, decoded by the VAE. Default: rough colours, a few times a second.",
        ),
    ] = None
    gif: Annotated[
        Path | None,
        typer.Option(
            "--gif",
            metavar="FILE",
            rich_help_panel=SEEING,
            help="An animation of the denoising: .gif, .webp or .png; of several pictures FILE-001, FILE-002 ...",
        ),
    ] = None
    save_steps: Annotated[
        Path | None,
        typer.Option("--save-steps", metavar="FOLDER", rich_help_panel=SEEING, help="A picture of every step."),
    ] = None


class Seeing:
    """What is shown and kept of a run's steps. Raises InputError, before torch is imported, for what cannot be."""

    def __init__(self, options: SeeingOptions, *, pictures: int, overwrite: bool, low_memory: bool) -> None:
        if options.preview is not None:
            check_preview(options.preview)
        if options.preview_every is not None and options.preview is None:
            raise InputError("--preview-every is about --preview", hint="add --preview term or --preview FILE")
        if options.preview_every is not None and options.preview_every < 1:
            raise InputError(f"--preview-every {options.preview_every} is out of range", hint="1 or more")
        if options.preview_every is not None and low_memory:
            raise InputError(
                "--preview-every decodes while the U-Net is in memory, and --low-memory keeps one network there",
                hint="--preview alone shows rough colours",
            )
        self._options = options
        self._kept: StepPictures | None = None
        if options.gif is not None or options.save_steps is not None:
            self._kept = StepPictures(options.gif, options.save_steps, pictures=pictures, overwrite=overwrite)
        self._watchers: list[Callable[[Step], None]] = [] if self._kept is None else [self._kept]
        self._pipeline: TextToImage | None = None

    @property
    def fills_terminal(self) -> bool:
        """Whether pictures take the place where a progress bar would stand."""
        return self._options.preview == TERMINAL

    def expect(self, numbers: Sequence[int]) -> None:
        """Which of the pictures will be drawn, from 1. Raises InputError if files of theirs are there already."""
        if self._kept is not None:
            self._kept.expect(numbers)

    def begin(self, pipeline: TextToImage, console: Console) -> None:
        """The model is loaded: from now on steps are shown."""
        self._pipeline = pipeline
        if self._options.preview is None:
            return
        target = open_target(self._options.preview, sys.stderr, console.note)
        if target is not None:
            decode = linear_decoder(pipeline) if self._options.preview_every is None else vae_decoder(pipeline)
            every = self._options.preview_every
            self._watchers.append(Preview(target, decode, every=every, on_failure=console.warn))

    def on_step(self, step: Step) -> None:
        for watch in self._watchers:
            watch(step)

    def skip(self) -> None:
        """The next picture failed: nothing of it is kept."""
        if self._kept is not None:
            self._kept.skip()

    def keep(self, pixels: Pixels) -> Sequence[Path]:
        """Write what is to be kept of the next picture, which ends in `pixels`; the files' names."""
        if self._kept is None:
            return ()
        assert self._pipeline is not None, "begin comes first"
        return self._kept.write(pixels, vae_decoder(self._pipeline))

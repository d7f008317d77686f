"""What one sees while a picture is drawn (`--preview`), and what is kept of it (`--gif`, `--save-steps`)."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from latentgen.cli.output import missing_folder
from latentgen.errors import InputError, LatentgenError

if TYPE_CHECKING:
    from torch import Tensor

    from latentgen.images.pixels import Pixels
    from latentgen.images.terminal import Graphics
    from latentgen.pipeline import TextToImage
    from latentgen.samplers.step import Step

TERMINAL = "term"
MAX_PER_SECOND = 5
MAX_SHARE = 0.03
"""Of the drawing time that previews may take: after one that took t seconds the next waits t / MAX_SHARE."""
MAX_SHOWN = 4
"""Pictures of a batch that a preview shows, side by side."""
MAX_COLUMNS = 80
SIXEL_ROW_PX = 12
"""A cell's height where the terminal does not tell it: a low guess, which leaves room rather than scrolls."""
MAX_FRAMES = 24
"""Of a --gif: the steps are chosen evenly, each decoded by the autoencoder."""

Decode = Callable[["Tensor"], "Pixels"]
"""Latents (B, C, h, w) to one picture of all of them."""


class PreviewTarget(Protocol):
    def show(self, pixels: Pixels, caption: str) -> None: ...

    def finish(self) -> None:
        """A picture is done; the next one shown is another."""
        ...


class Preview:
    """An `on_step` that shows the clean estimate. A preview that fails is told once and never stops the drawing."""

    def __init__(
        self,
        target: PreviewTarget,
        decode: Decode,
        *,
        every: int | None = None,
        on_failure: Callable[[str], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`every` k-th step; None is as often as MAX_PER_SECOND and MAX_SHARE allow. The last step is always shown."""
        self._target, self._decode, self._every = target, decode, every
        self._tell, self._clock = on_failure, clock
        self._next_at = clock()
        self._failed = False

    def __call__(self, step: Step) -> None:
        is_last = step.index == step.total - 1
        if self._failed or not (is_last or self._is_due(step)):
            return
        started = self._clock()
        try:
            self._target.show(self._decode(step.denoised[:MAX_SHOWN]), f"{step.index + 1}/{step.total}")
            if is_last:
                self._target.finish()
        except (LatentgenError, OSError) as error:
            self._failed = True
            self._tell(f"the preview stops: {error}")
        ended = self._clock()
        self._next_at = ended + max(1 / MAX_PER_SECOND, (ended - started) / MAX_SHARE)

    def _is_due(self, step: Step) -> bool:
        return self._clock() >= self._next_at if self._every is None else (step.index + 1) % self._every == 0


class FilePreview:
    """A picture file, replaced as a whole each time, so that a viewer never reads half of one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def show(self, pixels: Pixels, caption: str) -> None:
        from latentgen.images.files import FORMATS, encode_picture, write_file

        write_file(self._path, encode_picture(pixels, FORMATS[self._path.suffix.lower()], None), overwrite=True)

    def finish(self) -> None:
        pass


class TerminalPreview:
    """A picture that is redrawn in place, and a line below it where the cursor rests."""

    def __init__(self, stream: TextIO, graphics: Graphics) -> None:
        self._stream = stream
        self._graphics: Graphics = graphics
        self._reserved = 0
        self._number = 0

    def show(self, pixels: Pixels, caption: str) -> None:
        from latentgen.images.terminal import draw

        pixels, columns, rows = self._fitted(pixels)
        text = "" if self._reserved else "\n" * rows
        self._reserved = self._reserved or rows
        text += f"\x1b[{self._reserved}A\r{draw(pixels, self._graphics, columns, rows, number=self._number)}"
        self._stream.write(f"{text}\x1b[{self._reserved}B\r{caption}\x1b[K")
        self._stream.flush()

    def finish(self) -> None:
        if self._reserved:
            self._stream.write("\n")
            self._stream.flush()
        self._reserved = 0
        self._number += 1  # what is drawn next does not take this one's place

    def _fitted(self, pixels: Pixels) -> tuple[Pixels, int, int]:
        """The picture as it is drawn, and the columns and rows it takes; within the window and MAX_COLUMNS."""
        import numpy as np
        from PIL import Image

        from latentgen.images.terminal import cells_of

        window = shutil.get_terminal_size()
        height, width = pixels.shape[:2]
        columns, rows = cells_of(
            width,
            height,
            max_columns=min(window.columns - 1, MAX_COLUMNS),
            max_rows=max(self._reserved, window.lines - 2),
        )
        if self._graphics == "blocks":
            image = Image.fromarray(pixels, "RGB").resize((columns, 2 * rows), Image.Resampling.LANCZOS)
            return np.asarray(image), columns, rows
        if self._graphics == "sixel":
            row_px = _cell_height_px(self._stream) or SIXEL_ROW_PX
            # Shown pixel by pixel, so it is the pixels that must fit; a cell is taken for twice as high as wide.
            scale = min(1.0, columns * row_px / 2 / width, rows * row_px / height)
            if scale < 1:
                size = (max(1, int(width * scale)), max(1, int(height * scale)))
                pixels = np.asarray(Image.fromarray(pixels, "RGB").resize(size, Image.Resampling.LANCZOS))
            return pixels, columns, -(-len(pixels) // row_px)
        return pixels, columns, rows


def _cell_height_px(stream: TextIO) -> int | None:
    """Pixels of a text row, where the terminal tells the kernel."""
    try:
        import fcntl
        import struct
        import termios

        rows, _, _, height_px = struct.unpack("HHHH", fcntl.ioctl(stream.fileno(), termios.TIOCGWINSZ, bytes(8)))
    except (ImportError, OSError, ValueError):
        return None
    return height_px // rows if rows and height_px >= rows else None


def check_preview(where: str) -> None:
    """Raise InputError if `--preview` names neither the terminal nor a file that can be written."""
    if where == TERMINAL:
        return
    from latentgen.images.files import FORMATS

    path = Path(where)
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"--preview {where} is not a picture file", hint=f"a file ending in .png, or {TERMINAL}")
    _check_parent("--preview", path)
    if path.is_dir():
        raise InputError(f"--preview {where} is a folder")


def open_target(where: str, stream: TextIO, on_note: Callable[[str], None]) -> PreviewTarget | None:
    """Where previews go; None, with the reason told, where this terminal shows none."""
    if where != TERMINAL:
        return FilePreview(Path(where))
    from latentgen.images.terminal import graphics_of, why_no_picture

    reason = why_no_picture(os.environ, is_terminal=stream.isatty())
    if reason is not None:
        on_note(f"--preview {TERMINAL} shows nothing: {reason}")
        return None
    return TerminalPreview(stream, graphics_of(os.environ))


def linear_decoder(pipeline: TextToImage) -> Decode:
    """A fast look at latents, in the size of the picture; fitted here, to the pipeline's own autoencoder."""
    import numpy as np

    from latentgen.images.preview import enlarge, fit_vae_rgb

    colours = fit_vae_rgb(pipeline.bundle.vae, pipeline.latent_space)

    def decode(latents: Tensor) -> Pixels:
        return enlarge(
            np.concatenate(list(colours.decode(latents).cpu().numpy()), axis=1), pipeline.latent_space.downscale
        )

    return decode


def vae_decoder(pipeline: TextToImage) -> Decode:
    """The autoencoder's own decoding. Raises RuntimeFailure for latents that are not finite."""
    import numpy as np

    from latentgen.pipeline.decoding import decode as decode_one

    def decode(latents: Tensor) -> Pixels:
        pictures = [
            decode_one(pipeline.bundle.vae, pipeline.latent_space, latents[i : i + 1].to(pipeline.device))
            for i in range(len(latents))
        ]
        return np.concatenate(pictures, axis=1)

    return decode


class StepPictures:
    """The files of `--gif` and `--save-steps`: an `on_step` that keeps latents, which are decoded afterwards.

    Pictures are taken in the order they are drawn: `write` or, where one failed, `skip`, once for each.
    """

    def __init__(self, animation: Path | None, folder: Path | None, *, pictures: int, overwrite: bool) -> None:
        """Raises InputError, before anything is drawn, if a file cannot be written."""
        self._animation, self._folder = animation, folder
        self._pictures, self._overwrite = pictures, overwrite
        self._steps: list[Tensor] = []  # (B, C, h, w) on the CPU, of one batch
        self._taken = 0  # pictures of this batch
        self._numbers: Sequence[int] = ()
        self._done = 0  # pictures of all
        self._check()

    def expect(self, numbers: Sequence[int]) -> None:
        """Will be drawn, in order: numbers from 1 among all pictures. Raises InputError for files that are there."""
        self._numbers = numbers
        if self._animation is not None:
            self._check_free("--gif", [self._animation_path(number) for number in numbers])
        if self._folder is not None:
            self._check_free("--save-steps", [self._step_path(number, 1) for number in numbers])

    def __call__(self, step: Step) -> None:
        from latentgen.images.animation import even_steps

        if self._taken:  # a new batch; a second pass over the same pictures goes on
            self._steps, self._taken = [], 0
        if self._folder is not None or step.index in even_steps(step.total, MAX_FRAMES):
            self._steps.append(step.denoised.cpu())

    def skip(self) -> None:
        self._taken += 1
        self._done += 1

    def write(self, final: Pixels, decode: Decode) -> list[Path]:
        """The files of the next picture, which ends in the pixels `final`. Latents that are not finite are left out."""
        from latentgen.images.animation import ANIMATIONS, encode_animation, even_steps
        from latentgen.images.files import encode_picture, write_file

        latents = [step[self._taken : self._taken + 1] for step in self._steps]
        number = self._numbers[self._done]
        self.skip()
        pictures = [decode(each) for each in latents if bool(each.isfinite().all())]
        written: list[Path] = []
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for index, picture in enumerate(pictures, start=1):
                path = self._step_path(number, index)
                write_file(path, encode_picture(picture, "PNG", None), overwrite=self._overwrite)
                written.append(path)
        if self._animation is not None:
            path = self._animation_path(number)
            frames = [pictures[i] for i in even_steps(len(pictures), MAX_FRAMES)]
            data = encode_animation([*frames, final], ANIMATIONS[path.suffix.lower()])
            write_file(path, data, overwrite=self._overwrite)
            written.append(path)
        return written

    def _animation_path(self, number: int) -> Path:
        assert self._animation is not None
        one = self._pictures == 1
        return self._animation if one else self._animation.with_stem(f"{self._animation.stem}-{number:03}")

    def _step_path(self, number: int, index: int) -> Path:
        assert self._folder is not None
        return self._folder / (f"{index:04}.png" if self._pictures == 1 else f"{number:03}-{index:04}.png")

    def _check(self) -> None:
        from latentgen.images.animation import ANIMATIONS

        if self._animation is not None:
            if self._animation.suffix.lower() not in ANIMATIONS:
                raise InputError(f"--gif {self._animation} is not an animation", hint=f"one of {', '.join(ANIMATIONS)}")
            _check_parent("--gif", self._animation)
        if self._folder is not None:
            if self._folder.exists() and not self._folder.is_dir():
                raise InputError(f"--save-steps {self._folder} is a file, not a folder")
            _check_parent("--save-steps", self._folder)

    def _check_free(self, flag: str, paths: Sequence[Path]) -> None:
        taken = next((path for path in paths if path.exists()), None)
        if taken is not None and not self._overwrite:
            raise InputError(f"{flag}: {taken} exists", hint="--overwrite replaces it")


def _check_parent(flag: str, path: Path) -> None:
    if not path.parent.is_dir():
        raise missing_folder(flag, path.parent)
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"{flag}: the folder {path.parent} is not writable")

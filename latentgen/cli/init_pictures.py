"""From `--init-image` and its companions to the parts of a request, with the files read and checked before torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.cli.init_options import parse_scale
from latentgen.cli.model_names import name_of
from latentgen.config import ModelConfig
from latentgen.diffusion.strength import first_pass_steps, hires_size, keeps_pixels, second_pass_steps
from latentgen.errors import InputError
from latentgen.images.sizes import drawn_size, far_size
from latentgen.request import HIRES_STRENGTH, MASK_BLUR_PX, STRENGTH, GenerationRequest, Hires, InitPicture

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from latentgen.cli.plan import Flags

OUTPAINT_STRENGTH = 1.0
ALPHA = "alpha"
FILES_KEPT = 8
"""Pictures held in memory; further ones are read again when they are drawn."""


@dataclass(frozen=True, slots=True)
class Beginning:
    """What a request says of where it starts, and of its size."""

    init: InitPicture | None
    hires: Hires | None
    width_px: int | None
    height_px: int | None


class InitFiles(Mapping[str, "NDArray[np.uint8]"]):
    """The pictures and masks of a run by the hashes that requests name, read from their files."""

    def __init__(self) -> None:
        self.notes: dict[str, None] = {}
        """What was done to pictures and to seeds, in order, each said once."""
        self._hashes: dict[tuple[str, Path], str] = {}
        self._readers: dict[str, Callable[[], NDArray[np.uint8]]] = {}
        self._kept: dict[str, NDArray[np.uint8]] = {}

    def __getitem__(self, sha256: str) -> NDArray[np.uint8]:
        if sha256 not in self._kept:
            self._keep(sha256, self._readers[sha256]())
        return self._kept[sha256]

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def begin(self, flags: Flags, config: ModelConfig) -> Beginning:
        """What these flags ask for. Raises InputError, or ModelNotFoundError for a file that is not there."""
        hires = _hires(flags)
        if flags.init_image is None:
            _refuse_alone(flags)
            return Beginning(None, hires, flags.width_px, flags.height_px)
        from latentgen.images.inputs import read_input

        if flags.mask is None and flags.invert_mask:
            raise InputError("--invert-mask is for --mask", hint="--mask FILE")
        if flags.mask is None and flags.outpaint is None and flags.mask_blur is not None:
            raise InputError("--mask-blur is for --mask and --outpaint", hint="--mask FILE")
        sha256 = self._read("picture", flags.init_image, read_input)
        height, width = self[sha256].shape[:2]
        if flags.outpaint is not None and not any(flags.outpaint):
            raise InputError("--outpaint 0,0,0,0 adds nothing", hint="left,top,right,bottom in pixels")
        outpaint = (0, 0, 0, 0) if flags.outpaint is None else flags.outpaint
        if flags.strength is None:
            strength = OUTPAINT_STRENGTH if any(outpaint) and flags.mask is None else STRENGTH
        else:
            strength = flags.strength
        is_masked = flags.mask is not None or any(outpaint)
        blur = MASK_BLUR_PX if flags.mask_blur is None else flags.mask_blur
        init = InitPicture(
            sha256=sha256,
            strength=strength,
            mask_sha256=self._mask(flags, sha256),
            mask_blur_px=blur if is_masked else 0,
            invert_mask=flags.invert_mask,
            outpaint=outpaint,
        )
        if any(outpaint) and flags.width_px is None and flags.height_px is None:
            outpaint = grown_to_grid((width, height), outpaint, config.size_multiple_px)
            size = (width + outpaint[0] + outpaint[2], height + outpaint[1] + outpaint[3])
        else:
            size = drawn_size((width, height), flags.width_px, flags.height_px, config)
        if size != (width, height):
            added = f", {_borders(outpaint)} drawn on" if any(outpaint) else ""
            self.notes[f"{flags.init_image.name} {width}x{height} -> {size[0]}x{size[1]}{added}"] = None
        return Beginning(replace(init, outpaint=outpaint), hires, *size)

    def _mask(self, flags: Flags, picture: str) -> str | None:
        if flags.mask is None or flags.init_image is None:
            return None
        from latentgen.images.inputs import check_mask, read_alpha_mask, read_mask

        if str(flags.mask) == ALPHA:
            sha256 = self._read("alpha", flags.init_image, read_alpha_mask)
        else:
            sha256 = self._read("mask", flags.mask, read_mask)
        check_mask(self[picture], self[sha256], invert=flags.invert_mask)
        return sha256

    def _read(self, kind: str, path: Path, read: Callable[[Path], NDArray[np.uint8]]) -> str:
        """The hash of a file's pixels; a file is read once for that, however many pictures start from it."""
        from latentgen.images.pixels import pixels_sha256

        if (kind, path) not in self._hashes:
            pixels = read(path)
            sha256 = self._hashes[kind, path] = pixels_sha256(pixels)
            self._readers[sha256] = lambda: read(path)
            self._keep(sha256, pixels)
        return self._hashes[kind, path]

    def _keep(self, sha256: str, pixels: NDArray[np.uint8]) -> None:
        while len(self._kept) >= FILES_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[sha256] = pixels


def grown_to_grid(
    picture: tuple[int, int], outpaint: tuple[int, int, int, int], multiple_px: int
) -> tuple[int, int, int, int]:
    """Borders that make a picture's sides multiples of the model's grid: as asked for, or a little wider.

    What is missing is added on the right and at the bottom, or where alone a border was asked for.
    """
    left, top, right, bottom = outpaint
    missing_x, missing_y = -(picture[0] + left + right) % multiple_px, -(picture[1] + top + bottom) % multiple_px
    if left and not right:
        left += missing_x
    else:
        right += missing_x
    if top and not bottom:
        top += missing_y
    else:
        bottom += missing_y
    return left, top, right, bottom


def size_notes(requests: Sequence[GenerationRequest], config: ModelConfig, model: Path) -> list[str]:
    """What is said of a size that is far from the one the model draws at: a line a run, or none."""
    far = far_size(requests, config)
    if far is None:
        return []
    own = f"{config.defaults.width_px}x{config.defaults.height_px}"
    told = f"{far.width_px}x{far.height_px} is far from the {own} that {name_of(model)} draws at: things come out"
    if far.width_px * far.height_px < config.defaults.width_px * config.defaults.height_px:
        return [f"{told} blurred"]
    return [f"{told} several times; --size {own} --hires 2x draws a large picture in two passes"]


def pass_notes(requests: Sequence[GenerationRequest], config: ModelConfig) -> list[str]:
    """What is said of how much is really drawn, each line once."""
    notes: dict[str, None] = {}
    takes_mask = config.unet.in_channels > config.vae.latent_channels
    for request in requests:
        if request.init is not None:
            kind = "outpaint" if any(request.init.outpaint) else "inpaint" if request.init.mask_sha256 else "img2img"
            notes[f"{kind}: {first_pass_steps(request)} of {request.steps} steps"] = None
        if takes_mask and (request.init is None or not keeps_pixels(request.init)):
            notes["this is an inpainting model: without --mask all is redrawn"] = None
        if request.hires is not None:
            width, height = hires_size(request, config.size_multiple_px)
            notes[f"hires: {width}x{height}, {second_pass_steps(request)} of {request.steps} steps"] = None
    return list(notes)


def steps_in_words(request: GenerationRequest) -> str:
    """`30 steps`, `18 of 30 steps`, with a second pass `30 + 15 steps`."""
    first, second = first_pass_steps(request), second_pass_steps(request)
    drawn = f"{request.steps}" if first == request.steps else f"{first} of {request.steps}"
    return f"{drawn} + {second} steps" if second else f"{drawn} steps"


def size_in_words(request: GenerationRequest, multiple_px: int) -> str:
    """`256x256`, with a second pass `256x256 -> 512x512`."""
    first = f"{request.width_px}x{request.height_px}"
    if request.hires is None:
        return first
    width, height = hires_size(request, multiple_px)
    return f"{first} -> {width}x{height}"


def _hires(flags: Flags) -> Hires | None:
    if flags.hires is None:
        if flags.hires_strength is not None:
            raise InputError("--hires-strength is for --hires", hint="--hires 2x")
        return None
    strength = HIRES_STRENGTH if flags.hires_strength is None else flags.hires_strength
    return Hires(scale=parse_scale(flags.hires), strength=strength)


def _refuse_alone(flags: Flags) -> None:
    """Raise InputError for what means nothing without a picture to start from."""
    given = {
        "--strength": flags.strength is not None,
        "--mask": flags.mask is not None,
        "--invert-mask": flags.invert_mask,
        "--mask-blur": flags.mask_blur is not None,
        "--outpaint": flags.outpaint is not None,
    }
    for name, is_given in given.items():
        if is_given:
            raise InputError(f"{name} needs a picture to start from", hint="--init-image FILE")


def _borders(outpaint: tuple[int, int, int, int]) -> str:
    names = ("left", "top", "right", "bottom")
    return ", ".join(f"{width} px {name}" for name, width in zip(names, outpaint, strict=True) if width)

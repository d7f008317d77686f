"""A drawn picture: pixels, how they came about, and the file they become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.errors import InputError
from latentgen.images.a1111 import format_parameters
from latentgen.images.files import FORMATS, PictureText, encode_picture, write_file
from latentgen.images.metadata import PictureMetadata
from latentgen.images.pixels import Pixels
from latentgen.request import GenerationRequest
from latentgen.samplers.registry import SAMPLERS, SCHEDULES

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds of one picture; what a batch did together is shared out evenly."""

    text_s: float
    denoise_s: float
    decode_s: float


@dataclass(frozen=True, slots=True, eq=False)
class GenerationResult:
    pixels: Pixels
    """(H, W, 3) bytes."""
    metadata: PictureMetadata
    timings: Timings

    @property
    def request(self) -> GenerationRequest:
        return self.metadata.request

    @property
    def seed(self) -> int:
        return self.metadata.request.seed

    @property
    def image(self) -> Image:
        from PIL import Image

        return Image.fromarray(self.pixels, "RGB")

    def encode(self, format: str = "PNG", *, with_metadata: bool = True) -> bytes:
        """The bytes of a picture file; `format` is "PNG", "JPEG" or "WEBP"."""
        return encode_picture(self.pixels, format, picture_text(self.metadata) if with_metadata else None)

    def save(self, path: Path | str, *, overwrite: bool = False, with_metadata: bool = True) -> None:
        """Write a picture file of the kind its name ends with.

        Raises InputError for another ending, or rather than replace a file; RuntimeFailure if the disk refuses.
        """
        path = Path(path)
        if path.suffix.lower() not in FORMATS:
            raise InputError(f"{path.name} has no picture format's ending", hint=f"one of {', '.join(FORMATS)}")
        data = self.encode(FORMATS[path.suffix.lower()], with_metadata=with_metadata)
        try:
            write_file(path, data, overwrite=overwrite)
        except FileExistsError:
            raise InputError(f"{path} exists", hint="overwrite=True replaces it") from None


def picture_text(metadata: PictureMetadata) -> PictureText:
    """The words a picture file carries: A1111's and our own."""
    request = metadata.request
    parameters = metadata.a1111(
        sampler_title=SAMPLERS[request.sampler].title, schedule_title=SCHEDULES[request.schedule].title
    )
    return PictureText(format_parameters(parameters), metadata.to_json())

"""Picture files: PNG, JPEG and WebP with their metadata, written aside and then named, and read back.

PNG: A1111's `parameters` text chunk, and our lossless JSON in a second one, `latentgen`. JPEG and WebP have one place
for words, EXIF: A1111's text in UserComment, as that tool puts it, and our JSON in MakerNote.
The same pixels and metadata give the same bytes: the compression level is fixed and there is no time stamp.
"""

from __future__ import annotations

import errno
import io
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.images.pixels import Pixels

FORMATS: Mapping[str, str] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name endings and Pillow's names. Nothing else is opened: some of Pillow's readers start other programs."""

MAX_PIXELS = 64 * 2**20
"""Larger pictures are refused from their header."""

_PNG_COMPRESS_LEVEL = 6
_QUALITY = 95
_EXIF_IFD, _MAKER_NOTE, _USER_COMMENT = 0x8769, 0x927C, 0x9286
_MAKER = b"latentgen\0"
_UNICODE = b"UNICODE\0"
_MAX_JPEG_EXIF_BYTES = 65_000
"""A JPEG segment holds 65,533 bytes, headers included."""


@dataclass(frozen=True, slots=True)
class PictureText:
    """The words of a picture file."""

    parameters: str | None = None
    """A1111's text."""
    document: Mapping[str, Any] | None = None
    """Our JSON."""
    other: tuple[str, ...] = ()
    """Names of further text chunks, other tools'."""


def encode_picture(pixels: Pixels, format: str, text: PictureText | None) -> bytes:
    """The bytes of a picture file. `format` is one of FORMATS' values; without `text` it carries the pixels alone.

    Raises InputError if the words do not fit into a JPEG.
    """
    image = Image.fromarray(pixels, "RGB")
    buffer = io.BytesIO()
    if format == "PNG":
        chunks = PngImagePlugin.PngInfo()
        if text is not None and text.parameters is not None:
            chunks.add_text("parameters", text.parameters)
        if text is not None and text.document is not None:
            chunks.add_text("latentgen", json.dumps(text.document))
        image.save(buffer, "PNG", pnginfo=chunks, compress_level=_PNG_COMPRESS_LEVEL)
    elif format == "JPEG":
        image.save(buffer, "JPEG", quality=_QUALITY, subsampling=0, **_exif_argument(text, _MAX_JPEG_EXIF_BYTES))
    else:
        image.save(buffer, "WEBP", quality=_QUALITY, **_exif_argument(text, None))
    return buffer.getvalue()


def _exif_argument(text: PictureText | None, limit: int | None) -> dict[str, bytes]:
    if text is None:
        return {}
    exif = Image.Exif()
    section = exif.get_ifd(_EXIF_IFD)
    if text.parameters is not None:
        section[_USER_COMMENT] = _UNICODE + text.parameters.encode("utf-16-be")
    if text.document is not None:
        section[_MAKER_NOTE] = _MAKER + json.dumps(text.document, ensure_ascii=False).encode("utf-8")
    data = exif.tobytes()
    if limit is not None and len(data) > limit:
        raise InputError(
            f"the prompt is too long for a JPEG's metadata: {len(data)} bytes, the limit is {limit}",
            hint="use png or webp, or --no-metadata",
        )
    return {"exif": data}


def write_file(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write aside, then name: a reader sees the whole file or none.

    It is not forced to the disk: a picture can be drawn again, and fsync on a busy disk takes longer than drawing it.
    Raises FileExistsError if the name is taken, also by a file that appeared meanwhile, and RuntimeFailure if the disk
    is full or refuses.
    """
    aside = path.with_name(f".{path.stem[:40]}.{os.getpid()}.part")
    try:
        with aside.open("xb") as file:
            file.write(data)
        if overwrite:
            aside.replace(path)
        else:
            _name_exclusively(aside, path)
    except FileExistsError:
        raise
    except OSError as error:
        raise RuntimeFailure(f"{path} could not be written: {error.strerror}") from error
    finally:
        aside.unlink(missing_ok=True)


def _name_exclusively(aside: Path, path: Path) -> None:
    """Rename without replacing. A hard link is the only call that does both; some file systems have none."""
    try:
        os.link(aside, path)
    except FileExistsError:
        raise
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK, errno.ENOSYS):
            raise
        if path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        aside.rename(path)


def read_picture(path: Path) -> tuple[Pixels, PictureText]:
    """Pixels (H, W, 3) and words. Raises ModelNotFoundError if there is no file, InputError if it is no picture."""
    with _open(path) as image:
        text = _text_of(image)
        pixels = np.asarray(image.convert("RGB"))
    return pixels, text


def read_picture_text(path: Path) -> tuple[str, tuple[int, int], PictureText]:
    """Format, (width, height) and words, without decoding the pixels of a picture that carries its words in front."""
    with _open(path) as image:
        return image.format or "", image.size, _text_of(image)


class _open:
    """`with _open(path) as image`: a picture of one of FORMATS, with every failure of Pillow's as one of ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Image.Image:
        try:
            with warnings.catch_warnings():
                # Pillow warns from 89 megapixels on; ours is an error, and lower.
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                self._image = Image.open(self._path, formats=tuple(dict.fromkeys(FORMATS.values())))
        except FileNotFoundError:
            raise ModelNotFoundError(f"there is no file {self._path}") from None
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise self._refusal(error) from None
        if self._image.width * self._image.height > MAX_PIXELS:
            self._image.close()
            raise InputError(
                f"{self._path} has {self._image.width}x{self._image.height} pixels; the limit is {MAX_PIXELS}"
            )
        return self._image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._image.close()
        if isinstance(error, OSError | ValueError | SyntaxError | Image.DecompressionBombError):
            raise self._refusal(error) from None

    def _refusal(self, error: BaseException) -> InputError:
        if isinstance(error, OSError) and error.strerror:
            return InputError(f"{self._path} cannot be read: {error.strerror}")
        return InputError(f"{self._path} is not a whole PNG, JPEG or WebP picture")


def _text_of(image: Image.Image) -> PictureText:
    if isinstance(image, PngImagePlugin.PngImageFile):
        # `info` holds what stands before the pixels, where every tool writes it; `text` would decode them all.
        found = {str(key): value for key, value in image.info.items() if isinstance(value, str)}
        others = tuple(name for name in found if name not in ("parameters", "latentgen"))
        return PictureText(found.get("parameters"), _parse_document(found.get("latentgen")), others)
    section = image.getexif().get_ifd(_EXIF_IFD)
    comment, note = section.get(_USER_COMMENT), section.get(_MAKER_NOTE)
    parameters = document = None
    if isinstance(comment, bytes) and comment.startswith(_UNICODE):
        parameters = comment.removeprefix(_UNICODE).decode("utf-16-be", errors="replace")
    if isinstance(note, bytes) and note.startswith(_MAKER):
        document = _parse_document(note.removeprefix(_MAKER).decode("utf-8", errors="replace"))
    return PictureText(parameters, document)


def _parse_document(text: str | None) -> Mapping[str, Any] | None:
    """Our JSON, or None where it is not an object: then the file was made or changed by something else."""
    if text is None:
        return None
    try:
        value = json.loads(text)
    except (json.JSONDecodeError, RecursionError):
        return None
    return value if isinstance(value, dict) else None

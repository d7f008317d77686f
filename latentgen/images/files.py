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
import struct
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.exif import DAMAGED_EXIF
from latentgen.images.foreign import parse_object
from latentgen.images.pixels import Pixels

FORMATS: Mapping[str, str] = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""File name endings and Pillow's names. Nothing else is opened: some of Pillow's readers start other programs."""

MAX_PIXELS = 64 * 2**20
"""Larger pictures are refused from their header."""

_PNG_COMPRESS_LEVEL = 6
_QUALITY = 95
_EXIF_IFD, _MAKER_NOTE, _USER_COMMENT = 0x8769, 0x927C, 0x9286
_TIFF_HEADER_BYTES, _TIFF_ENTRY_BYTES, _TIFF_LONG, _TIFF_UNDEFINED = 8, 12, 4, 7
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
    chunks: Mapping[str, str] = field(default_factory=dict[str, str])
    """What else there is, other tools', by name: a PNG's further text chunks, "XMP", and EXIF's "UserComment"."""


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
    entries: list[tuple[int, bytes]] = []
    if text.document is not None:
        entries.append((_MAKER_NOTE, _MAKER + json.dumps(text.document, ensure_ascii=False).encode("utf-8")))
    if text.parameters is not None:
        entries.append((_USER_COMMENT, _UNICODE + text.parameters.encode("utf-16-be")))
    data = _exif_bytes(entries)
    if limit is not None and len(data) > limit:
        raise InputError(
            f"the prompt is too long for a JPEG's metadata: {len(data)} bytes, the limit is {limit}",
            hint="use png or webp, or --no-metadata",
        )
    return {"exif": data}


def _exif_bytes(entries: Sequence[tuple[int, bytes]]) -> bytes:
    """An EXIF block of one section with these tags, in ascending order, each of type UNDEFINED, big-endian.

    By hand, because Pillow would call them BYTE, which readers of the standard's type (A1111's among them) cannot read.
    Source: EXIF 2.32, section 4.6; TIFF 6.0, section 2.
    """
    section = _TIFF_HEADER_BYTES + 2 + _TIFF_ENTRY_BYTES + 4
    head = struct.pack(">2sHIHHHIII", b"MM", 42, _TIFF_HEADER_BYTES, 1, _EXIF_IFD, _TIFF_LONG, 1, section, 0)
    place = section + 2 + _TIFF_ENTRY_BYTES * len(entries) + 4
    table, values = struct.pack(">H", len(entries)), b""
    for tag, value in entries:
        table += struct.pack(">HHII", tag, _TIFF_UNDEFINED, len(value), place + len(values))
        values += value + bytes(len(value) % 2)
    return b"Exif\0\0" + head + table + bytes(4) + values


def write_file(path: Path, data: bytes, *, overwrite: bool) -> None:
    """Write aside, then name: a reader sees the whole file or none.

    It is not forced to the disk: a picture can be drawn again, and fsync on a busy disk takes longer than drawing it.
    Raises FileExistsError if the name is taken, also by a file that appeared meanwhile, and RuntimeFailure if the disk
    is full or refuses.
    """
    aside = path.with_name(f".{path.stem[:40]}.{os.getpid()}.part")
    try:
        with aside.open("wb") as file:  # of an ended process with our number it may be there already
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
    with open_picture(path) as image:
        text = _text_of(image)
        pixels = np.asarray(image.convert("RGB"))
    return pixels, text


def read_picture_text(path: Path) -> tuple[str, tuple[int, int], PictureText]:
    """Format, (width, height) and words, without decoding the pixels of a picture that carries its words in front."""
    with open_picture(path) as image:
        return image.format or "", image.size, _text_of(image)


class open_picture:
    """`with open_picture(path) as image`: one of FORMATS, with every failure of Pillow's as one of ours."""

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
    chunks = _xmp_of(image)
    comment, note, prompt = None, None, None
    if isinstance(image, PngImagePlugin.PngImageFile):
        # `info` holds what stands before the pixels, where every tool writes it; `text` would decode them all.
        chunks |= {str(name): str(value) for name, value in image.info.items() if isinstance(value, str)}
        chunks.pop("XML:com.adobe.xmp", None)
    if not isinstance(image, PngImagePlugin.PngImageFile) or "exif" in image.info:
        comment, note, prompt = _exif_of(image)
    parameters, document = chunks.pop("parameters", None), parse_object(chunks.pop("latentgen", None))
    if prompt is not None:
        chunks.setdefault("prompt", prompt)
    if comment is not None and comment.lstrip().startswith("{"):
        chunks["UserComment"] = comment
    elif parameters is None:
        parameters = comment
    return PictureText(parameters, document or parse_object(note), chunks)


def _xmp_of(image: Image.Image) -> dict[str, str]:
    data = image.info.get("xmp", image.info.get("XML:com.adobe.xmp"))
    if isinstance(data, bytes):
        data = data.decode("utf-8", errors="replace")
    return {"XMP": data} if isinstance(data, str) else {}


def _exif_of(image: Image.Image) -> tuple[str | None, str | None, str | None]:
    """The UserComment, our note, and ComfyUI's graph, which it puts into a camera's name: "prompt:{...}"."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow tells of every damaged tag
            exif = image.getexif()
            section = exif.get_ifd(_EXIF_IFD)
    except DAMAGED_EXIF:
        return None, None, None
    note = section.get(_MAKER_NOTE)
    if not isinstance(note, bytes) or not note.startswith(_MAKER):
        note = None
    graph = next((v for v in exif.values() if isinstance(v, str) and v.startswith("prompt:")), None)
    return (
        _comment_text(section.get(_USER_COMMENT)),
        None if note is None else note.removeprefix(_MAKER).decode("utf-8", errors="replace"),
        None if graph is None else graph.removeprefix("prompt:"),
    )


def _comment_text(value: object) -> str | None:
    """EXIF's UserComment: eight bytes name its encoding. Some writers leave them out, or write UTF-16 the other way."""
    if not isinstance(value, bytes):
        return value if isinstance(value, str) else None
    if value.startswith(_UNICODE):
        data = value.removeprefix(_UNICODE)
        # Latin letters have their zero byte first in big-endian, which the standard and A1111 use.
        is_little = data.startswith(b"\xff\xfe") or data[1::2].count(0) > data[::2].count(0)
        return data.decode("utf-16-le" if is_little else "utf-16-be", errors="replace").lstrip("\ufeff")
    for prefix in (b"ASCII\0\0\0", bytes(8)):
        value = value.removeprefix(prefix)
    return value.decode("utf-8", errors="replace").rstrip("\0")

"""From an encoded picture to pixels, and what is refused on the way: no torch here."""

from __future__ import annotations

import hashlib
import io
import os
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from latentgen.data.record import Fault, FaultError, Record, Skipped, Stamp
from latentgen.errors import InputError
from latentgen.exif import QUARTERS, read_turn
from latentgen.file_starts import START_BYTES, picture_format

FORMATS = ("PNG", "JPEG", "WEBP")
"""Only these are decoded: Pillow would otherwise hand a renamed EPS to Ghostscript."""

MAX_PICTURE_PX = 64_000_000
"""Refused above this, from the header alone: a small file can unpack to gigabytes."""
MAX_PICTURE_BYTES = 2**28
"""Refused above this without being read: as many bytes as `MAX_PICTURE_PX` pixels of RGBA."""
MIN_SIDE_PX = 8
MAX_ASPECT = 8.0
"""Longer side to shorter. A centre crop of anything longer would show an eighth of it."""

READ_AHEAD = 32
"""Pictures decoded by each thread before they are asked for."""

T = TypeVar("T")
R = TypeVar("R")


def inspect(record: Record, *, whole: bool = True) -> Record | Skipped:
    """Look at a picture: the record with its hash, its upright size and its file's stamp, or what is wrong.

    whole: decode it, too; without that only what its header says is checked.
    """
    try:
        status = os.stat(record.path)
        stamp = Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        data = _read(record)
        with _opened(data) as picture:
            size_px = _upright_size(picture, whole=whole)
            if whole:
                # A JPEG decoded at an eighth shows every fault that it shows at full size, in less time.
                picture.draft(None, (1, 1))
                _loaded(picture)
    except FaultError as error:
        return error.skipped(record.name)
    except OSError as error:
        return Skipped(record.name, Fault.UNREADABLE, error.strerror or str(error))
    return replace(record, sha256=hashlib.sha256(data).hexdigest(), size_px=size_px, stamp=stamp)


def decode(record: Record, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A record's picture as (height, width, 3) uint8: EXIF-rotated, alpha over white, resized to cover, centre-cropped.

    The resizing is Lanczos'. Raises InputError if it is not a single whole picture of `FORMATS`.
    """
    height, width = shape
    try:
        with _opened(_read(record)) as opened:
            picture = _as_rgb(_loaded(opened))
    except (FaultError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"picture {record.name} cannot be used: {reason}") from error
    if picture.size != (width, height):
        picture = ImageOps.fit(picture, (width, height), method=Image.Resampling.LANCZOS)
    return np.asarray(picture, dtype=np.uint8)


def available_cores() -> int:
    """CPU cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # Linux has it, macOS has not
    return len(affinity(0)) if affinity is not None else os.cpu_count() or 1


def ordered_map(function: Callable[[T], R], items: Iterable[T], threads: int) -> Generator[R]:
    """`map` in order, on threads that run a bounded way ahead; Pillow and hashlib let go of Python's lock.

    Threads and not processes: nothing is copied or shared through /dev/shm, and there is no worker that can be killed.
    """
    remaining = iter(items)
    with ThreadPoolExecutor(threads, thread_name_prefix="decode") as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in islice(remaining, threads * READ_AHEAD):
                waiting.append(pool.submit(function, item))
            while waiting:
                result = waiting.popleft().result()
                for item in islice(remaining, 1):
                    waiting.append(pool.submit(function, item))
                yield result
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(record: Record) -> bytes:
    """The encoded picture. Raises FaultError if it is too large to be one, OSError as the system does."""
    if record.size_bytes > MAX_PICTURE_BYTES:
        raise FaultError(Fault.TOO_LARGE, f"{record.size_bytes} bytes are more than {MAX_PICTURE_BYTES}")
    return record.read()


def _opened(data: bytes) -> Image.Image:
    """The picture by its header, not yet decoded. Raises FaultError for what is refused by it."""
    try:
        _ignore_pillows_warnings()
        picture = Image.open(io.BytesIO(data), formats=FORMATS)
        # A phone's JPEG with a preview inside reads as MPO with two frames; its first is the picture.
        frames = 1 if picture.format == "MPO" else getattr(picture, "n_frames", 1)
    except UnidentifiedImageError:
        if picture_format(data[:START_BYTES]) in FORMATS:  # Any other is something else
            raise FaultError(Fault.DAMAGED, "its header cannot be read") from None
        raise FaultError(Fault.FOREIGN, "0 bytes" if not data else "") from None
    except Image.DecompressionBombError:
        raise FaultError(Fault.TOO_LARGE, f"more than {MAX_PICTURE_PX} pixels") from None
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a decoder raises whatever a damaged file leads it to
        raise FaultError(Fault.DAMAGED, str(error)) from None
    width, height = picture.size
    if width * height > MAX_PICTURE_PX:
        raise FaultError(Fault.TOO_LARGE, f"{width}x{height} pixels are more than {MAX_PICTURE_PX}")
    if min(width, height) < MIN_SIDE_PX:
        raise FaultError(Fault.TOO_SMALL, f"{width}x{height}; sides are at least {MIN_SIDE_PX} px")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise FaultError(Fault.TOO_LONG, f"{width}x{height}; at most {MAX_ASPECT:g}:1")
    if frames > 1:
        raise FaultError(Fault.ANIMATED, f"{frames} frames")
    return picture


def _loaded(picture: Image.Image) -> Image.Image:
    """The decoded picture, upright. Raises FaultError where its data is not whole."""
    _load(picture)
    turn = read_turn(picture)
    return picture if turn is None else picture.transpose(turn)


def _load(picture: Image.Image) -> None:
    """Decode a picture. Raises FaultError where its data is not whole."""
    try:
        picture.load()
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001  a decoder raises whatever a damaged file leads it to
        raise FaultError(Fault.DAMAGED, str(error)) from None


@cache
def _ignore_pillows_warnings() -> None:
    """Of large pictures (our limit is lower), odd palettes and broken EXIF; once, as filters are shared by threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _upright_size(picture: Image.Image, *, whole: bool) -> tuple[int, int]:
    """Width and height after the EXIF rotation."""
    width, height = picture.size
    if picture.format == "PNG" and not {"exif", "Raw profile type exif"} & picture.info.keys():
        if not whole:
            return width, height  # Pillow would decode all of it, to see whether EXIF data follows the pixels
        _load(picture)
    return (height, width) if read_turn(picture) in QUARTERS else (width, height)


def _as_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits a pixel: convert("RGB") would cut at 255 instead of scaling
        scaled = (np.asarray(picture).astype(np.int64) >> 8).clip(0, 255)
        picture = Image.fromarray(scaled.astype(np.uint8))
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return picture.convert("RGB")

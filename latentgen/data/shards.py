"""Reading webdataset tar shards: `<key>.png|jpg|webp` with `<key>.txt`, and optionally `<key>.json`.

The json's list `captions`, if it is there, holds all captions, and the .txt, which must be there all the same, counts
for nothing; its other entries are labels. Other members (`.cls`, `.pkl`, `.pyd`) are not looked at. Nothing is unpacked
to the disk, links are not followed, and a shard that is cut short is an error wherever it is cut.
"""

from __future__ import annotations

import tarfile
from pathlib import Path, PurePosixPath

from latentgen.data.record import (
    Fault,
    FaultError,
    Record,
    Skipped,
    decode_caption,
    parse_labels,
    take_captions,
)

PICTURE_PARTS = ("png", "jpg", "jpeg", "webp")
FOREIGN_PARTS = ("gif", "tif", "tiff", "bmp", "heic", "heif", "avif", "jxl", "jfif")
"""Pictures in a format that is not read: found, and skipped."""

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Every complete tar file ends with two blocks of zeros."""

MAX_TEXT_BYTES = 2**20
"""A caption or labels above this are something else."""

Parts = dict[str, tarfile.TarInfo]
"""The members of one sample by their lower-case suffix."""


def shard_records(shard: Path, *, captions: bool = True) -> list[Record | Skipped]:
    """Every sample of a shard, in the order of their first members; one Skipped where the shard itself is damaged.

    captions: whether a sample without one is at fault; if not, none is read.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            samples, doubled = _group_members(tar)
            # tarfile takes whatever it cannot read for the end, so a shard cut short would only seem smaller.
            with shard.open("rb") as file:
                file.seek(tar.offset)
                if file.read(len(END_OF_TAR)) != END_OF_TAR:
                    raise tarfile.ReadError("it is cut short")
            found = [_sample(shard, tar, key, parts, doubled.get(key), captions) for key, parts in samples.items()]
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return [Skipped(shard.name, Fault.DAMAGED_SHARD, reason)]
    return found or [Skipped(shard.name, Fault.DAMAGED_SHARD, "it holds no samples")]


def _group_members(tar: tarfile.TarFile) -> tuple[dict[str, Parts], dict[str, str]]:
    """Members by key and suffix, wherever they lie; and for each key that has one member twice, that member's name."""
    samples: dict[str, Parts] = {}
    doubled: dict[str, str] = {}
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError(f"{member.name} has a negative size")
        key, _, suffix = member.name.rpartition(".")
        suffix = suffix.lower()
        if member.isdir() or not key or suffix not in (*PICTURE_PARTS, *FOREIGN_PARTS, "txt", "json"):
            continue
        parts = samples.setdefault(key, {})
        if parts.setdefault(suffix, member) is not member:
            doubled.setdefault(key, member.name)
    return samples, doubled


def _sample(
    shard: Path, tar: tarfile.TarFile, key: str, parts: Parts, doubled: str | None, captions: bool
) -> Record | Skipped:
    try:
        return _record(shard, tar, key, parts, doubled, captions)
    except FaultError as error:
        return error.skipped(f"{shard.name}/{key}")


def _record(
    shard: Path, tar: tarfile.TarFile, key: str, parts: Parts, doubled: str | None, needs_caption: bool
) -> Record:
    for member in parts.values():
        name = PurePosixPath(member.name)
        if name.is_absolute() or ".." in name.parts:
            raise FaultError(Fault.OUTSIDE, member.name)
        # A sparse member's bytes do not lie in the shard as they are.
        if not member.isreg() or member.issparse():
            raise FaultError(Fault.NOT_A_FILE, member.name)
    if doubled is not None:
        raise FaultError(Fault.NAMED_TWICE, doubled)
    pictures = [parts[suffix] for suffix in PICTURE_PARTS if suffix in parts]
    foreign = [parts[suffix] for suffix in FOREIGN_PARTS if suffix in parts]
    if foreign and not pictures:
        raise FaultError(Fault.FOREIGN, foreign[0].name)
    if len(pictures) != 1 or (needs_caption and "txt" not in parts):
        raise FaultError(Fault.INCOMPLETE, f"it has {', '.join(sorted(parts))}")

    def text(part: str) -> str:
        if parts[part].size > MAX_TEXT_BYTES:
            raise FaultError(Fault.TOO_LARGE, f"{parts[part].name} holds {parts[part].size} bytes")
        file = tar.extractfile(parts[part])
        assert file is not None, "a regular member has a body"
        return decode_caption(file.read())

    labels = parse_labels(text("json")) if "json" in parts else {}
    captions = take_captions(labels, text("txt")) if needs_caption else ()
    return Record(key, captions, shard, pictures[0].offset_data, pictures[0].size, labels)

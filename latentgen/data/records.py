"""A data set on disk as a list of records: pictures with captions, checked before training begins.

Three forms are read: webdataset tar shards (`shards.py`), a folder with a `metadata.jsonl`, and a folder of pictures
with a caption file beside each (`folders.py`). What is inside the pictures is `scan.py`'s to see.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from latentgen.data.folders import METADATA, captioned_pictures, lies_inside, metadata_records, roots_of
from latentgen.data.record import Fault, Record, Skipped
from latentgen.data.shards import shard_records
from latentgen.data.unread import Unread, unread_pictures
from latentgen.errors import InputError, ModelNotFoundError

SHOWN = 5
"""Unusable pictures named in an error."""


def list_found(folder: Path, *, captions: bool = True) -> list[Record | Skipped]:
    """Everything in a data folder that is or should be a picture with captions, in a fixed order.

    captions: False where pictures alone are looked at: no caption is read, nor missed.
    Raises ModelNotFoundError if the folder does not exist, InputError if it cannot be read or holds nothing.
    """
    check_data_folder(folder)
    try:
        shards = sorted(folder.glob("*.tar"))
        listed = (folder / METADATA).exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if shards:
        roots = roots_of(folder)
        found = [record for shard in shards for record in _records_inside(roots, shard, captions)]
    else:
        found = (metadata_records if listed else captioned_pictures)(folder, captions=captions)
    if not found:
        raise _empty(folder, unread_pictures(folder, ()))
    return found


def check_data_folder(folder: Path) -> None:
    """Raise ModelNotFoundError if there is no such folder, InputError if the system cannot say."""
    try:
        is_folder, is_there = folder.is_dir(), folder.exists()
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not is_folder:
        hint = "it is a file: name the folder that holds it" if is_there else None
        raise ModelNotFoundError(f"no data folder at {folder}", hint=hint)


def list_records(folder: Path, *, held_out: bool | None = None, captions: bool = True) -> list[Record]:
    """All records of a data set, in a fixed order, their pictures not yet looked at.

    held_out: None for all, False without the corpus' held-out compositions, True for only those. captions: as of
    `list_found`.
    Raises as `list_found` does, and InputError for an empty set or a record that is not whole.
    """
    found = list_found(folder, captions=captions)
    refuse(folder, [each for each in found if isinstance(each, Skipped)], len(found), hint="mend or remove them")
    records = [each for each in found if isinstance(each, Record) and is_wanted(each, held_out)]
    if not records:
        raise _empty(folder)
    return records


def is_wanted(record: Record, held_out: bool | None) -> bool:
    """Whether a record is of the asked-for part of the corpus; see `list_records`."""
    return held_out is None or bool(record.labels.get("held_out")) is held_out


def refuse(
    folder: Path,
    skipped: Sequence[Skipped],
    found: int,
    *,
    hint: str = "mend them, or leave them out with --skip-bad",
) -> None:
    """Raise InputError naming the first pictures that cannot be used, if there are any."""
    if skipped:
        named = "; ".join(map(str, skipped[:SHOWN])) + ("; …" if len(skipped) > SHOWN else "")
        raise InputError(f"{len(skipped)} of {found} pictures in {folder} cannot be used: {named}", hint=hint)


def fingerprint(records: Sequence[Record]) -> str:
    """A short hash over keys, captions and the pictures' bytes: 16 hexadecimal digits.

    Tells whether a resumed run still has the data it began with; when a file was written does not matter. Pictures
    that were not yet looked at are read.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.key, record.captions, content_hash(record))).encode())
    return digest.hexdigest()[:16]


def pictures_fingerprint(records: Sequence[Record]) -> str:
    """The same over the pictures' bytes alone: what is kept of pictures outlives a corrected caption."""
    return hashlib.sha256("".join(map(content_hash, records)).encode()).hexdigest()[:16]


def content_hash(record: Record) -> str:
    """SHA-256 of the encoded picture."""
    return record.sha256 or hashlib.sha256(record.read()).hexdigest()


def _records_inside(roots: tuple[Path, ...], shard: Path, captions: bool) -> list[Record | Skipped]:
    try:
        inside = lies_inside(roots, shard)
    except (OSError, RuntimeError):
        return [Skipped(shard.name, Fault.DAMAGED_SHARD, "a loop of links")]
    return shard_records(shard, captions=captions) if inside else [Skipped(shard.name, Fault.OUTSIDE)]


def _empty(folder: Path, unread: Unread | None = None) -> InputError:
    hint = "tar shards, or pictures with a .txt beside each or a metadata.jsonl" if unread is None else str(unread)
    return InputError(f"{folder} holds no pictures with captions to train on", hint=hint)

"""Reading a plain folder: pictures listed in a `metadata.jsonl`, or each with a `.txt` or `.caption` beside it."""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path

from latentgen.data.record import (
    Fault,
    FaultError,
    Record,
    Skipped,
    check_captions,
    decode_caption,
    parse_labels,
    take_captions,
)
from latentgen.data.shards import FOREIGN_PARTS, MAX_TEXT_BYTES, PICTURE_PARTS
from latentgen.errors import InputError

PICTURE_SUFFIXES = tuple(f".{part}" for part in PICTURE_PARTS)
FOREIGN_SUFFIXES = tuple(f".{part}" for part in FOREIGN_PARTS)
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"


def metadata_records(folder: Path, *, captions: bool = True) -> list[Record | Skipped]:
    """Hugging Face's ImageFolder form: a line of `metadata.jsonl` a picture, with `file_name` and `text`.

    A line may also hold `captions`, all of them, and labels; the corpus writes both. captions: whether a line without
    any is at fault; if not, none is read.
    """
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    roots = roots_of(folder)
    named: set[str] = set()
    found: list[Record | Skipped] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        file = f"{METADATA} line {number}"
        try:
            labels = parse_labels(line)
            name = labels.pop("file_name", None)
            if not isinstance(name, str) or not name:
                raise FaultError(Fault.BAD_LABELS, "it has no file_name")
            file = name
            if name in named:
                raise FaultError(Fault.NAMED_TWICE, f"again in line {number} of {METADATA}")
            named.add(name)
            is_captioned = "text" in labels or "captions" in labels
            if captions and not is_captioned:
                keys = ", ".join(labels) or "nothing"
                raise FaultError(Fault.NO_CAPTION, f"its line has neither text nor captions beside the name: {keys}")
            texts = take_captions(labels, labels.pop("text", "")) if captions else ()
            size_bytes = _size_inside(roots, folder / name)
            if not name.lower().endswith(PICTURE_SUFFIXES):
                raise FaultError(Fault.FOREIGN)
            key = name.removesuffix(Path(name).suffix)
            found.append(Record(key, texts, folder / name, None, size_bytes, labels))
        except FaultError as error:
            found.append(error.skipped(file))
    return found


def captioned_pictures(folder: Path, *, captions: bool = True) -> list[Record | Skipped]:
    """Pictures and captions side by side, by name; what lies in subfolders is not looked at.

    captions: whether a picture without one is at fault; if not, none is read.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if not _is_folder(entry))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror}") from error
    pictures = [name for name in names if name.lower().endswith(PICTURE_SUFFIXES + FOREIGN_SUFFIXES)]
    twins: defaultdict[str, list[str]] = defaultdict(list)
    for name in pictures:
        twins[Path(name).stem.casefold()].append(name)
    roots = roots_of(folder)
    present = set(names)
    found: list[Record | Skipped] = []
    for name in pictures:
        try:
            found.append(_captioned_picture(folder, roots, name, twins[Path(name).stem.casefold()], present, captions))
        except FaultError as error:
            found.append(error.skipped(name))
    return found


def _captioned_picture(
    folder: Path, roots: tuple[Path, ...], name: str, twins: list[str], present: set[str], needs_caption: bool
) -> Record:
    picture = folder / name
    for twin in twins:
        if twin != name:
            same = Path(twin).stem == picture.stem
            raise FaultError(Fault.SHARED_NAME if same else Fault.CASE_ONLY, twin)
    if name.lower().endswith(FOREIGN_SUFFIXES):
        raise FaultError(Fault.FOREIGN)
    size_bytes = _size_inside(roots, picture)
    if not needs_caption:
        return Record(picture.stem, (), picture, None, size_bytes)
    captions = [
        folder / (picture.stem + spelt)
        for suffix in CAPTION_SUFFIXES
        for spelt in (suffix, suffix.upper())
        if picture.stem + spelt in present
    ]
    if not captions:
        raise FaultError(Fault.NO_CAPTION, f"write one to {picture.stem}.txt")
    if len(captions) > 1:
        raise FaultError(Fault.NAMED_TWICE, f"{captions[0].name} and {captions[1].name}")
    if _size_inside(roots, captions[0]) > MAX_TEXT_BYTES:
        raise FaultError(Fault.TOO_LARGE, captions[0].name)
    try:
        text = decode_caption(captions[0].read_bytes())
    except OSError as error:
        raise FaultError(Fault.UNREADABLE, f"{captions[0].name}: {error.strerror}") from None
    return Record(picture.stem, check_captions([text]), picture, None, size_bytes)


def roots_of(folder: Path) -> tuple[Path, ...]:
    """Where the files of a data folder may lie, links followed: in it, or where the Hugging Face cache keeps its own.

    A snapshot there is a folder of links into `blobs/`.
    """
    root = folder.resolve()
    store = root.parent.parent
    is_snapshot = root.parent.name == "snapshots" and store.name.startswith(("datasets--", "models--", "spaces--"))
    return (root, store / "blobs") if is_snapshot else (root,)


def lies_inside(roots: tuple[Path, ...], path: Path) -> bool:
    """Whether a file lies below one of these, links followed. Raises OSError or RuntimeError for a loop of links."""
    where = path.resolve()
    return any(where.is_relative_to(root) for root in roots)


def _size_inside(roots: tuple[Path, ...], path: Path) -> int:
    """A file's size in bytes. Raises FaultError unless it is a regular file that lies below one of the roots."""
    try:
        if not lies_inside(roots, path):
            raise FaultError(Fault.OUTSIDE, "a link: copy the file, or link it hard" if path.is_symlink() else "")
        status = path.stat()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links is a RuntimeError, a NUL a ValueError
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise FaultError(Fault.UNREADABLE, "a loop of links" if isinstance(error, RuntimeError) else reason) from None
    if not stat.S_ISREG(status.st_mode):
        raise FaultError(Fault.NOT_A_FILE)
    return status.st_size


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links: looked at later, by its name
        return False

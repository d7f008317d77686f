"""A data set on disk as a list of records: pictures with captions, checked before training begins.

Three forms are read: webdataset tar shards (`<key>.png|jpg|webp` with `<key>.txt` and optionally `<key>.json`, whose
`captions` list holds further captions and whose other entries are labels); a folder with a `metadata.jsonl`; and
a folder of pictures with a `.txt` or `.caption` of the same name beside each. Nothing is unpacked to the disk.
"""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from latentgen.errors import InputError, ModelNotFoundError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
CAPTION_SUFFIXES = (".txt", ".caption")
METADATA = "metadata.jsonl"

END_OF_TAR = bytes(2 * tarfile.BLOCKSIZE)
"""Every complete tar file ends with two blocks of zeros."""


@dataclass(frozen=True, slots=True)
class Record:
    """One picture and its captions; the picture's bytes stay on disk until `read`."""

    key: str
    captions: tuple[str, ...]
    path: Path
    offset: int | None = None
    """Where the picture starts in a tar shard; None when `path` is the picture itself."""
    size_bytes: int = 0
    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def read(self) -> bytes:
        """The encoded picture."""
        if self.offset is None:
            return self.path.read_bytes()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size_bytes)


def list_records(folder: Path, *, held_out: bool | None = None) -> list[Record]:
    """All records of a data set, in a fixed order.

    held_out: None for all, False without the corpus' held-out compositions, True for only those.
    Raises ModelNotFoundError if the folder does not exist, InputError for an empty set or a record that is not whole.
    """
    if not folder.is_dir():
        raise ModelNotFoundError(f"no data folder at {folder}")
    shards = sorted(folder.glob("*.tar"))
    if shards:
        found = [record for shard in shards for record in _shard_records(shard)]
    else:
        found = list(_metadata_records(folder) if (folder / METADATA).exists() else _folder_records(folder))
    if held_out is not None:
        found = [record for record in found if bool(record.labels.get("held_out")) is held_out]
    if not found:
        hint = "tar shards, or pictures with a .txt beside each or a metadata.jsonl"
        raise InputError(f"{folder} holds no pictures with captions to train on", hint=hint)
    return found


def fingerprint(records: list[Record]) -> str:
    """A short hash over keys, captions and sizes: tells whether a resumed run still has the data it began with.

    Pictures are compared by their encoded size, so that a large set is checked in a second.
    """
    digest = hashlib.sha256()
    for record in records:
        digest.update(repr((record.key, record.captions, record.size_bytes)).encode())
    return digest.hexdigest()[:16]


def _shard_records(shard: Path) -> Iterator[Record]:
    samples: dict[str, dict[str, tarfile.TarInfo]] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, _, suffix = member.name.rpartition(".")
                if not member.isfile() or not key:
                    continue
                parts = samples.setdefault(key, {})
                if parts.setdefault(suffix.lower(), member) is not member:
                    raise InputError(f"{shard.name}: {member.name} occurs twice", hint="write the shard again")
            # tarfile takes whatever it cannot read for the end, so a shard cut short would only seem smaller.
            with shard.open("rb") as file:
                file.seek(tar.offset)
                if file.read(len(END_OF_TAR)) != END_OF_TAR:
                    raise tarfile.ReadError("it is cut short")
            for key, parts in samples.items():
                yield _shard_record(shard, tar, key, parts)
    except (tarfile.TarError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"{shard} is damaged: {reason}", hint="write or copy the shard again") from error
    if not samples:
        raise InputError(f"{shard} holds no samples", hint="write the shard again, or delete it")


def _shard_record(shard: Path, tar: tarfile.TarFile, key: str, parts: dict[str, tarfile.TarInfo]) -> Record:
    pictures = [parts[suffix[1:]] for suffix in PICTURE_SUFFIXES if suffix[1:] in parts]
    if len(pictures) != 1 or "txt" not in parts:
        raise InputError(f"{shard.name}: sample {key} has {sorted(parts)}", hint="it needs one picture and one .txt")

    def text(part: str) -> str:
        file = tar.extractfile(parts[part])
        assert file is not None, "a regular member has a body"
        return file.read().decode("utf-8-sig")

    try:
        labels = _labels(text("json")) if "json" in parts else {}
        captions = _captions(labels.pop("captions", None) or [text("txt").strip()])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{shard.name}: sample {key} is not readable text: {error}") from error
    return Record(key, captions, shard, pictures[0].offset_data, pictures[0].size, labels)


def _labels(text: str) -> dict[str, Any]:
    labels = json.loads(text)
    if not isinstance(labels, dict):
        raise ValueError("its .json holds no object")
    return cast("dict[str, Any]", labels)


def _captions(captions: Any) -> tuple[str, ...]:
    if not isinstance(captions, list) or not all(isinstance(each, str) for each in cast("list[Any]", captions)):
        raise ValueError("its captions are not a list of strings")
    if not all(each.strip() for each in cast("list[str]", captions)):
        raise ValueError("a caption is empty")
    return tuple(cast("list[str]", captions))


def _metadata_records(folder: Path) -> Iterator[Record]:
    """Hugging Face's ImageFolder form: a line of `metadata.jsonl` a picture, with `file_name` and `text`.

    A line may also hold `captions`, all of them, and labels; the corpus writes both.
    """
    path = folder / METADATA
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            labels = _labels(line)
            name, text = str(labels.pop("file_name")), labels.pop("text", "")
            captions = _captions(labels.pop("captions", None) or [text])
            picture = folder / name
            if not picture.resolve().is_relative_to(folder.resolve()):
                raise ValueError(f"{name} lies outside the data folder")
            size_bytes = picture.stat().st_size
        except KeyError as error:
            raise InputError(f"{METADATA} line {number} has no {error}") from error
        except OSError as error:
            raise InputError(f"{METADATA} line {number}: {error.filename}: {error.strerror}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{METADATA} line {number}: {error}") from error
        yield Record(Path(name).stem, captions, picture, None, size_bytes, labels)


def _folder_records(folder: Path) -> Iterator[Record]:
    pictures = sorted(path for path in folder.iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file())
    for stem, count in Counter(path.stem for path in pictures).items():
        if count > 1:
            names = " and ".join(path.name for path in pictures if path.stem == stem)
            raise InputError(f"{names} would share one caption", hint="rename or remove all but one")
    for picture in pictures:
        captions = [picture.with_suffix(s) for s in CAPTION_SUFFIXES if picture.with_suffix(s).exists()]
        if not captions:
            hint = f"write one to {picture.with_suffix('.txt').name}"
            raise InputError(f"{picture.name} has no caption", hint=hint)
        try:
            caption = captions[0].read_text(encoding="utf-8-sig").strip()
            size_bytes = picture.stat().st_size
        except UnicodeDecodeError as error:
            raise InputError(f"{captions[0].name} is not UTF-8: {error}") from error
        except OSError as error:
            raise InputError(f"{error.filename} cannot be read: {error.strerror}") from error
        if not caption:
            raise InputError(f"{captions[0].name} is empty")
        yield Record(picture.stem, (caption,), picture, None, size_bytes)

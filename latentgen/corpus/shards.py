"""Corpus files on disk: webdataset tar shards, or a flat folder of pictures with captions and `metadata.jsonl`.

Both are written a thousand records at a time. What was complete when a run stopped is kept by the next one.
"""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

RECORDS_PER_SHARD = 1000


@dataclass(frozen=True, slots=True)
class EncodedRecord:
    """A record as it is stored."""

    key: str
    png: bytes
    labels: dict[str, Any]
    """With the list `captions`, whose first is the picture's caption file."""

    @property
    def caption(self) -> str:
        return self.labels["captions"][0]


class ShardWriter(Protocol):
    """Stores groups of records under a corpus folder."""

    def is_complete(self, shard: int) -> bool: ...

    def write(self, shard: int, records: Iterable[EncodedRecord]) -> None: ...

    def finish(self, shards: int) -> None:
        """Called once all shards are complete."""
        ...


class TarShards:
    """`00000.tar`, `00001.tar` …: for each key a `.png`, a `.txt` and a `.json`.

    The bytes depend on the records alone: every member has owner 0, time 0 and mode 0644.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def _path(self, shard: int) -> Path:
        return self._folder / f"{shard:05d}.tar"

    def is_complete(self, shard: int) -> bool:
        return self._path(shard).is_file()

    def write(self, shard: int, records: Iterable[EncodedRecord]) -> None:
        final = self._path(shard)
        aside = final.with_suffix(".tar.partial")
        with tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as archive:
            for record in records:
                _add_member(archive, f"{record.key}.png", record.png)
                _add_member(archive, f"{record.key}.txt", record.caption.encode())
                _add_member(archive, f"{record.key}.json", _json_line(record.labels))
        aside.replace(final)

    def finish(self, shards: int) -> None:
        """Nothing is left to do."""


def _add_member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def _json_line(value: dict[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


class PictureFolder:
    """`<key>.png` and `<key>.txt` side by side, and `metadata.jsonl` (`file_name`, `text`, labels) at the end.

    Until then the finished groups' lines wait in `.parts/`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts = folder / ".parts"
        self._metadata = folder / "metadata.jsonl"

    def _part(self, shard: int) -> Path:
        return self._parts / f"{shard:05d}.jsonl"

    def is_complete(self, shard: int) -> bool:
        return self._metadata.is_file() or self._part(shard).is_file()

    def write(self, shard: int, records: Iterable[EncodedRecord]) -> None:
        self._parts.mkdir(exist_ok=True)
        final = self._part(shard)
        aside = final.with_suffix(".jsonl.partial")
        with aside.open("wb") as lines:
            for record in records:
                picture = self._folder / f"{record.key}.png"
                picture.write_bytes(record.png)
                picture.with_suffix(".txt").write_bytes(record.caption.encode())
                lines.write(_json_line({"file_name": picture.name, "text": record.caption, **record.labels}) + b"\n")
        aside.replace(final)

    def finish(self, shards: int) -> None:
        if self._metadata.is_file():
            return
        aside = self._metadata.with_suffix(".jsonl.partial")
        with aside.open("wb") as whole:
            for shard in range(shards):
                whole.write(self._part(shard).read_bytes())
        aside.replace(self._metadata)
        shutil.rmtree(self._parts)

"""SHA-256 of files, and the hashes of large ones remembered from start to start. No torch here.

A model of 4 GB takes seconds to hash, and its fingerprint is wanted whenever it draws. So a file's hash is kept in the
user's cache folder beside the stamp that the file had: size, time of change, inode and device. A file with the same
stamp is taken to be the same, as git and make do. Of the times of change the inode's own (ctime) counts too, which
`touch`, `cp -p` and `rsync` cannot set back. What this cannot see is a disk that changes bytes by itself; who wants to
be sure passes `remembered=False`, as `replay --verify` does.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Final

from latentgen.user_folders import cache_home

REMEMBERED_FROM_BYTES: Final = 1 << 20
"""Smaller files are hashed in the time that looking them up would take."""
SETTLED_NS: Final = 2_000_000_000
"""A file that changed this short a time ago may change again within one tick of the clock, and keep its stamp."""


def sha256(*paths: Path, remembered: bool = False) -> str:
    """SHA-256 over the contents of files, in hexadecimal; over several, of their digests in the order given.

    remembered: a large file that has not changed since it was last hashed is not read.
    Raises OSError if a file cannot be read; a cache that cannot be read or written is done without.
    """
    digests = [_remembered(path) if remembered else _hash(path) for path in paths]
    return digests[0].hex() if len(digests) == 1 else hashlib.sha256(b"".join(digests)).hexdigest()


def hash_folder() -> Path:
    """`$XDG_CACHE_HOME/latentgen/hashes`, or the same under `~/.cache`; removing it costs time only."""
    return cache_home() / "latentgen" / "hashes"


def _hash(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _remembered(path: Path) -> bytes:
    path = path.resolve()
    before = _stamp(path)
    if before["size"] < REMEMBERED_FROM_BYTES:
        return _hash(path)
    note = hash_folder() / f"{hashlib.sha256(os.fsencode(path)).hexdigest()[:32]}.json"
    known = _read(note, before)
    if known is not None:
        return known
    digest = _hash(path)
    if _stamp(path) == before and time.time_ns() - max(before["mtime_ns"], before["ctime_ns"]) > SETTLED_NS:
        _write(note, {**before, "sha256": digest.hex()})
    return digest


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
        "inode": status.st_ino,
        "device": status.st_dev,
    }


def _read(note: Path, stamp: dict[str, int]) -> bytes | None:
    """The hash kept for a file of this stamp; None if there is none, or what is there cannot be made out."""
    try:
        content = json.loads(note.read_bytes())
        digest = bytes.fromhex(content.pop("sha256"))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return digest if content == stamp and len(digest) == hashlib.sha256().digest_size else None


def _write(note: Path, content: dict[str, object]) -> None:
    """Written aside and renamed, one file for each file hashed: two processes at once never mix or lose anything."""
    aside = note.with_suffix(f".{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        note.parent.mkdir(parents=True, exist_ok=True)
        try:
            aside.write_text(json.dumps(content), encoding="ascii")
            aside.replace(note)
        finally:
            aside.unlink(missing_ok=True)

"""Hashes remembered between starts: never of another file's content, and never needed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from latentgen.checkpoints import hashes
from latentgen.checkpoints.hashes import REMEMBERED_FROM_BYTES, hash_folder, sha256

LONG_AGO_NS = 10_000_000_000


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; every file counts as settled."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    later = time.time_ns() + LONG_AGO_NS
    monkeypatch.setattr(hashes.time, "time_ns", lambda: later)
    return tmp_path / "cache" / "latentgen" / "hashes"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"a" * REMEMBERED_FROM_BYTES)
    return path


def true_hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> bytes:
        raise AssertionError(f"{path} was read again")

    monkeypatch.setattr(hashes, "_hash", refused)


def test_a_file_is_read_once(cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sha256(weights, remembered=True)
    assert first == true_hash(weights)
    assert hash_folder() == cache
    refuse_reading(monkeypatch)
    assert sha256(weights, remembered=True) == first
    with pytest.raises(AssertionError, match="was read again"):
        sha256(weights)


def test_a_changed_file_is_noticed(cache: Path, weights: Path) -> None:
    sha256(weights, remembered=True)
    stamp = weights.stat()
    with weights.open("r+b") as file:
        file.write(b"b")
    os.utime(weights, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # size, inode and mtime are as before
    assert sha256(weights, remembered=True) == true_hash(weights)


def test_a_replaced_file_is_noticed(cache: Path, weights: Path) -> None:
    sha256(weights, remembered=True)
    other = weights.with_name("other")
    other.write_bytes(b"b" * REMEMBERED_FROM_BYTES)
    stamp = weights.stat()
    os.utime(other, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    other.replace(weights)
    assert sha256(weights, remembered=True) == true_hash(weights)


def test_a_file_just_written_is_not_remembered(cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes.time, "time_ns", lambda: weights.stat().st_mtime_ns + 1)
    assert sha256(weights, remembered=True) == true_hash(weights)
    assert not cache.exists()


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(
    cache: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hash_and_change(path: Path) -> bytes:
        digest = hashlib.sha256(path.read_bytes()).digest()
        path.write_bytes(b"c" * REMEMBERED_FROM_BYTES)
        return digest

    with monkeypatch.context() as patch:
        patch.setattr(hashes, "_hash", hash_and_change)
        sha256(weights, remembered=True)
    assert sha256(weights, remembered=True) == true_hash(weights)


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b"{}", b'{"sha256": "zz"}', b"\xff\xfe", b'{"sha256": 3}'])
def test_a_damaged_note_is_made_anew(note: bytes, cache: Path, weights: Path) -> None:
    sha256(weights, remembered=True)
    (path,) = cache.iterdir()
    path.write_bytes(note)
    assert sha256(weights, remembered=True) == true_hash(weights)
    assert json.loads(path.read_bytes())["sha256"] == true_hash(weights)


def test_a_note_with_a_short_hash_is_not_believed(cache: Path, weights: Path) -> None:
    sha256(weights, remembered=True)
    (path,) = cache.iterdir()
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"sha256": "abcd"}))
    assert sha256(weights, remembered=True) == true_hash(weights)


def test_a_cache_that_cannot_be_written_is_no_failure(cache: Path, weights: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    assert sha256(weights, remembered=True) == true_hash(weights)


def test_small_files_leave_no_notes(cache: Path, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert sha256(path, remembered=True) == true_hash(path)
    assert not cache.exists()


def test_several_files_are_hashed_as_one(cache: Path, weights: Path, tmp_path: Path) -> None:
    small = tmp_path / "config.json"
    small.write_text("{}")
    assert sha256(weights, small, remembered=True) == sha256(weights, small)
    assert sha256(small, weights) != sha256(weights, small)


def test_two_processes_at_once(cache: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"{number}.safetensors" for number in range(4)]
    for number, path in enumerate(files):
        path.write_bytes(bytes([number]) * REMEMBERED_FROM_BYTES)
        os.utime(path)
    script = (
        "import sys, time; from pathlib import Path; from latentgen.checkpoints import hashes;"
        "hashes.SETTLED_NS = -1;"
        "[print(*(hashes.sha256(Path(p), remembered=True) for p in sys.argv[1:])) for _ in range(20)]"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", script, *map(str, files)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    expected = " ".join(true_hash(path) for path in files)
    for process in processes:
        out, _ = process.communicate(timeout=60)
        assert set(out.splitlines()) == {expected}
    assert sorted(path.suffix for path in cache.iterdir()) == [".json"] * len(files)

"""Lines that several processes write to one pipe."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from latentgen.cli.console import Console


class Pipe(io.RawIOBase):
    """What reaches the system, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: bytes, /) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]  of our own, bytes only
        self.writes.append(bytes(data))
        return len(data)


def unbuffered(pipe: Pipe) -> io.TextIOWrapper:
    """As Python opens a stream with PYTHONUNBUFFERED=1."""
    return io.TextIOWrapper(pipe, encoding="utf-8", write_through=True)  # pyright: ignore[reportArgumentType]


def test_a_line_is_one_write_so_that_processes_do_not_mix(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = Pipe(), Pipe()
    monkeypatch.setattr(sys, "stdout", unbuffered(out))
    monkeypatch.setattr(sys, "stderr", unbuffered(err))
    Console().result(Path("a b.png"))
    Console(json_events=True).event("done", pictures=1)
    Console().note("said")
    Console().warn("dark")
    assert out.writes == [b"a b.png\n", b'{"event": "done", "pictures": 1}\n']
    assert err.writes == [b"said\n", b"warning: dark\n"]


def test_a_closed_stream_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    Console().result(Path("a.png"))
    Console().warn("dark")

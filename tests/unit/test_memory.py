"""The allocator: what is freed between things that stay, inside and outside of `large_tensors_mapped`."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from latentgen.kernels import memory

SCRIPT = """
import json, sys
from latentgen.kernels.memory import keep_freed_memory, large_tensors_mapped, map_large_tensors, return_freed_memory

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

def fall(then=lambda: None):
    blocks = [b"x" * (2 << 20) for _ in range(64)]
    before = resident_mib()
    del blocks[::2]
    then()
    return round(before - resident_mib())

map_large_tensors()
falls = {"mapped": fall()}
with large_tensors_mapped():
    falls["mapped already"] = fall()
keep_freed_memory()
with large_tensors_mapped():
    falls["mapped inside"] = fall()
    with large_tensors_mapped():
        pass
    falls["mapped around"] = fall()
falls["kept"] = fall()
falls["returned"] = fall(return_freed_memory)
print(json.dumps(falls))
"""


def test_what_becomes_of_freed_memory() -> None:
    """Every other of 64 blocks of 2 MiB is freed: 64 MiB."""
    process = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    falls = json.loads(process.stdout)
    assert 60 < falls["mapped"] < 68
    assert 60 < falls["mapped already"] < 68
    assert 60 < falls["mapped inside"] < 68
    assert 60 < falls["mapped around"] < 68
    assert falls["kept"] < 4
    assert falls["returned"] > 60


def test_without_glibc_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_of_glibc", lambda name: None)
    monkeypatch.setattr(memory, "_kept", False)
    memory.map_large_tensors()
    memory.keep_freed_memory()
    with memory.large_tensors_mapped():
        memory.return_freed_memory()

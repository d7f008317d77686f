"""Generators by purpose: a draw is a function of what it is for, and of no state."""

from __future__ import annotations

import hashlib

from torch import Generator


def seed_for(seed: int, *purpose: object) -> int:
    """A 32-bit seed that depends on all arguments (torch's CPU generator uses only the low 32 bits)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


def generator_for(seed: int, *purpose: object) -> Generator:
    """A CPU generator for one purpose, for instance `generator_for(seed, "noise", sample_index)`."""
    return Generator().manual_seed(seed_for(seed, *purpose))

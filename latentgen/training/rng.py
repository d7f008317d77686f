"""Randomness of training: every draw is a function of (seed, what it is for, sample index), so no state of it is saved.

A run resumed from any step has the same SHA-256 over weights, EMA and optimizer as the run that was never stopped
(`tests/training/test_resume.py`). A generator's state that must be saved is one that can be lost without a word.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from torch import Generator


def seed_for(seed: int, *purpose: object) -> int:
    """A 32-bit seed that depends on all arguments (torch's CPU generator uses only the low 32 bits)."""
    digest = hashlib.sha256(repr((seed, *purpose)).encode()).digest()
    return int.from_bytes(digest[:4], "little")


def generator_for(seed: int, *purpose: object) -> Generator:
    """A CPU generator for one purpose, for instance `generator_for(seed, "noise", sample_index)`."""
    return Generator().manual_seed(seed_for(seed, *purpose))


@dataclass(frozen=True, slots=True)
class Draw:
    """One training sample: the `index`-th ever drawn in this run, which is `item` of the data set."""

    seed: int
    index: int
    item: int

    def generator(self, purpose: str) -> Generator:
        return generator_for(self.seed, purpose, self.index)


class SampleOrder:
    """The order of the data set: a fresh permutation each epoch, a function of (seed, epoch) alone."""

    def __init__(self, items: int, seed: int) -> None:
        if items < 1:
            raise ValueError("an empty data set has no order")
        self._items = items
        self._seed = seed
        self._epoch = -1
        self._permutation: list[int] = []

    def draw(self, index: int) -> Draw:
        epoch, position = divmod(index, self._items)
        if epoch != self._epoch:
            generator = generator_for(self._seed, "order", epoch)
            self._permutation = torch.randperm(self._items, generator=generator).tolist()
            self._epoch = epoch
        return Draw(self._seed, index, self._permutation[position])

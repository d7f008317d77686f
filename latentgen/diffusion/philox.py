"""The normal numbers that torch draws on an NVIDIA GPU, on any machine.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, section 4.3) turned normal by
Box and Muller, as cuRAND does and `torch.randn(..., device="cuda")` uses it: of each element's four random words the
first two make one number. The arithmetic here is in float64, there in float32: the numbers agree to the last digits.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

ROUNDS: Final = 10
MULTIPLIERS: Final = (0xD2511F53, 0xCD9E8D57)
KEY_STEPS: Final = (0x9E3779B9, 0xBB67AE85)
_LOW: Final = np.uint64(0xFFFFFFFF)
_HALF: Final = np.uint64(32)


class PhiloxNormal:
    """A stream of standard normal numbers for one seed of 0 .. 2^64 - 1; each draw goes on where the last one ended."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._draws = 0

    def draw(self, count: int) -> NDArray[np.float32]:
        """(count,) float32: what the next `torch.randn` of so many elements gives there.

        So long as one GPU has that many threads: 65,536 for latents of 1024 x 1024 px are few.
        """
        counter = np.zeros((4, count), np.uint64)
        counter[0] = self._draws
        counter[2] = np.arange(count)
        self._draws += 1
        first, second, _, _ = philox(counter, self._seed).astype(np.float64)
        radius = np.sqrt(-2.0 * np.log((first + 0.5) / 2**32))
        return (radius * np.sin(2.0 * math.pi * (second + 0.5) / 2**32)).astype(np.float32)


def philox(counter: NDArray[np.uint64], key: int) -> NDArray[np.uint64]:
    """Four random words (4, n), each below 2^32, for every counter (4, n) of such words and one key of 64 bits."""
    c0, c1, c2, c3 = counter
    keys = [key & 0xFFFFFFFF, key >> 32]
    for _ in range(ROUNDS):
        product0, product1 = c0 * np.uint64(MULTIPLIERS[0]), c2 * np.uint64(MULTIPLIERS[1])
        key0, key1 = map(np.uint64, keys)
        c0, c1, c2, c3 = (
            (product1 >> _HALF) ^ c1 ^ key0,
            product1 & _LOW,
            (product0 >> _HALF) ^ c3 ^ key1,
            product0 & _LOW,
        )
        keys = [(word + step) & 0xFFFFFFFF for word, step in zip(keys, KEY_STEPS, strict=True)]
    return np.stack([c0, c1, c2, c3])

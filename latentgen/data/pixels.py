"""Decoded pictures as training asks for them: uint8, each of a stated shape.

Small sets are decoded once into memory-mapped files, so that every epoch is a copy (`PixelCache`); larger ones are
decoded anew each time they are asked for (`stream.PixelStream`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentgen.data.array_file import open_array, write_array
from latentgen.data.decode import available_cores, decode, ordered_map
from latentgen.data.record import Record
from latentgen.data.records import pictures_fingerprint

Shape = tuple[int, int]
"""Height and width in pixels."""


class Draws(Protocol):
    """The order in which items are drawn; `training/rng.py` has it."""

    def draw(self, index: int, /) -> Drawn: ...


class Drawn(Protocol):
    @property
    def item(self) -> int: ...


DrawsT = TypeVar("DrawsT", bound=Draws)


class Pictures(Protocol):
    """The pictures of a data set, each at its shape, uint8 (height, width, 3)."""

    @property
    def identity(self) -> str:
        """A short name for these pictures at these shapes: other content has another."""
        ...

    @property
    def shapes(self) -> Sequence[Shape]:
        """Height and width of every picture."""
        ...

    def __len__(self) -> int: ...

    def batch(self, items: Sequence[int]) -> Tensor:
        """Whole pictures (B, H, W, 3), all of one shape."""
        ...

    def batches(self, groups: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        """`batch` of one group after another, the next ones decoded ahead."""
        ...

    def crop(self, item: int, top: int, left: int, side_px: int) -> Tensor:
        """A window of one picture, (side_px, side_px, 3)."""
        ...

    def follow(self, order: DrawsT) -> DrawsT:
        """The same order; where pictures are decoded on demand, what it draws next is decoded ahead."""
        ...


def to_float(pixels: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1.0).contiguous()


def square_shapes(count: int, side_px: int) -> list[Shape]:
    return [(side_px, side_px)] * count


def identity_of(records: Sequence[Record], shapes: Sequence[Shape]) -> str:
    """The pictures' fingerprint with the shapes that they are given."""
    kinds = set(shapes)
    shown = "x".join(map(str, kinds.pop())) if len(kinds) == 1 else hashlib.sha256(repr(shapes).encode()).hexdigest()
    return f"{pictures_fingerprint(records)}-{shown[:16]}"


def rows_by_shape(shapes: Sequence[Shape]) -> dict[Shape, list[int]]:
    """The items of each shape, in their order."""
    rows: dict[Shape, list[int]] = {}
    for item, shape in enumerate(shapes):
        rows.setdefault(shape, []).append(item)
    return dict(sorted(rows.items()))


class PixelCache:
    """All pictures of a data set, decoded once: `Pictures` in one memory-mapped file for each shape.

    Shapes: a file is (n, H, W, 3) uint8, 0.2 MB a picture at 256 px. It is named after the pictures' identity, so
    another data set never meets it.
    Raises InputError if a picture cannot be read, RuntimeFailure if the disk refuses a file.
    """

    def __init__(
        self,
        records: Sequence[Record],
        shapes: Sequence[Shape] | int,
        folder: Path,
        report: Callable[[str], None],
    ) -> None:
        """shapes: one for each record, or a side in pixels for squares."""
        self._shapes = square_shapes(len(records), shapes) if isinstance(shapes, int) else list(shapes)
        self._identity = identity_of(records, self._shapes)
        self._arrays: dict[Shape, NDArray[np.uint8]] = {}
        self._row: list[int] = [0] * len(records)
        rows = rows_by_shape(self._shapes)
        self.paths = [folder / f"pixels-{self._identity}-{height}x{width}.npy" for height, width in rows]
        if not all(path.exists() for path in self.paths):
            report(f"decoding {len(records)} pictures at {_named(rows)}")
        for path, (shape, items) in zip(self.paths, rows.items(), strict=True):
            array_shape = (len(items), *shape, 3)
            if not path.exists():
                decoded = ordered_map(partial(decode, shape=shape), (records[i] for i in items), available_cores())
                write_array(path, array_shape, np.uint8, (picture[None] for picture in decoded))
            self._arrays[shape] = open_array(path, array_shape, np.uint8)
            for row, item in enumerate(items):
                self._row[item] = row

    def __len__(self) -> int:
        return len(self._row)

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def shapes(self) -> list[Shape]:
        return self._shapes

    def batch(self, items: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self._arrays[self._shapes[i]][self._row[i]] for i in items]))

    def batches(self, groups: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        return map(self.batch, groups)

    def crop(self, item: int, top: int, left: int, side_px: int) -> Tensor:
        picture = self._arrays[self._shapes[item]][self._row[item]]
        return torch.from_numpy(picture[top : top + side_px, left : left + side_px].copy())

    def follow(self, order: DrawsT) -> DrawsT:
        return order


def _named(rows: dict[Shape, list[int]]) -> str:
    if len(rows) > 1:
        return f"{len(rows)} shapes"
    ((height, width),) = rows
    return f"{width} px" if width == height else f"{width}x{height} px"

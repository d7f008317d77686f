"""Pictures decoded when they are asked for: nothing is kept, so a set may be larger than memory and disk."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentgen.data.decode import available_cores, decode, ordered_map
from latentgen.data.pixels import Drawn, Draws, DrawsT, Shape, identity_of, square_shapes
from latentgen.data.record import Record

AHEAD = 64
"""Pictures decoded before they are drawn: 13 MB at 256 px, 50 MB at 512."""

Picture = NDArray[np.uint8]


class PixelStream:
    """`Pictures` that are decoded on threads, ahead of the order that they follow.

    In memory are the pictures of the batch being put together and at most `AHEAD` more.
    Each method raises InputError if a picture cannot be read.
    """

    def __init__(self, records: Sequence[Record], shapes: Sequence[Shape] | int, threads: int | None = None) -> None:
        """shapes: one for each record, or a side in pixels for squares. threads: default one a core."""
        self._records = records
        self._shapes = square_shapes(len(records), shapes) if isinstance(shapes, int) else list(shapes)
        self._identity = identity_of(records, self._shapes)
        self._threads = available_cores() if threads is None else threads
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="stream")
        self._coming: dict[int, deque[Future[Picture]]] = {}

    def __len__(self) -> int:
        return len(self._records)

    @property
    def identity(self) -> str:
        return self._identity

    @property
    def shapes(self) -> list[Shape]:
        return self._shapes

    def batch(self, items: Sequence[int]) -> Tensor:
        return _stacked([future.result() for future in [self._take(item) for item in items]])

    def batches(self, groups: Iterable[Sequence[int]]) -> Iterator[Tensor]:
        listed = [list(group) for group in groups]
        pictures = ordered_map(self._decode, chain.from_iterable(listed), self._threads)
        for group in listed:
            yield _stacked(list(islice(pictures, len(group))))

    def crop(self, item: int, top: int, left: int, side_px: int) -> Tensor:
        picture = self._take(item).result()
        return torch.from_numpy(picture[top : top + side_px, left : left + side_px].copy())

    def follow(self, order: DrawsT) -> DrawsT:
        return cast(DrawsT, _Followed(order, self))

    def expect(self, item: int) -> None:
        """Begin to decode a picture that will be asked for."""
        self._coming.setdefault(item, deque()).append(self._pool.submit(self._decode, item))

    def forget(self) -> None:
        """Drop what was expected."""
        for future in chain.from_iterable(self._coming.values()):
            future.cancel()
        self._coming.clear()

    def _take(self, item: int) -> Future[Picture]:
        coming = self._coming.get(item)
        if coming is None:
            return self._pool.submit(self._decode, item)
        future = coming.popleft()
        if not coming:
            del self._coming[item]
        return future

    def _decode(self, item: int) -> Picture:
        return decode(self._records[item], self._shapes[item])


class _Followed:
    """An order whose next draws a stream decodes ahead. A process draws indices a constant step apart."""

    def __init__(self, order: Draws, stream: PixelStream) -> None:
        self._order, self._stream = order, stream
        self._last: int | None = None
        self._ahead: dict[int, Drawn] = {}
        """What was drawn ahead, by index; its pictures are expected."""

    def draw(self, index: int, /) -> Drawn:
        if index not in self._ahead:
            self._stream.forget()
            self._ahead = {}
            self._expect(index)
        drawn = self._ahead.pop(index)
        step = 0 if self._last is None else index - self._last
        if step > 0:
            newest = max(self._ahead, default=index)
            for following in range(newest + step, index + AHEAD * step + 1, step):
                self._expect(following)
        self._last = index
        return drawn

    def _expect(self, index: int) -> None:
        drawn = self._order.draw(index)
        self._stream.expect(drawn.item)
        self._ahead[index] = drawn


def _stacked(pictures: list[Picture]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))

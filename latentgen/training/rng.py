"""Randomness of training: every draw is a function of (seed, what it is for, sample index), so no state of it is saved.

A run resumed from any step has the same SHA-256 over weights, EMA and optimizer as the run that was never stopped
(`tests/training/test_resume.py`). A generator's state that must be saved is one that can be lost without a word.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Generator

from latentgen.diffusion.seeds import generator_for, seed_for


@dataclass(frozen=True, slots=True)
class Draw:
    """One training sample: the `index`-th ever drawn in this run, which is `item` of the data set."""

    seed: int
    index: int
    item: int

    def generator(self, purpose: str) -> Generator:
        return generator_for(self.seed, purpose, self.index)


class Order(Protocol):
    """Which item the n-th sample of a run is."""

    def draw(self, index: int) -> Draw: ...


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


class OrderAmong:
    """Another order's, of some items of the data set: its k-th item is `items[k]`."""

    def __init__(self, order: Order, items: Sequence[int]) -> None:
        self._order, self._items = order, items

    def draw(self, index: int) -> Draw:
        draw = self._order.draw(index)
        return replace(draw, item=self._items[draw.item])


class BucketOrder:
    """The order of pictures of several shapes: every optimizer step has one shape, every picture its turn.

    The pictures of a shape follow each other in one permutation after another, each of them whole, as many to a step
    as the step has samples. Steps are dealt to the shapes by their number of pictures: in epoch e shape b has
    floor((e + 1) n_b / S + u_b) - floor(e n_b / S + u_b) of them, in random order, with a fixed random u_b in [0, 1).
    So after e epochs a picture has been seen e times, give or take the samples of one step, however rare its shape.
    A function of (seed, index) alone.
    """

    def __init__(self, shapes: Sequence[tuple[int, int]], seed: int, samples_per_step: int) -> None:
        self._seed, self._samples_per_step = seed, samples_per_step
        rows: dict[tuple[int, int], list[int]] = {}
        for item, shape in enumerate(shapes):
            rows.setdefault(shape, []).append(item)
        self._buckets = [rows[shape] for shape in sorted(rows)]
        self._orders = [SampleOrder(len(items), seed_for(seed, "bucket", b)) for b, items in enumerate(self._buckets)]
        # In units of one sample, so that the counts of steps are whole numbers without rounding.
        self._offsets = [seed_for(seed, "offset", b) % samples_per_step for b in range(len(self._buckets))]
        self._epoch = -1
        self._steps: list[tuple[int, int]] = []
        """Of the current epoch: which bucket, and the how manieth step of that bucket in the run."""

    def draw(self, index: int) -> Draw:
        step, position = divmod(index, self._samples_per_step)
        epoch = self._epoch_of(step)
        if epoch != self._epoch:
            self._steps, self._epoch = self._deal(epoch), epoch
        bucket, bucket_step = self._steps[step - self._steps_before(epoch)]
        row = self._orders[bucket].draw(bucket_step * self._samples_per_step + position).item
        return Draw(self._seed, index, self._buckets[bucket][row])

    def _steps_of(self, bucket: int, epochs: int) -> int:
        """Steps of one bucket in so many epochs."""
        return (epochs * len(self._buckets[bucket]) + self._offsets[bucket]) // self._samples_per_step

    def _steps_before(self, epoch: int) -> int:
        return sum(self._steps_of(bucket, epoch) for bucket in range(len(self._buckets)))

    def _epoch_of(self, step: int) -> int:
        """The epoch that holds a step: the last one that begins no later."""
        low, high = 0, 1
        while self._steps_before(high) <= step:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self._steps_before(middle) <= step else (low, middle)
        return low

    def _deal(self, epoch: int) -> list[tuple[int, int]]:
        steps = [
            (bucket, bucket_step)
            for bucket in range(len(self._buckets))
            for bucket_step in range(self._steps_of(bucket, epoch), self._steps_of(bucket, epoch + 1))
        ]
        generator = generator_for(self._seed, "steps", epoch)
        return [steps[i] for i in torch.randperm(len(steps), generator=generator).tolist()]


def sample_order(shapes: Sequence[tuple[int, int]], seed: int, samples_per_step: int) -> Order:
    """The order in which pictures of these shapes (height, width) are learned.

    samples_per_step: batch size x accumulation x processes; samples of one optimizer step have one shape.
    """
    if len(set(shapes)) == 1:
        return SampleOrder(len(shapes), seed)
    return BucketOrder(shapes, seed, samples_per_step)

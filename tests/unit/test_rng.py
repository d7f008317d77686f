from __future__ import annotations

from collections import Counter

import pytest
import torch

from latentgen.diffusion.seeds import generator_for, seed_for
from latentgen.training.rng import BucketOrder, Draw, SampleOrder, sample_order


def test_every_epoch_is_a_fresh_permutation() -> None:
    order = SampleOrder(7, seed=3)
    epochs = [[order.draw(7 * epoch + i).item for i in range(7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_draw_depends_on_seed_and_index_alone() -> None:
    """In whatever order it is asked for: a resumed run begins in the middle."""
    forward = SampleOrder(5, seed=1)
    expected = [forward.draw(i) for i in range(20)]
    backward = SampleOrder(5, seed=1)
    assert [backward.draw(i) for i in reversed(range(20))] == expected[::-1]
    assert [SampleOrder(5, seed=2).draw(i).item for i in range(20)] != [draw.item for draw in expected]


def test_purposes_samples_and_seeds_are_independent() -> None:
    def first(seed: int, *purpose: object) -> float:
        return float(torch.rand((), generator=generator_for(seed, *purpose)))

    values = [first(seed, purpose, index) for seed in (0, 1) for purpose in ("crop", "eps") for index in range(25)]
    assert len(set(values)) == len(values)
    assert 0.35 < sum(values) / len(values) < 0.65
    assert values[0] == first(0, "crop", 0)
    assert torch.equal(
        torch.randn(4, generator=Draw(0, 7, 3).generator("eps")),
        torch.randn(4, generator=Draw(0, 7, 1).generator("eps")),
    ), "which item a sample is does not matter to its noise"


def test_seeds_are_stable_and_fit_into_32_bits() -> None:
    """The number itself is pinned: runs in progress depend on it."""
    assert seed_for(0, "order", 0) == 3864838707
    assert all(0 <= seed_for(0, "noise", index) < 2**32 for index in range(100))


def test_an_empty_data_set_has_no_order() -> None:
    with pytest.raises(ValueError, match="empty"):
        SampleOrder(0, seed=0)


# Several shapes

SHAPES = [(8, 8)] * 50 + [(8, 16)] * 23 + [(16, 8)] * 3
"""Of the last, fewer than a step has samples."""
SAMPLES_PER_STEP = 8


def steps_of(order: BucketOrder, count: int, start: int = 0) -> list[list[int]]:
    """The items of `count` optimizer steps."""
    size = SAMPLES_PER_STEP
    return [[order.draw(size * step + k).item for k in range(size)] for step in range(start, start + count)]


def test_one_shape_keeps_the_plain_order() -> None:
    plain, order = SampleOrder(7, 3), sample_order([(8, 8)] * 7, 3, 4)
    assert [order.draw(i) for i in range(30)] == [plain.draw(i) for i in range(30)]


def test_every_step_has_one_shape() -> None:
    order = sample_order(SHAPES, 0, SAMPLES_PER_STEP)
    assert isinstance(order, BucketOrder)
    steps = steps_of(order, 200)
    assert all(len({SHAPES[item] for item in items}) == 1 for items in steps)
    kinds = [SHAPES[items[0]] for items in steps]
    assert Counter(kinds[:20]).keys() == Counter(kinds).keys() == set(SHAPES)
    assert len({tuple(kinds[k : k + 9]) for k in range(0, 90, 9)}) > 5, "shapes alternate at random"


def test_every_picture_is_seen_about_once_an_epoch_whatever_its_shape() -> None:
    """76 pictures in steps of 8: after e epochs each was seen e times, give or take what one step holds."""
    order = BucketOrder(SHAPES, 1, SAMPLES_PER_STEP)
    seen: Counter[int] = Counter()
    samples = 0
    for step, items in enumerate(steps_of(order, 76 * 5)):
        seen.update(items)
        samples += len(items)
        if step % 19 == 18:
            epochs = samples / len(SHAPES)
            for shape in set(SHAPES):
                bucket = [item for item, each in enumerate(SHAPES) if each == shape]
                counts = [seen[item] for item in bucket]
                assert max(counts) - min(counts) <= 1, "one permutation after another"
                slack = 2 * SAMPLES_PER_STEP / len(bucket) + 1
                assert abs(sum(counts) / len(bucket) - epochs) <= slack, (shape, epochs)
    assert sum(seen.values()) / len(SHAPES) == 40


def test_a_bucketed_draw_depends_on_seed_and_index_alone() -> None:
    """Resumed anywhere, forwards or backwards, the rest is the same."""
    whole = steps_of(BucketOrder(SHAPES, 5, SAMPLES_PER_STEP), 120)
    for start in (1, 37, 119):
        assert steps_of(BucketOrder(SHAPES, 5, SAMPLES_PER_STEP), 120 - start, start) == whole[start:]
    backward = BucketOrder(SHAPES, 5, SAMPLES_PER_STEP)
    assert [steps_of(backward, 1, start)[0] for start in reversed(range(120))] == whole[::-1]
    assert steps_of(BucketOrder(SHAPES, 6, SAMPLES_PER_STEP), 20) != whole[:20]
    assert steps_of(BucketOrder(SHAPES, 5, SAMPLES_PER_STEP), 2, 10**6), "far ahead, at once"


@pytest.mark.parametrize("shapes", [[(8, 8)] * 20, SHAPES])
def test_processes_share_a_step_without_overlap(shapes: list[tuple[int, int]]) -> None:
    """Sample k goes to process k modulo their number, as the loop has it: disjoint, and together all of one process."""
    processes = 2
    alone = sample_order(shapes, 0, SAMPLES_PER_STEP)
    mine = [sample_order(shapes, 0, SAMPLES_PER_STEP) for _ in range(processes)]
    for step in range(40):
        indices = range(SAMPLES_PER_STEP * step, SAMPLES_PER_STEP * (step + 1))
        parts = [[order.draw(i) for i in indices if i % processes == rank] for rank, order in enumerate(mine)]
        assert not {draw.index for draw in parts[0]} & {draw.index for draw in parts[1]}
        together = sorted((draw for part in parts for draw in part), key=lambda draw: draw.index)
        assert together == [alone.draw(i) for i in indices]
    if len(set(shapes)) == 1:  # an epoch of 20: every picture once, in one of the two processes
        epoch = [[order.draw(i).item for i in range(20) if i % processes == rank] for rank, order in enumerate(mine)]
        assert sorted(epoch[0] + epoch[1]) == list(range(20))

"""Which pictures of a data set are kept from training, so that a run can be measured on what it did not learn from."""

from __future__ import annotations

from collections.abc import Sequence

MAX_PICTURES = 64
ONE_IN = 100


def pictures_to_set_aside(pictures: int, most: int = MAX_PICTURES) -> int:
    """How many of a set are kept from training if nobody says: one in a hundred, `most` at most."""
    return min(most, pictures // ONE_IN)


def set_aside(pictures: int, count: int) -> tuple[int, ...]:
    """`count` item numbers spread evenly over the data set, which may be sorted by what is on the pictures."""
    assert 0 <= count < pictures, f"{count} of {pictures} pictures leave none to train on"
    return tuple((2 * i + 1) * pictures // (2 * count) for i in range(count))


def others(pictures: int, aside: Sequence[int]) -> list[int]:
    """The items that are trained on, ascending."""
    return sorted(set(range(pictures)) - set(aside))

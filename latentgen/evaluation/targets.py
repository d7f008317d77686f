"""The corpus' labels as class numbers: what a probe's answers are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from latentgen.errors import InputError
from latentgen.evaluation.labels import (
    COLOURLESS_STYLES,
    GLOBAL_FACTORS,
    POSITIONS,
    LabelSet,
    count_of,
    subjects_of,
    text_of,
)

UNKNOWN: Final = -1
"""Target of a question that the labels do not answer: it is left out of the loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Targets:
    """Labels of B pictures as class numbers, int64; UNKNOWN where the labels do not say."""

    count: Tensor
    """(B, N): 0 .. max_count of every noun; 0 is not there."""
    colour: Tensor
    """(B, N)"""
    position: Tensor
    """(B, N), of POSITIONS."""
    factors: Tensor
    """(B, 4), in the order of GLOBAL_FACTORS."""

    def take(self, rows: Tensor) -> Targets:
        return Targets(self.count[rows], self.colour[rows], self.position[rows], self.factors[rows])

    def mirrored(self, rows: Tensor) -> Targets:
        """The targets when the pictures of `rows`, (B,) bool, are flipped from left to right."""
        swapped = torch.where(self.position == UNKNOWN, self.position, len(POSITIONS) - 1 - self.position)
        return Targets(self.count, self.colour, torch.where(rows[:, None], swapped, self.position), self.factors)


def encode_labels(labels: Sequence[Mapping[str, Any]], answers: LabelSet) -> Targets:
    """The targets of these pictures. Raises InputError for a label that the set does not have."""
    shape = (len(labels), len(answers.nouns))
    count = torch.zeros(shape, dtype=torch.int64)
    colour, position = torch.full(shape, UNKNOWN), torch.full(shape, UNKNOWN)
    factors = torch.zeros(len(labels), len(GLOBAL_FACTORS), dtype=torch.int64)
    for row, each in enumerate(labels):
        for column, factor in enumerate(GLOBAL_FACTORS):
            factors[row, column] = _index(answers.answers(factor), text_of(each, factor), factor)
        for subject in subjects_of(each):
            noun = _index(answers.nouns, text_of(subject, "noun"), "noun")
            count[row, noun] = min(count_of(subject), answers.max_count)
            if subject.get("colour") is not None and each["style"] not in COLOURLESS_STYLES:
                colour[row, noun] = _index(answers.colours, text_of(subject, "colour"), "colour")
            if subject.get("position") is not None:
                position[row, noun] = _index(POSITIONS, text_of(subject, "position"), "position")
    return Targets(count, colour, position, factors)


def _index(answers: Sequence[str], value: str, what: str) -> int:
    if value not in answers:
        raise InputError(f"the probe knows no {what} {value!r}", hint=f"it knows {', '.join(answers)}")
    return answers.index(value)

"""Verdicts as shares with intervals, and the table of the benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from latentgen.evaluation.prompts import CATEGORIES, SPLITS, Category, Split

Z_95: Final = 1.959963984540054
"""The normal distribution's 97.5 % point."""
CELL_WIDTH: Final = 33


@dataclass(frozen=True, slots=True)
class Share:
    """How many of how many."""

    right: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.total:
            raise ValueError(f"{self.right} of {self.total}")

    @property
    def value(self) -> float:
        """NaN for none of none."""
        return self.right / self.total if self.total else math.nan

    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval (1927, "Probable inference, the law of succession, and statistical inference")."""
        if not self.total:
            return 0.0, 1.0
        n, p = self.total, self.value
        scale = 1 + Z_95**2 / n
        centre = (p + Z_95**2 / (2 * n)) / scale
        reach = Z_95 / scale * math.sqrt(p * (1 - p) / n + Z_95**2 / (4 * n**2))
        return max(0.0, centre - reach), min(1.0, centre + reach)

    def __add__(self, other: Share) -> Share:
        return Share(self.right + other.right, self.total + other.total)

    def to_json(self) -> dict[str, Any]:
        low, high = self.interval()
        value = round(self.value, 4) if self.total else None
        return {"right": self.right, "total": self.total, "share": value, "low": round(low, 4), "high": round(high, 4)}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Of one item: whether its picture is right, and how many fresh renders of the same scene the probe finds right."""

    category: Category
    split: Split
    is_right: bool
    ceiling: Share


@dataclass(frozen=True, slots=True)
class Score:
    model: Share
    ceiling: Share
    """The probe's own accuracy on renders of the same scenes; empty where none were drawn."""

    @property
    def ratio(self) -> float | None:
        """The model's share of what a perfect model would score with this probe."""
        return self.model.value / self.ceiling.value if self.model.total and self.ceiling.right else None

    def __add__(self, other: Score) -> Score:
        return Score(self.model + other.model, self.ceiling + other.ceiling)

    def to_json(self) -> dict[str, Any]:
        ratio = None if self.ratio is None else round(self.ratio, 4)
        return {"model": self.model.to_json(), "ceiling": self.ceiling.to_json(), "ratio": ratio}


NO_SCORE: Final = Score(Share(0, 0), Share(0, 0))


def score(verdicts: Sequence[Verdict], category: Category | None, split: Split | None) -> Score:
    """Of a category, or all, in a split, or all."""
    total = NO_SCORE
    for each in verdicts:
        if category in (None, each.category) and split in (None, each.split):
            total += Score(Share(int(each.is_right), 1), each.ceiling)
    return total


def scores_json(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Every cell of the table, and the totals under "all"."""
    rows: tuple[Category | None, ...] = (*CATEGORIES, None)
    columns: tuple[Split | None, ...] = (*SPLITS, None)
    return {
        row or "all": {column or "all": score(verdicts, row, column).to_json() for column in columns} for row in rows
    }


def table(verdicts: Sequence[Verdict]) -> str:
    """Categories down, splits across: the model's share with its interval, the ceiling, and their ratio."""
    width = max(map(len, CATEGORIES))
    lines = [f"{'':{width}}  " + "".join(f"{split:{CELL_WIDTH}}" for split in SPLITS).rstrip()]
    rows: tuple[Category | None, ...] = (*CATEGORIES, None)
    for row in rows:
        cells = "".join(f"{_cell(score(verdicts, row, split)):{CELL_WIDTH}}" for split in SPLITS)
        lines.append(f"{row or 'all':{width}}  {cells.rstrip()}")
    lines.append("share of right pictures [95 % interval], of what the probe gets right on renders = ratio")
    return "\n".join(lines)


def _cell(found: Score) -> str:
    """`62 % [39-82] of 98 % = 0.63`"""
    if not found.model.total:
        return "no prompts"
    low, high = found.model.interval()
    text = f"{found.model.value:4.0%} [{low * 100:.0f}-{high * 100:.0f}]"
    if not found.ceiling.total:
        return f"{text} n={found.model.total}"
    ratio = "" if found.ratio is None else f" = {found.ratio:.2f}"
    return f"{text} of {found.ceiling.value:.0%}{ratio}"

"""Curves as SVG: axes with ticks, raw and smoothed lines, and the same numbers for whoever cannot see them.

The picture stretches with the page and its words do not: tick labels stand at percentages of the outer svg, which has
no viewBox, and the lines lie in an inner one of 1000 x 1000 units that is stretched over it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from itertools import accumulate
from typing import Any

UNITS = 1000
"""Side of the inner svg."""
MAX_POINTS = 1000
"""Of a drawn line; a longer one is thinned so that its peaks stay."""
LOG_SCALE_FROM = 25.0
"""Ratio of the largest to the smallest value from which a logarithmic axis says more."""


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the steps."""

    steps: tuple[int, ...]
    values: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def smoothed(self) -> Curve:
        """Median over neighbours, a twelfth of the curve, so that a spike bends nothing; then mean over them."""
        reach = len(self) // 24
        medians = _running_median(self.values, reach)
        sums = [0.0, *accumulate(medians)]
        means: list[float] = []
        for i in range(len(self)):
            near = min(reach, i, len(self) - 1 - i)  # centred at the ends too
            means.append((sums[i + near + 1] - sums[i - near]) / (2 * near + 1))
        return Curve(self.steps, tuple(means))

    def thinned(self) -> Curve:
        """At most MAX_POINTS points: of each stretch the lowest and the highest, and both ends of the curve."""
        if len(self) <= MAX_POINTS:
            return self
        stretches = MAX_POINTS // 2 - 1
        kept = {0, len(self) - 1}
        for k in range(stretches):
            stretch = range(k * len(self) // stretches, (k + 1) * len(self) // stretches)
            kept |= {min(stretch, key=self.values.__getitem__), max(stretch, key=self.values.__getitem__)}
        indices = sorted(kept)
        return Curve(tuple(self.steps[i] for i in indices), tuple(self.values[i] for i in indices))


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of values laid over 0 to 1."""

    low: float
    high: float
    is_log: bool = False

    def position(self, value: float) -> float:
        if self.is_log:
            return math.log(value / self.low) / math.log(self.high / self.low) if value > 0 else -1.0
        return (value - self.low) / (self.high - self.low)

    def ticks(self, about: int) -> list[float]:
        """Round values within the range, about so many."""
        if self.is_log:
            return self._log_ticks(about)
        rough = (self.high - self.low) / about
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _log_ticks(self, about: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        every = max(1, round(len(decades) / about))
        factors = (1, 2, 5) if self.high / self.low < 100 else (1,)
        values = [factor * 10.0**decade for decade in decades[::every] for factor in factors]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


@dataclass(frozen=True)
class Series:
    """One line of a chart."""

    name: str
    curve: Curve
    smooth: bool = False
    """Draw the raw line faintly, with its smoothed one over it."""

    @cached_property
    def shown(self) -> Curve:
        """The line that is read off."""
        return self.curve.smoothed() if self.smooth else self.curve


@dataclass(frozen=True, slots=True)
class Mark:
    """A step at which something happened."""

    step: int
    label: str
    is_failure: bool = False


@dataclass(frozen=True)
class Chart:
    """One figure of a run: its name in the log, a title and its lines, over the steps 0 to `last_step`."""

    name: str
    title: str
    series: tuple[Series, ...]
    last_step: int
    marks: tuple[Mark, ...] = ()
    may_be_log: bool = True
    from_zero: bool = False

    @cached_property
    def y(self) -> Axis:
        """From the lowest to the highest value; of a noisy line without its most extreme fiftieth at either end."""
        spread: list[float] = []
        for series in self.series:
            ordered = sorted(series.curve.values)
            cut = len(ordered) // 50 if series.smooth else 0
            spread += [*ordered[cut : len(ordered) - cut], *series.shown.values]
        low, high = (min(spread), max(spread)) if spread else (0.0, 1.0)
        if self.may_be_log and low > 0 and high / low >= LOG_SCALE_FROM:
            return Axis(low / 1.1, high * 1.1, is_log=True)
        if self.from_zero and low >= 0:
            low = 0.0
        if high - low <= 1e-9 * max(abs(high), abs(low)):
            room = abs(high) * 0.1 or 1.0
            return Axis(low if self.from_zero else low - room, high + room)
        room = (high - low) * 0.05
        return Axis(low if self.from_zero and low == 0 else low - room, high + room)

    @property
    def x(self) -> Axis:
        return Axis(0, max(1, self.last_step))

    def figures(self) -> dict[str, Any]:
        """What the page's script reads off: the lines as drawn."""
        lines = [series.shown.thinned() for series in self.series]
        values = [[float(f"{value:.5g}") for value in line.values] for line in lines]
        return {
            "last": max(1, self.last_step),
            "series": [{"steps": line.steps, "values": each} for line, each in zip(lines, values, strict=True)],
        }

    def describe(self) -> str:
        """The chart in words."""
        told: list[str] = []
        for series in self.series:
            line = series.shown
            if not line.steps:
                continue
            lowest, highest = min(line.values), max(line.values)
            told.append(
                f"{series.name}: {number(line.values[0])} at step {line.steps[0]}, {number(line.values[-1])} at step "
                f"{line.steps[-1]}; between {number(lowest)} and {number(highest)}"
            )
        return f"{self.title} over the steps. " + ". ".join(told)

    def svg(self) -> str:
        x, y = self.x, self.y
        inner: list[str] = []
        for mark in self.marks:
            at = _units(x.position(mark.step))
            kind = "mark failure" if mark.is_failure else "mark"
            inner.append(
                f'<path class="{kind}" d="M{at} 0V{UNITS}"><title>{escape(mark.label)}, step {mark.step}</title></path>'
            )
        for k, series in enumerate(self.series):
            if series.smooth:
                inner.append(f'<path class="raw s{k}" d="{_path(series.curve.thinned(), x, y)}"/>')
            inner.append(f'<path class="line s{k}" d="{_path(series.shown.thinned(), x, y)}"/>')
        grid: list[str] = []
        for tick in y.ticks(4):
            at = f"{100 * (1 - y.position(tick)):.2f}%"
            grid.append(f'<line class="grid" x1="0" x2="100%" y1="{at}" y2="{at}"/>')
            grid.append(f'<text class="y" x="-8" y="{at}" dy="0.32em">{number(tick)}</text>')
        ticks = [tick for tick in x.ticks(5) if tick == int(tick)]
        for tick in ticks:
            at, place = f"{100 * x.position(tick):.2f}%", _anchor(x.position(tick))
            grid.append(f'<line class="tick" x1="{at}" x2="{at}" y1="100%" y2="100%"/>')
            grid.append(f'<text class="x {place}" x="{at}" y="100%" dy="1.6em">{count(int(tick))}</text>')
        return (
            f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(self.describe())}"'
            f' data-x="{x.low:g} {x.high:g}" data-y="{y.low!r} {y.high!r} {"log" if y.is_log else "linear"}">'
            f'<g aria-hidden="true">{"".join(grid)}</g>'
            f'<svg class="lines" viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" width="100%" height="100%">'
            f"{''.join(inner)}</svg>"
            '<line class="axis" x1="0" x2="100%" y1="100%" y2="100%"/>'
            '<line class="cursor" x1="0" x2="0" y1="0" y2="100%" visibility="hidden"/></svg>'
        )


def number(value: float) -> str:
    """A figure to four digits: 0.2385, 25.07, 1.2e-06."""
    if value == 0:
        return "0"
    if abs(value) >= 100_000:
        return f"{value:.3g}" if abs(value) >= 1e9 else count(round(value))
    return f"{value:.4g}"


def count(value: int) -> str:
    """A whole number with narrow spaces between thousands, as 115 200."""
    return f"{value:,}".replace(",", "\u202f")


def _running_median(values: Sequence[float], reach: int) -> list[float]:
    """The median of each value and of `reach` on either side.

    At the start only as many after as there are before, or a loss that falls fast would seem to start low; at the end
    all that there are before, or the last word of a run would be one noisy line's.
    """
    ordered: list[float] = []
    medians: list[float] = []
    taken = 0
    for i in range(len(values)):
        while taken <= min(i + min(i, reach), len(values) - 1):
            insort(ordered, values[taken])
            taken += 1
        if i > reach:
            del ordered[bisect_left(ordered, values[i - reach - 1])]
        middle = len(ordered) // 2
        medians.append(ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2)
    return medians


def _anchor(position: float) -> str:
    """So that a label at an end does not stick out."""
    return "start" if position < 0.02 else "end" if position > 0.98 else "middle"


def _units(position: float) -> str:
    return f"{UNITS * position:.1f}"


def _path(curve: Curve, x: Axis, y: Axis) -> str:
    """Values beyond the axis end just outside of it, where the inner svg cuts them off."""
    points: Sequence[str] = [
        f"{_units(x.position(step))} {_units(min(1.5, max(-0.5, 1 - y.position(value))))}"
        for step, value in zip(curve.steps, curve.values, strict=True)
    ]
    if len(points) == 1:  # a single point is drawn as a dot: a line of no length with round ends
        return f"M{points[0]}h0"
    return "M" + "L".join(points) if points else ""

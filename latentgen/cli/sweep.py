"""`--sweep FLAG=VALUES`: every combination of some flags' values, each a picture.

Values are a list (`steps=10,20`), ranges with both ends (`guidance=3:12:3`, `seed=1:4`), or both. A text or a list of
numbers (`prompt`, `guidance-interval`) is one value, and is given once for each. The first two flags are the rows and
columns of the sheet; each combination of further ones is a sheet of its own.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Any, Final

from latentgen.cli.flag_names import SIZE, Flag, find_flag, sides
from latentgen.cli.options import RANDOM_SEED
from latentgen.cli.plan import MAX_PICTURES, Entry
from latentgen.errors import InputError
from latentgen.request import MAX_SEED, random_seed

PROMPT: Final = "prompt"
_WHOLE: Final = ("negative_prompt",)
"""Texts in which a comma is only a comma."""
_NUMBER: Final = r"[+-]?(?:[0-9]{1,20}(?:\.[0-9]{0,12})?|\.[0-9]{1,12})"
_RANGE: Final = re.compile(rf"({_NUMBER}):({_NUMBER})(?::({_NUMBER}))?")


@dataclass(frozen=True, slots=True)
class Value:
    label: str
    """As it stands on the sheet."""
    changes: Mapping[str, Any]
    """Fields of `Flags`; none for a prompt."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction in which the pictures differ."""

    name: str
    values: tuple[Value, ...]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Pictures in order, the last axis the fastest: every combination of the axes' values."""

    axes: tuple[Axis, ...]
    entries: tuple[Entry, ...]
    """One for each picture, with a seed and a count of 1."""


def parse_axes(texts: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes of `--sweep`s in order, and the prompts among their values.

    A flag that is given again adds to its values. Prompts stand for an axis named PROMPT without values, which `spread`
    fills in. Raises InputError for an unknown flag, or values that are none.
    """
    found: dict[str, list[Value]] = {}
    fields: dict[str, str] = {}
    prompts: list[str] = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals or not values:
            raise InputError(f"--sweep {text} names no values", hint="for instance --sweep guidance=3:12:3")
        if key == PROMPT:
            found.setdefault(PROMPT, [])
            prompts.append(values)
            continue
        try:
            flag = find_flag(key)
            if flag.field == "count":
                raise InputError("count is not swept", hint="--count 4 draws four seeds, as --sweep seed=1:4 does")
            parsed = _values(flag, values)
        except InputError as error:
            raise InputError(f"--sweep {text}: {error.message}", hint=error.hint) from None
        found.setdefault(flag.name, []).extend(parsed)
        for field in parsed[0].changes:
            if fields.setdefault(field, flag.name) != flag.name:
                raise InputError(f"--sweep {flag.name} and --sweep {fields[field]} contradict each other")
    return [Axis(name, _distinct(values)) for name, values in found.items()], list(dict.fromkeys(prompts))


def spread(axes: Sequence[Axis], entries: Sequence[Entry], earlier_seed: int | None = None) -> Sweep:
    """Every picture of a sweep over some prompts.

    Several prompts are an axis too, and so are the seeds of --count. A seed that is to be random is one for all
    pictures: the one that an earlier run of this sweep drew, if there is one, so that it can be gone on with.
    Raises InputError if there are too many, or if --count and the sweep contradict each other.
    """
    axes = list(axes)
    counts = {entry.flags.count for entry in entries}
    if len(counts) > 1:
        raise InputError("with --sweep every prompt has the same count")
    (count,) = counts
    sweeps_seeds = any("seed" in axis.values[0].changes for axis in axes if axis.values)
    if count != 1 and sweeps_seeds:
        raise InputError(f"--count {count} and --sweep seed contradict each other", hint="give one or the other")
    seeds = _seeds(entries, count, earlier_seed)
    prompts = Axis(PROMPT, tuple(Value(_short(entry.prompt), {}) for entry in entries))
    if not any(axis.name == PROMPT for axis in axes) and len(entries) > 1:
        axes.append(Axis(PROMPT, ()))
    axes = [prompts if axis.name == PROMPT else axis for axis in axes]
    if count > 1:
        first = seeds[0] if len(set(seeds)) == 1 else None
        labels = [f"seed {first + i}" if first is not None else f"seed + {i}" for i in range(count)]
        axes.append(Axis("count", tuple(Value(label, {}) for label in labels)))
    total = math.prod(len(axis.values) for axis in axes)
    if total > MAX_PICTURES:
        raise InputError(f"--sweep has {total} combinations; the limit is {MAX_PICTURES}")
    return Sweep(tuple(axes), tuple(_entry(axes, place, entries, seeds) for place in places(axes)))


def places(axes: Sequence[Axis]) -> list[tuple[int, ...]]:
    """The number of each picture's value on each axis, in the order of the pictures."""
    return list(product(*(range(len(axis.values)) for axis in axes)))


def _entry(axes: Sequence[Axis], place: tuple[int, ...], entries: Sequence[Entry], seeds: Sequence[int]) -> Entry:
    at = {axis.name: k for axis, k in zip(axes, place, strict=True)}
    k = at.get(PROMPT, 0)
    changes: dict[str, Any] = {"count": 1, "seed": seeds[k] + at.get("count", 0)}
    for axis, value in zip(axes, place, strict=True):
        changes |= axis.values[value].changes
    entry = entries[k]
    return replace(entry, flags=replace(entry.flags, **changes), said=entry.said | changes.keys())


def _seeds(entries: Sequence[Entry], count: int, earlier: int | None) -> list[int]:
    """The first seed of each prompt."""
    if not 1 <= count <= MAX_PICTURES:
        raise InputError(f"--count {count} is out of range", hint=f"1 to {MAX_PICTURES}")
    if earlier is None or earlier + count - 1 > MAX_SEED:
        earlier = random_seed(count)
    given = [entry.flags.seed for entry in entries]
    return [earlier if seed is None or seed == RANDOM_SEED else seed for seed in given]


def _values(flag: Flag, text: str) -> list[Value]:
    if flag.kind is tuple:
        return [Value(f"{flag.name} {text}", {flag.field: flag.from_json(text)})]
    if flag.field in _WHOLE:
        return [Value(f"{flag.name} {_short(text)}", {flag.field: text})]
    items = [item.strip() for item in text.split(",")]
    if "" in items:
        raise InputError("a value is missing", hint="values are parted by single commas")
    values: list[Value] = []
    for item in items:
        values.extend(_numbers(flag, item) if flag.kind in (int, float) else [_word(flag, item)])
        if len(values) > MAX_PICTURES:
            raise InputError(f"that is more than {MAX_PICTURES} values")
    return values


def _word(flag: Flag, item: str) -> Value:
    if flag.field == SIZE:
        return Value(item, sides(item))
    if flag.kind is bool:
        if item not in ("true", "false"):
            raise InputError(f"{item} is not true or false")
        return Value(f"{flag.name} {item}", {flag.field: item == "true"})
    label = item if flag.field == "sampler" else f"{flag.name} {Path(item).name if flag.kind is Path else item}"
    return Value(label, {flag.field: flag.from_json(item)})


def _numbers(flag: Flag, item: str) -> list[Value]:
    """A number, or a range with both ends."""
    match = _RANGE.fullmatch(item)
    if match is None:
        if not re.fullmatch(_NUMBER, item):
            raise InputError(f"{item} is neither a number nor a range", hint="a range is START:STOP or START:STOP:STEP")
        return [_number(flag, Decimal(item))]
    start, stop, step = Decimal(match[1]), Decimal(match[2]), Decimal(match[3] or 1)
    if step == 0 or (stop - start) * step < 0:
        raise InputError(f"{item} holds no values", hint="START:STOP:STEP, where steps lead from START to STOP")
    last = int((stop - start) / step)
    if last >= MAX_PICTURES:
        raise InputError(f"{item} is {last + 1} values; the limit is {MAX_PICTURES}")
    return [_number(flag, start + k * step) for k in range(last + 1)]


def _number(flag: Flag, number: Decimal) -> Value:
    if flag.kind is int and number != int(number):
        raise InputError(f"{number} is not a whole number")
    value = int(number) if flag.kind is int else float(number)
    return Value(f"{flag.name} {value if flag.kind is int else format(value, 'g')}", {flag.field: value})


def _distinct(values: Sequence[Value]) -> tuple[Value, ...]:
    return tuple({repr(value.changes): value for value in values}.values())


def _short(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:79]}…"

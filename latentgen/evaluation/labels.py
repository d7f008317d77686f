"""What a probe is asked about a picture: the questions and their possible answers, from the corpus' labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, cast

from latentgen.errors import InputError

POSITIONS: Final = ("left", "centre", "right")
GLOBAL_FACTORS: Final = ("setting", "time", "weather", "style")
"""What a picture has one of; the attribute of `LabelSet` is the plural."""
COLOURLESS_STYLES: Final = ("pencil sketch",)
"""Drawn in gray: a colour cannot be asked for."""


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The possible answers: nouns, colours, numbers and the four factors of the whole picture."""

    nouns: tuple[str, ...]
    colours: tuple[str, ...]
    settings: tuple[str, ...]
    times: tuple[str, ...]
    weathers: tuple[str, ...]
    styles: tuple[str, ...]
    max_count: int

    @classmethod
    def of(cls, labels: Iterable[Mapping[str, Any]]) -> LabelSet:
        """All that occurs in the labels of a corpus. Raises InputError if they are not such labels."""
        seen: dict[str, set[str]] = {name: set() for name in ("nouns", "colours", *map(plural, GLOBAL_FACTORS))}
        max_count = 0
        for each in labels:
            for factor in GLOBAL_FACTORS:
                seen[plural(factor)].add(text_of(each, factor))
            for subject in subjects_of(each):
                seen["nouns"].add(text_of(subject, "noun"))
                max_count = max(max_count, count_of(subject))
                if subject.get("colour") is not None:
                    seen["colours"].add(text_of(subject, "colour"))
        if not max_count:
            raise InputError("there are no labels to learn from", hint="they are made by: latentgen data render")
        return cls(**{name: tuple(sorted(values)) for name, values in seen.items()}, max_count=max_count)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> LabelSet:
        """Raises ValueError if the object is not what `to_json` makes."""
        if set(value) != {field.name for field in fields(cls)} or type(value["max_count"]) is not int:
            raise ValueError("the label set is incomplete")
        words = {name: _words(each) for name, each in value.items() if name != "max_count"}
        return cls(**words, max_count=value["max_count"])

    def answers(self, factor: str) -> tuple[str, ...]:
        """The possible answers of one of GLOBAL_FACTORS."""
        return cast("tuple[str, ...]", getattr(self, plural(factor)))


def plural(factor: str) -> str:
    """The attribute of `LabelSet` that holds a factor's answers."""
    return f"{factor}s"


def subjects_of(labels: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    subjects = labels.get("subjects")
    if not isinstance(subjects, list):
        raise InputError("a picture has no labels of its subjects", hint="they are made by: latentgen data render")
    return cast("list[Mapping[str, Any]]", subjects)


def count_of(subject: Mapping[str, Any]) -> int:
    count = subject.get("count")
    if type(count) is not int or count < 1:
        raise InputError(f"a label's count is {count!r}, not a whole number from 1")
    return count


def text_of(labels: Mapping[str, Any], name: str) -> str:
    value = labels.get(name)
    if not isinstance(value, str):
        raise InputError(f"a picture has no label {name}", hint="they are made by: latentgen data render")
    return value


def _words(value: object) -> tuple[str, ...]:
    words = cast("list[object]", value) if isinstance(value, list) else []
    if not words or not all(isinstance(word, str) for word in words):
        raise ValueError("the label set is incomplete")
    return tuple(cast("list[str]", words))

"""A config.json read strictly: every key is taken, checked or known to be irrelevant, and the rest is an error."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

from latentgen.errors import ConfigError, ModelLoadError
from latentgen.jsonfile import read_json

T = TypeVar("T")


class ConfigFile:
    """The keys of one file. All methods raise ModelLoadError naming file, key and value; a null is an absent key."""

    def __init__(self, path: Path, content: Mapping[str, Any] | None = None) -> None:
        """content: what the keys are, if not the whole file."""
        self.path = path
        self._content = read_json(path) if content is None else content
        self._seen: set[str] = set()

    def section(self, *keys: str) -> ConfigFile:
        """The objects under these keys as one; a later one has its way, an absent one is empty."""
        merged: dict[str, Any] = {}
        for key in keys:
            value = self.get(key, {})
            if not isinstance(value, dict):
                raise self.wrong(key, "an object is needed")
            merged |= value
        return ConfigFile(self.path, merged)

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key, unchecked."""
        self._seen.add(key)
        value = self._content.get(key)
        return default if value is None else value

    def wrong(self, key: str, wanted: str) -> ModelLoadError:
        """The error that a key's value deserves."""
        return ModelLoadError(f"{self.path}: {key} is {shown(self._content.get(key))}, but {wanted}")

    def integer(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        value = self.get(key, default)
        if not is_int(value) or value < minimum:
            raise self.wrong(key, f"a whole number from {minimum} is needed")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise self.wrong(key, "a number is needed")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, "true or false is needed")
        return value

    def choice(self, key: str, choices: Sequence[T], default: T | None = None) -> T:
        value = self.get(key, default)
        if value not in choices:
            raise self.wrong(key, f"only {', '.join(map(str, choices))} can be used")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(is_int(item) and item > 0 for item in value):
            raise self.wrong(key, "a list of positive whole numbers is needed")
        return tuple(cast("list[int]", value))

    def one_integer(self, key: str, default: int) -> int:
        """A positive number, which may be written as a list of equal ones."""
        if not isinstance(self.get(key), list):
            return self.integer(key, default)
        numbers = set(self.integers(key))
        if len(numbers) != 1:
            raise self.wrong(key, "one number for all levels is needed")
        return numbers.pop()

    def must_be(self, required: Mapping[str, Any]) -> None:
        """Check keys that our networks have no choice about; absent, null and a list of the right value are right."""
        for key, wanted in required.items():
            value = self.get(key)
            values = cast("list[object]", value) if isinstance(value, list) else [value]
            if value is not None and any(item != wanted for item in values):
                raise self.wrong(key, f"only {shown(wanted)} is supported")

    def close(self, irrelevant: frozenset[str]) -> None:
        """Refuse keys that were neither read nor listed, unless they are off (null or false)."""
        for key, value in self._content.items():
            known = key in self._seen or key in irrelevant or key.startswith("_")
            if not known and value is not None and value is not False:
                raise ModelLoadError(f"{self.path}: unknown key {key} = {shown(value)}")

    def build(self, make: Callable[..., T], **values: Any) -> T:
        """Make a config class; what it objects to is this file's fault."""
        try:
            return make(**values)
        except ConfigError as error:
            raise ModelLoadError(f"{self.path}: {error.message}") from None


def is_int(value: object) -> bool:
    """Whether a JSON value is a whole number; Python counts true as 1."""
    return isinstance(value, int) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value as an error message quotes it."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."

"""The flags of `generate` outside the command line, under all their names: in a `.jsonl` file and in `--sweep`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from latentgen.cli.options import parse_size
from latentgen.cli.plan import Flags
from latentgen.errors import InputError

SIZE = "size"
"""Not a field of its own: width and height at once."""
_FIELDS = {"width": "width_px", "height": "height_px"}
_WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag that a picture can have for itself."""

    field: str
    """Of `Flags`, or SIZE."""
    name: str
    """As on the command line, without the dashes before it."""
    kind: type
    """int, float, str, bool, Path or tuple."""
    elements: tuple[Any, ...] = ()
    """Of a tuple: the types of its elements, or one type and an ellipsis."""
    optional: bool = False
    parser: Any = None
    """str -> value, as the command line does it; None where typer does it."""

    def from_json(self, value: Any) -> Any:
        """The value for `Flags`. Raises InputError for one of the wrong kind."""
        if value is None and self.optional:
            return None
        if self.kind is tuple:
            return self._tuple(value)
        wanted = {float: (int, float), Path: (str,)}.get(self.kind, (self.kind,))
        if self.field == "hires" and isinstance(value, int | float) and not isinstance(value, bool):
            # The one text that is also a number on the command line, there with at most six decimals.
            value = f"{value:.6f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)
        if not isinstance(value, wanted) or (isinstance(value, bool) and self.kind is not bool):
            raise InputError(f"{self.name} must be {_WORDS[self.kind]}, not {value!r}")
        return Path(str(value)) if self.kind is Path else value

    def _tuple(self, value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            value = (value,) if self.parser is None else self.parser(value)
        open_ended = self.elements[-1] is ...
        kinds = self.elements[:1] * len(value) if open_ended and isinstance(value, list | tuple) else self.elements
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            many = "" if open_ended else f"{len(self.elements)} "
            raise InputError(f"{self.name} must be a list of {many}values, not {value!r}")
        return tuple(Flag(self.field, self.name, kind).from_json(each) for each, kind in zip(value, kinds, strict=True))


def find_flag(key: str) -> Flag:
    """The flag of any of its names, with dashes or underscores. Raises InputError with the closest names."""
    flags = known_flags()
    name = key.replace("_", "-")
    if name in flags:
        return flags[name]
    if name in _other_options():
        raise InputError(f"{key} holds for the whole run", hint=f"say it on the command line: --{name}")
    close = get_close_matches(name, flags, n=1)
    shown = ", ".join(dict.fromkeys(flag.name for flag in flags.values()))
    raise InputError(f"there is no flag {key}", hint=f"did you mean {close[0]}?" if close else shown)


@lru_cache(maxsize=1)
def known_flags() -> Mapping[str, Flag]:
    """Every flag that a picture can have for itself, by each of its names."""
    kinds = get_type_hints(Flags)
    names = {field.name for field in fields(Flags)} | {SIZE}
    found: dict[str, Flag] = {}
    for parameter, option in _options().items():
        field = _FIELDS.get(parameter, parameter)
        if field in names:
            spellings = _spellings(parameter, option)
            flag = _flag(field, spellings[0], kinds.get(field, str), option.parser)
            found |= dict.fromkeys(spellings, flag)
    return found


def _flag(field: str, name: str, hint: Any, parser: Any) -> Flag:
    """hint: `int | None`, `tuple[float, float] | None`, ..."""
    options = get_args(hint) if get_origin(hint) not in (None, tuple) else (hint,)
    kind = next(each for each in options if each is not NoneType)
    return Flag(field, name, get_origin(kind) or kind, get_args(kind), NoneType in options, parser)


def _other_options() -> set[str]:
    flags = known_flags()
    spelled = (name for parameter, option in _options().items() for name in _spellings(parameter, option))
    return {name for name in spelled if name not in flags}


def _options() -> dict[str, Any]:
    """The options of `generate` by parameter."""
    from latentgen.cli.generate import generate

    parameters = inspect.signature(generate).parameters.values()
    options = {parameter.name: parameter.annotation.__metadata__[0] for parameter in parameters}
    return {name: option for name, option in options.items() if _long_names(option)}


def _spellings(parameter: str, option: Any) -> list[str]:
    return list(dict.fromkeys([*_long_names(option), parameter.replace("_", "-")]))


def _long_names(option: Any) -> list[str]:
    declared = (option.default, *(option.param_decls or ()))  # within Annotated the first name comes as the default
    return [name.partition("/")[0][2:] for name in declared if isinstance(name, str) and name.startswith("--")]


def sides(value: str) -> dict[str, int]:
    """The two fields that a size stands for."""
    width_px, height_px = parse_size(value)
    return {"width_px": width_px, "height_px": height_px}

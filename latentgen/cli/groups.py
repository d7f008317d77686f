"""A command's options in groups: frozen dataclasses whose fields Typer sees side by side."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import wraps
from typing import Any, get_type_hints


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """`command(words: PromptOptions, files: FileOptions, ...)` as Typer is to see it.

    Every field of a dataclass parameter becomes an option (its type is `Annotated[..., typer.Option(...)]`, its default
    the field's); a parameter of another type is one option itself. Names must differ across the groups.
    """
    groups: dict[str, tuple[Any, list[str]]] = {}
    options: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command, eval_str=True).parameters.items():
        if not is_dataclass(parameter.annotation):
            options.append(parameter)
            continue
        kinds = get_type_hints(parameter.annotation, include_extras=True)
        groups[name] = (parameter.annotation, [field.name for field in fields(parameter.annotation)])
        for field in fields(parameter.annotation):
            default = inspect.Parameter.empty if field.default is MISSING else field.default
            options.append(inspect.Parameter(field.name, parameter.kind, default=default, annotation=kinds[field.name]))
    assert len({option.name for option in options}) == len(options), f"{command.__name__}: an option twice"

    @wraps(command)
    def spread(**given: Any) -> None:
        collected = {name: kind(**{each: given.pop(each) for each in names}) for name, (kind, names) in groups.items()}
        command(**collected, **given)

    signature = inspect.Signature([option.replace(kind=inspect.Parameter.KEYWORD_ONLY) for option in options])
    spread.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]  inspect reads it, Typer too
    spread.__annotations__ = {option.name: option.annotation for option in options}
    return spread

"""`--config FILE.toml`: a command's options in a file, under the names that they have on the command line."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, get_args

import typer

from latentgen.cli.options import FILES
from latentgen.errors import InputError, ModelNotFoundError

MAX_BYTES = 64 * 2**10
"""Far above any list of options; a larger file is something else."""


def with_config(command: Callable[..., None]) -> Callable[..., None]:
    """A command with one option more: `--config`, which fills in what the command line leaves out."""
    parameters = list(inspect.signature(command).parameters.values())
    options = {each.name: each.annotation for each in parameters if _flags(each.annotation)}

    def fill_in(context: typer.Context, file: Path | None) -> None:
        """Called before any other option is looked at; what is in the default map counts as given."""
        if file is not None:
            context.default_map = read_option_file(file, options)

    option = typer.Option(
        "--config",
        metavar="FILE",
        is_eager=True,
        callback=fill_in,
        rich_help_panel=FILES,
        help="Options from a TOML file, under their names here; the command line wins.",
    )

    @wraps(command)
    def spread(*, config: Path | None, **given: Any) -> None:
        command(**given)

    own = inspect.Parameter(
        "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[Path | None, option]
    )
    signature = inspect.Signature([*parameters, own])
    spread.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]  inspect reads it, Typer too
    spread.__annotations__ = {each.name: each.annotation for each in signature.parameters.values()}
    return spread


def read_option_file(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a TOML table of options, by parameter name.

    options: parameter name -> `Annotated[type, typer.Option(...)]`. A key is one of an option's long names, with dashes
    or underscores. Paths are taken as on the command line: from the current folder.
    Raises InputError naming file and key for what is not an option, of the wrong type or out of range.
    """
    names = {flag.partition("/")[0][2:]: name for name, kind in options.items() for flag in _flags(kind)}
    values: dict[str, Any] = {}
    for key, value in _read(file).items():
        name = names.get(key.replace("_", "-"))
        if name is None:
            close = get_close_matches(key.replace("_", "-"), names, n=1)
            hint = f"did you mean {close[0]}?" if close else "the names are those of --help, without the dashes before"
            raise InputError(f"{file}: there is no option {key}", hint=hint)
        if name in values:
            raise InputError(f"{file}: {key} is given twice, under two of its names")
        values[name] = _checked(file, key, value, options[name])
    return values


def _flags(kind: Any) -> list[str]:
    """An option's long names; of `--ema/--no-ema` the first half counts."""
    (option,) = kind.__metadata__
    declared = (option.default, *(option.param_decls or ()))  # within Annotated the first name comes as the default
    return [name for name in declared if isinstance(name, str) and name.startswith("--")]


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            content = opened.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise ModelNotFoundError(f"there is no file {file}", hint="--config names a TOML file of options") from None
    except OSError as error:
        raise InputError(f"--config {file} cannot be read: {error.strerror}") from None
    if len(content) > MAX_BYTES:
        raise InputError(f"--config {file} is over {MAX_BYTES // 2**10} KiB, too much for a list of options")
    try:
        return tomllib.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"--config {file} is not UTF-8 text: byte {error.start}") from None
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise InputError(f"--config {file} is not TOML: {error}", hint="a line is `batch-size = 8`") from None


def _checked(file: Path, key: str, value: Any, kind: Any) -> Any:
    """The value, if it is one that the option takes."""
    (option,) = kind.__metadata__
    if option.parser is not None:
        return _parsed(file, key, value, option.parser)
    if kind.__origin__ in (list[str] | None, list[Path] | None):
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise InputError(f"{file}: {key} takes a list of strings, not {_shown(value)}")
        return value
    wanted = next((each for each in get_args(kind.__origin__) if each is not NoneType), kind.__origin__)
    takes, described = {
        bool: (bool, "true or false"),
        int: (int, "a whole number"),
        float: ((int, float), "a number"),
        str: (str, "a string"),
        Path: (str, "a string"),
    }[wanted]
    if not isinstance(value, takes) or (isinstance(value, bool) and wanted is not bool):
        raise InputError(f"{file}: {key} takes {described}, not {_shown(value)}")
    if wanted in (int, float):
        low, high = option.min, option.max
        if (low is not None and value < low) or (high is not None and value > high):
            raise InputError(
                f"{file}: {key} {value} is out of range", hint=f"at least {low}" if high is None else f"{low} to {high}"
            )
    return value


def _parsed(file: Path, key: str, value: Any, parser: Callable[[str], Any]) -> str:
    """A value that has a form of its own, as it is written on the command line."""
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, int | float | str) and not isinstance(part, bool) for part in parts):
        raise InputError(f"{file}: {key} takes a number or a string, not {_shown(value)}")
    text = ",".join(str(part) for part in parts)
    try:
        parser(text)
    except InputError as error:
        raise InputError(f"{file}: {error.message}", hint=error.hint) from None
    return text


def _shown(value: Any) -> str:
    kinds = {dict: "a table: options are not nested", list: "a list", bool: "true or false", str: "a string"}
    return kinds.get(type(value), f"{value}")

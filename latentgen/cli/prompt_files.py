"""Prompts from a file or from standard input: a prompt a line, or with `.jsonl` an object a line with flags.

    {"prompt": "a red boat", "seed": 1, "steps": 30, "cfg_scale": 6, "size": "512x768"}

A line may hold every flag that a picture can have for itself, under any of its names; for the rest the command line's
hold.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from latentgen.cli.flag_names import SIZE, find_flag, sides
from latentgen.cli.plan import Entry, Flags
from latentgen.cli.text_lines import MAX_BYTES, numbered_lines
from latentgen.errors import InputError, ModelNotFoundError

MAX_PROMPTS = 10_000


def read_prompt_file(path: Path, flags: Flags) -> list[Entry]:
    """Entries of a prompt file; `flags` hold for every line that does not say otherwise.

    Raises ModelNotFoundError if there is no such file, InputError naming the line for what cannot be read.
    """
    try:
        if not path.exists():
            raise ModelNotFoundError(f"--prompts {path}: there is no such file")
        if not path.is_file():
            raise InputError(f"--prompts {path} is not a regular file", hint="to pipe prompts in, use: -p -")
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"--prompts {path} holds {path.stat().st_size} bytes; the limit is {MAX_BYTES}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    lines = _prompt_lines(data, str(path))
    if path.suffix.lower() == ".jsonl":
        return [_entry(line, f"{path} line {number}", flags) for number, line in lines]
    return [Entry(line, flags, f"{path} line {number}") for number, line in lines]


def read_standard_input(flags: Flags) -> list[Entry]:
    """A prompt a line, as with `cat prompts.txt | latentgen generate -p -`."""
    if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  None where the caller closed it
        raise InputError(
            "standard input is closed", hint="give it prompts, a line each, or name a file: --prompts FILE"
        )
    data = sys.stdin.buffer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise InputError(f"standard input holds more than {MAX_BYTES} bytes")
    return [
        Entry(line, flags, f"standard input line {number}") for number, line in _prompt_lines(data, "standard input")
    ]


def _prompt_lines(data: bytes, source: str) -> list[tuple[int, str]]:
    lines = numbered_lines(data, source)
    if not lines:
        raise InputError(f"{source} holds no prompt", hint="a prompt a line; lines that begin with # are left out")
    if len(lines) > MAX_PROMPTS:
        raise InputError(f"{source} holds {len(lines)} prompts; the limit is {MAX_PROMPTS}")
    return lines


def _entry(line: str, where: str, flags: Flags) -> Entry:
    try:
        row = json.loads(line, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at character {error.pos}") from None
    except (InputError, RecursionError, ValueError) as error:  # ValueError: a number of thousands of digits
        raise InputError(f"{where}: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f'{where}: expected an object with a "prompt"', hint='{"prompt": "a red boat", "seed": 1}')
    prompt = row.pop("prompt")
    try:
        values = _values(row)
        return Entry(prompt, replace(flags, **values), where, frozenset(values))
    except InputError as error:
        raise InputError(f"{where}: {error.message}", hint=error.hint) from None


def _values(row: dict[str, Any]) -> dict[str, Any]:
    """A line's flags by field. Raises InputError if one is unknown, of the wrong kind, or given under two names."""
    values: dict[str, Any] = {}
    for key, value in row.items():
        flag = find_flag(key)
        given = sides(flag.from_json(value)) if flag.field == SIZE else {flag.field: flag.from_json(value)}
        if values.keys() & given.keys():
            raise InputError(f"{key} is given twice, under two of its names")
        values |= given
    return values


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise InputError(f"{twice} is given twice")
    return row

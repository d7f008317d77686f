"""Prompts from a file or from standard input: a prompt a line, or with `.jsonl` an object a line with flags."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from latentgen.cli.options import parse_size
from latentgen.cli.plan import Entry, Flags
from latentgen.errors import InputError, ModelNotFoundError

MAX_FILE_BYTES = 16 * 2**20
MAX_PROMPTS = 10_000

_ALIASES = {"width": "width_px", "height": "height_px", "negative": "negative_prompt"}


def read_prompt_file(path: Path, flags: Flags) -> list[Entry]:
    """Entries of a prompt file; `flags` hold for every line that does not say otherwise.

    Raises ModelNotFoundError if there is no such file, InputError naming the line for what cannot be read.
    """
    try:
        if not path.exists():
            raise ModelNotFoundError(f"--prompts {path}: there is no such file")
        if not path.is_file():
            raise InputError(f"--prompts {path} is not a regular file", hint="to pipe prompts in, use: -p -")
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"--prompts {path} holds {path.stat().st_size} bytes; the limit is {MAX_FILE_BYTES}")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {path} cannot be read: {error}") from None
    lines = _lines(data, str(path))
    if path.suffix.lower() == ".jsonl":
        return [_entry(line, f"{path} line {number}", flags) for number, line in lines]
    return [Entry(line, flags, f"{path} line {number}") for number, line in lines]


def read_standard_input(flags: Flags) -> list[Entry]:
    """A prompt a line, as with `cat prompts.txt | latentgen generate -p -`."""
    data = sys.stdin.buffer.read(MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        raise InputError(f"standard input holds more than {MAX_FILE_BYTES} bytes")
    return [Entry(line, flags, f"standard input line {number}") for number, line in _lines(data, "standard input")]


def _lines(data: bytes, source: str) -> list[tuple[int, str]]:
    """Numbered lines that are neither empty nor comments."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{source} is UTF-16 text (byte 0)", hint="save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    # Only these end a line: str.splitlines would also split at control characters, which must be reported instead.
    rows = text.replace("\r\n", "\n").split("\n")
    lines = [(number, row.strip(" \t")) for number, row in enumerate(rows, start=1)]
    kept = [(number, row) for number, row in lines if row and not row.startswith("#")]
    if not kept:
        raise InputError(f"{source} holds no prompt", hint="a prompt a line; lines that begin with # are left out")
    if len(kept) > MAX_PROMPTS:
        raise InputError(f"{source} holds {len(kept)} prompts; the limit is {MAX_PROMPTS}")
    return kept


def _entry(line: str, where: str, flags: Flags) -> Entry:
    try:
        row = json.loads(line, object_pairs_hook=_without_duplicates)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: not JSON: {error.msg} at character {error.pos}") from None
    except (InputError, RecursionError) as error:
        raise InputError(f"{where}: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
        raise InputError(f'{where}: expected an object with a "prompt"', hint='{"prompt": "a red boat", "seed": 1}')
    values = {_field(str(key), where): value for key, value in row.items() if key != "prompt"}
    if isinstance(values.get("size"), str):
        values["width_px"], values["height_px"] = parse_size(values.pop("size"))
    for name, value in values.items():
        kinds = Flags.kinds(name)
        if isinstance(value, bool) or not isinstance(value, kinds):
            raise InputError(f"{where}: {name.removesuffix('_px')} must be {kinds[-1].__name__}, not {value!r}")
    return Entry(row["prompt"], replace(flags, **values), where)


def _field(key: str, where: str) -> str:
    name = key.replace("-", "_")
    name = _ALIASES.get(name, name)
    known = [*(field.name for field in fields(Flags)), "size"]
    if name not in known:
        from difflib import get_close_matches

        words: Sequence[str] = [field.removesuffix("_px") for field in known]
        close = get_close_matches(key, words, n=1)
        raise InputError(
            f"{where}: there is no flag {key}", hint=f"did you mean {close[0]}?" if close else ", ".join(words)
        )
    return name


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise InputError(f"{twice} is given twice")
    return row

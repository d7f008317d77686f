"""Text that people write, a thing a line: prompts, wildcards. UTF-8, with `#` comments."""

from __future__ import annotations

import re

from latentgen.errors import InputError

MAX_BYTES = 16 * 2**20
"""Of a file; a larger one is something else."""


def numbered_lines(data: bytes, source: str) -> list[tuple[int, str]]:
    """The lines that are neither empty nor comments, with their numbers. `source` names the file in messages.

    Raises InputError for what is not UTF-8 text.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise InputError(f"{source} is UTF-16 text (byte 0)", hint="save it as UTF-8")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{source} is not UTF-8 text: byte {error.start}", hint="save it as UTF-8") from None
    # Only these end a line: str.splitlines would also split at control characters, which must be reported instead.
    rows = text.replace("\r\n", "\n").split("\n")
    lines = [(number, row.strip(" \t")) for number, row in enumerate(rows, start=1)]
    return [(number, row) for number, row in lines if row and not row.startswith("#")]


def check_printable(lines: list[tuple[int, str]], source: str) -> None:
    """Raise InputError naming line and code point of the first control character."""
    for number, line in lines:
        found = re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]", line)
        if found is not None:
            raise InputError(
                f"{source} line {number} holds the control character U+{ord(found[0]):04X} at character {found.start()}"
            )

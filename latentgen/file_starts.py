"""What a file is by its first bytes, whatever its name says."""

from __future__ import annotations

from typing import Final

START_BYTES: Final = 12
"""As many are looked at."""


def picture_format(start: bytes) -> str | None:
    """PNG, JPEG, WEBP or GIF, as Pillow names them, by a file's first START_BYTES; None for anything else."""
    if start.startswith(b"\x89PNG"):  # Without the rest of its signature too: it is then a damaged one
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start.startswith(b"RIFF") and start[8:START_BYTES] == b"WEBP":
        return "WEBP"
    return "GIF" if start.startswith((b"GIF87a", b"GIF89a")) else None

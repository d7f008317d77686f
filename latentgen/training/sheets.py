"""Sample sheets for the report: a choice of them over the run, small enough to be carried inside one file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

MAX_SHEETS = 24
MAX_SIDE_PX = 1600
MAX_SHEET_BYTES = 250_000
"""So that all of them, in base64, stay under 8 MB."""
JPEG_QUALITY = 88
MAX_TEXT = 20_000


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet as the report carries it: a picture or, for the text encoder, a text."""

    step: int
    data_uri: str = ""
    width_px: int = 0
    height_px: int = 0
    text: str = ""


class SheetReader:
    """Reads and shrinks sheets; what has been read once is kept, so that a new report costs one new sheet."""

    def __init__(self) -> None:
        self._read: dict[tuple[Path, int, int], Sheet | None] = {}

    def read(self, sheets: Sequence[tuple[int, Path]]) -> list[Sheet]:
        """The first, the last, and between them every one, every second, fourth … so that one more changes no choice.

        A file that cannot be read is left out.
        """
        stride = 1
        while (len(sheets) - 1) // stride + 2 > MAX_SHEETS:
            stride *= 2
        chosen = [*sheets[:-1:stride], *sheets[-1:]]
        found = [self._sheet(step, path) for step, path in chosen]
        return [sheet for sheet in found if sheet is not None]

    def _sheet(self, step: int, path: Path) -> Sheet | None:
        try:
            stat = path.stat()
            key = (path, stat.st_size, stat.st_mtime_ns)
            if key not in self._read:
                text = path.suffix == ".txt"
                self._read[key] = Sheet(step, text=_text(path)) if text else _picture(step, path)
        except OSError:  # Pillow's word for a damaged picture, too
            return None
        return self._read[key]


def _text(path: Path) -> str:
    with path.open(encoding="utf-8", errors="replace") as file:
        return file.read(MAX_TEXT)


def _picture(step: int, path: Path) -> Sheet | None:
    from PIL import Image

    try:
        with Image.open(path) as opened:
            picture = opened.convert("RGB")
    except (ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    side_px = MAX_SIDE_PX
    while True:
        picture.thumbnail((side_px, side_px), reducing_gap=2.0)
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=JPEG_QUALITY)
        if file.tell() <= MAX_SHEET_BYTES or side_px < 64:
            break
        side_px = min(side_px, max(picture.size)) * 4 // 5
    data = base64.b64encode(file.getvalue()).decode("ascii")
    return Sheet(step, f"data:image/jpeg;base64,{data}", *picture.size)

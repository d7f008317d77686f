"""Pictures inside a terminal: kitty's and iTerm2's protocols, sixel, and half blocks in 24-bit colour for the others.

Sources: the kitty graphics protocol (sw.kovidgoyal.net/kitty/graphics-protocol), iTerm2's inline images (OSC 1337;
iterm2.com/documentation-images.html), DEC STD 070 chapter 9 for sixel, ISO 8613-6 for 24-bit colours.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from typing import Literal

import numpy as np
from PIL import Image

from latentgen.images.pixels import Pixels

Graphics = Literal["kitty", "iterm2", "sixel", "blocks"]

KITTY_CHUNK = 4096
"""Base64 characters of one kitty command, at most."""
KITTY_IMAGE_ID = 7_301
"""Of the first picture: a new one under the same number replaces the old one, wherever it stands."""
SIXEL_COLOURS = 128
_SIXEL_TERMS = ("foot", "mlterm", "yaft", "contour")


def graphics_of(environment: Mapping[str, str]) -> Graphics:
    """What a terminal can show, by what it says of itself. Half blocks wherever a multiplexer stands between."""
    term, program = environment.get("TERM", ""), environment.get("TERM_PROGRAM", "")
    if environment.get("TMUX") or term.startswith(("screen", "tmux")):
        return "blocks"
    if environment.get("KITTY_WINDOW_ID") or term in ("xterm-kitty", "xterm-ghostty") or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    if "sixel" in term or term.startswith(_SIXEL_TERMS) or program == "contour":
        return "sixel"
    return "blocks"


def why_no_picture(environment: Mapping[str, str], *, is_terminal: bool) -> str | None:
    """The reason why nothing should be drawn, None if there is none."""
    if not is_terminal:
        return "standard error is not a terminal"
    if environment.get("NO_COLOR"):
        return "NO_COLOR is set"
    if environment.get("TERM", "") in ("", "dumb"):
        return "the terminal cannot move its cursor"
    return None


def draw(pixels: Pixels, graphics: Graphics, columns: int, rows: int, *, number: int = 0) -> str:
    """The escape sequences of a picture, in place: the cursor ends where it began, at the picture's upper left.

    `columns` and `rows` are the cells the picture takes (`cells_of`). With "blocks" the picture's size decides:
    it must be `columns` wide and 2 `rows` high; sixel shows pixels as they are. number: of the picture, from 0.
    """
    if graphics == "kitty":
        return kitty(pixels, columns, rows, number=number)
    if graphics == "iterm2":
        return f"\x1b7{iterm2(pixels, columns, rows)}\x1b8"
    if graphics == "sixel":
        return f"\x1b7{sixel(pixels)}\x1b8"
    return half_blocks(pixels)


def cells_of(width_px: int, height_px: int, *, max_columns: int, max_rows: int) -> tuple[int, int]:
    """Columns and rows of a picture, as large as fits. A cell is taken for twice as high as wide."""
    scale = min(max_columns / width_px, 2 * max_rows / height_px)
    return max(1, int(width_px * scale)), max(1, int(height_px * scale / 2))


def half_blocks(pixels: Pixels) -> str:
    """Two pixels in one cell, ▀: the foreground is the upper, the background the lower. (H, W, 3) with H even."""
    height = pixels.shape[0]
    assert height % 2 == 0, f"two pixels go into a cell: {height} rows are odd"
    lines: list[str] = []
    for upper, lower in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        parts: list[str] = []
        before: tuple[list[int], list[int]] | None = None
        for above, below in zip(upper, lower, strict=True):
            if (above, below) != before:
                parts.append("\x1b[38;2;{};{};{};48;2;{};{};{}m".format(*above, *below))
                before = (above, below)
            parts.append("▀")
        lines.append("".join(parts) + "\x1b[0m")
    return "\r\n".join(lines) + f"\r\x1b[{len(lines) - 1}A" if len(lines) > 1 else lines[0] + "\r"


def kitty(pixels: Pixels, columns: int, rows: int, *, number: int = 0) -> str:
    """A PNG in chunks, shown over the given cells. The cursor does not move (C=1) and nothing is answered (q=2)."""
    data = base64.standard_b64encode(_png(pixels)).decode("ascii")
    chunks = [data[i : i + KITTY_CHUNK] for i in range(0, len(data), KITTY_CHUNK)]
    first = f"a=T,f=100,i={KITTY_IMAGE_ID + number},p=1,q=2,C=1,c={columns},r={rows},"
    return "".join(
        f"\x1b_G{first if i == 0 else ''}m={int(i < len(chunks) - 1)};{chunk}\x1b\\" for i, chunk in enumerate(chunks)
    )


def iterm2(pixels: Pixels, columns: int, rows: int) -> str:
    """A PNG in one sequence, shown over the given cells."""
    data = _png(pixels)
    options = f"inline=1;size={len(data)};width={columns};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={options}:{base64.standard_b64encode(data).decode('ascii')}\x07"


def sixel(pixels: Pixels) -> str:
    """Six rows of pixels at a time, one pass for each colour that occurs in them; SIXEL_COLOURS colours."""
    image = Image.fromarray(pixels, "RGB").quantize(SIXEL_COLOURS, dither=Image.Dither.NONE)
    indices = np.asarray(image)
    height, width = indices.shape
    palette = np.asarray(image.getpalette("RGB"), dtype=np.int64).reshape(-1, 3)
    parts = [f'\x1bP0;1;0q"1;1;{width};{height}']
    # Colours are percentages.
    parts += [f"#{i};2;{r};{g};{b}" for i, (r, g, b) in enumerate(((palette * 100 + 127) // 255).tolist())]
    for top in range(0, height, 6):
        band = indices[top : top + 6]
        bits = (1 << np.arange(len(band)))[:, None]
        passes = [f"#{colour}{_run_lengths(((band == colour) * bits).sum(axis=0))}" for colour in np.unique(band)]
        parts.append("$".join(passes) + "-")
    return "".join(parts) + "\x1b\\"


def _run_lengths(values: np.ndarray) -> str:
    """Sixel characters, of which `!n` repeats the next one."""
    edges = np.flatnonzero(np.diff(values)) + 1
    starts = [0, *edges.tolist()]
    ends = [*edges.tolist(), len(values)]
    text: list[str] = []
    for start, end in zip(starts, ends, strict=True):
        sign, count = chr(63 + int(values[start])), end - start
        text.append(f"!{count}{sign}" if count > 3 else sign * count)
    return "".join(text)


def _png(pixels: Pixels) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels, "RGB").save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

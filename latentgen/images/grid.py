"""Many pictures on one labelled sheet: seeds of a prompt, prompts against seeds, a setting against another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from latentgen.images.pixels import Pixels
from latentgen.request import GenerationRequest

MAX_SIDE_PX = 8192
"""Of a sheet; more or larger pictures are made smaller to fit."""
MAX_LINES = 4
"""Of a caption or a column's label; a row's label may be as high as its pictures."""
MAX_ROW_LABEL = 0.6
"""Width of a row's label, as a share of a picture's."""
ELLIPSIS = "..."
"""The built-in font lacks the single character."""
BACKGROUND, INK, FAINT = (250, 250, 248), (24, 24, 28), (96, 96, 104)
_NAMES = {
    "guidance_rescale": "rescale",
    "negative_prompt": "negative",
    "clip_skip": "clip skip",
    "deep_cache": "deep cache",
    "eta": "eta",
}
"""What a field is called on a sheet; others by their own name."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True, slots=True)
class Layout:
    """Which picture stands where, by its number, and what is written where. No label is an empty string."""

    cells: tuple[tuple[int | None, ...], ...]
    """Rows of equal length; None is an empty place."""
    row_labels: tuple[str, ...]
    column_labels: tuple[str, ...]
    captions: tuple[str, ...]
    """One for each picture, below it."""
    title: str = ""


def lay_out(requests: Sequence[GenerationRequest]) -> Layout:
    """The sheet of some requests, by what differs between them.

    Two settings that were combined each with each become rows and columns; prompts with as many pictures each become
    rows; anything else is a block as wide as high. What all share is the title.
    """
    shown = [_shown(request) for request in requests]
    differing = [name for name in shown[0] if len({each[name] for each in shown}) > 1]
    title = _title(shown[0], differing)
    if len(differing) == 2:
        rows, columns = (_values(shown, name) for name in differing)
        places = {(each[differing[0]], each[differing[1]]): k for k, each in enumerate(shown)}
        if len(places) == len(rows) * len(columns) == len(shown):
            cells = tuple(tuple(places[row, column] for column in columns) for row in rows)
            row_labels, column_labels = (
                tuple(_label(name, value) for value in values)
                for name, values in zip(differing, (rows, columns), strict=True)
            )
            return Layout(cells, row_labels, column_labels, ("",) * len(shown), title)
    if "prompt" in differing and len(differing) > 1:
        prompts = _values(shown, "prompt")
        groups = [tuple(k for k, each in enumerate(shown) if each["prompt"] == prompt) for prompt in prompts]
        if len({len(group) for group in groups}) == 1:
            captions = tuple(_caption(each, [name for name in differing if name != "prompt"]) for each in shown)
            return Layout(tuple(groups), tuple(prompts), (), captions, title)
    width = math.ceil(math.sqrt(len(shown)))
    padded = [*range(len(shown)), *[None] * (-len(shown) % width)]
    block = tuple(tuple(padded[i : i + width]) for i in range(0, len(padded), width))
    return Layout(block, (), (), tuple(_caption(each, differing) for each in shown), title)


def draw_sheet(pictures: Sequence[Pixels], layout: Layout) -> Pixels:
    """The sheet as bytes (H, W, 3). Pictures may differ in size; each is fitted into the largest's."""
    rows, columns = len(layout.cells), max(map(len, layout.cells))
    height, width = (max(picture.shape[axis] for picture in pictures) for axis in (0, 1))
    room = MAX_SIDE_PX * 0.85  # the rest is for labels
    scale = min(1.0, room / (columns * width), room / (rows * height))
    width, height = max(1, int(width * scale)), max(1, int(height * scale))
    size_px = min(max(round(width / 16), 11), 40)
    font, line = ImageFont.load_default(size_px), round(size_px * 1.3)
    gap = max(4, size_px // 2)

    title = wrap(layout.title, font, columns * (width + gap), MAX_LINES)
    heads = [wrap(label, font, width, MAX_LINES) for label in layout.column_labels]
    sides = [wrap(label, font, int(width * MAX_ROW_LABEL), height // line) for label in layout.row_labels]
    under = [wrap(caption, font, width, MAX_LINES) for caption in layout.captions]
    side_px = max((round(font.getlength(text)) for lines in sides for text in lines), default=-gap)
    head_px = max(map(len, heads), default=0) * line
    title_px = len(title) * line + (gap if title else 0)
    under_px = [max((len(under[k]) for k in row if k is not None), default=0) * line for row in layout.cells]

    left, top = 2 * gap + side_px, gap + title_px + head_px
    page = Image.new("RGB", (left + columns * (width + gap), top + sum(under_px) + rows * (height + gap)), BACKGROUND)
    pen = ImageDraw.Draw(page)
    _write(pen, title, (gap, gap), line, font, FAINT)
    for column, lines in enumerate(heads):
        x = left + column * (width + gap)
        _write(pen, lines, (x, top - line * len(lines) - gap // 3), line, font, INK)
    y = top
    for row, cells in enumerate(layout.cells):
        if sides:
            _write(pen, sides[row], (gap, y + max(0, (height - line * len(sides[row])) // 2)), line, font, INK)
        for column, k in enumerate(cells):
            if k is None:
                continue
            x = left + column * (width + gap)
            picture = _fitted(pictures[k], width, height)
            page.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
            _write(pen, under[k], (x, y + height + gap // 4), line, font, INK)
        y += height + gap + under_px[row]
    return np.asarray(page)


def wrap(text: str, font: Font, width_px: int, max_lines: int) -> list[str]:
    """A text in lines of at most `width_px`; what does not fit ends in an ellipsis."""
    words = text.split()
    lines: list[str] = []
    for word in words:
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width_px:
            lines[-1] = joined
        else:
            lines.append(word)
    kept = lines[: max(max_lines, 1)]
    if len(lines) > len(kept):
        kept[-1] += ELLIPSIS
    return [_shortened(line, font, width_px) for line in kept]


def _shortened(line: str, font: Font, width_px: int) -> str:
    if font.getlength(line) <= width_px:
        return line
    stem = line.removesuffix(ELLIPSIS)
    while len(stem) > 1 and font.getlength(stem + ELLIPSIS) > width_px:
        stem = stem[:-1]
    return stem.rstrip() + ELLIPSIS


def _write(
    pen: ImageDraw.ImageDraw,
    lines: Sequence[str],
    at: tuple[int, int],
    line_px: int,
    font: Font,
    ink: tuple[int, int, int],
) -> None:
    for k, text in enumerate(lines):
        pen.text((at[0], at[1] + k * line_px), text, fill=ink, font=font)


def _fitted(picture: Pixels, width: int, height: int) -> Image.Image:
    image = Image.fromarray(picture, "RGB")
    scale = min(width / image.width, height / image.height)
    if scale < 1:
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def _shown(request: GenerationRequest) -> dict[str, str]:
    """The fields of a request as they are written, width and height as one."""
    values: dict[str, Any] = {field.name: getattr(request, field.name) for field in fields(request)}
    size = f"{values.pop('width_px')}x{values.pop('height_px')}"
    return {**{name: _text(value) for name, value in values.items()}, "size": size}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return " ".join(_text(each) for each in cast("tuple[object, ...]", value)) or "none"
    if hasattr(value, "name") and hasattr(value, "scale"):  # a LoRA
        return f"{value.name}:{value.scale:g}"  # pyright: ignore[reportAttributeAccessIssue]  just asked
    return "" if value is None else str(getattr(value, "name", value))


def _values(shown: Sequence[Mapping[str, str]], name: str) -> list[str]:
    """Distinct values in the order they come."""
    return list(dict.fromkeys(each[name] for each in shown))


def _label(name: str, value: str) -> str:
    if name == "steps":
        return f"{value} steps"
    return (
        value if name in ("prompt", "size", "sampler", "schedule") else f"{_NAMES.get(name, name)} {value or 'default'}"
    )


def _caption(shown: Mapping[str, str], differing: Sequence[str]) -> str:
    return ", ".join(_label(name, shown[name]) for name in differing)


def _title(shown: Mapping[str, str], differing: Sequence[str]) -> str:
    """What every picture shares: the prompt and the settings one asks for first."""
    named = [name for name in ("steps", "sampler", "schedule", "guidance", "seed") if name not in differing]
    settings = ", ".join(_label(name, shown[name]) for name in named)
    prompt = "" if "prompt" in differing else f"{shown['prompt']}: "
    return prompt + settings

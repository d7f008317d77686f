"""Contact sheets: what the corpus looks like at a glance, for the documentation and for whoever changes a drawing.

    python -m latentgen.corpus.sheets FOLDER

writes one JPEG each of the nouns, the hours and weathers, the styles, the counts and pairs, and a random draw.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from latentgen.corpus.compose import render_scene
from latentgen.corpus.hero_scenes import HEROES_20, Hero, sample_hero20_scene
from latentgen.corpus.sampling import HERO_COLOURS
from latentgen.corpus.scene import Noun, SceneSpec, Setting, Side, Style, Subject, TimeOfDay, Weather

JPEG_QUALITY = 80
GAP_PX, CAPTION_PX = 3, 12
HOURS: tuple[TimeOfDay, ...] = ("day", "dawn", "sunset", "dusk", "night")
WEATHERS: tuple[Weather, ...] = ("clear", "cloudy", "overcast", "rain", "storm", "snow", "fog")
STYLES: tuple[Style, ...] = ("flat", "watercolor", "oil painting", "pixel art", "pencil sketch", "neon")

Cell = tuple[str, SceneSpec]
"""What is written under a picture, and the picture's scene."""


def sheet(rows: Sequence[Sequence[Cell]], cell_px: int = 160, seed: int = 0) -> Image.Image:
    """The scenes in a grid, drawn at 256 px and made smaller, the picture in row r and column c by seed + 100 r + c."""
    height, width = cell_px + CAPTION_PX + GAP_PX, cell_px + GAP_PX
    page = Image.new("RGB", (max(map(len, rows)) * width + GAP_PX, len(rows) * height + GAP_PX), "white")
    for row, cells in enumerate(rows):
        for column, (text, scene) in enumerate(cells):
            left, top = GAP_PX + column * width, GAP_PX + row * height
            picture = Image.fromarray(render_scene(scene, seed + 100 * row + column))
            page.paste(picture.resize((cell_px, cell_px), Image.Resampling.BOX), (left, top))
            label = Image.new("RGB", (cell_px, CAPTION_PX), "white")  # Cuts off what is too long
            ImageDraw.Draw(label).text((1, 0), text, fill="black")
            page.paste(label, (left, top + cell_px))
    return page


def scene_of(
    name: str,
    setting: Setting | None = None,
    time: TimeOfDay = "day",
    weather: Weather = "clear",
    style: Style = "flat",
    *,
    count: int = 1,
    colour: str | None = None,
    side: Side | None = None,
) -> SceneSpec:
    """A scene of one of the twenty heroes, in the first of its settings if none is named."""
    hero = HEROES_20[name]
    place = next(iter(hero.settings)) if setting is None else setting
    return SceneSpec(place, time, (_subject(name, hero, count, colour),), weather, style, side=side)


def _subject(name: str, hero: Hero, count: int = 1, colour: str | None = None) -> Subject:
    return Subject(Noun(name, hero.category, hero.drawing), count, colour)


def nouns_sheet(names: Sequence[str] = tuple(HEROES_20), variations: int = 5, cell_px: int = 96) -> Image.Image:
    """Two nouns a row: settings, hours and colours in turn, every drawing different."""
    rows = [
        [cell for name in names[first : first + 2] for cell in _variations_of(name, variations)]
        for first in range(0, len(names), 2)
    ]
    return sheet(rows, cell_px)


def _variations_of(name: str, variations: int) -> list[Cell]:
    hero = HEROES_20[name]
    colours = list(dict.fromkeys(HERO_COLOURS.get(hero.drawing, (None,))))
    settings = list(hero.settings)
    cells: list[Cell] = []
    for index in range(variations):
        setting, colour = settings[index % len(settings)], colours[index % len(colours)]
        cells.append(("" if index else name, scene_of(name, setting, HOURS[index % len(HOURS)], colour=colour)))
    return cells


def weathers_sheet(cell_px: int = 140) -> Image.Image:
    """Each hour under every weather that it has; the subject changes with the hour."""
    shown = (("house", "red"), ("sailboat", "white"), ("castle", "gray"), ("lighthouse", "red"), ("cabin", None))
    rows: list[list[Cell]] = []
    for hour, (name, colour) in zip(HOURS, shown, strict=True):
        scenes = [scene_of(name, None, hour, weather, colour=colour) for weather in _weathers_at(hour)]
        rows.append([(f"{hour}, {scene.weather}", scene) for scene in scenes])
    return sheet(rows, cell_px)


def _weathers_at(hour: TimeOfDay) -> tuple[Weather, ...]:
    last: tuple[Weather, ...] = ("aurora",) if hour == "night" else ("rainbow",) if hour != "dusk" else ()
    return (*WEATHERS, *last)


def styles_sheet(cell_px: int = 176) -> Image.Image:
    """Some scenes by day and by night in every style."""
    scenes: tuple[tuple[str, Setting, TimeOfDay, Weather, str], ...] = (
        ("lighthouse", "cliff", "sunset", "clear", "red"),
        ("house", "meadow", "night", "rain", "yellow"),
        ("castle", "lake", "day", "cloudy", "pink"),
        ("sailboat", "sea", "night", "clear", "white"),
    )
    rows: list[list[Cell]] = [
        [(style, scene_of(name, setting, hour, weather, style, colour=colour)) for style in STYLES]
        for name, setting, hour, weather, colour in scenes
    ]
    return sheet(rows, cell_px)


def counts_sheet(cell_px: int = 150) -> Image.Image:
    """One to four of a noun, the sides of the picture, and pairs that differ in noun and colour."""
    counted: tuple[tuple[str, Setting, str | None], ...] = (
        ("house", "meadow", "red"),
        ("sailboat", "sea", "yellow"),
        ("hot air balloon", "hills", "blue"),
        ("pine tree", "snow", None),
    )
    rows: list[list[Cell]] = [
        [(f"{n} x {name}", scene_of(name, setting, count=n, colour=colour)) for n in (1, 2, 3, 4)]
        + _side_cells(name, setting, colour)
        for name, setting, colour in counted
    ]
    pairs: tuple[tuple[str, str, str, str, Setting], ...] = (
        ("red", "house", "blue", "sailboat", "beach"),
        ("blue", "house", "red", "sailboat", "lake"),
        ("white", "sailboat", "red", "lighthouse", "cliff"),
        ("purple", "hot air balloon", "white", "castle", "hills"),
        ("yellow", "cottage", "blue", "windmill", "meadow"),
        ("blue", "lighthouse", "orange", "sailboat", "sea"),
    )
    rows.append([(f"{a} {b} | {c} {d}", _pair(a, b, c, d, setting)) for a, b, c, d, setting in pairs])
    return sheet(rows, cell_px)


def _side_cells(name: str, setting: Setting, colour: str | None) -> list[Cell]:
    sides: tuple[Side, ...] = ("left", "right")
    return [(f"{name}, {side}", scene_of(name, setting, "sunset", colour=colour, side=side)) for side in sides]


def _pair(first_colour: str, first: str, second_colour: str, second: str, setting: Setting) -> SceneSpec:
    subjects = (
        _subject(first, HEROES_20[first], colour=first_colour),
        _subject(second, HEROES_20[second], colour=second_colour),
    )
    return SceneSpec(setting, "day", subjects)


def random_sheet(rows: int = 6, columns: int = 8, cell_px: int = 150, seed: int = 0) -> Image.Image:
    """Scenes as training sees them, unselected."""
    scenes = [
        [("", sample_hero20_scene(np.random.default_rng(seed + 100 * row + column))) for column in range(columns)]
        for row in range(rows)
    ]
    return sheet(scenes, cell_px, seed)


SHEETS: dict[str, Callable[[], Image.Image]] = {
    "nouns": nouns_sheet,
    "weathers": weathers_sheet,
    "styles": styles_sheet,
    "counts": counts_sheet,
    "random": random_sheet,
}


def write_sheets(folder: Path) -> list[Path]:
    """Write every sheet as a JPEG into the folder; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"corpus-{name}.jpg" for name in SHEETS]
    for file, draw in zip(files, SHEETS.values(), strict=True):
        draw().save(file, quality=JPEG_QUALITY, optimize=True)
    return files


if __name__ == "__main__":
    for written in write_sheets(Path(sys.argv[1])):
        print(written)

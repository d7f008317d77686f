"""Contact sheets: what the corpus looks like at a glance, for the documentation and for whoever changes a drawing.

One JPEG each of the nouns, the hours and weathers, the styles, the counts and pairs, and of records as they come.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from latentgen.corpus.artwork import Artwork, default_artwork_folder
from latentgen.corpus.compose import render_scene
from latentgen.corpus.hero_scenes import HEROES_20, Hero
from latentgen.corpus.records import SCENE_SOURCES, VocabularyName, make_record
from latentgen.corpus.sampling import HERO_COLOURS
from latentgen.corpus.scene import Noun, SceneSpec, Setting, Side, Style, Subject, TimeOfDay, Weather
from latentgen.errors import InputError

JPEG_QUALITY = 70
GAP_PX, LINE_PX, CHARACTER_PX = 3, 12, 6
HOURS: tuple[TimeOfDay, ...] = ("day", "dawn", "sunset", "dusk", "night")
WEATHERS: tuple[Weather, ...] = ("clear", "cloudy", "overcast", "rain", "storm", "snow", "fog")
STYLES: tuple[Style, ...] = ("flat", "watercolor", "oil painting", "pixel art", "pencil sketch", "neon")

Cell = tuple[str, SceneSpec]
"""What is written under a picture, and the picture's scene."""


def sheet(rows: Sequence[Sequence[Cell]], cell_px: int = 160) -> Image.Image:
    """The scenes in a grid, the picture in row r and column c by seed 100 r + c."""
    pictures = [
        [(text, _drawn(scene, 100 * row + column, cell_px)) for column, (text, scene) in enumerate(cells)]
        for row, cells in enumerate(rows)
    ]
    return _page(pictures, cell_px)


def _drawn(scene: SceneSpec, seed: int, cell_px: int, artwork: Artwork | None = None) -> Image.Image:
    """The scene as it is drawn at 256 px, made smaller."""
    return Image.fromarray(render_scene(scene, seed, artwork=artwork)).resize((cell_px, cell_px), Image.Resampling.BOX)


def _page(rows: Sequence[Sequence[tuple[str, Image.Image]]], cell_px: int, lines: int = 1) -> Image.Image:
    """Pictures of `cell_px` in a grid, under each its text on so many lines; what is too long is cut off."""
    label_px = lines * LINE_PX
    height, width = cell_px + label_px + GAP_PX, cell_px + GAP_PX
    page = Image.new("RGB", (max(map(len, rows)) * width + GAP_PX, len(rows) * height + GAP_PX), "white")
    for row, cells in enumerate(rows):
        for column, (text, picture) in enumerate(cells):
            left, top = GAP_PX + column * width, GAP_PX + row * height
            page.paste(picture, (left, top))
            label = Image.new("RGB", (cell_px, label_px), "white")
            for line, words in enumerate(textwrap.wrap(text, cell_px // CHARACTER_PX)[:lines]):
                ImageDraw.Draw(label).text((1, line * LINE_PX), words, fill="black")
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


def nouns_sheet(names: Sequence[str] = tuple(HEROES_20), variations: int = 5, cell_px: int = 88) -> Image.Image:
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


def records_sheet(
    vocabulary: VocabularyName = "heroes20",
    seed: int = 0,
    artwork_folder: Path | None = None,
    *,
    rows: int = 5,
    columns: int = 7,
    cell_px: int = 132,
) -> Image.Image:
    """Records as training sees them, unselected, with their first captions: those of seeds from `seed` upwards.

    Raises ModelNotFoundError if the vocabulary needs artwork that is not there.
    """
    artwork = None
    if SCENE_SOURCES[vocabulary].needs_artwork:
        artwork = Artwork(default_artwork_folder() if artwork_folder is None else artwork_folder)
    cells: list[tuple[str, Image.Image]] = []
    for each in range(seed, seed + rows * columns):
        record = make_record(vocabulary, each, 1)
        cells.append((record.captions[0], _drawn(record.scene, each, cell_px, artwork)))
    return _page([cells[row * columns : (row + 1) * columns] for row in range(rows)], cell_px, lines=3)


SHEETS: dict[str, Callable[[], Image.Image]] = {
    "nouns": nouns_sheet,
    "weathers": weathers_sheet,
    "styles": styles_sheet,
    "counts": counts_sheet,
}
"""Sheets of chosen scenes."""
RECORDS = "records"
SHEET_NAMES = (*SHEETS, RECORDS)


def write_sheets(
    folder: Path,
    names: Sequence[str] = SHEET_NAMES,
    *,
    vocabulary: VocabularyName = "heroes20",
    seed: int = 0,
    artwork_folder: Path | None = None,
) -> list[Path]:
    """Write the named sheets as JPEGs into the folder; returns the files. What follows `names` concerns the records.

    Raises InputError for a name, vocabulary or folder that cannot be; nothing is written then.
    """
    for name in names:
        if name not in SHEET_NAMES:
            raise InputError(f"no contact sheet {name!r}; there are {', '.join(SHEET_NAMES)}")
    if vocabulary not in SCENE_SOURCES:
        raise InputError(f"corpus: vocabulary {vocabulary!r} is not one of {', '.join(SCENE_SOURCES)}")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file, not a folder")
    files: list[Path] = []
    for name in names:
        page = SHEETS[name]() if name in SHEETS else records_sheet(vocabulary, seed, artwork_folder)
        jpeg = io.BytesIO()
        page.save(jpeg, "JPEG", quality=JPEG_QUALITY, optimize=True)
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"corpus-{name}.jpg"
        aside = file.with_suffix(".jpg.partial")
        aside.write_bytes(jpeg.getvalue())
        aside.replace(file)
        files.append(file)
    return files

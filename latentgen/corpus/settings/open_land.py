"""Open rolling land: meadow, hills, mountains, village, autumn fields, snow."""

from __future__ import annotations

from collections.abc import Sequence

from latentgen.corpus.canvas import Canvas
from latentgen.corpus.colour import parse_hex, shade
from latentgen.corpus.heroes.houses import draw_house
from latentgen.corpus.heroes.trees import TreeKind, draw_tree
from latentgen.corpus.paint import paint
from latentgen.corpus.settings.shores import draw_alps, draw_lake
from latentgen.corpus.settings.stage import Stage
from latentgen.corpus.terrain import Ground, draw_grass, draw_hill, draw_mountains, draw_road

FLOWER_BEDS: tuple[Sequence[str], ...] = (
    ("#ffffff", "#ffe26a"),
    ("#e8554e", "#f58a7a"),
    ("#b78af0", "#d9b8ff", "#ffffff"),
    ("#ffd23f", "#fff2a0"),
    ("#f58ab8", "#ffd0e4", "#ffffff"),
)
VILLAGE_WALLS = ("white", "#f2d9b0", "#e9b7a0", "#cfe0e6", "#f4e6a8")


def draw_mountain_land(canvas: Canvas, horizon: float) -> Stage:
    """Mountains behind a lake or behind a meadow."""
    draw_alps(canvas, horizon)
    if canvas.chance(0.5):
        return draw_lake(canvas, horizon)
    return draw_open_land(canvas, horizon)


def draw_mountain_lake(canvas: Canvas, horizon: float) -> Stage:
    draw_alps(canvas, horizon)
    return draw_lake(canvas, horizon)


def draw_open_land(canvas: Canvas, horizon: float) -> Stage:
    """Hills with trees in the distance and a foreground of grass, leaves or snow, by the scene's setting."""
    setting = canvas.scene.setting
    grass = _ground_colour(canvas)
    if setting != "mountains" and canvas.chance(0.6):
        draw_mountains(canvas, horizon, canvas.uniform(34, 62), 2, "#64788c", 0.82)
    _draw_far_hills(canvas, horizon, grass, layers=2 if setting == "meadow" else 3)
    foreground_y = horizon + canvas.uniform(42, 52)
    ground = draw_hill(canvas, foreground_y, canvas.uniform(5, 9), grass)
    if canvas.snow_covered:
        _draw_snow_field(canvas, ground)
    else:
        _draw_green_field(canvas, ground, grass)
    return Stage("land", horizon, (foreground_y + 16, 244), ground)


def _ground_colour(canvas: Canvas) -> str:
    colours = {
        "meadow": canvas.choice(["#7cb653", "#8cbf4f", "#6aae5a"]),
        "hills": canvas.choice(["#79b256", "#93b84e", "#5fa566"]),
        "village": "#86b556",
        "autumn": canvas.choice(["#c9a548", "#b8923f", "#c98b4a"]),
        "snow": "#eef4fc",
        "mountains": canvas.choice(["#7fae58", "#6f9f5a"]),
    }
    return "#eef4fc" if canvas.snow_covered else colours[canvas.scene.setting]


def _draw_far_hills(canvas: Canvas, horizon: float, grass: str, layers: int) -> None:
    setting = canvas.scene.setting
    for layer in range(layers):
        nearness = layer / layers
        distance = 1 - nearness
        y, amplitude = horizon + nearness * 34 + 4, canvas.uniform(7, 13)
        colour = grass if layer % 2 == 0 else shade(parse_hex(grass), 0.93)
        ground = draw_hill(canvas, y, amplitude, colour, 0.55 * distance**1.2, 0.3 * distance)
        for _ in range(canvas.integer(3, 9)):
            x = canvas.uniform(-5, 261)
            height = canvas.uniform(9, 17) * (1 + 0.5 * nearness)
            foot = ground(x) + 1.5
            if setting in ("snow", "mountains") or canvas.snow_covered:
                kind: TreeKind = "pine"
            else:
                kind = "autumn" if setting == "autumn" else canvas.choice(("round", "round", "pine"))
            if not canvas.scene.shows(kind):
                draw_tree(canvas, x, foot, height * (1.3 if kind == "pine" else 1), kind, 0.5 * distance)
        if setting == "village" and layer > 0:
            for _ in range(canvas.integer(2, 4)):
                x = canvas.uniform(10, 246)
                height = canvas.uniform(13, 20) * (1 + 0.3 * layer)
                wall = canvas.choice(VILLAGE_WALLS)
                draw_house(canvas, x, ground(x) + 3, height, wall, haze=0.35 * distance)


def _draw_green_field(canvas: Canvas, ground: Ground, grass: str) -> None:
    setting = canvas.scene.setting
    autumn = setting == "autumn"
    if canvas.chance(0.35):
        draw_road(canvas, ground)
    flowers = None
    if canvas.palette.time != "night" and not autumn and (setting == "meadow" or canvas.chance(0.6)):
        flowers = canvas.choice(FLOWER_BEDS)
    draw_grass(canvas, ground, 258, grass, 110 if autumn else 190, flowers)
    if not autumn:
        return
    for _ in range(70):
        x, closeness = canvas.uniform(0, 256), canvas.uniform(0, 1)
        y = ground(x) + 3 + closeness * (250 - ground(x))
        leaf = canvas.lit(canvas.choice(["#e0702f", "#d8402f", "#f0b23f", "#a8552f"]), 0.9)
        canvas.oval(x, y, 1 + 1.6 * closeness, 0.7 + 0.9 * closeness, paint(leaf, 0.9))
    if canvas.scene.shows("autumn"):
        return
    side = canvas.choice([-1, 1])
    x = 128 + side * canvas.uniform(95, 120)
    draw_tree(canvas, x, ground(x) + 30, canvas.uniform(110, 150), "autumn")


def _draw_snow_field(canvas: Canvas, ground: Ground) -> None:
    for _ in range(60):
        x = canvas.uniform(0, 256)
        y = ground(x) + 4 + canvas.uniform(0, 1) ** 0.8 * 60
        radius_x, radius_y = canvas.uniform(4, 16), canvas.uniform(0.5, 1.4)
        canvas.oval(x, y, radius_x, radius_y, paint(canvas.lit("#ffffff", 1), 0.45))
    if canvas.scene.shows("pine") or not canvas.scene.is_single:
        return
    for side in (-1, 1):
        for _ in range(canvas.integer(0, 2)):
            x = 128 + side * canvas.uniform(82, 126)
            foot = ground(x) + canvas.uniform(8, 26)
            draw_tree(canvas, x, foot, canvas.uniform(60, 96), "pine")

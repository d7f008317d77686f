"""The city: three rows of towers behind a street or a river."""

from __future__ import annotations

from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.colour import BLACK, Rgb, mix, shade
from latentgen.corpus.heroes.trees import draw_tree
from latentgen.corpus.paint import horizontal_gradient, packed, paint, polygon, vertical_gradient
from latentgen.corpus.settings.stage import Stage, flat_at
from latentgen.corpus.water import draw_water

LIT_WINDOWS = ("#ffd98a", "#ffe7b0", "#ffc56a", "#bfe0ff")
FACADES = ("#6f7f9a", "#8a90a6", "#5f7088", "#9a8f9a", "#7a6f86")


def draw_city(canvas: Canvas, horizon: float) -> Stage:
    palette = canvas.palette
    lamps_lit = palette.time in ("dusk", "night") or canvas.weather == "storm"
    for row in range(3):
        nearness = row / 2
        _draw_tower_row(canvas, horizon + 6 * row, nearness, has_windows=row > 0, lamps_lit=lamps_lit)
        smog = mix(palette.haze, (1, 0.8, 0.5) if lamps_lit else palette.haze, 0.25)
        stops = [packed(palette.haze, 0), packed(smog, 0.42 * (1 - 0.5 * nearness))]
        canvas.rect(-2, horizon - 30, 260, 40, paint(shader=vertical_gradient(horizon - 40, horizon + 8, stops)))
    river_by_chance = canvas.chance(0.35)
    if canvas.scene.river or river_by_chance:
        draw_water(canvas, horizon + 10, mirror=0.8, calm=0.7)
        return Stage("water", horizon + 10, (horizon + 32, horizon + 52), flat_at(horizon + 10))
    _draw_street(canvas, horizon, lamps_lit)
    return Stage("land", horizon, (horizon + 44, horizon + 50), flat_at(horizon + 31))


def _draw_tower_row(canvas: Canvas, foot: float, nearness: float, *, has_windows: bool, lamps_lit: bool) -> None:
    haze = 0.68 * (1 - nearness) + 0.06
    x = -12.0
    while x < 262:
        width = canvas.uniform(12, 26) * (0.8 + 0.35 * nearness)
        height = canvas.uniform(34, 112) * (1 - 0.25 * nearness)
        facade = canvas.lit(canvas.choice(FACADES), 0.55, haze)
        top = foot - height
        bright, dark = (x, x + width) if canvas.sun_side < 0 else (x + width, x)
        shading = horizontal_gradient(bright, dark, [mix(facade, canvas.palette.key_light, 0.1), shade(facade, 0.82)])
        canvas.rect(x, top, width, height + 4, paint(shader=shading))
        _draw_roof(canvas, x, top, width, facade)
        if has_windows:
            _draw_windows(canvas, x, top, foot, width, facade, nearness, lamps_lit)
        x += width + canvas.uniform(-1, 3)


def _draw_roof(canvas: Canvas, x: float, top: float, width: float, facade: Rgb) -> None:
    """A penthouse, an antenna, a slanted roof, or nothing."""
    kind = canvas.integer(0, 4)
    if kind == 0:
        canvas.rect(x + width * 0.2, top - 5, width * 0.6, 5, paint(shade(facade, 0.95)))
    elif kind == 1:
        tip_y = top - canvas.uniform(7, 16)
        canvas.line(x + width / 2, top, x + width / 2, tip_y, paint(shade(facade, 0.9), stroke=0.9))
    elif kind == 2:
        slant = [(x, top), (x + width, top - width * 0.35), (x + width, top)]
        canvas.path(polygon(slant), paint(shade(facade, 0.95)))


def _draw_windows(
    canvas: Canvas,
    x: float,
    top: float,
    foot: float,
    width: float,
    facade: Rgb,
    nearness: float,
    lamps_lit: bool,
) -> None:
    columns = max(2, int(width / 4.6))
    spacing = width / columns
    dark_pane = mix(facade, BLACK if lamps_lit else canvas.palette.sky[0], 0.35)
    for column in range(columns):
        left = x + column * spacing + spacing * 0.25
        y = top + 4
        while y < foot - 3:
            if lamps_lit and canvas.chance(0.55):
                pane = paint(canvas.choice(LIT_WINDOWS), 0.95 * (0.5 + 0.5 * nearness))
            else:
                pane = paint(dark_pane, 0.6)
            canvas.rect(left, y, spacing * 0.5, 2.3, pane)
            y += 5


def _draw_street(canvas: Canvas, horizon: float, lamps_lit: bool) -> None:
    """A strip of park, the pavement, and the road with its markings."""
    kerb = horizon + 31
    canvas.rect(-2, horizon + 10, 260, 256, paint(canvas.lit("#8f9a8a", 0.6)))
    lawn = vertical_gradient(horizon + 10, horizon + 19, [canvas.lit("#7aa35a", 0.9), canvas.lit("#6a934f", 0.7)])
    canvas.rect(-2, horizon + 10, 260, 9, paint(shader=lawn))
    for _ in range(7):
        x = canvas.uniform(0, EXTENT)
        draw_tree(canvas, x, horizon + 17, canvas.uniform(14, 24), "round", 0.05)
    canvas.rect(-2, horizon + 19, 260, 12, paint(canvas.lit("#c4bfb6", 0.9)))
    asphalt = vertical_gradient(kerb, 256, [canvas.lit("#6a6f7a", 0.85), canvas.lit("#4a4f5a", 0.7)])
    canvas.rect(-2, kerb, 260, 60, paint(shader=asphalt))
    for index in range(8):
        canvas.rect(-10 + index * 38, horizon + 54, 20, 2.2, paint(canvas.lit("#f4e6b0", 1), 0.9))
    if lamps_lit:
        for x in (40, 216):
            canvas.line(x, kerb, x, horizon - 10, paint("#20242c", stroke=1.5))
            canvas.glow(x, horizon - 10, 26, (1, 0.8, 0.45), 0.8)
            canvas.circle(x, horizon - 10, 2, paint("#fff2c8"))

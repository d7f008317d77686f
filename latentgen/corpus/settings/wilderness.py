"""Desert and forest."""

from __future__ import annotations

import math

from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.colour import Rgb, mix, parse_hex, shade
from latentgen.corpus.heroes.trees import draw_tree
from latentgen.corpus.paint import ADD_LIGHT, outline, packed, paint, polygon, vertical_gradient
from latentgen.corpus.settings.stage import Stage, flat_at
from latentgen.corpus.terrain import Ground, draw_grass, draw_hill, ridge_line
from latentgen.corpus.weather import draw_fog_banks


def draw_desert(canvas: Canvas, horizon: float) -> Stage:
    """Four rows of dunes, sometimes a far range of red rock and some cacti."""
    if canvas.chance(0.5):
        skyline = ridge_line(canvas, horizon + 3, canvas.uniform(14, 34), 60, 3, 0.4)
        rock = [canvas.lit("#b5694a", 0.7, 0.5), canvas.lit("#b5694a", 0.7, 0.72)]
        shading = vertical_gradient(horizon - 30, horizon + 6, rock)
        canvas.path(polygon([*skyline, (270, horizon + 8), (-10, horizon + 8)]), paint(shader=shading))
    sand = canvas.choice(["#ecc07a", "#e8b06a", "#efcf96", "#e39a62"])
    ground = flat_at(horizon)
    for row in range(4):
        ground = _draw_dune_row(canvas, horizon, sand, row / 4)
    for _ in range(canvas.integer(0, 3) if canvas.scene.is_single and not canvas.scene.shows("cactus") else 0):
        x = 128 + canvas.choice([-1, 1]) * canvas.uniform(62, 118)
        foot = ground(x) + canvas.uniform(6, 30)
        draw_tree(canvas, x, foot, canvas.uniform(22, 48), "cactus")
    for _ in range(26):
        x = canvas.uniform(0, 256)
        y = ground(x) + 6 + canvas.uniform(0, 1) * 60
        end_x, end_y = x + canvas.uniform(6, 20), y + canvas.uniform(-0.6, 0.6)
        ripple = paint(canvas.lit(shade(parse_hex(sand), 0.86), 0.6), 0.5, stroke=0.6)
        canvas.line(x, y, end_x, end_y, ripple)
    return Stage("land", horizon, (horizon + 66, 242), ground)


def _draw_dune_row(canvas: Canvas, horizon: float, sand: str, nearness: float) -> Ground:
    y = horizon + 6 + nearness * nearness * 88
    amplitude = canvas.uniform(9, 18) * (0.6 + nearness)
    phase = canvas.uniform(0, 6)
    frequency = canvas.uniform(0.011, 0.017) / (0.7 + nearness * 0.8)

    def ground(x: float) -> float:
        return y - amplitude * (1 - abs(math.sin(x * frequency + phase)) ** 1.4)

    crest = [(x, ground(x)) for x in range(-8, 273, 4)]
    dunes = polygon([*crest, (272, 262), (-8, 262)])
    haze = 0.45 * (1 - nearness)
    shading = vertical_gradient(y - amplitude, y + 50, [canvas.lit(sand, 1, haze), canvas.lit(sand, 0.65, haze * 0.7)])
    canvas.path(dunes, paint(shader=shading))
    with canvas.clipped(dunes):
        for index in range(-2, 5):
            x = (index * math.pi - phase) / frequency
            if not -60 < x < 320:
                continue
            _draw_lee_side(canvas, x, ground, 1.57 / frequency, canvas.lit(sand, 0.05, haze))
    return ground


def _draw_lee_side(canvas: Canvas, x: float, ground: Ground, length: float, shadow: Rgb) -> None:
    """The shaded side of the dune with its summit at x: an S-shaped edge runs down from it, away from the sun."""
    away, top = -canvas.sun_side, ground(x)
    crest = [(x + away * length * step / 8, ground(x + away * length * step / 8) - 1) for step in range(9)]
    foot = ground(x + away * length) + length * 0.16
    lee = outline(
        (x, top - 1),
        (
            *(x + away * length * 0.24, top + (foot - top) * 0.3),
            *(x - away * length * 0.1, top + (foot - top) * 0.75),
            *(x + away * length * 0.42, foot),
        ),
        (x + away * length * 0.8, foot + 2, *crest[-1]),
        *reversed(crest[1:-1]),
    )
    shading = vertical_gradient(top, foot, [packed(shadow, 0.6), packed(shadow, 0.12)])
    canvas.path(lee, paint(shader=shading, blur=0.6))


def draw_forest(canvas: Canvas, _horizon: float) -> Stage:
    """A clearing in a pine forest: four rows of trunks in mist, sunbeams by day and fireflies by night."""
    palette = canvas.palette
    mist = [packed(palette.haze, 0), packed(mix(palette.haze, palette.glow, 0.3), 0.9)]
    canvas.rect(0, 60, EXTENT, 140, paint(shader=vertical_gradient(60, 200, mist)))
    for row in range(4):
        nearness = row / 4
        haze = 0.72 * (1 - nearness) ** 1.1
        trees = 11 - 2 * row
        for index in range(trees if row < 3 or not canvas.scene.shows("pine") else 0):
            x = (index + canvas.uniform(0, 1)) * EXTENT / trees
            if row == 3 and 70 < x < 186:
                continue  # The clearing
            foot = 172 + row * 11 + canvas.uniform(-3, 3)
            draw_tree(canvas, x, foot, canvas.uniform(85, 120) * (0.9 + 0.42 * nearness), "pine", haze)
        draw_fog_banks(canvas, 140 + row * 8, 176 + row * 10, 0.3 * (1 - nearness))
    green = "#eef4fc" if canvas.snow_covered else "#5f8f4a"
    ground = draw_hill(canvas, 200, 4, green, 0.05)
    if not canvas.snow_covered:
        draw_grass(canvas, ground, 258, green, 200, ["#ffffff", "#ffe26a"] if palette.time == "day" else None)
    if palette.time in ("day", "dawn", "sunset") and canvas.weather in ("clear", "cloudy"):
        _draw_sunbeams(canvas)
    if palette.time in ("night", "dusk") and canvas.weather == "clear":
        for _ in range(26):
            x, y = canvas.uniform(0, EXTENT), canvas.uniform(120, 245)
            canvas.glow(x, y, canvas.uniform(2.5, 5), (1, 0.95, 0.5), 0.8)
            canvas.circle(x, y, 0.6, paint("#fffbd0"))
    return Stage("land", 180, (214, 244), ground)


def _draw_sunbeams(canvas: Canvas) -> None:
    for _ in range(5):
        x = canvas.sun_x + canvas.uniform(-70, 70)
        lean = (128 - canvas.sun_x) * 0.8
        top_right, bottom_right = x + canvas.uniform(8, 20), x + lean + canvas.uniform(30, 60)
        beam = polygon([(x, -5), (top_right, -5), (bottom_right, 215), (x + lean, 215)])
        canvas.path(beam, paint(canvas.palette.glow, 0.13, blend=ADD_LIGHT, blur=4))

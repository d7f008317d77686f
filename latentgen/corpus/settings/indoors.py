"""Still-life settings: the plain studio and the wooden table by a window."""

from __future__ import annotations

from dataclasses import replace

import skia

from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.clouds import draw_clouds
from latentgen.corpus.colour import mix, parse_hex, shade
from latentgen.corpus.paint import (
    ADD_LIGHT,
    packed,
    paint,
    polygon,
    radial_gradient,
    vertical_gradient,
)
from latentgen.corpus.settings.stage import Stage, flat_at
from latentgen.corpus.sky import draw_sky
from latentgen.corpus.terrain import ridge_line

BACKDROPS = {
    "pink": "#f4a9b8",
    "blue": "#8fbfe8",
    "yellow": "#f8d878",
    "green": "#a4d4a4",
    "purple": "#c0a8e4",
    "orange": "#f8bc88",
    "teal": "#8ad2cc",
    "white": "#eeece8",
    "gray": "#b8bec8",
    "red": "#e88078",
    "black": "#3c404c",
    "beige": "#ecdcc0",
}
"""What a colour word looks like on the studio's wall: softer than on a painted object."""


def draw_studio(canvas: Canvas, _horizon: float) -> Stage:
    """One seamless backdrop in one colour, in neutral light."""
    wall = parse_hex(BACKDROPS[canvas.scene.backdrop or "white"])
    floor_y = canvas.uniform(165, 190)
    spot = radial_gradient(
        128 + canvas.sun_side * 40, 70, 230, [mix(wall, (1, 1, 1), 0.42), wall, shade(wall, 0.78)], [0, 0.55, 1]
    )
    canvas.rect(0, 0, EXTENT, EXTENT, paint(shader=spot))
    floor = [packed(shade(wall, 0.9), 0), packed(shade(wall, 0.86), 0.7), packed(mix(wall, (1, 1, 1), 0.12), 0.6)]
    canvas.rect(0, floor_y - 30, EXTENT, 120, paint(shader=vertical_gradient(floor_y - 30, 256, floor, [0, 0.4, 1])))
    canvas.palette = replace(canvas.palette, key_light=(1.02, 1.01, 1), shadow_light=(0.72, 0.72, 0.8), haze=wall)
    return Stage("studio", floor_y, (floor_y + 18, floor_y + 34), flat_at(floor_y))


def draw_table(canvas: Canvas, _horizon: float) -> Stage:
    """A wooden table in a room; the window shows the hour and the weather."""
    palette = canvas.palette
    table_y = canvas.uniform(158, 172)
    wall = parse_hex(canvas.choice(["#e9d9c0", "#c9d9d2", "#d7cfe0", "#f0d4c4", "#b9ccd9"]))
    canvas.rect(0, 0, EXTENT, EXTENT, paint(canvas.lit(wall, 0.9)))
    left = canvas.uniform(30, 80) if canvas.chance(0.5) else canvas.uniform(140, 180)
    width = 74.0
    _draw_window(canvas, left, 18, width, 120)
    wood = parse_hex(canvas.choice(["#a8703f", "#b98352", "#8a5a36", "#c79a68"]))
    board = vertical_gradient(table_y, 256, [canvas.lit(shade(wood, 1.1), 1), canvas.lit(wood, 0.8)])
    canvas.rect(0, table_y, EXTENT, EXTENT - table_y, paint(shader=board))
    for _ in range(26):
        y = table_y + 2 + canvas.uniform(0, 1) * (254 - table_y)
        start_x, end_x = canvas.uniform(-40, 200), canvas.uniform(60, 300)
        end_y = y + canvas.uniform(-1, 1)
        grain = paint(canvas.lit(shade(wood, 0.8), 0.7), 0.35, stroke=canvas.uniform(0.4, 1))
        canvas.line(start_x, y, end_x, end_y, grain)
    canvas.rect(0, table_y - 1, EXTENT, 3, paint(canvas.lit(mix(wood, (1, 1, 1), 0.35), 1), 0.8))
    pool = [
        (left - 20, table_y + 2),
        (left + width - 20, table_y + 2),
        (left + width + 10, 256),
        (left - 40, 256),
    ]
    light = paint(mix(palette.glow, (1, 1, 1), 0.2), 0.16 if palette.time != "night" else 0.06, blur=3, blend=ADD_LIGHT)
    canvas.path(polygon(pool), light)
    canvas.palette = replace(
        palette,
        key_light=mix(palette.key_light, (1, 0.95, 0.85), 0.35),
        shadow_light=mix(palette.shadow_light, (0.7, 0.66, 0.66), 0.45),
    )
    return Stage("studio", table_y, (table_y + 38, table_y + 52), flat_at(table_y))


def _draw_window(canvas: Canvas, left: float, top: float, width: float, bottom: float) -> None:
    """The outdoors through a window, then its frame and crossbars."""
    with canvas.clipped(skia.Rect.MakeLTRB(left, top, left + width, bottom)):
        canvas.sun_y = canvas.uniform(40, 90)
        canvas.sun_x = left + canvas.uniform(10, width - 10)
        draw_sky(canvas, bottom + 6)
        draw_clouds(canvas, bottom)
        skyline = ridge_line(canvas, bottom - 6, 18)
        canvas.path(polygon([*skyline, (270, 130), (-10, 130)]), paint(canvas.lit("#6a9a6a", 0.7, 0.3)))
    frame = paint(canvas.lit("#faf6ee", 0.95))
    canvas.rect(left - 4, top - 4, width + 8, 5, frame)
    canvas.rect(left - 4, bottom, width + 8, 6, frame)
    canvas.rect(left - 4, top, 5, bottom - top, frame)
    canvas.rect(left + width - 1, top, 5, bottom - top, frame)
    canvas.rect(left + width / 2 - 1.3, top, 2.6, bottom - top, frame)
    canvas.rect(left, (top + bottom) / 2 - 1.3, width, 2.6, frame)

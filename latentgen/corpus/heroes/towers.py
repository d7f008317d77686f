"""Tall buildings of several storeys: castle, windmill, pagoda."""

from __future__ import annotations

import math

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources, contact_shadow
from latentgen.corpus.paint import horizontal_gradient, outline, paint, polygon

CASTLE_STONE = {"gray": "#a9a7a5", "white": "#efeae0", "brown": "#b99873", "pink": "#ecc0c8", "blue": "#a9bfe0"}


def draw_castle(canvas: Canvas, x: float, y: float, height: float, colour: str = "gray", haze: float = 0) -> None:
    """A curtain wall with five cone-roofed towers and a gate."""
    stone = parse_hex(CASTLE_STONE.get(colour, CASTLE_STONE["gray"]))
    roof = parse_hex(canvas.choice(["#3f5fa0", "#b5433a", "#5a3f7f", "#2f6f72"]))
    width = height * 0.95
    contact_shadow(canvas, x, y, width * 1.1)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - width * 0.85, y - height * 1.3, x + width * 0.85, y + 4),
        side_light=SideLight(x - width * 0.5, x + width * 0.5, 0.9),
    ):

        def tower(centre: float, tower_width: float, tower_height: float) -> None:
            _draw_castle_tower(canvas, lights, centre, y, tower_width, tower_height, height, stone, roof)

        tower(x - width * 0.16, height * 0.17, height * 0.72)
        tower(x + width * 0.17, height * 0.15, height * 0.62)
        wall = paint(shade(stone, 0.97))
        canvas.rect(x - width * 0.4, y - height * 0.36, width * 0.8, height * 0.36, wall)
        for index in range(9):
            merlon_x = x - width * 0.4 + index * width * 0.0925
            canvas.rect(merlon_x, y - height * 0.395, width * 0.055, height * 0.045, wall)
        tower(x - width * 0.42, height * 0.19, height * 0.5)
        tower(x + width * 0.42, height * 0.19, height * 0.53)
        tower(x, height * 0.2, height * 0.56)
        arch = height * 0.075
        canvas.round_rect(x - arch, y - height * 0.2, height * 0.15, height * 0.22, arch, paint("#4a3226"))
        for _ in range(26):
            brick_x = x + canvas.uniform(-0.4, 0.4) * width
            brick_y = y - canvas.uniform(0.02, 0.34) * height
            canvas.rect(brick_x, brick_y, height * 0.03, height * 0.013, paint(shade(stone, 0.8), 0.5))
    lights.shine()


def _draw_castle_tower(
    canvas: Canvas,
    lights: LightSources,
    x: float,
    y: float,
    width: float,
    height: float,
    castle_height: float,
    stone: Rgb,
    roof: Rgb,
) -> None:
    half, top = width / 2, y - height
    masonry = horizontal_gradient(x - half, x + half, [shade(stone, 1.0), shade(stone, 0.94)])
    canvas.rect(x - half, top, width, height, paint(shader=masonry))
    canvas.rect(x - width * 0.6, top, width * 1.2, castle_height * 0.045, paint(shade(stone, 0.88)))
    # Roof, its shaded side, and the pennant
    peak_y, overhang = top - width * 1.75, width * 0.72
    canvas.path(polygon([(x - overhang, top), (x, peak_y), (x + overhang, top)]), paint(roof))
    side = canvas.sun_side
    dark_side = [(x, peak_y), (x - side * width * 0.72, top), (x - side * width * 0.1, top)]
    canvas.path(polygon(dark_side), paint(shade(roof, 0.7)))
    pole_top = peak_y - castle_height * 0.07
    canvas.line(x, peak_y, x, pole_top, paint("#4a4038", stroke=max(0.5, castle_height * 0.008)))
    pennant = [
        (x, pole_top),
        (x + castle_height * 0.06, peak_y - castle_height * 0.055),
        (x, peak_y - castle_height * 0.038),
    ]
    canvas.path(polygon(pennant), paint("#e0483a"))
    lights.window(x, y - height * 0.72, width * 0.26, width * 0.5, arched=True)
    if height > castle_height * 0.5:
        lights.window(x, y - height * 0.42, width * 0.26, width * 0.5, arched=True)


def draw_windmill(canvas: Canvas, x: float, y: float, height: float, colour: str = "white", haze: float = 0) -> None:
    """A tapered tower mill whose four sails have turned to any angle."""
    wall = paint_colour(colour)
    contact_shadow(canvas, x, y, height * 0.45)
    foot, neck, tower_height = height * 0.19, height * 0.115, height * 0.66
    cap_y = y - tower_height
    lights = LightSources(canvas)
    with canvas.lit_layer(haze=haze, side_light=SideLight(x - foot, x + foot, 1.0)):
        canvas.path(polygon([(x - foot, y), (x - neck, cap_y), (x + neck, cap_y), (x + foot, y)]), paint(wall))
        canvas.rect(x - foot * 1.05, y - height * 0.07, foot * 2.1, height * 0.07, paint("#a58a70"))
        cap = outline(
            (x - neck * 1.25, cap_y),
            (x - neck * 0.9, cap_y - height * 0.13, x, cap_y - height * 0.15),
            (x + neck * 0.9, cap_y - height * 0.13, x + neck * 1.25, cap_y),
        )
        canvas.path(cap, paint(canvas.choice(["#9c4a3a", "#4a5a6f", "#6b4a3a"])))
        door_half = height * 0.04
        canvas.round_rect(x - door_half, y - height * 0.15, height * 0.08, height * 0.15, door_half, paint("#6b3f2a"))
        lights.window(x, y - tower_height * 0.42, height * 0.055, height * 0.075, arched=True, frame="#e8e2d6")
        lights.window(x, y - tower_height * 0.74, height * 0.05, height * 0.06, arched=True, frame="#e8e2d6")
    lights.shine()
    _draw_sails(canvas, x, cap_y - height * 0.03, height, haze)


def _draw_sails(canvas: Canvas, x: float, y: float, mill_height: float, haze: float) -> None:
    length, width = mill_height * 0.46, mill_height * 0.085
    with canvas.lit_layer(haze=haze, side_light=SideLight(x - length, x + length, 0.35)):
        first_angle = canvas.uniform(0, 1.57)
        lattice = paint("#8a6a48", 0.8, stroke=0.5)
        for quarter in range(4):
            with canvas.rotated(math.degrees(first_angle + quarter * math.pi / 2), x, y):
                canvas.rect(x - 0.5, y - length, 1.0, length, paint("#6b5038"))
                canvas.rect(x, y - length, width, length * 0.76, paint("#f2ead8", 0.93))
                for index in range(6):
                    slat_y = y - length + index * length * 0.152
                    canvas.line(x, slat_y, x + width, slat_y, lattice)
                canvas.line(x + width / 2, y - length, x + width / 2, y - length * 0.24, lattice)
        canvas.circle(x, y, mill_height * 0.022, paint("#4a3a2e"))


def draw_pagoda(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """Four storeys with curved roofs and a gilded finial."""
    timber = paint_colour(colour)
    roof = parse_hex(canvas.choice(["#3a4550", "#4a3a3a", "#2f4a4a"]))
    contact_shadow(canvas, x, y, height * 0.6)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - height * 0.6, y - height * 1.15, x + height * 0.6, y + 4),
        side_light=SideLight(x - height * 0.34, x + height * 0.34, 0.9),
    ):
        canvas.rect(x - height * 0.3, y - height * 0.05, height * 0.6, height * 0.05, paint("#b9b2a6"))
        floor_y = y - height * 0.05
        storey_height, roof_height = height * 0.115, height * 0.085
        for storey in range(4):
            half = height * (0.2 - 0.03 * storey)
            ceiling_y = floor_y - storey_height
            canvas.rect(x - half, ceiling_y, half * 2, storey_height, paint("#f3e6cf"))
            for column in (-1, -0.5, 0, 0.5, 1):
                column_x = x + column * half * 0.95 - height * 0.008
                canvas.rect(column_x, ceiling_y, height * 0.016, storey_height, paint(timber))
            lights.window(x, floor_y - storey_height * 0.18, height * 0.05, storey_height * 0.6)
            _draw_pagoda_roof(canvas, x, ceiling_y, height, half, roof_height, roof, timber)
            floor_y = ceiling_y - roof_height
        canvas.line(x, floor_y, x, floor_y - height * 0.13, paint("#d8b24a", stroke=height * 0.016))
        for ring in range(3):
            ring_width = height * 0.02 - 0.004 * ring * height
            ring_y = floor_y - height * 0.04 - ring * height * 0.028
            canvas.oval(x, ring_y, ring_width, height * 0.007, paint("#d8b24a"))
    lights.shine()


def _draw_pagoda_roof(
    canvas: Canvas,
    x: float,
    y: float,
    height: float,
    half_storey: float,
    roof_height: float,
    roof: Rgb,
    trim: Rgb,
) -> None:
    reach = half_storey * 1.75
    tip_y, eaves_y, inner_y = y - height * 0.012, y + height * 0.012, y + height * 0.004
    inner, top, top_y = half_storey * 0.9, half_storey * 0.72, y - roof_height
    shape = outline(
        (x - reach, tip_y),
        (x - reach * 0.75, eaves_y, x - inner, inner_y),
        (x + inner, inner_y),
        (x + reach * 0.75, eaves_y, x + reach, tip_y),
        (x + half_storey * 1.0, y - roof_height * 0.5, x + top, top_y),
        (x - top, top_y),
        (x - half_storey * 1.0, y - roof_height * 0.5, x - reach, tip_y),
    )
    canvas.path(shape, paint(roof))
    edge_y = y - height * 0.006
    canvas.line(x - reach * 0.96, edge_y, x + reach * 0.96, edge_y, paint(trim, stroke=height * 0.012))

"""Tall buildings of several storeys: castle, windmill, pagoda."""

from __future__ import annotations

import math
from dataclasses import dataclass

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources, contact_shadow
from latentgen.corpus.paint import horizontal_gradient, outline, paint, polygon

CASTLE_STONE = {
    "gray": "#989a9f", "white": "#f4f1ea", "brown": "#a67a4c", "pink": "#f09cb4", "blue": "#6c95e0",
    "red": "#d2584c", "orange": "#ee9a50", "yellow": "#f0cd5c", "green": "#6fae78", "purple": "#9275cc",
    "black": "#454850",
}  # fmt: skip
SNOW = "#f4f8fd"


@dataclass(frozen=True, slots=True)
class _Castle:
    """What all towers of one castle share."""

    y: float
    height: float
    stone: Rgb
    roof: Rgb
    pitch: float
    """Height of a cone roof, in tower widths."""


def draw_castle(canvas: Canvas, x: float, y: float, height: float, colour: str = "gray", haze: float = 0) -> None:
    """A curtain wall with a gate between corner towers, and a keep behind, cone-roofed or crenellated."""
    castle = _Castle(
        y,
        height,
        stone=parse_hex(CASTLE_STONE.get(colour, CASTLE_STONE["gray"])),
        roof=parse_hex(canvas.choice(["#3f5fa0", "#b5433a", "#5a3f7f", "#2f6f72", "#4a4f5c"])),
        pitch=canvas.uniform(1.3, 2.0),
    )
    width = height * canvas.uniform(0.85, 1.0)
    contact_shadow(canvas, x, y, width * 1.1)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - width * 0.85, y - height * 1.3, x + width * 0.85, y + 4),
        side_light=SideLight(x - width * 0.5, x + width * 0.5, 0.9),
    ):

        def tower(offset: float, tower_width: float, tower_height: float, *, roofed: bool = True) -> None:
            size = height * tower_width, height * tower_height
            _draw_castle_tower(canvas, lights, castle, x + offset * width, *size, roofed=roofed)

        plan = canvas.choice(["palace", "palace", "keep", "fort"])
        if plan == "palace":
            tower(-0.17, 0.17, canvas.uniform(0.64, 0.74))
            tower(0.17, 0.16, canvas.uniform(0.56, 0.68))
        elif plan == "keep":
            tower(canvas.uniform(-0.08, 0.08), 0.3, 0.62)
        else:
            tower(canvas.choice([-0.18, 0.18]), 0.2, 0.74, roofed=False)
        _draw_curtain_wall(canvas, castle, x, width)
        corners_roofed = plan != "fort"
        tower(-0.42, 0.19, canvas.uniform(0.46, 0.54), roofed=corners_roofed)
        tower(0.42, 0.19, canvas.uniform(0.46, 0.54), roofed=corners_roofed)
        if plan == "palace":
            tower(0, 0.2, 0.5)
        arch = height * 0.085
        canvas.round_rect(x - arch, y - height * 0.22, arch * 2, height * 0.22 + arch, arch, paint("#4a3226"))
    lights.shine()


def _draw_curtain_wall(canvas: Canvas, castle: _Castle, x: float, width: float) -> None:
    y, height, wall = castle.y, castle.height, paint(shade(castle.stone, 0.95))
    canvas.rect(x - width * 0.4, y - height * 0.34, width * 0.8, height * 0.34, wall)
    for index in range(6):
        merlon_x = x - width * 0.38 + index * width * 0.138
        canvas.rect(merlon_x, y - height * 0.39, width * 0.075, height * 0.055, wall)
    if canvas.snow_covered:
        canvas.rect(x - width * 0.4, y - height * 0.36, width * 0.8, height * 0.03, paint(SNOW))
    for _ in range(9):
        brick_x, brick_y = x + canvas.uniform(-0.38, 0.34) * width, y - canvas.uniform(0.06, 0.3) * height
        canvas.rect(brick_x, brick_y, height * 0.05, height * 0.02, paint(shade(castle.stone, 0.8), 0.5))


def _draw_castle_tower(
    canvas: Canvas, lights: LightSources, castle: _Castle, x: float, width: float, height: float, *, roofed: bool
) -> None:
    half, top, stone, roof = width / 2, castle.y - height, castle.stone, castle.roof
    masonry = horizontal_gradient(x - half, x + half, [shade(stone, 1.04), shade(stone, 0.9)])
    canvas.rect(x - half, top, width, height, paint(shader=masonry))
    lip = castle.height * 0.05
    canvas.rect(x - width * 0.62, top, width * 1.24, lip, paint(shade(stone, 0.84)))
    if roofed:
        peak_y, overhang = top - width * castle.pitch, width * 0.72
        canvas.path(polygon([(x - overhang, top), (x, peak_y), (x + overhang, top)]), paint(roof))
        side = canvas.sun_side
        dark_side = [(x, peak_y), (x - side * overhang, top), (x - side * width * 0.1, top)]
        canvas.path(polygon(dark_side), paint(shade(roof, 0.7)))
        if canvas.snow_covered:
            low = top - width * castle.pitch * 0.38
            cap = [(x, peak_y), (x + overhang * 0.62, low), (x, low + lip * 0.8), (x - overhang * 0.62, low)]
            canvas.path(polygon(cap), paint(SNOW))
        _draw_pennant(canvas, x, peak_y, castle.height)
    else:
        crest = paint(SNOW) if canvas.snow_covered else paint(shade(stone, 0.84))
        for share in (-0.62, -0.19, 0.24):
            canvas.rect(x + share * width, top - lip, width * 0.38, lip * 1.1, crest)
        if height > castle.height * 0.6:
            _draw_pennant(canvas, x, top - lip, castle.height)
    lights.window(x, castle.y - height * 0.74, width * 0.3, width * 0.5, arched=True)


def _draw_pennant(canvas: Canvas, x: float, y: float, castle_height: float) -> None:
    pole_top = y - castle_height * 0.08
    canvas.line(x, y, x, pole_top, paint("#4a4038", stroke=max(0.9, castle_height * 0.011)))
    tip = x + canvas.sun_side * castle_height * 0.09
    canvas.path(
        polygon([(x, pole_top), (tip, y - castle_height * 0.058), (x, y - castle_height * 0.034)]), paint("#e0483a")
    )


def draw_windmill(canvas: Canvas, x: float, y: float, height: float, colour: str = "white", haze: float = 0) -> None:
    """A tower mill, tapered or straight, at times with a balcony; its four sails have turned to any angle."""
    wall = paint_colour(colour)
    contact_shadow(canvas, x, y, height * 0.45)
    foot, neck = height * canvas.uniform(0.17, 0.22), height * canvas.uniform(0.11, 0.14)
    tower_height = height * canvas.uniform(0.62, 0.68)
    cap_y = y - tower_height
    cap_colour = parse_hex(canvas.choice(["#9c4a3a", "#4a5a6f", "#6b4a3a", "#3f5a4a"]))
    pointed = canvas.chance(0.4)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - height * 0.5, y - height * 1.2, x + height * 0.5, y + 4),
        side_light=SideLight(x - foot, x + foot, 1.0),
    ):
        canvas.path(polygon([(x - foot, y), (x - neck, cap_y), (x + neck, cap_y), (x + foot, y)]), paint(wall))
        canvas.rect(x - foot * 1.05, y - height * 0.07, foot * 2.1, height * 0.07, paint("#a58a70"))
        if pointed:
            cap = polygon([(x - neck * 1.35, cap_y), (x, cap_y - height * 0.2), (x + neck * 1.35, cap_y)])
        else:
            cap = outline(
                (x - neck * 1.25, cap_y),
                (x - neck * 0.9, cap_y - height * 0.15, x, cap_y - height * 0.16),
                (x + neck * 0.9, cap_y - height * 0.15, x + neck * 1.25, cap_y),
            )
        canvas.path(cap, paint(cap_colour))
        if canvas.snow_covered:
            with canvas.clipped(cap):
                canvas.rect(x - neck * 1.4, cap_y - height * 0.2, neck * 2.8, height * 0.14, paint(SNOW))
        if canvas.chance(0.4):
            balcony_y = y - tower_height * 0.36
            reach = foot * 1.25
            canvas.rect(x - reach, balcony_y, reach * 2, height * 0.026, paint("#6b4a32"))
        door = height * 0.045
        canvas.round_rect(x - door, y - height * 0.17, door * 2, height * 0.17, door, paint("#6b3f2a"))
        lights.window(x, y - tower_height * 0.5, height * 0.065, height * 0.085, arched=True, frame="#e8e2d6")
    lights.shine()
    _draw_sails(canvas, x, cap_y - height * 0.03, height, haze)


def _draw_sails(canvas: Canvas, x: float, y: float, mill_height: float, haze: float) -> None:
    length, width = mill_height * canvas.uniform(0.42, 0.48), mill_height * canvas.uniform(0.085, 0.11)
    cloth = canvas.choice(["#f2ead8", "#f7f3ea", "#e6d3ae", "#e8e2dc"])
    with canvas.lit_layer(haze=haze, side_light=SideLight(x - length, x + length, 0.35)):
        first_angle = canvas.uniform(0, 1.57)
        spar, lattice = paint("#5a4230", stroke=mill_height * 0.02), paint("#8a6a48", 0.8, stroke=mill_height * 0.009)
        for quarter in range(4):
            with canvas.rotated(math.degrees(first_angle + quarter * math.pi / 2), x, y):
                canvas.rect(x, y - length, width, length * 0.78, paint(cloth, 0.95))
                for index in range(4):
                    slat_y = y - length + index * length * 0.26
                    canvas.line(x, slat_y, x + width, slat_y, lattice)
                canvas.line(x, y, x, y - length, spar)
        canvas.circle(x, y, mill_height * 0.032, paint("#4a3a2e"))


def draw_pagoda(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """Three to five storeys with curved roofs and a gilded finial."""
    timber = paint_colour(colour)
    roof = parse_hex(canvas.choice(["#3a4550", "#4a3a3a", "#2f5a52", "#5a4a6a"]))
    storeys = canvas.choice([3, 4, 4, 5])
    contact_shadow(canvas, x, y, height * 0.6)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - height * 0.6, y - height * 1.15, x + height * 0.6, y + 4),
        side_light=SideLight(x - height * 0.34, x + height * 0.34, 0.9),
    ):
        canvas.rect(x - height * 0.3, y - height * 0.05, height * 0.6, height * 0.05, paint("#b9b2a6"))
        floor_y = y - height * 0.05
        storey_height, roof_height = height * 0.46 / storeys, height * 0.34 / storeys
        breadth = height * canvas.uniform(0.19, 0.23)
        for storey in range(storeys):
            half = breadth * (1 - 0.55 * storey / storeys)
            ceiling_y = floor_y - storey_height
            canvas.rect(x - half, ceiling_y, half * 2, storey_height, paint("#f3e6cf"))
            for column in (-1, -0.5, 0.5, 1):
                column_x = x + column * half * 0.93 - height * 0.014
                canvas.rect(column_x, ceiling_y, height * 0.028, storey_height, paint(timber))
            lights.window(x, floor_y - storey_height * 0.12, height * 0.06, storey_height * 0.66)
            _draw_pagoda_roof(canvas, x, ceiling_y, half, roof_height, roof, timber)
            floor_y = ceiling_y - roof_height
        canvas.line(x, floor_y, x, floor_y - height * 0.13, paint("#e0b84a", stroke=height * 0.024))
        canvas.circle(x, floor_y - height * 0.05, height * 0.02, paint("#e0b84a"))
    lights.shine()


def _draw_pagoda_roof(
    canvas: Canvas, x: float, y: float, half_storey: float, height: float, roof: Rgb, trim: Rgb
) -> None:
    reach = half_storey * 1.6 + height * 0.3
    tip_y, eaves_y, inner_y = y - height * 0.2, y + height * 0.16, y + height * 0.05
    inner, top, top_y = half_storey * 0.9, half_storey * 0.72, y - height
    shape = outline(
        (x - reach, tip_y),
        (x - reach * 0.75, eaves_y, x - inner, inner_y),
        (x + inner, inner_y),
        (x + reach * 0.75, eaves_y, x + reach, tip_y),
        (x + half_storey * 1.0, y - height * 0.5, x + top, top_y),
        (x - top, top_y),
        (x - half_storey * 1.0, y - height * 0.5, x - reach, tip_y),
    )
    canvas.path(shape, paint(roof))
    if canvas.snow_covered:
        with canvas.clipped(shape):
            canvas.rect(x - reach, top_y, reach * 2, height * 0.6, paint(SNOW))
    edge_y = y - height * 0.04
    canvas.line(x - reach * 0.94, edge_y, x + reach * 0.94, edge_y, paint(trim, stroke=height * 0.22))

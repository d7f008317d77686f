"""Where nothing stands: under water and in space."""

from __future__ import annotations

import math
from dataclasses import replace

import skia

from latentgen.corpus.canvas import EXTENT, Canvas, fractal_noise
from latentgen.corpus.colour import mix, parse_hex, shade
from latentgen.corpus.paint import (
    ADD_LIGHT,
    Point,
    linear_gradient,
    outline,
    packed,
    paint,
    polygon,
    radial_gradient,
    smooth_curve,
    vertical_gradient,
)
from latentgen.corpus.settings.stage import Stage, flat_at

DEPTHS = (
    ("#5fd4e0", "#1f8fc0", "#0d4a8a", "#082a5c"),
    ("#7fe0d0", "#1fa0a8", "#0b5a78", "#06304a"),
    ("#8fd0f5", "#3f8fe0", "#1f4fa8", "#122a6c"),
)
"""Colours of the sea from the surface down."""
VOIDS = (
    ("#05051a", "#120f3a", "#2a1550"),
    ("#020a1c", "#0a2044", "#123a5c"),
    ("#0a0418", "#240c3c", "#4a1850"),
)
NEBULAE = (("#e05ac0", "#5a6af0"), ("#3ac8e0", "#6a4af0"), ("#f08a5a", "#c03a8a"), ("#5af0b0", "#3a6af0"))
PLANETS = ("#e0905a", "#5a90e0", "#c06ab0", "#6ac0a0", "#e0c06a", "#b05a5a")


def draw_underwater(canvas: Canvas, _horizon: float) -> Stage:
    """Blue depth with shafts of light, a sandy floor with kelp and coral, bubbles."""
    colours = canvas.choice(DEPTHS)
    canvas.rect(0, 0, EXTENT, EXTENT, paint(shader=vertical_gradient(0, EXTENT, colours)))
    canvas.palette = replace(
        canvas.palette,
        key_light=(0.8, 1.02, 1.1),
        shadow_light=(0.35, 0.6, 0.8),
        haze=mix(parse_hex(colours[1]), parse_hex(colours[2]), 0.5),
        time="day",
    )
    canvas.weather = "clear"
    canvas.glow(canvas.sun_x, -10, 150, (0.85, 1, 1), 0.55)
    for _ in range(7):
        x = canvas.sun_x + canvas.uniform(-90, 90)
        lean = (x - canvas.sun_x) * 1.1 + canvas.uniform(-12, 12)
        width = canvas.uniform(5, 16)
        right_end = (x + lean + width * 2.6, canvas.uniform(150, 235))
        shaft = polygon([(x, -6), (x + width, -6), right_end, (x + lean, canvas.uniform(150, 235))])
        canvas.path(shaft, paint((0.8, 1, 1), 0.15, blend=ADD_LIGHT, blur=3.5))
    for layer in range(3):
        _draw_sea_floor(canvas, layer, layer / 3)
    for _ in range(30):
        x, y, radius = canvas.uniform(0, EXTENT), canvas.uniform(10, 240), canvas.uniform(0.7, 3.2)
        canvas.circle(x, y, radius, paint((1, 1, 1), 0.28, stroke=0.6))
        canvas.circle(x - radius * 0.3, y - radius * 0.3, radius * 0.25, paint((1, 1, 1), 0.8))
    return Stage("float", EXTENT, (90, 190), flat_at(EXTENT), sea_floor=228)


def _draw_sea_floor(canvas: Canvas, layer: int, nearness: float) -> None:
    y = 200 + layer * 16
    profile = fractal_noise(canvas.rng, 40, 3)
    crest: list[Point] = [(index * 272 / 39 - 8, y - 7 * profile[index]) for index in range(40)]
    sand = [canvas.lit("#e8d6a0", 0.9, 0.65 * (1 - nearness)), canvas.lit("#c9b078", 0.5, 0.5 * (1 - nearness))]
    canvas.path(smooth_curve(crest, 262), paint(shader=vertical_gradient(y - 10, 256, sand)))
    for _ in range(canvas.integer(2, 5)):
        x = canvas.uniform(0, EXTENT)
        if layer == 2 and 80 < x < 176:
            continue  # Room for the subject
        is_kelp = canvas.integer(0, 2) == 0
        height = canvas.uniform(18, 46) * (0.7 + 0.4 * nearness)
        with canvas.lit_layer(haze=0.55 * (1 - nearness), light=0.9, bounds=(x - 44, y - 64, x + 44, y + 10)):
            if is_kelp:
                _draw_kelp(canvas, x, y, height)
            else:
                _draw_coral(canvas, x, y, height)


def _draw_kelp(canvas: Canvas, x: float, y: float, height: float) -> None:
    for _ in range(5):
        root = x + canvas.uniform(-6, 6)
        tip_x, tip_y = root + canvas.uniform(-5, 5), y - height * canvas.uniform(0.7, 1.1)
        bends = (root - 6, y - height * 0.3, root + 7, y - height * 0.6, tip_x, tip_y)
        blade = outline((root, y + 6), bends, closed=False)
        canvas.path(blade, paint(shade(parse_hex("#3faf6a"), canvas.uniform(0.7, 1.2)), stroke=2.2))


def _draw_coral(canvas: Canvas, x: float, y: float, height: float) -> None:
    colour = parse_hex(canvas.choice(["#f0708a", "#f59a5a", "#b070e0", "#f5c84a"]))
    for index in range(-3, 4):
        angle = index * 0.3
        reach = math.sin(angle) * height
        branch = outline(
            (x, y + 6),
            (x + reach * 0.25, y - height * 0.3, x + reach * 0.55, y - height * 0.6 * math.cos(angle)),
            closed=False,
        )
        canvas.path(branch, paint(shade(colour, canvas.uniform(0.85, 1.1)), stroke=3.2))


def draw_space(canvas: Canvas, _horizon: float) -> Stage:
    """A nebula, stars and one to three planets."""
    colours = canvas.choice(VOIDS)
    void = linear_gradient((0, 0), (canvas.uniform(60, 200), EXTENT), colours)
    canvas.rect(0, 0, EXTENT, EXTENT, paint(shader=void))
    gases = canvas.choice(NEBULAE)
    tilt = canvas.uniform(-0.7, 0.7)
    for _ in range(16):
        along = canvas.rng.normal(0, 70)
        x = 128 + along * math.cos(tilt) + canvas.uniform(-14, 14)
        y = 120 + along * math.sin(tilt) + canvas.uniform(-14, 14)
        radius_x, radius_y = canvas.uniform(22, 60), canvas.uniform(12, 34)
        gas = paint(gases[canvas.integer(0, 1)], 0.12, blur=15, blend=ADD_LIGHT)
        canvas.oval(x, y, radius_x, radius_y, gas)
    for _ in range(240):
        radius = abs(canvas.rng.normal(0, 0.42)) + 0.18
        x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, EXTENT)
        canvas.circle(x, y, radius, paint((1, 1, 1), canvas.uniform(0.3, 1)))
    for _ in range(7):
        x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, EXTENT)
        canvas.glow(x, y, canvas.uniform(5, 9), (0.85, 0.9, 1), 0.8)
        canvas.circle(x, y, 1, paint((1, 1, 1)))
    for _ in range(canvas.integer(1, 3)):
        _draw_planet(canvas)
    canvas.palette = replace(
        canvas.palette,
        key_light=(1.02, 1.0, 1.04),
        shadow_light=(0.42, 0.4, 0.66),
        time="night",
        haze=parse_hex(colours[1]),
    )
    canvas.weather = "clear"
    return Stage("float", EXTENT, (90, 190), flat_at(EXTENT))


def _draw_planet(canvas: Canvas) -> None:
    """A banded planet near the left or right edge, sometimes ringed."""
    x = canvas.choice([canvas.uniform(10, 60), canvas.uniform(196, 246)])
    y, radius = canvas.uniform(20, 236), canvas.uniform(10, 34)
    colour = parse_hex(canvas.choice(PLANETS))
    canvas.glow(x, y, radius * 1.6, colour, 0.4)
    canvas.circle(x, y, radius, paint(colour))
    with canvas.clipped(skia.Path.Circle(x, y, radius)):
        for band in range(5):
            band_x = x + canvas.uniform(-4, 4)
            band_y = y - radius + (band + 0.5) * radius * 0.42
            band_paint = paint(shade(colour, canvas.uniform(0.75, 1.25)), 0.6, blur=1)
            canvas.oval(band_x, band_y, radius * 1.2, radius * 0.1, band_paint)
        stops = [packed((1, 1, 1), 0.35), packed((0, 0, 0.1), 0.05), packed((0, 0, 0.08), 0.85)]
        terminator = radial_gradient(
            x + canvas.sun_side * radius * 0.6, y - radius * 0.5, radius * 2, stops, [0, 0.35, 1]
        )
        canvas.circle(x, y, radius, paint(shader=terminator))
    if canvas.chance(0.4):
        with canvas.rotated(-18, x, y):
            ring = paint(mix(colour, (1, 1, 1), 0.5), 0.75, stroke=2)
            canvas.oval(x, y, radius * 1.75, radius * 0.42, ring)

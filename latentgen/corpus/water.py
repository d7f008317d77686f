"""Water surfaces and what they mirror."""

from __future__ import annotations

import math

import skia

from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.colour import mix, shade
from latentgen.corpus.paint import (
    ADD_LIGHT,
    LINEAR_SAMPLING,
    outline,
    paint,
    vertical_gradient,
)


def draw_water(
    canvas: Canvas, horizon: float, bottom: float = 256, *, mirror: float | None = None, calm: float = 0.5
) -> None:
    """Open water from `horizon` down to `bottom`: depth, mirrored shore (by `mirror`), sun glitter, waves, far haze."""
    palette = canvas.palette
    near, middle, deep = palette.sea
    depth = bottom - horizon
    shading = vertical_gradient(horizon, bottom, [mix(near, palette.sky[-1], 0.35), middle, deep], [0, 0.4, 1])
    canvas.rect(-2, horizon, EXTENT + 4, depth + 2, paint(shader=shading))
    if mirror is not None:
        _mirror_shore(canvas, horizon, bottom, mirror, 1.6 * (1 - calm) + 0.4)
    if canvas.weather in ("clear", "cloudy", "aurora") and canvas.sun_y < horizon + 4:
        _draw_glitter(canvas, horizon, depth)
    crest, trough = mix(near, (1, 1, 1), 0.3), shade(deep, 0.8)
    for _ in range(90):
        closeness = canvas.uniform(0, 1) ** 1.2
        y = horizon + 1.5 + closeness * depth
        width = (3 + 26 * closeness) * canvas.uniform(0.4, 1.2)
        x = canvas.uniform(-10, 266)
        thickness = 0.35 + 1.1 * closeness
        wave = outline(
            (x - width / 2, y),
            (x - width * 0.2, y - thickness * 1.5, x, y),
            (x + width * 0.2, y + thickness * 1.2, x + width / 2, y - thickness * 0.2),
            closed=False,
        )
        colour = crest if canvas.chance(0.5) else trough
        canvas.path(wave, paint(colour, 0.16 + 0.2 * canvas.uniform(0, 1), stroke=thickness))
    canvas.rect(-2, horizon - 1.2, EXTENT + 4, 2.4, paint(mix(palette.haze, palette.sky[-1], 0.4), 0.55, blur=1.2))


def _draw_glitter(canvas: Canvas, horizon: float, depth: float) -> None:
    """The path of light under the sun or moon."""
    palette = canvas.palette
    colour = mix(palette.sun, (1, 1, 1), 0.15)
    brightness = {"day": 0.5, "dawn": 0.85, "sunset": 0.95, "dusk": 0.4, "night": 0.6}[palette.time]
    sheen = paint(palette.glow, 0.28 * brightness, blur=9, blend=ADD_LIGHT)
    canvas.oval(canvas.sun_x, horizon + depth * 0.35, 16, depth * 0.5, sheen)
    for _ in range(70):
        closeness = canvas.uniform(0, 1) ** 1.4
        y = horizon + 1 + closeness * depth * 0.95
        width = (2 + 14 * closeness) * canvas.uniform(0.4, 1)
        spread = 4 + 22 * closeness
        x = canvas.sun_x + canvas.rng.normal(0, 1) * spread * 0.5
        spark = paint(colour, brightness * canvas.uniform(0.35, 0.95) * (1 - 0.5 * closeness))
        canvas.round_rect(x - width / 2, y, width, 0.5 + 1.1 * closeness, 0.6, spark)


def _mirror_shore(canvas: Canvas, waterline: float, bottom: float, alpha: float, ripple: float) -> None:
    """Mirror everything above the waterline into the water, row by row, each row shifted by the ripples."""
    scale = canvas.scale
    image = canvas.surface.makeImageSnapshot()
    phase = canvas.uniform(0, 6.28)
    step = 1.0
    y = waterline
    while y < bottom:
        depth = y - waterline
        source_y = max(waterline - depth * 1.0 - step, 0)
        amplitude = (0.25 + depth * 0.045) * ripple
        shift = amplitude * math.sin(depth * 1.9 / (1 + depth * 0.03) + phase)
        shift += amplitude * 0.6 * math.sin(depth * 0.83 + phase * 2)
        fade = alpha * (1 - 0.55 * depth / (bottom - waterline))
        canvas.skia.drawImageRect(
            image,
            skia.Rect.MakeXYWH(0, source_y * scale, canvas.size_px, step * scale),
            skia.Rect.MakeXYWH(shift - 2, y, EXTENT + 4, step + 0.35),
            LINEAR_SAMPLING,
            paint((1, 1, 1), fade),
        )
        y += step


def mirror_subject(canvas: Canvas, waterline: float, x: float, height: float, bottom: float = EXTENT) -> None:
    """Mirror a subject, and what is behind it, under its waterline, not below `bottom`; it fades with depth."""
    scale = canvas.scale
    image = canvas.surface.makeImageSnapshot()
    left, right = max(0, x - height * 0.75), min(EXTENT, x + height * 0.75)
    reach = min(bottom - waterline, height * 0.75)
    phase = canvas.uniform(0, 6)
    depth = 0.0
    while depth < reach:
        alpha = 0.5 * (1 - depth / reach) ** 1.1
        shift = (0.3 + depth * 0.05) * math.sin(depth * 1.5 + phase)
        source_y = waterline - depth - 1.2
        if source_y < 0:
            break
        target_y = waterline + depth
        canvas.skia.drawImageRect(
            image,
            skia.Rect.MakeLTRB(left * scale, source_y * scale, right * scale, (source_y + 1) * scale),
            skia.Rect.MakeLTRB(left + shift, target_y, right + shift, target_y + 1.2),
            LINEAR_SAMPLING,
            paint(alpha=alpha),
        )
        depth += 1.0

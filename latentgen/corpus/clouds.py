"""Clouds: a bank near the horizon, heaps and streaks, and the closed ceiling of bad weather."""

from __future__ import annotations

import math

import numpy as np
import skia

from latentgen.corpus.canvas import EXTENT, Canvas, noise_field
from latentgen.corpus.colour import Rgb, mix, shade
from latentgen.corpus.paint import packed, paint, radial_gradient, vertical_gradient
from latentgen.corpus.palettes import WARM_HOURS

CLOSED_SKIES = ("overcast", "storm", "rain", "snow")
"""Weathers whose clouds leave no blue."""


def draw_clouds(canvas: Canvas, horizon: float) -> None:
    """A bank near the horizon, then heaps and streaks, or the closed ceiling of bad weather."""
    palette, weather = canvas.palette, canvas.weather
    if weather in CLOSED_SKIES:
        _draw_ceiling(canvas, horizon)
    if canvas.chance(0.55) and weather != "fog":
        for _ in range(canvas.integer(3, 6)):
            x, width = canvas.uniform(-10, 266), canvas.uniform(40, 90)
            y, height = horizon - canvas.uniform(2, 16), width * canvas.uniform(0.16, 0.26)
            light = mix(palette.cloud_light, palette.haze, 0.55)
            _draw_cumulus(canvas, x, y, width, height, light, mix(palette.cloud_shade, palette.haze, 0.6), 0.75, 0.7)
    formation = canvas.choice(["puff", "puff", "streak", "mixed"])
    if weather in CLOSED_SKIES or weather == "fog":
        return
    if formation in ("streak", "mixed"):
        _draw_streaks(canvas, horizon)
    if formation in ("puff", "mixed") or weather == "cloudy":
        many, few = canvas.integer(6, 9), canvas.integer(2, 4)
        heights = sorted(canvas.uniform(0.12, 0.8) for _ in range(many if weather == "cloudy" else few))
        for share in reversed(heights):
            width = canvas.uniform(34, 80) * (1.25 - share * 0.7)
            x, height = canvas.uniform(0, EXTENT), width * canvas.uniform(0.3, 0.5)
            hides_moon = (
                abs(x - canvas.sun_x) < width * 0.56 + 16 and -16 < horizon * share - canvas.sun_y < height + 16
            )
            if palette.time == "night" and hides_moon:
                continue
            _draw_cumulus(
                canvas, x, horizon * share, width, height, palette.cloud_light, palette.cloud_shade, 0.95, 0.4
            )


def _draw_ceiling(canvas: Canvas, horizon: float) -> None:
    """The closed sky of bad weather: soft layers that crowd together towards the horizon, as a flat ceiling does."""
    palette, weather = canvas.palette, canvas.weather
    low_sun = palette.time in WARM_HOURS  # Its light shines in under the clouds
    rows, columns = 64, 64
    down = np.linspace(0, 1, rows)[:, None]
    depth = 1 / (1.3 - down)
    along = 3 + (np.linspace(-0.5, 0.5, columns)[None, :]) * (0.8 + 1.1 * depth)
    field = noise_field(canvas.rng, np.broadcast_to(depth * 1.5, (rows, columns)), along)
    contrast = {"overcast": 1.5, "rain": 1.7, "storm": 2.3, "snow": 1.1}[weather]
    brightness = np.clip(0.5 + (field - 0.5) * contrast * 1.6, 0, 1)[..., None]
    bright = np.array(mix(palette.cloud_light, palette.haze, 0.1 if low_sun else 0.25))
    dark = np.array(shade(palette.cloud_shade, 0.72 if weather == "storm" else 0.88))
    veil = np.array(mix(palette.haze, palette.sky[-1], 0.6) if low_sun else palette.haze)
    colours = dark + (bright - dark) * brightness
    colours += (veil - colours) * (down ** (2.8 if low_sun else 2.2) * (0.95 if low_sun else 0.75))[..., None]
    alpha = np.clip(1.25 - 0.75 * down**3, 0, 1) * np.ones((rows, columns))
    pixels = np.concatenate([colours, alpha[..., None]], -1)
    canvas.texture(pixels, 0, -2, EXTENT, horizon + 4)
    if palette.time == "night":  # The moon behind the clouds
        canvas.glow(canvas.sun_x, canvas.sun_y, 80, palette.glow, 0.4)


def _draw_streaks(canvas: Canvas, horizon: float) -> None:
    palette = canvas.palette
    for _ in range(canvas.integer(4, 9)):
        y = canvas.uniform(0.15, 0.95) * horizon
        x, width = canvas.uniform(-20, 276), canvas.uniform(30, 120)
        height = canvas.uniform(0.8, 2.6)
        upper = paint(mix(palette.cloud_light, palette.sky[-1], 0.25), canvas.uniform(0.25, 0.6), blur=0.8)
        canvas.round_rect(x - width / 2, y, width, height * 2, height, upper)
        left = x - width / 3 + canvas.uniform(-8, 8)
        lower = paint(palette.cloud_light, canvas.uniform(0.2, 0.5), blur=0.8)
        canvas.round_rect(left, y + height * 1.6, width * 0.6, height * 1.6, height, lower)


def _draw_cumulus(
    canvas: Canvas,
    x: float,
    y: float,
    width: float,
    height: float,
    light: Rgb,
    dark: Rgb,
    alpha: float,
    softness: float,
) -> None:
    """A flat-bottomed cloud with its base at y; very soft ones carry no modelled bulges."""
    shape = skia.Path()
    bulges: list[tuple[float, float, float]] = []
    count = canvas.integer(5, 8)
    for index in range(count):
        along = (index + 0.5) / count
        bulge_x = x - width / 2 + width * along
        profile = math.sin(math.pi * along) ** 0.8
        radius = min(height * (0.28 + 0.5 * profile * canvas.uniform(0.6, 1.0)), width * 0.3)
        bulge_y = y - radius * 0.55 - height * 0.25 * profile * canvas.uniform(0.2, 1)
        shape.addCircle(bulge_x, bulge_y, radius)
        bulges.append((bulge_x, bulge_y, radius))
    base = skia.Rect.MakeLTRB(x - width * 0.56, y - height * 0.32, x + width * 0.56, y)
    shape.addRoundRect(base, height * 0.16, height * 0.16)
    stops = [packed(light, alpha), packed(mix(light, dark, 0.35), alpha), packed(dark, alpha)]
    body = vertical_gradient(y - height * 1.25, y, stops, [0, 0.55, 1])
    with canvas.clipped(skia.Rect.MakeLTRB(-50, -50, 310, y)):
        canvas.path(shape, paint(shader=body, blur=softness))
        if softness < 1.5:
            with canvas.clipped(shape):
                for bulge_x, bulge_y, radius in bulges:
                    _draw_bulge(canvas, bulge_x, bulge_y, radius, light, alpha)


def _draw_bulge(canvas: Canvas, x: float, y: float, radius: float, light: Rgb, alpha: float) -> None:
    side = canvas.sun_side
    stops = [packed(mix(light, (1, 1, 1), 0.35), 0.55 * alpha), packed(light, 0)]
    shine = radial_gradient(x + side * radius * 0.35, y - radius * 0.35, radius * 0.85, stops)
    canvas.circle(x + side * radius * 0.22, y - radius * 0.2, radius * 0.8, paint(shader=shine))

"""The sky from zenith to horizon: gradient, stars, aurora, sun and moon, rainbow, birds."""

from __future__ import annotations

import numpy as np

from latentgen.corpus.canvas import EXTENT, Canvas, fractal_noise
from latentgen.corpus.colour import Rgb, mix, shade
from latentgen.corpus.paint import ADD_LIGHT, outline, paint, radial_gradient, vertical_gradient

MOON_SPOTS = ((-0.35, -0.2, 0.22), (0.25, 0.3, 0.28), (0.4, -0.35, 0.14), (-0.1, 0.5, 0.15), (0.05, -0.05, 0.12))
"""The moon's dark plains: x, y and radius in moon radii."""
AURORA_COLOURS: tuple[tuple[Rgb, Rgb], ...] = (
    ((0.2, 1, 0.55), (0.5, 0.25, 0.95)),
    ((0.25, 0.95, 0.75), (0.2, 0.4, 1)),
    ((0.3, 1, 0.45), (0.95, 0.3, 0.7)),
)
"""Of an aurora's foot, and of its upper end."""
RAINBOW = ("#e8554e", "#f59b42", "#f7d94c", "#5cc36a", "#4a9fe0", "#7a63c9")


def draw_sky(canvas: Canvas, horizon: float) -> None:
    """The sky above `horizon`, with what shines in it."""
    canvas.rect(0, 0, EXTENT, EXTENT, paint(shader=vertical_gradient(0, horizon, canvas.palette.sky)))
    time, weather = canvas.palette.time, canvas.weather
    if time == "night" and weather in ("clear", "cloudy", "aurora"):
        _draw_stars(canvas, horizon)
        if canvas.chance(0.35):
            _draw_milky_way(canvas)
    elif time == "dusk" and weather in ("clear", "cloudy"):
        _draw_first_stars(canvas, horizon)
    if weather == "aurora":
        _draw_aurora(canvas, horizon)
    if weather in ("clear", "cloudy", "rainbow", "aurora"):
        if time == "night":
            _draw_moon(canvas)
        else:
            _draw_sun(canvas, horizon)
    elif weather == "fog":
        _draw_veiled_disc(canvas)
    if weather == "rainbow":
        _draw_rainbow(canvas, horizon)


def _draw_stars(canvas: Canvas, horizon: float) -> None:
    """Many faint points, and a few bright ones that shine."""
    for _ in range(canvas.integer(40, 80)):
        x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, horizon)
        alpha = canvas.uniform(0.4, 1) * (1 - 0.75 * y / max(horizon, 1))
        canvas.circle(x, y, canvas.uniform(0.45, 0.95), paint((1, 1, 0.95), alpha))
    for _ in range(canvas.integer(8, 18)):
        x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, horizon * 0.8)
        radius = canvas.uniform(1.0, 1.6) + (0.7 if canvas.is_line_style else 0)
        canvas.glow(x, y, radius * 4.5, (0.8, 0.88, 1), 0.7)
        canvas.circle(x, y, radius, paint((1, 1, 0.97)))


def _draw_milky_way(canvas: Canvas) -> None:
    with canvas.rotated(canvas.uniform(-50, 50), 128, 80):
        for _ in range(5):
            x, y = 128 + canvas.uniform(-20, 20), 70 + canvas.uniform(-6, 6)
            veil = paint(mix(canvas.palette.glow, (1, 1, 1), 0.3), 0.055, blur=14, blend=ADD_LIGHT)
            canvas.oval(x, y, 200, canvas.uniform(8, 22), veil)
        for _ in range(140):
            x, y = canvas.uniform(-60, 320), 70 + canvas.rng.normal(0, 10)
            canvas.circle(x, y, canvas.uniform(0.15, 0.55), paint((1, 1, 1), canvas.uniform(0.3, 0.9)))


def _draw_first_stars(canvas: Canvas, horizon: float) -> None:
    for _ in range(canvas.integer(12, 40)):
        y = canvas.uniform(0, horizon * 0.6)
        x, radius = canvas.uniform(0, EXTENT), canvas.uniform(0.3, 0.8)
        canvas.circle(x, y, radius, paint((1, 1, 1), canvas.uniform(0.3, 0.9) * (1 - y / horizon * 1.2)))


def _draw_aurora(canvas: Canvas, horizon: float) -> None:
    """Two or three folded curtains of light: vertical rays that start sharply at their foot and fade upwards."""
    rows, columns = 96, 128
    base, top = canvas.choice(AURORA_COLOURS)
    y = np.linspace(0, 1, rows)[:, None]
    light = np.zeros((rows, columns, 3))
    above_peaks = canvas.scene.setting in ("lake", "mountains")
    lowest, highest = (0.3, 0.55) if above_peaks else (0.5, 0.85)
    for _ in range(canvas.integer(2, 3)):
        folds = fractal_noise(canvas.rng, columns, 3)
        foot = canvas.uniform(lowest, highest) + folds * canvas.uniform(0.1, 0.16)
        rays = np.clip(0.55 + 0.5 * fractal_noise(canvas.rng, columns, 6, 0.8), 0.1, 1)
        height = canvas.uniform(0.4, 0.6) * (0.75 + 0.4 * rays)
        up = (foot[None, :] - y) / height[None, :]
        strength = np.where(up < 0, np.exp(np.minimum(up, 0) * 22), np.clip(1 - up, 0, 1) ** 1.5) * rays[None, :]
        blend = np.clip(up * 1.3, 0, 1)[..., None]
        light += strength[..., None] * (np.array(base) * (1 - blend) + np.array(top) * blend) * 0.8
    pixels = np.concatenate([np.clip(light, 0, 1), np.ones((rows, columns, 1))], -1)
    canvas.texture(pixels, 0, 0, EXTENT, horizon, blend=ADD_LIGHT)


def _draw_moon(canvas: Canvas) -> None:
    x, y, palette = canvas.sun_x, canvas.sun_y, canvas.palette
    radius = canvas.uniform(12, 20)
    canvas.glow(x, y, radius * 5, palette.glow, 0.55)
    canvas.glow(x, y, radius * 2.2, palette.glow, 0.5)
    stops = [mix(palette.sun, (1, 1, 1), 0.6), palette.sun, shade(palette.sun, 0.8)]
    disc = radial_gradient(x - radius * 0.3 * 1, y - radius * 0.3, radius * 1.6, stops)
    canvas.circle(x, y, radius, paint(shader=disc))
    for dx, dy, share in MOON_SPOTS:
        canvas.circle(x + dx * radius, y + dy * radius, share * radius, paint(shade(palette.sun, 0.82), 0.55))


def _draw_sun(canvas: Canvas, horizon: float) -> None:
    x, y, palette = canvas.sun_x, canvas.sun_y, canvas.palette
    radius_at = {
        "day": canvas.uniform(8, 13),
        "dawn": canvas.uniform(12, 20),
        "sunset": canvas.uniform(13, 26),
        "dusk": canvas.uniform(10, 15),
    }
    radius = radius_at[palette.time]
    if palette.time == "dusk":  # The sun is below the horizon
        canvas.glow(x, horizon, 110, palette.glow, 0.55)
        return
    canvas.glow(x, y, radius * 9, palette.glow, 0.5 if palette.time != "day" else 0.4)
    canvas.glow(x, y, radius * 3, palette.sun, 0.55)
    canvas.circle(x, y, radius, paint(mix(palette.sun, (1, 1, 1), 0.25)))


def _draw_veiled_disc(canvas: Canvas) -> None:
    """The sun or moon behind fog: a pale disc without an edge, in a wide halo. At dusk the sun is gone."""
    x, y, palette = canvas.sun_x, canvas.sun_y, canvas.palette
    if palette.time == "dusk":
        return
    radius = {"day": 11, "dawn": 16, "sunset": 18}.get(palette.time, 14)
    canvas.glow(x, y, radius * 7, mix(palette.glow, palette.haze, 0.2), 0.5)
    canvas.circle(x, y, radius, paint(mix(palette.sun, (1, 1, 1), 0.3), 0.6, blur=radius * 0.16))


def _draw_rainbow(canvas: Canvas, horizon: float) -> None:
    x, radius = canvas.uniform(90, 170), canvas.uniform(95, 125)
    for index, colour in enumerate(RAINBOW):
        canvas.circle(x, horizon + 14, radius - index * 4.2, paint(colour, 0.62, stroke=4.6, blur=0.7))


def draw_birds(canvas: Canvas, horizon: float) -> None:
    """A small flock, as strokes."""
    colour = mix(shade(canvas.palette.shadow_light, 0.45), canvas.palette.haze, 0.15)
    flock_x, flock_y = canvas.uniform(40, 216), canvas.uniform(0.2, 0.6) * horizon
    for _ in range(canvas.integer(3, 6)):
        x, y = flock_x + canvas.uniform(-26, 26), flock_y + canvas.uniform(-12, 12)
        span = canvas.uniform(2.2, 4.2)
        lift = canvas.uniform(0.3, 0.9) * span
        wings = outline(
            (x - span, y - lift * 0.4),
            (x - span * 0.45, y - lift, x, y),
            (x + span * 0.45, y - lift, x + span, y - lift * 0.4),
            closed=False,
        )
        canvas.path(wings, paint(colour, 0.85, stroke=0.75))

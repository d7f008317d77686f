"""The sky from zenith to horizon: gradient, stars, aurora, sun and moon, rainbow, clouds, birds."""

from __future__ import annotations

import math

import skia

from latentgen.corpus.canvas import EXTENT, Canvas, fractal_noise
from latentgen.corpus.colour import Rgb, mix, shade
from latentgen.corpus.paint import ADD_LIGHT, outline, packed, paint, radial_gradient, vertical_gradient

MOON_SPOTS = ((-0.35, -0.2, 0.22), (0.25, 0.3, 0.28), (0.4, -0.35, 0.14), (-0.1, 0.5, 0.15), (0.05, -0.05, 0.12))
"""The moon's dark plains: x, y and radius in moon radii."""
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
    if weather == "rainbow":
        _draw_rainbow(canvas, horizon)


def _draw_stars(canvas: Canvas, horizon: float) -> None:
    for _ in range(canvas.integer(50, 110)):
        x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, horizon)
        radius = abs(canvas.rng.normal(0, 0.45)) + 0.25
        alpha = canvas.uniform(0.35, 1) * (1 - 0.75 * y / max(horizon, 1))
        canvas.circle(x, y, radius, paint((1, 1, 0.95), alpha))
        if radius > 1.0:
            canvas.glow(x, y, radius * 5, (0.8, 0.88, 1), 0.5 * alpha)


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
    """Three curtains of light, each sixty vertical rays along a noisy lower edge."""
    base: Rgb = canvas.choice([(0.25, 1, 0.65), (0.3, 0.9, 0.95), (0.7, 0.45, 1)])
    for curtain in range(3):
        edge_y = canvas.uniform(0.25, 0.55) * horizon
        folds = fractal_noise(canvas.rng, 60, 3) * horizon * 0.16
        colour = mix(base, (0.55, 0.35, 1), curtain * 0.3)
        height = canvas.uniform(0.35, 0.6) * horizon
        for ray in range(60):
            x, foot = ray * EXTENT / 58 - 4, edge_y + folds[ray]
            stops = [packed(colour, 0), packed(colour, 0.26), packed(colour, 0.0)]
            light = vertical_gradient(foot - height, foot, stops, [0, 0.85, 1])
            canvas.rect(x, foot - height, 5, height, paint(shader=light, blend=ADD_LIGHT))


def _draw_moon(canvas: Canvas) -> None:
    x, y, palette = canvas.sun_x, canvas.sun_y, canvas.palette
    radius = canvas.uniform(9, 17)
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


def _draw_rainbow(canvas: Canvas, horizon: float) -> None:
    x, radius = canvas.uniform(90, 170), canvas.uniform(95, 125)
    for index, colour in enumerate(RAINBOW):
        canvas.circle(x, horizon + 14, radius - index * 3.4, paint(colour, 0.5, stroke=3.8, blur=0.7))


def draw_clouds(canvas: Canvas, horizon: float) -> None:
    """A bank near the horizon, then heaps and streaks, or the closed ceiling of bad weather."""
    palette, weather = canvas.palette, canvas.weather
    if canvas.chance(0.55) and weather != "fog":
        for _ in range(canvas.integer(3, 6)):
            x, width = canvas.uniform(-10, 266), canvas.uniform(40, 90)
            y, height = horizon - canvas.uniform(2, 16), width * canvas.uniform(0.16, 0.26)
            light = mix(palette.cloud_light, palette.haze, 0.55)
            _draw_cumulus(canvas, x, y, width, height, light, mix(palette.cloud_shade, palette.haze, 0.6), 0.75, 0.7)
    formation = canvas.choice(["puff", "puff", "streak", "mixed"])
    if weather in ("overcast", "storm", "rain", "snow"):
        _draw_ceiling(canvas, horizon)
        return
    if formation in ("streak", "mixed"):
        _draw_streaks(canvas, horizon)
    if formation in ("puff", "mixed") or weather == "cloudy":
        many, few = canvas.integer(6, 9), canvas.integer(2, 4)
        heights = sorted(canvas.uniform(0.12, 0.8) for _ in range(many if weather == "cloudy" else few))
        for share in reversed(heights):
            width = canvas.uniform(34, 80) * (1.25 - share * 0.7)
            x, height = canvas.uniform(0, EXTENT), width * canvas.uniform(0.3, 0.5)
            _draw_cumulus(
                canvas, x, horizon * share, width, height, palette.cloud_light, palette.cloud_shade, 0.95, 0.4
            )


def _draw_ceiling(canvas: Canvas, horizon: float) -> None:
    palette = canvas.palette
    for layer in range(3):
        for _ in range(6):
            x = canvas.uniform(-20, 276)
            y = horizon * (0.12 + 0.2 * layer) + canvas.uniform(-8, 8)
            width = canvas.uniform(80, 160)
            height = width * canvas.uniform(0.22, 0.34)
            light = mix(palette.cloud_light, palette.cloud_shade, 0.3 + 0.15 * layer)
            dark = shade(palette.cloud_shade, 0.95 - 0.05 * layer)
            _draw_cumulus(canvas, x, y, width, height, light, dark, 0.72, canvas.uniform(3.5, 6))


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

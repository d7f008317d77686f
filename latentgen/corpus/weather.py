"""What weather puts between the scene and the eye: rain, snowfall, fog, lightning."""

from __future__ import annotations

from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.colour import mix
from latentgen.corpus.paint import ADD_LIGHT, Point, packed, paint, polygon, radial_gradient


def draw_falling_weather(canvas: Canvas) -> None:
    """Rain, snow or fog over the finished scene; nothing in other weathers."""
    if canvas.weather in ("rain", "storm"):
        _draw_rain(canvas, drops=150 if canvas.weather == "rain" else 210)
    elif canvas.weather == "snow":
        _draw_snowfall(canvas)
    elif canvas.weather == "fog":
        draw_fog_banks(canvas, 90, 250, 0.75)
        whiteness = 0.35 if canvas.palette.time != "night" else 0
        canvas.rect(0, 0, EXTENT, EXTENT, paint(mix(canvas.palette.haze, (0.92, 0.94, 0.96), whiteness), 0.22))


def _draw_rain(canvas: Canvas, drops: int) -> None:
    colour = mix(canvas.palette.haze, (1, 1, 1), 0.45)
    slant = canvas.uniform(-0.28, 0.28)
    for _ in range(drops):
        x, y = canvas.uniform(-30, 286), canvas.uniform(-20, 256)
        length = canvas.uniform(6, 15)
        alpha, width = canvas.uniform(0.12, 0.42), canvas.uniform(0.4, 0.9)
        canvas.line(x, y, x + slant * length, y + length, paint(colour, alpha, stroke=width))


def _draw_snowfall(canvas: Canvas) -> None:
    for _ in range(170):
        radius = abs(canvas.rng.normal(0, 1.1)) + 0.4
        x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, EXTENT)
        flake = paint((1, 1, 1), canvas.uniform(0.5, 0.95), blur=0.3 if radius < 1.4 else 0.9)
        canvas.circle(x, y, radius, flake)


def draw_fog_banks(canvas: Canvas, top: float, bottom: float, alpha: float) -> None:
    """Five soft banks somewhere between two heights."""
    colour = canvas.palette.haze
    if canvas.palette.time != "night":
        colour = mix(colour, (0.9, 0.93, 0.96), 0.3)
    for _ in range(5):
        x, y = canvas.uniform(-20, 276), canvas.uniform(top, bottom)
        half_width, half_height = canvas.uniform(80, 170), canvas.uniform(7, 18)
        canvas.oval(x, y, half_width, half_height, paint(colour, alpha * canvas.uniform(0.3, 0.6), blur=11))


def draw_lightning(canvas: Canvas, horizon: float) -> None:
    """One bolt from the clouds towards the horizon, with a side branch."""
    x, y = canvas.uniform(40, 216), 0.0
    bolt: list[Point] = [(x, y)]
    while y < horizon * 0.92:
        y += canvas.uniform(7, 16)
        x += canvas.uniform(-11, 11)
        bolt.append((x, y))
    canvas.path(polygon(bolt, closed=False), paint((0.8, 0.85, 1), 0.5, stroke=5, blur=4, blend=ADD_LIGHT))
    canvas.path(polygon(bolt, closed=False), paint((1, 1, 1), 0.95, stroke=1.5))
    x, y = bolt[len(bolt) // 2]
    branch: list[Point] = [(x, y)]
    for _ in range(3):
        x += canvas.uniform(3, 12) * canvas.choice([-1, 1])
        y += canvas.uniform(6, 12)
        branch.append((x, y))
    canvas.path(polygon(branch, closed=False), paint((1, 1, 1), 0.7, stroke=0.8))
    canvas.glow(bolt[1][0], 10, 120, (0.75, 0.8, 1), 0.5)


def draw_vignette(canvas: Canvas, strength: float) -> None:
    """Darken the corners."""
    stops = [packed((0, 0, 0), 0), packed((0, 0, 0.05), 0), packed((0.02, 0, 0.08), strength)]
    canvas.rect(0, 0, EXTENT, EXTENT, paint(shader=radial_gradient(128, 118, 190, stops, [0, 0.55, 1])))

"""What weather puts between the scene and the eye: rain, snowfall, fog, lightning."""

from __future__ import annotations

from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.colour import Rgb, mix
from latentgen.corpus.paint import ADD_LIGHT, Point, oval_path, packed, paint, polygon, radial_gradient
from latentgen.corpus.water import mirror_subject


def draw_falling_weather(canvas: Canvas) -> None:
    """Rain, snow or fog over the finished scene; nothing in other weathers."""
    if canvas.weather in ("rain", "storm"):
        _draw_rain(canvas, drops=95 if canvas.weather == "rain" else 130)
    elif canvas.weather == "snow":
        _draw_snowfall(canvas)
    elif canvas.weather == "fog":
        draw_fog_banks(canvas, 165, 262, 1.0)
        whiteness = 0.35 if canvas.palette.time != "night" else 0.15
        canvas.rect(0, 0, EXTENT, EXTENT, paint(mix(canvas.palette.haze, (0.92, 0.94, 0.96), whiteness), 0.18))


def _draw_rain(canvas: Canvas, drops: int) -> None:
    """Slanted streaks, a third of them near and broad: thinner ones would be lost to an autoencoder."""
    colour = mix(canvas.palette.haze, (0.92, 0.96, 1), 0.65)
    slant = canvas.uniform(0.08, 0.34) * canvas.choice([-1, 1])
    for index in range(drops):
        near = index % 3 == 0
        x, y = canvas.uniform(-40, 296), canvas.uniform(-30, 256)
        length = canvas.uniform(16, 30) if near else canvas.uniform(9, 16)
        alpha, width = canvas.uniform(0.32, 0.6), canvas.uniform(1.3, 1.9) if near else canvas.uniform(0.8, 1.1)
        canvas.line(x, y, x + slant * length, y + length, paint(colour, alpha, stroke=width))


def _draw_snowfall(canvas: Canvas) -> None:
    """Flakes at three distances, the nearest large and soft."""
    for count, low, high, blur in ((70, 0.8, 1.4, 0.0), (45, 1.5, 2.4, 0.5), (14, 2.8, 4.2, 1.3)):
        for _ in range(count):
            x, y = canvas.uniform(0, EXTENT), canvas.uniform(0, EXTENT)
            flake = paint((1, 1, 1), canvas.uniform(0.7, 0.98), blur=blur)
            radius = canvas.uniform(low, high)
            canvas.circle(x, y, min(radius, 2.3) if canvas.is_line_style else radius, flake)


def draw_wet_ground(canvas: Canvas, top: float) -> None:
    """Puddles that mirror the sky, with rings of drops; on land below `top`, in rain and storm."""
    sky = mix(canvas.palette.haze, canvas.palette.sky[-1], 0.5)
    bright = mix(sky, (1, 1, 1), 0.3)
    for _ in range(canvas.integer(5, 8)):
        closeness = canvas.uniform(0.15, 1)
        x, y = canvas.uniform(0, EXTENT), top + (EXTENT - 6 - top) * closeness
        radius_x = 10 + 26 * closeness * canvas.uniform(0.6, 1)
        radius_y = radius_x * 0.17
        canvas.oval(x, y, radius_x, radius_y, paint(sky, 0.75))
        canvas.oval(x, y + radius_y * 0.25, radius_x * 0.75, radius_y * 0.6, paint(bright, 0.45))
        draw_drop_ring(canvas, x + canvas.uniform(-0.4, 0.4) * radius_x, y, radius_x * 0.3, bright)


def draw_drop_ring(canvas: Canvas, x: float, y: float, radius: float, colour: Rgb) -> None:
    """Where a raindrop has hit water."""
    canvas.oval(x, y, radius, radius * 0.28, paint(mix(colour, (1, 1, 1), 0.4), 0.7, stroke=1.1))


def draw_rain_on_water(canvas: Canvas, top: float, bottom: float) -> None:
    """Rings of raindrops all over a water surface, larger towards the viewer."""
    for index in range(38):
        closeness = canvas.uniform(0, 1)
        x, y = canvas.uniform(0, EXTENT), top + 4 + (bottom - top - 8) * closeness
        if index % 2:  # All of them would be a texture, not rings
            draw_drop_ring(canvas, x, y, 3.5 + 6 * closeness, canvas.palette.haze)


def draw_reflecting_puddle(canvas: Canvas, x: float, y: float, width: float, height: float) -> None:
    """The wet ground under a subject of this width and height, and the subject's image in it."""
    pool = oval_path(x - width * 0.62, y - height * 0.02, x + width * 0.62, min(EXTENT + 8, y + height * 0.26))
    canvas.path(pool, paint(mix(canvas.palette.haze, canvas.palette.sky[-1], 0.5), 0.55))
    with canvas.clipped(pool):
        mirror_subject(canvas, y, x, height)


def draw_fog_banks(canvas: Canvas, top: float, bottom: float, alpha: float) -> None:
    """Five soft banks somewhere between two heights."""
    colour = canvas.palette.haze
    whiteness = 0.3 if canvas.palette.time != "night" else 0.22
    if canvas.weather == "fog" and canvas.palette.time in ("dusk", "night"):
        whiteness = 0.38  # Moonlit: else dark fog is only darkness
    colour = mix(colour, (0.9, 0.93, 0.96), whiteness)
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
    canvas.path(polygon(bolt, closed=False), paint((1, 1, 1), 0.95, stroke=2.2))
    x, y = bolt[len(bolt) // 2]
    branch: list[Point] = [(x, y)]
    for _ in range(3):
        x += canvas.uniform(3, 12) * canvas.choice([-1, 1])
        y += canvas.uniform(6, 12)
        branch.append((x, y))
    canvas.path(polygon(branch, closed=False), paint((1, 1, 1), 0.8, stroke=1.3))
    canvas.glow(bolt[1][0], 10, 120, (0.75, 0.8, 1), 0.5)


def draw_vignette(canvas: Canvas, strength: float) -> None:
    """Darken the corners."""
    stops = [packed((0, 0, 0), 0), packed((0, 0, 0.05), 0), packed((0.02, 0, 0.08), strength)]
    canvas.rect(0, 0, EXTENT, EXTENT, paint(shader=radial_gradient(128, 118, 190, stops, [0, 0.55, 1])))

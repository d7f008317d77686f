"""Land: ridges, mountains, hills, grass and flowers, roads."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from latentgen.corpus.canvas import EXTENT, Canvas, fractal_noise
from latentgen.corpus.colour import ColourLike, Rgb, mix, parse_hex, shade
from latentgen.corpus.paint import Point, outline, packed, paint, polygon, smooth_curve, vertical_gradient

Ground = Callable[[float], float]
"""Height of the ground's surface at x."""

MOUNTAIN_SAMPLES = 130


def ridge_line(
    canvas: Canvas, y: float, amplitude: float, samples: int = 90, octaves: int = 5, roughness: float = 0.52
) -> list[Point]:
    """A noisy skyline that rises up to `amplitude` above y, from edge to edge."""
    profile = fractal_noise(canvas.rng, samples, octaves, roughness)
    profile = profile / (abs(profile).max() + 1e-6)
    return [
        (index * (EXTENT + 16) / (samples - 1) - 8, y - amplitude * (profile[index] * 0.5 + 0.5))
        for index in range(samples)
    ]


def draw_far_ridge(canvas: Canvas, y: float, amplitude: float, colour: str, light: float, haze: float) -> None:
    """A distant coast or chain of hills, in one colour."""
    skyline = ridge_line(canvas, y, amplitude)
    canvas.path(polygon([*skyline, (270, y + 1), (-10, y + 1)]), paint(canvas.lit(colour, light, haze)))


def draw_mountains(
    canvas: Canvas, y: float, height: float, layers: int = 3, rock: str = "#5f7287", haze: float = 0.75
) -> None:
    """Ranges of snow-capped peaks, the farthest first; each nearer range is lower and clearer."""
    for layer in range(layers):
        nearness = layer / max(1, layers - 1)
        layer_haze = min(0.9, haze * (1 - nearness) ** 1.1 + 0.12 * (1 - nearness))
        _draw_range(
            canvas, y + 2, height * (1 - 0.32 * nearness), layer, layer == layers - 1, nearness, layer_haze, rock
        )


def _draw_range(
    canvas: Canvas,
    foot: float,
    height: float,
    layer: int,
    nearest: bool,
    nearness: float,
    haze: float,
    rock: str,
) -> None:
    palette = canvas.palette
    count = canvas.integer(2, 4) if nearest else canvas.integer(3, 5)
    peaks = sorted(canvas.uniform(-10, 266) for _ in range(count))
    rough = fractal_noise(canvas.rng, MOUNTAIN_SAMPLES, 5, 0.55) * height * 0.055
    heights = [
        height * (0.55 + 0.45 * math.sin(index * 12.9898 + layer * 4.1 + peaks[0]) ** 2) for index in range(count)
    ]

    def elevation(x: float, sample: int) -> float:
        above = 0.0
        for peak_x, peak_height in zip(peaks, heights, strict=True):
            above = max(above, peak_height * max(0, 1 - abs(x - peak_x) / (peak_height * 1.25)))
        return above + rough[sample] + height * 0.08

    skyline: list[Point] = []
    for sample in range(MOUNTAIN_SAMPLES):
        x = sample * (EXTENT + 16) / 129 - 8
        skyline.append((x, foot - max(1, elevation(x, sample))))
    body = polygon([*skyline, (270, foot + 30), (-10, foot + 30)])
    sunny, shady = canvas.lit(rock, 0.75, haze), canvas.lit(rock, 0.3, haze)
    veil = mix(sunny, palette.haze, 0.35 + 0.25 * (1 - nearness))
    canvas.path(body, paint(shader=vertical_gradient(foot - height, foot + 4, [sunny, veil])))
    with canvas.clipped(body):
        for peak_x in peaks:
            sample = min(129, max(0, round((peak_x + 8) * 129 / (EXTENT + 16))))
            _draw_peak(canvas, peak_x, skyline[sample][1], foot, height, haze, shady)
    if not nearest:
        mist = vertical_gradient(foot - height * 0.5, foot, [packed(palette.haze, 0), packed(palette.haze, 0.45)])
        canvas.rect(-5, foot - height * 0.5, 266, height * 0.5 + 4, paint(shader=mist))


def _draw_peak(canvas: Canvas, x: float, y: float, foot: float, range_height: float, haze: float, shady: Rgb) -> None:
    """The dark side of one peak, with a jagged edge, and the snow on high ones."""
    side, rise, steps = canvas.sun_side, foot - y, 7
    edge: list[Point] = [(x, y - 1)]
    for step in range(1, steps + 1):
        jag = (-side) * rise * 0.12 * canvas.uniform(-0.6, 1.0) * (1 if step % 2 else -0.4)
        edge.append((x + jag, y + rise * step / steps))
    dark_side = polygon([*edge, (x - side * rise * 1.6, foot + 4)])
    canvas.path(dark_side, paint(shader=vertical_gradient(y, foot, [packed(shady, 0.75), packed(shady, 0.05)])))
    if rise <= range_height * 0.42:
        return
    snow = mix(canvas.lit("#f7fbff", 1, haze * 0.75), canvas.palette.haze, 0.05)
    snow_in_shadow = canvas.lit("#dfe9f7", 0.1, haze * 0.75)
    snow_height, teeth = rise * canvas.uniform(0.26, 0.4), 9
    hem: list[Point] = []
    for tooth in range(teeth + 1):
        reach = 1 if tooth % 2 else 0.25
        drop = snow_height * (0.62 + 0.38 * reach * canvas.uniform(0.6, 1.1))
        hem.append((x - snow_height * 1.2 + 2.4 * snow_height * (tooth / teeth), y + drop))
    cap = polygon([(x - snow_height * 1.3, y - 4), *hem, (x + snow_height * 1.3, y - 4)])
    canvas.path(cap, paint(snow))
    with canvas.clipped(cap):
        canvas.path(dark_side, paint(snow_in_shadow, 0.9))


def draw_hill(
    canvas: Canvas, y: float, amplitude: float, colour: ColourLike, haze: float = 0.0, foot_haze: float | None = None
) -> Ground:
    """One rolling hill down to the picture's bottom; returns its surface."""
    phase = canvas.uniform(0, 6.28)
    long_wave, short_wave = canvas.uniform(0.6, 1.3), canvas.uniform(1.6, 2.6)

    def ground(x: float) -> float:
        slow = 0.62 * math.sin(x / EXTENT * 6.28 * long_wave * 0.55 + phase)
        fast = 0.3 * math.sin(x / EXTENT * 6.28 * short_wave * 0.55 + phase * 1.7)
        return y - amplitude * (slow + fast)

    crest: list[Point] = [(x, ground(x)) for x in range(-8, 273, 8)]
    body = smooth_curve(crest, 262)
    top = canvas.lit(colour, 1.0, haze)
    bottom = canvas.lit(colour, 0.25, haze if foot_haze is None else foot_haze)
    shading = vertical_gradient(y - amplitude, y + 70, [top, mix(top, bottom, 0.6), bottom])
    canvas.path(body, paint(shader=shading))
    with canvas.clipped(body):  # Light pools on the sun's side
        canvas.glow(canvas.sun_x, y - amplitude * 1.5, 130, canvas.lit("#fff2b0", 1), 0.22)
    canvas.path(smooth_curve(crest), paint(mix(top, (1, 1, 1), 0.25), 0.35, stroke=0.8))
    return ground


def draw_grass(
    canvas: Canvas, ground: Ground, bottom: float, colour: str, blades: int, flowers: Sequence[str] | None = None
) -> None:
    """Blades, then flowers if colours are given; both grow larger towards the viewer."""
    for _ in range(blades):
        x = canvas.uniform(-2, 258)
        far_y = ground(x) + 2
        y = far_y + (bottom - far_y) * canvas.uniform(0, 1) ** 0.8
        closeness = (y - far_y) / max(1, bottom - far_y)
        size = 1.2 + 3.4 * closeness
        shaded = shade(parse_hex(colour), canvas.uniform(0.75, 1.3))
        blade_colour = canvas.lit(shaded, canvas.uniform(0.5, 1), 0.1 * (1 - closeness))
        bend = x + canvas.uniform(-0.4, 0.4) * size
        tip = x + canvas.uniform(-0.8, 0.8) * size
        blade = outline((x, y), (bend, y - size * 0.6, tip, y - size * 1.3), closed=False)
        canvas.path(blade, paint(blade_colour, 0.7, stroke=0.4 + 0.6 * closeness))
    if flowers is None:
        return
    for _ in range(canvas.integer(40, 80)):
        x = canvas.uniform(0, 256)
        far_y = ground(x) + 3
        closeness = canvas.uniform(0, 1) ** 0.75
        y = far_y + (bottom - far_y) * closeness
        petal = canvas.lit(canvas.choice(flowers), 1, 0.1 * (1 - closeness))
        _draw_flower(canvas, x, y, 0.7 + 2.0 * closeness, petal)


def _draw_flower(canvas: Canvas, x: float, y: float, size: float, petal: Rgb) -> None:
    """Five petals where there is room for them, else a dot; a disc where petals would be lost."""
    if size <= 1.6:
        canvas.oval(x, y, size * 0.8, size * 0.6, paint(petal))
        return
    turn = canvas.uniform(0, 6)
    if canvas.is_line_style:
        canvas.circle(x, y, size, paint(petal))
        return
    for index in range(5):
        angle = turn + index * 1.257
        petal_x, petal_y = x + math.cos(angle) * size * 0.75, y + math.sin(angle) * size * 0.55
        canvas.circle(petal_x, petal_y, size * 0.55, paint(petal))
    canvas.circle(x, y, size * 0.42, paint(canvas.lit("#ffd84a", 1)))


def draw_road(canvas: Canvas, ground: Ground) -> None:
    """A sandy track that winds from the hill's crest to the viewer."""
    start_x = canvas.uniform(100, 156)
    y = ground(start_x) + 1
    phase, end_x = canvas.uniform(0, 6), canvas.uniform(60, 196)
    left: list[Point] = []
    right: list[Point] = []
    for index in range(14):
        along = index / 13
        road_y = y + (258 - y) * along
        centre = start_x + (end_x - start_x) * along * along + 13 * math.sin(along * 5.5 + phase) * along
        half = 1.2 + 19 * along**1.5
        left.append((centre - half, road_y))
        right.append((centre + half, road_y))
    shading = vertical_gradient(y, 256, [canvas.lit("#e0cfa4", 1, 0.15), canvas.lit("#cdb482", 0.85)])
    canvas.path(polygon([*left, *reversed(right)]), paint(shader=shading))

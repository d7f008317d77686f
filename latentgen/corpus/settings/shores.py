"""Settings by the water: sea, lake, tropical island, beach, and the cliff above the sea."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from latentgen.corpus.canvas import Canvas, fractal_noise
from latentgen.corpus.colour import mix
from latentgen.corpus.heroes.parts import draw_rocks
from latentgen.corpus.heroes.trees import draw_tree, draw_tree_silhouette
from latentgen.corpus.paint import Point, horizontal_gradient, paint, polygon, smooth_curve, vertical_gradient
from latentgen.corpus.settings.stage import Stage, flat_at
from latentgen.corpus.terrain import draw_far_ridge, draw_grass, draw_hill, draw_mountains
from latentgen.corpus.water import draw_water


def draw_far_shore(canvas: Canvas, horizon: float) -> None:
    """Sometimes one or two faint coasts on the horizon."""
    amount = canvas.rng.random()
    if amount < 0.5:
        draw_far_ridge(canvas, horizon, canvas.uniform(8, 20), "#6b7f95", 0.6, 0.62)
    if amount < 0.25:
        draw_far_ridge(canvas, horizon, canvas.uniform(5, 12), "#5d7488", 0.5, 0.4)


def draw_alps(canvas: Canvas, horizon: float) -> None:
    """High mountains behind a lake or an alpine meadow."""
    height = canvas.uniform(70, 100)
    draw_mountains(canvas, horizon, height, 3, canvas.choice(["#5f7287", "#6a6f86", "#56788a"]))


def draw_sea(canvas: Canvas, horizon: float) -> Stage:
    draw_far_shore(canvas, horizon)
    draw_water(canvas, horizon)
    return Stage("water", horizon, (horizon + 38, horizon + 75), flat_at(horizon))


def draw_lake(canvas: Canvas, horizon: float) -> Stage:
    """A still lake that mirrors mountains and a line of trees, seen from a grassy bank."""
    for _ in range(0 if canvas.scene.shows("pine") else 34):
        x = canvas.uniform(-5, 261)
        draw_tree_silhouette(canvas, x, horizon + 1, canvas.uniform(7, 16), 0.35)
    draw_water(canvas, horizon, mirror=0.75, calm=0.85)
    bank_y = canvas.uniform(212, 228)
    ground = draw_hill(canvas, bank_y, 6, "#eef4fb" if canvas.snow_covered else "#6f9a4a")
    flowers = ["#ffffff", "#ffd84a", "#c58af0"] if canvas.palette.time != "night" else None
    draw_grass(canvas, ground, 258, "#6f9a4a", 120, flowers)
    waters = (horizon + 18, bank_y - 34)
    return Stage("land", horizon, (bank_y + 6, 244), ground, waters=waters)


def draw_island(canvas: Canvas, horizon: float) -> Stage:
    """A small island with palms, ringed by shallows."""
    draw_far_shore(canvas, horizon)
    draw_water(canvas, horizon, calm=0.65)
    y = horizon + canvas.uniform(48, 62)
    centre = 128 + canvas.uniform(-10, 10)
    half = canvas.uniform(92, 112)
    canvas.oval(centre, y + 7, half * 1.1, 17, paint(mix(canvas.palette.sea[0], (1, 1, 1), 0.25), 0.55, blur=3))
    canvas.oval(centre, y + 5, half * 1.02, 12.5, paint(canvas.lit("#ffffff", 1), 0.55))
    beach = smooth_curve(
        [
            (centre - half, y + 5),
            (centre - half * 0.7, y - 3),
            (centre - half * 0.3, y - 10),
            (centre + half * 0.2, y - 12),
            (centre + half * 0.65, y - 5),
            (centre + half, y + 5),
            (centre + half * 0.6, y + 12),
            (centre, y + 14),
            (centre - half * 0.6, y + 12),
            (centre - half, y + 5),
        ]
    )
    sand = vertical_gradient(y - 12, y + 14, [canvas.lit("#fbe6b8", 1), canvas.lit("#e6bf82", 0.75)])
    canvas.path(beach, paint(shader=sand))
    meadow = smooth_curve(
        [
            (centre - half * 0.62, y - 3),
            (centre - half * 0.3, y - 11),
            (centre + half * 0.2, y - 13),
            (centre + half * 0.5, y - 6),
            (centre + half * 0.2, y - 2),
            (centre - half * 0.3, y - 0.5),
            (centre - half * 0.62, y - 3),
        ]
    )
    canvas.path(meadow, paint(canvas.lit("#7fb556", 0.95)))
    for _ in range(50):
        x, foot = centre + canvas.uniform(-0.55, 0.45) * half, y - canvas.uniform(1, 10)
        tip_x, tip_y = x + canvas.uniform(-2, 2), foot - canvas.uniform(2, 4)
        canvas.line(x, foot, tip_x, tip_y, paint(canvas.lit("#8fc860", canvas.uniform(0.5, 1)), 0.8, stroke=0.6))
    for _ in range(0 if canvas.scene.shows("palm") else canvas.integer(1, 3)):
        x = centre + canvas.choice([-1, 1]) * canvas.uniform(0.52, 0.76) * half
        foot = y - 1 + canvas.uniform(0, 4)
        draw_tree(canvas, x, foot, canvas.uniform(44, 66), "palm")
    return Stage("land", horizon, (y + 1, y + 5), flat_at(y - 8))


def draw_beach(canvas: Canvas, horizon: float) -> Stage:
    """Sand in front of the sea, with a line of surf and sometimes palms at the side."""
    draw_far_shore(canvas, horizon)
    shore_y = canvas.uniform(178, 196)
    draw_water(canvas, horizon, shore_y + 20, calm=0.6)
    phase, wave, slope = canvas.uniform(0, 6), canvas.uniform(0.010, 0.018), canvas.uniform(-0.1, 0.1)

    def shore(x: float) -> float:
        return shore_y + 6 * math.sin(x * wave + phase) + slope * (x - 128)

    for index, (offset, alpha) in enumerate(((-7, 0.35), (-3.5, 0.7), (0, 1))):
        edge = [(x, shore(x) + offset + 1.2 * math.sin(x * 0.11 + index * 2 + phase)) for x in range(-8, 273, 8)]
        foam, wet_sand = paint(canvas.lit("#ffffff", 1), 0.5 * alpha), paint(canvas.lit("#c9a676", 0.7))
        canvas.path(smooth_curve(edge, 262), foam if index < 2 else wet_sand)
    sand = [canvas.lit("#f7dfae", 1), canvas.lit("#eccb8f", 0.85), canvas.lit("#d9b070", 0.6)]
    dry_edge = [(x, shore(x) + 3) for x in range(-8, 273, 8)]
    canvas.path(smooth_curve(dry_edge, 262), paint(shader=vertical_gradient(shore_y, 256, sand)))
    for _ in range(70):
        x = canvas.uniform(0, 256)
        y = shore(x) + 6 + canvas.uniform(0, 1) * 70
        radius_x, radius_y = canvas.uniform(0.4, 1.6), canvas.uniform(0.3, 0.7)
        grain = canvas.lit(canvas.choice(["#fff3d6", "#b98f58", "#f7e6c4"]), 0.8)
        canvas.oval(x, y, radius_x, radius_y, paint(grain, 0.6))
    if canvas.chance(0.5) and not canvas.scene.shows("palm") and canvas.scene.is_single:
        side = canvas.choice([-1, 1]) if canvas.scene.side is None else {"left": 1, "right": -1}[canvas.scene.side]
        for _ in range(canvas.integer(1, 2)):
            x = 128 + side * canvas.uniform(88, 118)
            foot = shore(x) + canvas.uniform(10, 30)
            draw_tree(canvas, x, foot, canvas.uniform(85, 120), "palm")
    return Stage("land", horizon, (shore_y + 24, 244), shore, waters=(horizon + 20, shore_y - 18))


def draw_cliff_sea(canvas: Canvas, horizon: float) -> Stage:
    """The sea a cliff will stand over; `draw_cliff` draws the cliff itself once its height is known."""
    draw_far_shore(canvas, horizon)
    draw_water(canvas, horizon)
    inland = _land_side(canvas)
    centred = canvas.scene.is_single and canvas.scene.side is None
    x = 128 + inland * (canvas.uniform(0, 16) if centred else canvas.uniform(45, 58))
    feet, waters = (horizon + 34, horizon + 40), (horizon + 36, horizon + 58)
    return Stage("cliff", horizon, feet, flat_at(horizon), preferred_x=x, waters=waters, inland=inland)


def _land_side(canvas: Canvas) -> int:
    """Where the cliff is, -1 left or 1 right: under the subject that stands, else away from the sun."""
    scene = canvas.scene
    if scene.side is not None:
        return -1 if scene.side == "left" else 1
    if len(scene.subjects) == 2 and not scene.behind:
        return -1 if scene.subjects[0].noun.category not in ("water", "air") else 1
    return -1 if canvas.sun_x > 128 else 1


def draw_cliff(canvas: Canvas, x: float, inland: int, top: float, foothold: float) -> None:
    """A rock face with a grassy top at height `top`, its edge `foothold` away from x; the sea is not on `inland`."""
    edge_x = x - inland * (foothold + canvas.uniform(2, 8))
    rough = fractal_noise(canvas.rng, 80, 5, 0.6)

    def at(distance: float) -> float:
        """x at a distance inland from the edge."""
        return edge_x + inland * distance

    crest: list[Point] = [
        (
            at(distance),
            top - (distance / 150) ** 1.5 * 26 * (1 if distance > 30 else 0.0) - 1.6 * rough[int(distance / 3) % 80],
        )
        for distance in range(0, 200, 4)
    ]
    face: list[Point] = []
    for step in range(1, 17):
        down = step / 16
        overhang = -26 * down**1.5 + 7 * rough[step * 3] + (4 if step % 2 else -2)
        face.append((at(overhang), top + down * (262 - top)))
    body = polygon([(crest[-1][0], 262), *reversed(crest), *face])
    stone = [canvas.lit("#a08b7c", 0.85), canvas.lit("#7d6c6c", 0.5), canvas.lit("#5f5560", 0.3)]
    canvas.path(body, paint(shader=vertical_gradient(top, 256, stone, [0, 0.5, 1])))
    with canvas.clipped(body):
        _draw_buttresses(canvas, at, top, facing_sun=inland * -1 == canvas.sun_side)
        for layer in range(7):
            y = top + 14 + layer * canvas.uniform(11, 16)
            stratum = [
                (at(distance), y + 3 * rough[(int(distance) + layer * 11) % 80] + 0.06 * distance)
                for distance in range(-40, 190, 10)
            ]
            crack = paint(canvas.lit("#5a4f58", 0.2), 0.28, stroke=canvas.uniform(0.6, 1.4))
            canvas.path(smooth_curve(stratum), crack)
    _draw_turf(canvas, crest, rough, top)
    foot_x = face[-2][0]
    for _ in range(3):
        rock_x, rock_y = foot_x - inland * canvas.uniform(0, 34), canvas.uniform(236, 254)
        width, height = canvas.uniform(20, 34), canvas.uniform(8, 16)
        draw_rocks(canvas, rock_x, rock_y, width, height, count=5)
    for _ in range(46):
        x, y = foot_x - inland * canvas.uniform(-6, 46), canvas.uniform(236, 258)
        radius_x, radius_y = canvas.uniform(2, 8), canvas.uniform(0.5, 1.4)
        canvas.oval(x, y, radius_x, radius_y, paint(canvas.lit("#ffffff", 0.95), canvas.uniform(0.25, 0.7)))


def _draw_buttresses(canvas: Canvas, at: Callable[[float], float], top: float, *, facing_sun: bool) -> None:
    """Vertical facets along the rock face, each with a shaded flank."""
    bright, dim = (1, 0.55) if facing_sun else (0.45, 0.2)
    distance = -34.0
    while distance < 180:
        width, head_y = canvas.uniform(9, 24), top + canvas.uniform(2, 10)
        facet = [
            (at(distance), head_y + canvas.uniform(0, 6)),
            (at(distance + width * 0.55), head_y + canvas.uniform(-2, 3)),
            (at(distance + width), head_y + canvas.uniform(2, 12)),
            (at(distance + width * 0.8 - 6), head_y + canvas.uniform(34, 60)),
            (at(distance + width * 0.9 - 16), 262),
            (at(distance - 14), 262),
            (at(distance - 4), head_y + canvas.uniform(30, 55)),
        ]
        colours = [canvas.lit("#ad9788", bright), canvas.lit("#84726e", dim)]
        shading = horizontal_gradient(at(distance), at(distance + width), colours)
        canvas.path(polygon(facet), paint(alpha=0.8, shader=shading))
        flank = [*facet[1:4], (at(distance + width * 0.35), head_y + 40)]
        canvas.path(polygon(flank), paint(canvas.lit("#5d525c", 0.15), 0.4))
        distance += width * 0.8


def _draw_turf(canvas: Canvas, crest: list[Point], rough: NDArray[np.float64], top: float) -> None:
    """The cap of grass, with blades and a few bushes."""
    upper = [(x, y - 1.5) for x, y in crest]
    lower = [(x, y + 3.2 + 2.2 * abs(math.sin(index * 1.7 + rough[index]))) for index, (x, y) in enumerate(crest)]
    green = vertical_gradient(top - 24, top + 8, [canvas.lit("#9cc765", 1), canvas.lit("#5f9048", 0.55)])
    canvas.path(polygon([*upper, *reversed(lower)]), paint(shader=green))
    for _ in range(90):
        x, y = crest[int(canvas.uniform(0, 190) / 4) % len(crest)]
        foot_x, foot_y = x + canvas.uniform(-2, 2), y + canvas.uniform(-1, 1)
        tip_x, tip_y = x + canvas.uniform(-3, 3), y - canvas.uniform(2, 4.2)
        colour = canvas.choice(["#a9d06f", "#7fb355", "#c3d97e"])
        blade = paint(canvas.lit(colour, canvas.uniform(0.5, 1)), 0.85, stroke=0.6)
        canvas.line(foot_x, foot_y, tip_x, tip_y, blade)
    for _ in range(4):
        x, y = crest[int(canvas.uniform(20, 110) / 4)]
        radius_x, radius_y = canvas.uniform(3, 6), canvas.uniform(2, 4)
        canvas.oval(x, y - 1, radius_x, radius_y, paint(canvas.lit("#5f9548", 0.7)))

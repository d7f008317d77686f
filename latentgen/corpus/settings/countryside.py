"""Cultivated land: cherry garden, farm field, winding river."""

from __future__ import annotations

import math

from latentgen.corpus.canvas import Canvas
from latentgen.corpus.colour import parse_hex, shade
from latentgen.corpus.heroes.trees import TreeKind, draw_tree
from latentgen.corpus.paint import Point, paint, polygon, smooth_curve, vertical_gradient
from latentgen.corpus.settings.stage import Stage, flat_at
from latentgen.corpus.terrain import Ground, draw_grass, draw_hill, draw_mountains, draw_road
from latentgen.corpus.water import draw_water


def draw_garden(canvas: Canvas, horizon: float) -> Stage:
    """A path between cherry trees in blossom, with petals in the air."""
    green = _draw_wooded_hills(canvas, horizon, blossoming=True)
    ground = draw_hill(canvas, horizon + 34, 5, green, 0.05)
    draw_road(canvas, ground)
    draw_grass(canvas, ground, 258, green, 120, ["#ffd0e2", "#ffffff", "#f7a0c0"])
    for side in (-1, 1):
        for _ in range(0 if canvas.scene.shows("cherry") else canvas.integer(1, 2)):
            x, y = 128 + side * canvas.uniform(84, 122), ground(128) + canvas.uniform(12, 34)
            draw_tree(canvas, x, y, canvas.uniform(88, 128), "cherry")
    for _ in range(46):
        x, y = canvas.uniform(0, 256), canvas.uniform(20, 256)
        with canvas.rotated(canvas.uniform(0, 180), x, y):
            radius_x, radius_y = canvas.uniform(1, 2), canvas.uniform(0.6, 1)
            canvas.oval(x, y, radius_x, radius_y, paint(canvas.lit("#ffc4da", 1), 0.9))
    return Stage("land", horizon, (horizon + 58, 244), ground)


def draw_farm(canvas: Canvas, horizon: float) -> Stage:
    """Rows of a crop that run to a vanishing point."""
    green = _draw_wooded_hills(canvas, horizon)
    ground = draw_hill(canvas, horizon + 34, 5, green, 0.05)
    _draw_crop_rows(canvas, horizon, ground)
    return Stage("land", horizon, (horizon + 58, 244), ground)


def draw_river(canvas: Canvas, horizon: float) -> Stage:
    """A river that winds towards the viewer; a single subject stands on one bank."""
    green = _draw_wooded_hills(canvas, horizon)
    draw_hill(canvas, horizon + 30, 5, green, 0.15)
    head_y = horizon + 29
    phase, head_x, mouth_x = canvas.uniform(0, 6), canvas.uniform(90, 166), canvas.uniform(70, 186)
    left: list[Point] = []
    right: list[Point] = []
    for index in range(22):
        along = index / 21
        y = head_y + (260 - head_y) * along
        bend = 26 * math.sin(along * 4.2 + phase) * (0.3 + along * 0.7)
        centre = head_x + (mouth_x - head_x) * along + bend
        half = 3 + 50 * along**1.35
        left.append((centre - half, y))
        right.append((centre + half, y))
    bed = polygon([*left, *reversed(right)])
    canvas.path(bed, paint(canvas.lit("#d8c79a", 0.8), stroke=4))
    with canvas.clipped(bed):
        draw_water(canvas, head_y, mirror=0.6, calm=0.8)
    for bank in (left, right):
        canvas.path(smooth_curve(bank), paint(canvas.lit("#5f8f45", 0.4), 0.8, stroke=1.6))
    for _ in range(120):
        x, y = canvas.uniform(0, 256), canvas.uniform(head_y + 8, 256)
        index = int((y - head_y) / (260 - head_y) * 21)
        if left[index][0] - 3 < x < right[index][0] + 3:
            continue
        size = 1 + 3 * (y - head_y) / 110
        tip_x = x + canvas.uniform(-1, 1) * size
        colour = shade(parse_hex(green), canvas.uniform(0.75, 1.3))
        blade = paint(canvas.lit(colour, canvas.uniform(0.5, 1)), 0.7, stroke=0.8)
        canvas.line(x, y, tip_x, y - 1.4 * size, blade)
    left_place, right_place = left[14][0] - 34, right[14][0] + 34
    side = canvas.scene.side
    on_left = canvas.choice([-1, 1]) < 0 if side is None else side == "left"
    place = left_place if on_left else right_place
    if side is not None:
        place = min(place, 92) if on_left else max(place, 164)
    elif not 30 < place < 226:
        place = right_place if on_left else left_place
    foot = left[14][1]
    return Stage("land", horizon, (foot, foot + 6), flat_at(horizon + 36), preferred_x=min(218, max(38, place)))


def _draw_wooded_hills(canvas: Canvas, horizon: float, *, blossoming: bool = False) -> str:
    """Mountains (mostly) and two hills with trees; returns the green of this picture's grass."""
    if canvas.chance(0.75):
        draw_mountains(canvas, horizon, canvas.uniform(34, 66), 2, "#64788c", 0.82)
    green = canvas.choice(["#86bd5a", "#7fb85a", "#93c062"])
    for layer in range(2):
        nearness = layer / 2
        ground = draw_hill(canvas, horizon + 6 + nearness * 20, 8, green, 0.5 * (1 - nearness), 0.3)
        for _ in range(canvas.integer(4, 9)):
            x, foot = canvas.uniform(-5, 261), ground(canvas.uniform(0, 256)) + 2
            height = canvas.uniform(10, 17)
            kind: TreeKind = "cherry" if blossoming and canvas.chance(0.7) else canvas.choice(("round", "pine"))
            if not canvas.scene.shows(kind):
                draw_tree(canvas, x, foot, height, kind, 0.45 * (1 - nearness))
    return green


def _draw_crop_rows(canvas: Canvas, horizon: float, ground: Ground) -> None:
    crop = parse_hex(canvas.choice(["#d9b84a", "#8fbf4a", "#b78ad8", "#e0c86a", "#c9d860"]))
    vanishing_x = 128 + canvas.uniform(-40, 40)
    far_y = ground(128) + 3
    for row in range(-15, 16):
        near_x, far_x = vanishing_x + row * 26, vanishing_x + row * 5.2
        furrow = [(far_x - 1.6, far_y), (far_x + 1.6, far_y), (near_x + 8.5, 258), (near_x - 8.5, 258)]
        shading = vertical_gradient(horizon + 34, 256, [canvas.lit(crop, 1, 0.15), canvas.lit(shade(crop, 0.8), 0.8)])
        canvas.path(polygon(furrow), paint(shader=shading))
    for _ in range(160):
        row = canvas.integer(-15, 15)
        closeness = canvas.uniform(0, 1) ** 0.6
        y = far_y + closeness * (255 - ground(128))
        x = vanishing_x + row * (5.2 + 20.8 * closeness) + canvas.uniform(-1.5, 1.5) * (1 + 4 * closeness)
        colour = shade(crop, canvas.uniform(0.85, 1.25))
        leaf = paint(canvas.lit(colour, canvas.uniform(0.6, 1)), 0.85)
        canvas.oval(x, y - 1, 1 + 2.4 * closeness, 0.9 + 1.9 * closeness, leaf)

"""Trees and the cactus, from hedge size to foreground size."""

from __future__ import annotations

import math
from typing import Literal

import skia

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, mix, parse_hex, shade
from latentgen.corpus.paint import outline, paint, polygon, vertical_gradient

TreeKind = Literal["pine", "palm", "cactus", "round", "autumn", "cherry", "birch"]
SNOW = "#f4f8fd"

Blob = tuple[float, float, float]
"""x, y and radius: of a crown's layout in tree heights from the foot, of a drawn crown in the canvas's units."""
CROWNS: dict[str, tuple[Blob, ...]] = {
    "round": (
        (0, -0.63, 0.2), (-0.2, -0.57, 0.17), (0.2, -0.57, 0.17), (-0.13, -0.75, 0.17), (0.14, -0.76, 0.17),
        (0, -0.84, 0.14), (-0.31, -0.62, 0.12), (0.32, -0.63, 0.12), (0, -0.55, 0.16),
    ),
    "cherry": (
        (0, -0.74, 0.16), (-0.19, -0.68, 0.15), (0.19, -0.68, 0.15), (-0.11, -0.83, 0.13), (0.12, -0.84, 0.13),
        (-0.33, -0.62, 0.13), (0.34, -0.63, 0.13), (-0.36, -0.5, 0.08), (0.37, -0.51, 0.08),
    ),
    "autumn": (
        (0, -0.62, 0.19), (-0.15, -0.56, 0.15), (0.15, -0.56, 0.15), (-0.12, -0.73, 0.15), (0.12, -0.74, 0.15),
        (0, -0.86, 0.13), (-0.22, -0.65, 0.11), (0.23, -0.66, 0.11), (0, -0.52, 0.14),
    ),
    "birch": (
        (0, -0.66, 0.2), (-0.17, -0.6, 0.16), (0.17, -0.6, 0.16), (-0.1, -0.76, 0.15), (0.11, -0.77, 0.15),
        (0, -0.84, 0.13), (-0.24, -0.68, 0.1), (0.25, -0.69, 0.1), (0, -0.56, 0.15),
    ),
}  # fmt: skip
"""Crowns of broad-leaved trees: an oak is broad, a cherry an umbrella, an autumn tree rather tall."""
TRUNK_WIDTHS = {"round": 1.45, "cherry": 1.15}
"""In widths of the other trees' trunks."""
CLOSE = 40.0
"""From this height on, a tree shows its boughs, clumps of leaves, and what has fallen from it."""
GOLDEN_ANGLE = 2.39996
"""Spreads clumps evenly without a draw of chance (radians)."""


def draw_tree(canvas: Canvas, x: float, y: float, height: float, kind: TreeKind, haze: float = 0) -> None:
    """A tree whose foot is at y; a pine carries snow where the scene does."""
    reach = height * (0.75 if kind == "palm" else 0.62)
    with canvas.lit_layer(
        haze=haze,
        light=0.92,
        bounds=(x - reach, y - height * 1.2, x + reach, y + height * 0.06),
        side_light=SideLight(x - height * 0.28, x + height * 0.28, 0.7),
    ):
        if kind == "pine":
            _draw_pine(canvas, x, y, height)
        elif kind == "palm":
            _draw_palm(canvas, x, y, height)
        elif kind == "cactus":
            _draw_cactus(canvas, x, y, height)
        else:
            _draw_broadleaf(canvas, x, y, height, kind)


def draw_tree_silhouette(canvas: Canvas, x: float, y: float, height: float, haze: float) -> None:
    """A distant conifer: one triangle."""
    colour = canvas.lit("#2f5a48", 0.5, haze)
    canvas.path(polygon([(x, y - height), (x - height * 0.24, y), (x + height * 0.24, y)]), paint(colour))


def _draw_pine(canvas: Canvas, x: float, y: float, height: float) -> None:
    needles = parse_hex(canvas.choice(["#2f6b4a", "#2a5f4a", "#3a7a4f", "#27594a", "#3f7f6a", "#4a7f3f"]))
    tiers, spread = canvas.choice([3, 4, 4, 5]), canvas.uniform(0.21, 0.29)
    canvas.rect(x - height * 0.03, y - height * 0.15, height * 0.06, height * 0.15, paint("#5a3d2a"))
    step = 0.82 / (tiers + 0.35)
    side, teeth = canvas.sun_side, 4
    for tier in range(tiers):
        base_y = y - height * (0.1 + step * tier)
        half = height * spread * (1 - 0.74 * tier / tiers)
        tier_height = height * step * (1.75 if tier < tiers - 1 else 1.35)
        peak_y = base_y - tier_height
        edge = [
            (x + half - 2 * half * tooth / teeth, base_y + (height * 0.025 if tooth % 2 else 0.0))
            for tooth in range(teeth + 1)
        ]
        branches = vertical_gradient(peak_y, base_y, [shade(needles, 1.25), shade(needles, 0.74)])
        canvas.path(polygon([(x, peak_y), *edge]), paint(shader=branches))
        dark_side = [(x, peak_y), (x - side * half, base_y), (x - side * half * 0.12, base_y + height * 0.01)]
        canvas.path(polygon(dark_side), paint(shade(needles, 0.6), 0.55))
        if canvas.snow_covered:
            low, middle = base_y - tier_height * 0.3, base_y - tier_height * 0.42
            snow = [
                (x, peak_y),
                (x + half * 0.68, low),
                (x + half * 0.25, middle),
                (x, base_y - tier_height * 0.26),
                (x - half * 0.25, middle),
                (x - half * 0.68, low),
            ]
            canvas.path(polygon(snow), paint(SNOW, 0.95))


def _draw_palm(canvas: Canvas, x: float, y: float, height: float) -> None:
    """A leaning ringed trunk under a crown of drooping fronds."""
    lean = canvas.uniform(-0.32, 0.32)
    top_x, top_y = x + lean * height * 0.6, y - height * canvas.uniform(0.72, 0.8)
    bend_x, bend_y = x + lean * height * 0.1, y - height * 0.5
    bark = parse_hex(canvas.choice(["#8f6a45", "#a07a50", "#7a5a40"]))
    trunk = outline(
        (x - height * 0.038, y),
        (bend_x, bend_y, top_x - height * 0.016, top_y),
        (top_x + height * 0.018, top_y),
        (bend_x + height * 0.055, bend_y, x + height * 0.042, y),
    )
    canvas.path(trunk, paint(bark))
    with canvas.clipped(trunk):
        for ring in range(1, 7):
            ring_y = y - (y - top_y) * ring / 7
            mark = paint(shade(bark, 0.7), 0.7, stroke=height * 0.012)
            canvas.line(x - height * 0.3, ring_y, x + height * 0.3, ring_y - height * 0.02, mark)
    green = parse_hex(canvas.choice(["#3f9a4f", "#4aa84a", "#2f8a58", "#6aa83f"]))
    fronds = canvas.integer(7, 9)
    for index in range(fronds):
        angle = -3.5 + index * 3.86 / (fronds - 1) + canvas.uniform(-0.1, 0.1)
        length = height * canvas.uniform(0.33, 0.42)
        tip_x = top_x + math.cos(angle) * length
        tip_y = top_y + math.sin(angle) * length * 0.55 + height * 0.11
        over_x = top_x + math.cos(angle) * length * 0.55
        over_y = top_y + math.sin(angle) * length * 0.65 - height * 0.07
        frond = outline(
            (top_x, top_y - height * 0.01),
            (over_x, over_y - height * 0.035, tip_x, tip_y),
            (over_x, over_y + height * 0.085, top_x, top_y + height * 0.02),
        )
        canvas.path(frond, paint(shade(green, canvas.uniform(0.72, 1.2))))
    if canvas.chance(0.6):
        for side in (-1, 0, 1):
            canvas.circle(top_x + side * height * 0.03, top_y + height * 0.03, height * 0.026, paint("#6a3f26"))


def _draw_cactus(canvas: Canvas, x: float, y: float, height: float) -> None:
    """A saguaro with one to three arms, at times in blossom."""
    green = parse_hex(canvas.choice(["#4f9a5a", "#3f8a58", "#6aa04f", "#4a8f70"]))
    width = height * canvas.uniform(0.15, 0.2)
    first = canvas.choice([-1, 1])
    arms = [(first, 0.34, 0.3), (-first, 0.48, 0.3), (first, 0.62, 0.2)][: canvas.choice([1, 2, 2, 2, 3])]
    for side, joint, rise in arms:
        arm, thick = side * height * canvas.uniform(0.22, 0.28), width * 0.7
        foot = y - height * joint
        left, right = sorted((x, x + arm + side * thick / 2))
        canvas.round_rect(left, foot - thick, right - left, thick, thick * 0.45, paint(green))
        top = foot - height * (rise + canvas.uniform(0, 0.08))
        canvas.round_rect(x + arm - thick / 2, top, thick, foot - top, thick / 2, paint(green))
    canvas.round_rect(x - width / 2, y - height, width, height, width / 2, paint(green))
    for offset in (-0.22, 0.12):
        rib_x = x + offset * width
        canvas.line(rib_x, y - height * 0.92, rib_x, y, paint(shade(green, 0.72), 0.8, stroke=width * 0.1))
    if canvas.chance(0.4):
        canvas.circle(x, y - height, width * 0.28, paint("#f06a9a"))


FOLIAGE: dict[str, tuple[str, ...]] = {
    "round": ("#5fa04a", "#4f9448", "#7ab04f", "#3f8a4a", "#8aae3f"),
    "autumn": ("#e08a2f", "#d8602f", "#eab23f", "#c84a2a", "#e0762a"),
    "cherry": ("#f7a8c4", "#f4b9d0", "#ef94b4", "#fbc6d8"),
    "birch": ("#9fc24f", "#b4cc5a"),
}


def _draw_broadleaf(canvas: Canvas, x: float, y: float, height: float, kind: TreeKind) -> None:
    leaves = parse_hex(canvas.choice(FOLIAGE[kind]))
    bark = "#e8e4da" if kind == "birch" else canvas.choice(["#6b4a34", "#5a4030", "#7a5a40"])
    breadth = canvas.uniform(0.9, 1.25) * (0.7 if kind == "birch" else 1)
    canvas.path(_trunk_path(x, y, height, TRUNK_WIDTHS.get(kind, 1)), paint(bark))
    if kind == "birch":
        for _ in range(5):
            mark_y = y - canvas.uniform(0.03, 0.5) * height
            mark_end = x + canvas.uniform(-0.01, 0.015) * height
            canvas.line(x - height * 0.02, mark_y, mark_end, mark_y, paint("#3a3a3a", 0.8, stroke=height * 0.012))
    for side in (-1, 1):
        limb = paint(bark, stroke=height * 0.028)
        canvas.line(x, y - height * 0.36, x + side * height * 0.15, y - height * 0.56, limb)
    blobs = [
        (
            x + (dx * breadth + canvas.uniform(-0.035, 0.035)) * height,
            y + (dy + canvas.uniform(-0.035, 0.035)) * height,
            radius * canvas.uniform(0.88, 1.12) * height * (0.85 if kind == "birch" else 1),
        )
        for dx, dy, radius in CROWNS[kind]
    ]
    side = canvas.sun_side
    for blob_x, blob_y, radius in blobs:
        canvas.circle(blob_x, blob_y + radius * 0.12, radius, paint(shade(leaves, 0.7)))
    tints = _tints(leaves, kind)
    for index, (blob_x, blob_y, radius) in enumerate(blobs):
        tint = paint(tints[index % len(tints)])
        canvas.circle(blob_x + side * radius * 0.1, blob_y - radius * 0.06, radius * 0.88, tint)
    if height >= CLOSE:
        opacity = 0.5 if kind == "cherry" else 0.3
        branch = paint(shade(parse_hex(bark), 0.8), opacity, stroke=height * 0.018)
        _draw_boughs(canvas, x, y, height, blobs, branch)
    for blob_x, blob_y, radius in blobs:
        sunlit = paint(mix(leaves, (1, 1, 0.8), 0.3), 0.6 if kind == "autumn" else 0.75, blur=radius * 0.12)
        canvas.circle(blob_x + side * radius * 0.26, blob_y - radius * 0.26, radius * 0.52, sunlit)
    if height >= CLOSE:
        _draw_clumps(canvas, height, blobs, tints)
        if kind in ("autumn", "cherry") and not canvas.snow_covered:
            _draw_fallen(canvas, x, y, height, tints)
    if canvas.snow_covered:
        for blob_x, blob_y, radius in blobs[3:6]:
            canvas.oval(blob_x, blob_y - radius * 0.62, radius * 0.75, radius * 0.34, paint(SNOW, 0.95))


def _tints(leaves: Rgb, kind: TreeKind) -> tuple[Rgb, ...]:
    """The colours of one crown: an autumn tree has all of the season's, a cherry paler and deeper pinks."""
    if kind == "autumn":
        return (leaves, *(mix(leaves, parse_hex(other), 0.6) for other in FOLIAGE["autumn"]))
    if kind == "cherry":
        return leaves, mix(leaves, (1, 1, 1), 0.3), mix(leaves, (0.92, 0.42, 0.6), 0.22)
    return leaves, shade(leaves, 1.1), shade(leaves, 0.9)


def _draw_boughs(canvas: Canvas, x: float, y: float, height: float, blobs: list[Blob], branch: skia.Paint) -> None:
    """Branches from the fork into the crown, half hidden by its leaves."""
    for blob_x, blob_y, radius in blobs[1:7]:
        bough = outline(
            (x, y - height * 0.42),
            (x + (blob_x - x) * 0.3, y - height * 0.58, blob_x, blob_y + radius * 0.2),
            closed=False,
        )
        canvas.path(bough, branch)


def _draw_clumps(canvas: Canvas, height: float, blobs: list[Blob], tints: tuple[Rgb, ...]) -> None:
    """Clumps of leaves or blossom all over the crown, lighter on the sun's side of each blob."""
    size = height * 0.03
    for index, (blob_x, blob_y, radius) in enumerate(blobs):
        for clump in range(5):
            angle, distance = (index * 5 + clump) * GOLDEN_ANGLE, radius * (0.35 + 0.12 * clump)
            dx, dy = math.cos(angle), math.sin(angle)
            towards_light = dx * canvas.sun_side - dy
            tint = tints[(index + clump) % len(tints)]
            colour = mix(tint, (1, 1, 0.9), 0.28) if towards_light > 0 else shade(tint, 0.88)
            place = blob_x + dx * distance, blob_y + dy * distance
            canvas.oval(*place, size * (0.8 + 0.12 * clump), size * 0.75, paint(colour, 0.55))


def _draw_fallen(canvas: Canvas, x: float, y: float, height: float, tints: tuple[Rgb, ...]) -> None:
    """Leaves or petals on the ground about the foot."""
    for index in range(18):
        angle, reach = index * GOLDEN_ANGLE, height * 0.42 * math.sqrt((index + 1) / 18)
        place = x + math.cos(angle) * reach, y + height * 0.012 + math.sin(angle) * reach * 0.1
        canvas.oval(*place, height * 0.02, height * 0.011, paint(tints[index % len(tints)], 0.9))


def _trunk_path(x: float, y: float, height: float, width: float) -> skia.Path:
    """A trunk that widens towards its foot; `width` 1 is 0.13 tree heights there."""
    fork_y, foot, waist, fork = y - height * 0.55, height * 0.065 * width, height * 0.03 * width, height * 0.026 * width
    return outline(
        (x - foot, y),
        (x - waist, y - height * 0.25, x - fork, fork_y),
        (x + fork, fork_y),
        (x + waist, y - height * 0.25, x + foot, y),
    )

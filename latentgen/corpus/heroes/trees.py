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

FOLIAGE_BLOBS = (
    (0, -0.66, 0.2),
    (-0.17, -0.6, 0.16),
    (0.17, -0.6, 0.16),
    (-0.1, -0.76, 0.15),
    (0.11, -0.77, 0.15),
    (0, -0.84, 0.13),
    (-0.24, -0.68, 0.1),
    (0.25, -0.69, 0.1),
    (0, -0.56, 0.15),
)
"""Crown of a broad-leaved tree: x, y and radius of its blobs, in tree heights from the foot."""


def draw_tree(canvas: Canvas, x: float, y: float, height: float, kind: TreeKind, haze: float = 0) -> None:
    """A tree whose foot is at y; a pine carries snow where the scene does."""
    reach = height * (0.75 if kind == "palm" else 0.42)
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
    needles = parse_hex(canvas.choice(["#2f6b4a", "#2a5f4a", "#3a7a4f", "#27594a"]))
    canvas.rect(x - height * 0.025, y - height * 0.14, height * 0.05, height * 0.14, paint("#5a3d2a"))
    tiers, teeth = 4, 5
    for tier in range(tiers):
        base_y = y - height * (0.1 + 0.2 * tier)
        half = height * (0.25 - 0.047 * tier)
        tier_height = height * 0.34 if tier < tiers - 1 else height * 0.3
        peak_y = base_y - tier_height
        edge = [
            (x + half - 2 * half * tooth / teeth, base_y + (height * 0.022 if tooth % 2 else 0.0))
            for tooth in range(teeth + 1)
        ]
        branches = vertical_gradient(peak_y, base_y, [shade(needles, 1.2), shade(needles, 0.78)])
        canvas.path(polygon([(x, peak_y), *edge]), paint(shader=branches))
        side = canvas.sun_side
        dark_side = [(x, peak_y), (x - side * half, base_y), (x - side * half * 0.12, base_y + height * 0.01)]
        canvas.path(polygon(dark_side), paint(shade(needles, 0.6), 0.55))
        if canvas.snow_covered:
            low, middle = base_y - tier_height * 0.42, base_y - tier_height * 0.5
            snow = [
                (x, peak_y),
                (x + half * 0.55, low),
                (x + half * 0.2, middle),
                (x, base_y - tier_height * 0.38),
                (x - half * 0.2, middle),
                (x - half * 0.55, low),
            ]
            canvas.path(polygon(snow), paint(SNOW, 0.95))


def _draw_palm(canvas: Canvas, x: float, y: float, height: float) -> None:
    lean = canvas.uniform(-0.35, 0.35)
    top_x, top_y = x + lean * height * 0.6, y - height * 0.8
    trunk = outline(
        (x - height * 0.03, y),
        (x + lean * height * 0.1, y - height * 0.5, top_x - height * 0.012, top_y),
        (top_x + height * 0.014, top_y),
        (x + lean * height * 0.1 + height * 0.05, y - height * 0.5, x + height * 0.035, y),
    )
    canvas.path(trunk, paint("#8f6a45"))
    for ring in range(9):
        ring_y = y - height * 0.08 * ring
        ring_x = x + lean * height * 0.6 * (ring * 0.08 / 0.8) ** 1.7
        bark = paint("#6a4a30", 0.6, stroke=0.6)
        canvas.line(ring_x - height * 0.02, ring_y, ring_x + height * 0.025, ring_y - height * 0.01, bark)
    for index in range(9):
        angle = -3.5 + index * 0.48 + canvas.uniform(-0.1, 0.1)
        length = height * canvas.uniform(0.32, 0.42)
        tip_x = top_x + math.cos(angle) * length
        tip_y = top_y + math.sin(angle) * length * 0.55 + height * 0.1
        bend_x = top_x + math.cos(angle) * length * 0.55
        bend_y = top_y + math.sin(angle) * length * 0.65 - height * 0.07
        frond = outline(
            (top_x, top_y),
            (bend_x, bend_y - height * 0.02, tip_x, tip_y),
            (bend_x, bend_y + height * 0.07, top_x, top_y + height * 0.015),
        )
        canvas.path(frond, paint(shade(parse_hex("#3f9a4f"), canvas.uniform(0.75, 1.15))))
    for side in (-1, 0, 1):
        canvas.circle(top_x + side * height * 0.025, top_y + height * 0.025, height * 0.022, paint("#7a4a2c"))


def _draw_cactus(canvas: Canvas, x: float, y: float, height: float) -> None:
    green = parse_hex("#4f9a5a")
    width = height * 0.17
    for stem_x, foot, stem_height, stem_width in (
        (x, y, height, width),
        (x - height * 0.24, y - height * 0.34, height * 0.32, width * 0.72),
        (x + height * 0.22, y - height * 0.46, height * 0.34, width * 0.72),
    ):
        half = stem_width / 2
        canvas.round_rect(stem_x - half, foot - stem_height, stem_width, stem_height, half, paint(green))
    elbow, corner = width * 0.66, width * 0.33
    canvas.round_rect(x - height * 0.3, y - height * 0.42, height * 0.3, elbow, corner, paint(green))
    canvas.round_rect(x, y - height * 0.54, height * 0.28, elbow, corner, paint(green))
    for offset in (-0.25, 0.05, 0.3):
        rib_x = x + offset * width
        canvas.line(rib_x, y - height * 0.93, rib_x, y, paint(shade(green, 0.75), 0.7, stroke=0.6))


def _foliage_colour(canvas: Canvas, kind: TreeKind) -> Rgb:
    choices = {
        "round": canvas.choice(["#5fa04a", "#4f9448", "#7ab04f"]),
        "autumn": canvas.choice(["#e08a2f", "#d8602f", "#eab23f"]),
        "cherry": canvas.choice(["#f7a8c4", "#f4b9d0", "#ef94b4"]),
        "birch": "#9fc24f",
    }
    return parse_hex(choices[kind])


def _draw_broadleaf(canvas: Canvas, x: float, y: float, height: float, kind: TreeKind) -> None:
    leaves = _foliage_colour(canvas, kind)
    bark = "#e8e4da" if kind == "birch" else "#6b4a34"
    canvas.path(_trunk_path(x, y, height), paint(bark))
    if kind == "birch":
        for _ in range(7):
            mark_y = y - canvas.uniform(0.03, 0.5) * height
            mark_end = x + canvas.uniform(-0.01, 0.015) * height
            canvas.line(x - height * 0.02, mark_y, mark_end, mark_y, paint("#3a3a3a", 0.8, stroke=0.7))
    for side in (-1, 1):
        limb = paint(bark, stroke=height * 0.022)
        canvas.line(x, y - height * 0.38, x + side * height * 0.13, y - height * 0.56, limb)
    shape: list[tuple[float, float, float]] = list(FOLIAGE_BLOBS)
    if kind == "birch":
        shape = [(dx * 0.7, dy * 1.05, radius * 0.85) for dx, dy, radius in shape]
    blobs = [
        (
            x + dx * height + canvas.uniform(-0.02, 0.02) * height,
            y + dy * height + canvas.uniform(-0.02, 0.02) * height,
            radius * height,
        )
        for dx, dy, radius in shape
    ]
    for blob_x, blob_y, radius in blobs:
        canvas.circle(blob_x, blob_y + radius * 0.12, radius, paint(shade(leaves, 0.72)))
    side = canvas.sun_side
    for blob_x, blob_y, radius in blobs:
        canvas.circle(blob_x + side * radius * 0.1, blob_y - radius * 0.06, radius * 0.88, paint(leaves))
    for blob_x, blob_y, radius in blobs:
        sunlit = paint(mix(leaves, (1, 1, 0.8), 0.28), 0.75, blur=radius * 0.12)
        canvas.circle(blob_x + side * radius * 0.26, blob_y - radius * 0.26, radius * 0.52, sunlit)


def _trunk_path(x: float, y: float, height: float) -> skia.Path:
    fork_y = y - height * 0.55
    return outline(
        (x - height * 0.055, y),
        (x - height * 0.025, y - height * 0.25, x - height * 0.02, fork_y),
        (x + height * 0.02, fork_y),
        (x + height * 0.025, y - height * 0.25, x + height * 0.055, y),
    )

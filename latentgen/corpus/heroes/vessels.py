"""Things that carry people over water and through the air: sailboat, hot air balloon."""

from __future__ import annotations

import skia

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import lights_are_on
from latentgen.corpus.paint import outline, oval_path, packed, paint, polygon, radial_gradient


def draw_sailboat(canvas: Canvas, x: float, y: float, height: float, colour: str = "white", haze: float = 0) -> None:
    """A sloop under mainsail and jib, its waterline at y, heading left or right."""
    hull_colour = parse_hex(canvas.choice(["#7a4a2c", "#b5433a", "#2f4f7f", "#f4f1ea", "#2f6b68"]))
    mainsail_colour = paint_colour(colour)
    jib_colour = parse_hex(canvas.choice(["#fbf8f0", "#f0e6d2"])) if colour == "white" else shade(mainsail_colour, 0.93)
    heading = canvas.choice([-1, 1])
    half = height * 0.42
    mast = x - heading * height * 0.02
    with canvas.lit_layer(haze=haze, side_light=SideLight(x - half, x + half, 0.6)):
        canvas.line(mast, y - height * 0.05, mast, y - height, paint("#5a4030", stroke=max(0.8, height * 0.014)))
        luff = mast + heading * height * 0.012
        mainsail = outline(
            (luff, y - height * 0.98),
            (mast + heading * height * 0.34, y - height * 0.5, mast + heading * height * 0.42, y - height * 0.16),
            (mast + heading * height * 0.2, y - height * 0.1, luff, y - height * 0.13),
        )
        canvas.path(mainsail, paint(mainsail_colour))
        stay = mast - heading * height * 0.015
        jib = outline(
            (stay, y - height * 0.9),
            (mast - heading * height * 0.14, y - height * 0.45, mast - heading * height * 0.32, y - height * 0.15),
            (mast - heading * height * 0.14, y - height * 0.1, stay, y - height * 0.14),
        )
        canvas.path(jib, paint(jib_colour))
        for share in (0.35, 0.55, 0.72):
            seam_y = y - height * share
            seam_end = mast + heading * height * (0.42 * (1 - share) * 1.02)
            seam = paint((0, 0, 0), 0.09, stroke=0.6)
            canvas.line(mast + heading * height * 0.015, seam_y, seam_end, seam_y + height * 0.025, seam)
        hull = outline(
            (x - half, y - height * 0.105),
            (x - half * 0.8, y + height * 0.01, x - half * 0.55, y + height * 0.02),
            (x + half * 0.6, y + height * 0.02),
            (x + half * 0.9, y, x + half * 1.08, y - height * 0.12),
            (x, y - height * 0.075, x - half, y - height * 0.105),
        )
        canvas.path(hull, paint(hull_colour))
        with canvas.clipped(hull):
            canvas.rect(x - half * 1.2, y - height * 0.075, half * 2.4, height * 0.02, paint("#ffffff", 0.7))
            canvas.rect(x - half * 1.2, y - height * 0.012, half * 2.4, height * 0.05, paint("#000000", 0.2))
        pennant = [
            (mast, y - height * 1.0),
            (mast + heading * height * 0.1, y - height * 0.975),
            (mast, y - height * 0.95),
        ]
        canvas.path(polygon(pennant), paint("#e0483a"))


def draw_balloon(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """A striped hot air balloon; y is the bottom of its basket. The burner lights it from within in the dark."""
    primary = paint_colour(colour)
    if colour not in ("white", "yellow"):
        secondary = parse_hex(canvas.choice(["#fff3d8", "#ffd25a", "#ffffff"]))
    else:
        secondary = parse_hex(canvas.choice(["#e0533f", "#3f7fd0", "#f08a2c"]))
    radius = height * 0.36
    centre_y = y - height + radius
    mouth_y = y - height * 0.2
    with canvas.lit_layer(haze=haze, side_light=SideLight(x - radius, x + radius, 0.95)):
        envelope = _envelope_path(x, centre_y, radius, mouth_y)
        canvas.path(envelope, paint(primary))
        with canvas.clipped(envelope):
            canvas.oval(x, centre_y + radius * 0.2, radius * 0.2, radius * 1.5, paint(secondary))
            top, bottom = centre_y - radius * 1.4, centre_y + radius * 1.6
            outer = oval_path(x - radius * 0.86, top, x + radius * 0.86, bottom)
            inner = oval_path(x - radius * 0.55, top, x + radius * 0.55, bottom)
            canvas.path(skia.Op(outer, inner, skia.kDifference_PathOp), paint(secondary))
            shine_x = x + canvas.sun_side * radius * 0.4
            stops = [packed((1, 1, 1), 0.4), packed((1, 1, 1), 0)]
            shine = radial_gradient(shine_x, centre_y - radius * 0.45, radius * 0.9, stops)
            canvas.circle(shine_x, centre_y - radius * 0.4, radius * 0.9, paint(shader=shine))
        for side in (-1, 1):
            rope = paint("#5a4030", stroke=max(0.5, height * 0.006))
            canvas.line(x + side * radius * 0.2, mouth_y, x + side * height * 0.045, y - height * 0.09, rope)
        basket = height * 0.055
        canvas.round_rect(
            x - basket, y - height * 0.095, height * 0.11, height * 0.095, height * 0.015, paint("#a8703f")
        )
        canvas.rect(x - height * 0.06, y - height * 0.1, height * 0.12, height * 0.022, paint("#7a4a28"))
    if lights_are_on(canvas):
        canvas.glow(x, mouth_y, radius * 1.1, (1, 0.75, 0.3), 0.55)


def _envelope_path(x: float, centre_y: float, radius: float, mouth_y: float) -> skia.Path:
    path = skia.Path()
    path.moveTo(x - radius * 0.22, mouth_y)
    path.cubicTo(
        x - radius * 0.55, centre_y + radius * 0.95, x - radius, centre_y + radius * 0.55, x - radius, centre_y
    )
    path.arcTo(skia.Rect.MakeLTRB(x - radius, centre_y - radius, x + radius, centre_y + radius), 180, 180, False)
    path.cubicTo(
        x + radius, centre_y + radius * 0.55, x + radius * 0.55, centre_y + radius * 0.95, x + radius * 0.22, mouth_y
    )
    path.close()
    return path

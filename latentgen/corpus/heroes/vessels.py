"""Things that carry people over water and through the air: sailboat, hot air balloon."""

from __future__ import annotations

from dataclasses import dataclass

import skia

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import lights_are_on
from latentgen.corpus.paint import outline, oval_path, packed, paint, polygon, radial_gradient

HULLS = ("#7a4a2c", "#b5433a", "#2f4f7f", "#f4f1ea", "#2f6b68", "#3a3f4a")


@dataclass(frozen=True, slots=True)
class _Rig:
    """A boat under sail: `heading` is the side its main boom points to, -1 left or 1 right."""

    x: float
    y: float
    height: float
    mast: float
    heading: int
    sail: Rgb
    jib: Rgb

    def at(self, along: float, up: float) -> tuple[float, float]:
        """A point `along` heights from the mast towards the boom's end, `up` heights over the water."""
        return self.mast + self.heading * along * self.height, self.y - up * self.height


def draw_sailboat(canvas: Canvas, x: float, y: float, height: float, colour: str = "white", haze: float = 0) -> None:
    """A sloop, a gaff cutter, a catboat or a two-master, its waterline at y, heading left or right."""
    rig_kind = canvas.choice(["sloop", "sloop", "gaff", "cat", "ketch"])
    hull_colour = parse_hex(canvas.choice(HULLS))
    sail = paint_colour(colour)
    jib = parse_hex(canvas.choice(["#fbf8f0", "#f0e6d2"])) if colour == "white" else shade(sail, 0.9)
    heading = canvas.choice([-1, 1])
    half = height * canvas.uniform(0.38, 0.46)
    mast_x = x + heading * height * {"cat": -0.2, "ketch": -0.08}.get(rig_kind, -0.03)
    rig = _Rig(x, y, height, mast_x, heading, sail, jib)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - height * 0.7, y - height * 1.05, x + height * 0.7, y + height * 0.06),
        side_light=SideLight(x - half, x + half, 0.6),
    ):
        if rig_kind == "gaff":
            _draw_gaff_sail(canvas, rig)
        else:
            _draw_mainsail(canvas, rig, 0.32 if rig_kind == "ketch" else 0.44)
        if rig_kind != "cat":
            _draw_jib(canvas, rig, canvas.uniform(0.28, 0.36))
        if rig_kind == "ketch":
            mizzen = _Rig(x, y, height * 0.66, mast_x + heading * height * 0.36, heading, sail, jib)
            _draw_mainsail(canvas, mizzen, 0.26)
        _draw_hull(canvas, rig, half, hull_colour, cabin=canvas.chance(0.4))
        pennant = [rig.at(0, 1.02), rig.at(0.12, 0.985), rig.at(0, 0.95)]
        canvas.path(polygon(pennant), paint("#e0483a" if colour != "red" else "#f5c531"))


def _draw_mast(canvas: Canvas, rig: _Rig) -> None:
    stroke = paint("#5a4030", stroke=max(1.2, rig.height * 0.018))
    canvas.line(*rig.at(0, 0.05), *rig.at(0, 1.0), stroke)


def _draw_mainsail(canvas: Canvas, rig: _Rig, boom: float) -> None:
    """A triangle with a rounded leech; at times with a broad stripe, or battens."""
    _draw_mast(canvas, rig)
    sail = outline(
        rig.at(0.014, 0.97),
        (*rig.at(boom * 0.8, 0.52), *rig.at(boom, 0.17)),
        (*rig.at(boom * 0.5, 0.11), *rig.at(0.014, 0.14)),
    )
    canvas.path(sail, paint(rig.sail))
    with canvas.clipped(sail):
        if canvas.chance(0.25):
            stripe = [rig.at(0, 0.46), rig.at(boom, 0.42), rig.at(boom, 0.3), rig.at(0, 0.34)]
            canvas.path(polygon(stripe), paint(shade(rig.sail, 0.78)))
        else:
            for up in (0.34, 0.56):
                canvas.line(*rig.at(0, up), *rig.at(boom, up - 0.04), paint((0, 0, 0), 0.12, stroke=rig.height * 0.012))


def _draw_gaff_sail(canvas: Canvas, rig: _Rig) -> None:
    """A four-cornered sail under a slanting spar."""
    _draw_mast(canvas, rig)
    throat, peak, clew, tack = rig.at(0.01, 0.68), rig.at(0.27, 0.94), rig.at(0.45, 0.16), rig.at(0.01, 0.14)
    canvas.path(polygon([throat, peak, clew, tack]), paint(rig.sail))
    spar = paint("#5a4030", stroke=max(1.1, rig.height * 0.016))
    canvas.line(*throat, *peak, spar)
    canvas.line(*rig.at(0, 0.13), *clew, spar)


def _draw_jib(canvas: Canvas, rig: _Rig, reach: float) -> None:
    jib = outline(
        rig.at(-0.016, 0.9),
        (*rig.at(-reach * 0.45, 0.46), *rig.at(-reach, 0.15)),
        (*rig.at(-reach * 0.45, 0.1), *rig.at(-0.016, 0.14)),
    )
    canvas.path(jib, paint(rig.jib))


def _draw_hull(canvas: Canvas, rig: _Rig, half: float, colour: Rgb, *, cabin: bool) -> None:
    """The bow is on the side away from the boom."""
    x, y, height, bow = rig.x, rig.y, rig.height, -rig.heading
    if cabin:
        left = min(x - bow * half * 0.5, x + bow * half * 0.1)
        canvas.round_rect(left, y - height * 0.15, half * 0.6, height * 0.09, height * 0.03, paint("#f4f1ea"))
    hull = outline(
        (x - bow * half, y - height * 0.115),
        (x - bow * half * 0.86, y + height * 0.01, x - bow * half * 0.6, y + height * 0.025),
        (x + bow * half * 0.5, y + height * 0.025),
        (x + bow * half * 0.9, y, x + bow * half * 1.1, y - height * 0.145),
        (x, y - height * 0.09, x - bow * half, y - height * 0.115),
    )
    canvas.path(hull, paint(colour))
    with canvas.clipped(hull):
        canvas.rect(x - half * 1.2, y - height * 0.082, half * 2.4, height * 0.024, paint("#ffffff", 0.75))
        canvas.rect(x - half * 1.2, y - height * 0.012, half * 2.4, height * 0.05, paint("#000000", 0.25))


def draw_balloon(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """A patterned hot air balloon; y is the bottom of its basket. The burner lights it from within in the dark."""
    primary = paint_colour(colour)
    if colour not in ("white", "yellow"):
        secondary = parse_hex(canvas.choice(["#fff3d8", "#ffd25a", "#ffffff", "#f4f1ea"]))
    else:
        secondary = parse_hex(canvas.choice(["#e0533f", "#3f7fd0", "#f08a2c"]))
    pattern = canvas.choice(["gores", "gores", "belt", "zigzag", "plain"])
    radius = height * canvas.uniform(0.34, 0.385)
    centre_y, mouth_y = y - height + radius, y - height * 0.2
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - radius * 1.1, y - height * 1.02, x + radius * 1.1, y + 2),
        side_light=SideLight(x - radius, x + radius, 0.95),
    ):
        envelope = _envelope_path(x, centre_y, radius, mouth_y)
        canvas.path(envelope, paint(primary))
        with canvas.clipped(envelope):
            if pattern == "gores":
                _draw_gores(canvas, x, centre_y, radius, secondary)
            elif pattern == "belt":
                canvas.rect(x - radius, centre_y - radius * 0.12, radius * 2, radius * 0.42, paint(secondary))
                canvas.rect(x - radius, centre_y + radius * 0.02, radius * 2, radius * 0.14, paint(primary))
            elif pattern == "zigzag":
                _draw_zigzag(canvas, x, centre_y + radius * 0.1, radius, secondary)
            else:
                canvas.rect(x - radius, centre_y + radius * 0.72, radius * 2, radius, paint(secondary))
            shine_x = x + canvas.sun_side * radius * 0.4
            stops = [packed((1, 1, 1), 0.4), packed((1, 1, 1), 0)]
            shine = radial_gradient(shine_x, centre_y - radius * 0.45, radius * 0.9, stops)
            canvas.circle(shine_x, centre_y - radius * 0.4, radius * 0.9, paint(shader=shine))
        for side in (-1, 1):
            rope = paint("#5a4030", stroke=max(1.0, height * 0.012))
            canvas.line(x + side * radius * 0.2, mouth_y, x + side * height * 0.05, y - height * 0.1, rope)
        basket = height * 0.065
        canvas.round_rect(x - basket, y - height * 0.11, basket * 2, height * 0.11, height * 0.02, paint("#a8703f"))
        canvas.rect(x - basket * 1.1, y - height * 0.115, basket * 2.2, height * 0.03, paint("#7a4a28"))
    if lights_are_on(canvas):
        canvas.glow(x, mouth_y - radius * 0.3, radius * 1.2, (1, 0.75, 0.35), 0.3)
        canvas.glow(x, mouth_y + height * 0.03, height * 0.06, (1, 0.9, 0.6), 0.9)


def _draw_gores(canvas: Canvas, x: float, centre_y: float, radius: float, colour: Rgb) -> None:
    """Every other one of the envelope's panels, narrower towards its edges."""
    top, bottom = centre_y - radius * 1.4, centre_y + radius * 1.6
    outer = oval_path(x - radius * 0.86, top, x + radius * 0.86, bottom)
    inner = oval_path(x - radius * 0.55, top, x + radius * 0.55, bottom)
    canvas.oval(x, centre_y + radius * 0.2, radius * 0.2, radius * 1.5, paint(colour))
    canvas.path(skia.Op(outer, inner, skia.kDifference_PathOp), paint(colour))


def _draw_zigzag(canvas: Canvas, x: float, y: float, radius: float, colour: Rgb) -> None:
    teeth = 6
    upper = [(x - radius + index * radius / teeth, y - radius * 0.28 * (index % 2)) for index in range(teeth * 2 + 1)]
    lower = [(px, py + radius * 0.34) for px, py in reversed(upper)]
    canvas.path(polygon([*upper, *lower]), paint(colour))


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

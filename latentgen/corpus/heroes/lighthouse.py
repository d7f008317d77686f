"""The lighthouse: a tower in bands, a spiral or one colour, its gallery and lantern, at times a keeper's house."""

from __future__ import annotations

from dataclasses import dataclass

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources
from latentgen.corpus.paint import outline, paint, polygon

IRON = "#3a3f4a"
SNOW = "#f4f8fd"


@dataclass(frozen=True, slots=True)
class _Tower:
    """A lighthouse's proportions; `foot` and `neck` are the half widths of the tower at its base and top."""

    x: float
    y: float
    height: float
    foot: float
    neck: float
    shaft: float
    """Height of the tower up to its gallery."""

    @property
    def gallery(self) -> float:
        return self.y - self.shaft


def draw_lighthouse(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """A lighthouse that stands on y; the lantern is lit after dusk and in bad weather."""
    pattern = canvas.choice(["bands", "bands", "bands", "spiral", "plain", "halves"])
    primary = paint_colour(colour)
    secondary = parse_hex("#f7f5f0") if colour != "white" else parse_hex("#d3dbe3")
    roof = primary if colour != "white" else parse_hex(canvas.choice(["#c0392f", "#3a3f4a", "#2f5f8f"]))
    slenderness = canvas.uniform(0.86, 1.22)
    tower = _Tower(
        x, y, height, height * 0.13 * slenderness, height * canvas.uniform(0.076, 0.094) * slenderness, height * 0.73
    )
    keeper_side = (canvas.inland or canvas.choice([-1, 1])) if canvas.scene.is_single and canvas.chance(0.3) else 0
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - height * 0.6, y - height * 1.12, x + height * 0.6, y + 4),
        side_light=SideLight(x - tower.foot * 1.05, x + tower.foot * 1.05, 1.0),
    ):
        if keeper_side:
            _draw_keepers_house(canvas, lights, tower, keeper_side, primary if colour != "white" else roof)
        plinth_top = y - height * 0.05
        wide, narrow = tower.foot * 1.4, tower.foot * 1.2
        plinth = [(x - wide, y + 1), (x - narrow, plinth_top), (x + narrow, plinth_top), (x + wide, y + 1)]
        canvas.path(polygon(plinth), paint("#b9b2a8"))
        shaft = outline(
            (x - tower.foot, y - height * 0.04),
            (x - tower.neck * 1.05, y - tower.shaft * 0.5, x - tower.neck, tower.gallery),
            (x + tower.neck, tower.gallery),
            (x + tower.neck * 1.05, y - tower.shaft * 0.5, x + tower.foot, y - height * 0.04),
        )
        canvas.path(shaft, paint(secondary))
        with canvas.clipped(shaft):
            if pattern == "bands":
                _draw_bands(canvas, tower, primary, canvas.choice([5, 5, 7]))
            elif pattern == "halves":
                _draw_bands(canvas, tower, primary, 3)
            elif pattern == "spiral":
                _draw_spiral(canvas, tower, primary)
            elif colour != "white":
                canvas.rect(x - tower.foot * 1.3, tower.gallery, tower.foot * 2.6, tower.shaft, paint(primary))
        for share in canvas.choice([(0.3, 0.66), (0.48,), (0.36, 0.6)]):
            sill = y - tower.shaft * share
            lights.window(x, sill, height * 0.042, height * 0.062, arched=True, frame="#e8e2d6")
        door = height * 0.034
        canvas.round_rect(x - door, y - height * 0.135, door * 2, height * 0.1, door, paint("#5a3a2a"))
        _draw_top(canvas, lights, tower, roof, domed=canvas.chance(0.5))
    lights.shine()


def _draw_keepers_house(canvas: Canvas, lights: LightSources, tower: _Tower, side: int, roof: Rgb) -> None:
    """A low white house at the tower's foot, on its left (-1) or right (1)."""
    height, y = tower.height, tower.y
    near, far = tower.x + side * tower.foot * 0.4, tower.x + side * height * canvas.uniform(0.38, 0.48)
    left, right = sorted((near, far))
    wall = height * 0.13
    canvas.rect(left, y - wall, right - left, wall + 1, paint("#f3efe6"))
    eaves = height * 0.025
    slope = [
        (left - eaves, y - wall),
        (left + height * 0.03, y - wall * 1.75),
        (right - height * 0.03, y - wall * 1.75),
        (right + eaves, y - wall),
    ]
    canvas.path(polygon(slope), paint(SNOW if canvas.snow_covered else roof))
    for share in (0.4, 0.75):
        lights.window(near + (far - near) * share, y - wall * 0.28, height * 0.05, height * 0.055)


def _draw_bands(canvas: Canvas, tower: _Tower, colour: Rgb, bands: int) -> None:
    """Every other one of an odd number of bands; they sag, because the tower is round."""
    x, foot, neck, band = tower.x, tower.foot, tower.neck, tower.shaft / bands
    for index in range(0, bands, 2):
        upper = tower.gallery + index * band
        lower = upper + band
        ring = outline(
            (x - foot * 1.2, upper),
            (x, upper + neck * 0.35, x + foot * 1.2, upper),
            (x + foot * 1.2, lower),
            (x, lower + neck * 0.4, x - foot * 1.2, lower),
        )
        canvas.path(ring, paint(colour))


def _draw_spiral(canvas: Canvas, tower: _Tower, colour: Rgb) -> None:
    turns = canvas.choice([3.6, 4.4])
    slant = canvas.choice([-1, 1])
    left, right = tower.x - slant * tower.foot * 1.3, tower.x + slant * tower.foot * 1.3
    for turn in range(-2, 8):
        y = tower.gallery + turn * tower.shaft / turns
        rise, width = tower.shaft * 0.15, tower.shaft * 0.46 / turns
        canvas.path(
            polygon([(left, y), (right, y - rise), (right, y - rise + width), (left, y + width)]), paint(colour)
        )


def _draw_top(canvas: Canvas, lights: LightSources, tower: _Tower, roof: Rgb, *, domed: bool) -> None:
    """Gallery with its railing, lantern room, roof and finial."""
    x, height, neck, gallery_y = tower.x, tower.height, tower.neck, tower.gallery
    gallery = neck * 1.6
    bracket_y = gallery_y + height * 0.025
    bracket = [(x - neck, bracket_y), (x - gallery, gallery_y), (x + gallery, gallery_y), (x + neck, bracket_y)]
    canvas.path(polygon(bracket), paint("#4a4f5a"))
    floor_y = gallery_y - height * 0.02
    canvas.rect(x - gallery, floor_y, gallery * 2, height * 0.022, paint(IRON))
    room, room_height = neck * 0.85, height * 0.1
    canvas.rect(x - room, floor_y - room_height, room * 2, room_height, paint("#cfeaf4"))
    iron = paint(IRON, stroke=max(0.9, height * 0.009))
    for index in range(4):
        bar_x = x - room + index * room * 2 / 3
        canvas.line(bar_x, floor_y - room_height, bar_x, floor_y, iron)
    rail_y = gallery_y - height * 0.055
    for index in range(5):
        post_x = x - gallery + index * gallery / 2
        canvas.line(post_x, floor_y, post_x, rail_y, iron)
    canvas.line(x - gallery, rail_y, x + gallery, rail_y, iron)
    eaves_y, reach = floor_y - room_height, room * 1.35
    peak = height * (0.09 if domed else 0.12)
    if domed:
        shape = outline(
            (x - reach, eaves_y),
            (x - reach, eaves_y - peak * 0.9, x, eaves_y - peak),
            (x + reach, eaves_y - peak * 0.9, x + reach, eaves_y),
        )
    else:
        shape = polygon([(x - reach, eaves_y), (x, eaves_y - peak), (x + reach, eaves_y)])
    canvas.path(shape, paint(roof))
    if canvas.snow_covered:
        with canvas.clipped(shape):
            canvas.rect(x - reach, eaves_y - peak, reach * 2, peak * 0.66, paint(SNOW))
        canvas.rect(x - gallery, floor_y - height * 0.014, gallery * 2, height * 0.018, paint(SNOW))
    canvas.rect(x - reach * 1.04, eaves_y - 0.5, reach * 2.08, height * 0.016, paint(shade(roof, 0.7)))
    canvas.line(x, eaves_y - peak * 0.9, x, eaves_y - peak - height * 0.05, iron)
    canvas.circle(x, eaves_y - peak - height * 0.01, height * 0.014, paint(IRON))
    lights.lantern(x, floor_y - room_height * 0.5, room * 0.62)

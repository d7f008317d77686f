"""Dwellings: house, thatched cottage and log cabin, each seen at an angle, from its gable, or along its eaves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, mix, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources, contact_shadow
from latentgen.corpus.paint import paint, polygon

Dwelling = Literal["house", "cottage", "cabin"]

SNOW = "#f4f8fd"
FRAME = "#f4efe6"
TILES = ("#b5473a", "#5b6b86", "#8a4b3a", "#3f6b6f", "#4a4f5c", "#a8623a")
THATCH = ("#c9a05a", "#b3884a", "#d2ad6a")
LOGS = ("#8a5a36", "#9c6a40", "#7a4c30", "#a87848")
SHINGLES = ("#4a3a34", "#5a3a30", "#3f5a45", "#46505c")
DOORS = ("#6b3f2a", "#2f5f6f", "#8a2f2f", "#3f5a3a", "#7a5a2a")
GEOMETRY: dict[Dwelling, tuple[tuple[float, float], tuple[float, float]]] = {
    "house": ((0.48, 0.64), (0.95, 1.3)),
    "cottage": ((0.38, 0.46), (1.1, 1.4)),
    "cabin": ((0.42, 0.5), (1.05, 1.35)),
}
"""Height of the walls and width of the building, both in its own heights, from and to."""


@dataclass(frozen=True, slots=True)
class _House:
    """One dwelling's shape and colours; `facing` is the side its long wall runs to, -1 left or 1 right."""

    kind: Dwelling
    x: float
    y: float
    height: float
    width: float
    wall_height: float
    wall: Rgb
    roof: Rgb
    door: Rgb
    facing: int

    @property
    def eaves(self) -> float:
        return self.y - self.wall_height

    @property
    def ridge(self) -> float:
        return self.y - self.height * 0.92

    @property
    def verge(self) -> float:
        """Thickness of the roof's edge: thatch is thick."""
        return self.height * (0.12 if self.kind == "cottage" else 0.07)


def draw_house(
    canvas: Canvas,
    x: float,
    y: float,
    height: float,
    colour: str = "white",
    *,
    kind: Dwelling = "house",
    haze: float = 0,
) -> None:
    """A dwelling whose walls have a colour (a cabin's are logs), with smoke over half of the chimneys."""
    walls, widths = GEOMETRY[kind]
    house = _House(
        kind,
        x,
        y,
        height,
        width=height * canvas.uniform(*widths),
        wall_height=height * canvas.uniform(*walls),
        wall=parse_hex(canvas.choice(LOGS)) if kind == "cabin" else paint_colour(colour),
        roof=parse_hex(canvas.choice({"house": TILES, "cottage": THATCH, "cabin": SHINGLES}[kind])),
        door=parse_hex(canvas.choice(DOORS)),
        facing=canvas.choice([-1, 1]),
    )
    contact_shadow(canvas, x, y, house.width * 1.05)
    lights = LightSources(canvas)
    view = canvas.choice([_draw_angled, _draw_angled, _draw_gable_front, _draw_long_side])
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - house.width * 1.2, y - height * 1.2, x + house.width * 1.2, y + 3),
        side_light=SideLight(x - house.width * 0.6, x + house.width * 0.6, 0.8),
    ):
        chimney_x = view(canvas, lights, house)
        if kind == "cottage":
            _draw_flower_bed(canvas, house)
    lights.shine()
    if canvas.chance(0.5):
        _draw_smoke(canvas, chimney_x, y - height * 1.08, height)


def _draw_angled(canvas: Canvas, lights: LightSources, house: _House) -> float:
    """Gable and long side together; returns the chimney's x."""
    x, height, width, facing = house.x, house.height, house.width, house.facing
    front_x, half_front = x - facing * width * 0.22, width * 0.25
    side_left, side_right = sorted((front_x + facing * half_front, front_x + facing * (half_front + width * 0.55)))
    far_eaves, drip = front_x + facing * (half_front + width * 0.62), house.eaves + height * 0.04
    chimney_x = front_x + facing * width * 0.38
    _draw_wall(canvas, house, side_left, side_right, 0.86)
    _draw_chimney(canvas, house, chimney_x)
    slope = [
        (front_x, house.ridge),
        (front_x + facing * width * 0.54, house.ridge),
        (far_eaves, drip),
        (front_x + facing * half_front, drip),
    ]
    canvas.path(polygon(slope), paint(SNOW if canvas.snow_covered else house.roof))
    if house.kind == "cottage":
        edge = paint(SNOW if canvas.snow_covered else shade(house.roof, 0.85), stroke=house.verge)
        canvas.line(front_x + facing * half_front, drip, far_eaves, drip, edge)
    _draw_gable(canvas, lights, house, front_x, half_front)
    middle, spread = (side_left + side_right) / 2, (side_right - side_left) * 0.24
    for side in (-1, 1):
        _window(lights, house, middle + side * spread, 0.36)
    return chimney_x


def _draw_gable_front(canvas: Canvas, lights: LightSources, house: _House) -> float:
    """The gable alone, the door in its middle; returns the chimney's x."""
    half = house.width * 0.4
    chimney_x = house.x + house.facing * half * 0.55
    _draw_chimney(canvas, house, chimney_x)
    _draw_gable(canvas, lights, house, house.x, half)
    for side in (-1, 1):
        _window(lights, house, house.x + side * half * 0.6, 0.36)
    return chimney_x


def _draw_long_side(canvas: Canvas, lights: LightSources, house: _House) -> float:
    """The long wall under a sloping roof, the door in the middle; returns the chimney's x."""
    x, height = house.x, house.height
    half, drip = house.width * 0.52, house.eaves + height * 0.03
    chimney_x = x + house.facing * half * 0.6
    _draw_wall(canvas, house, x - half, x + half, 1.0)
    _draw_chimney(canvas, house, chimney_x)
    hip = half * (0.72 if house.kind == "cottage" else 0.9)
    roof = [(x - half * 1.12, drip), (x - hip, house.ridge), (x + hip, house.ridge), (x + half * 1.12, drip)]
    canvas.path(polygon(roof), paint(house.roof))
    edge = paint(shade(house.roof, 0.82), stroke=house.verge * 0.7)
    canvas.line(x - half * 1.1, drip, x + half * 1.1, drip, edge)
    if canvas.snow_covered:
        canvas.path(polygon([(px, py - height * 0.03) for px, py in roof]), paint(SNOW))
    _draw_door(canvas, house, x)
    for share in (-0.62, 0.62):
        _window(lights, house, x + share * half, 0.36)
    if house.kind == "house":
        dormer = house.eaves - height * 0.05
        gable = [(x - half * 0.3, dormer), (x, house.ridge + height * 0.02), (x + half * 0.3, dormer)]
        canvas.path(polygon(gable), paint(house.wall))
        canvas.path(polygon(gable, closed=False), paint(shade(house.roof, 0.82), stroke=height * 0.045))
        lights.window(x, dormer - height * 0.04, height * 0.12, height * 0.13, frame=FRAME)
    return chimney_x


def _draw_wall(canvas: Canvas, house: _House, left: float, right: float, brightness: float) -> None:
    canvas.rect(left, house.eaves, right - left, house.wall_height, paint(shade(house.wall, brightness)))
    if house.kind == "cabin":
        _draw_logs(canvas, house, left, right)


def _draw_logs(canvas: Canvas, house: _House, left: float, right: float) -> None:
    """Horizontal seams, and the round ends of the logs at both corners."""
    logs = 5
    for index in range(logs):
        log_y = house.y - house.wall_height * (index + 0.5) / logs
        seam_y = log_y - house.wall_height * 0.5 / logs
        canvas.line(left, seam_y, right, seam_y, paint("#2f1c12", 0.45, stroke=house.height * 0.018))
        for end_x in (left, right):
            radius = house.wall_height * 0.42 / logs
            canvas.circle(end_x, log_y, radius, paint(shade(house.wall, 1.25)))


def _draw_gable(canvas: Canvas, lights: LightSources, house: _House, x: float, half: float) -> None:
    y, height = house.y, house.height
    gable = [(x - half, y), (x - half, house.eaves), (x, y - height * 0.9), (x + half, house.eaves), (x + half, y)]
    canvas.path(polygon(gable), paint(house.wall))
    if house.kind == "cabin":
        _draw_logs(canvas, house, x - half, x + half)
    foot = house.eaves + height * 0.05
    verge = [(x - half * 1.2, foot), (x, y - height * 0.93), (x + half * 1.2, foot)]
    canvas.path(polygon(verge, closed=False), paint(shade(house.roof, 0.82), stroke=house.verge))
    if canvas.snow_covered:
        raised = [(px, py - height * 0.03) for px, py in verge]
        canvas.path(polygon(raised, closed=False), paint(SNOW, stroke=house.verge * 0.95))
    _draw_door(canvas, house, x)
    lights.window(x, house.eaves - height * 0.02, height * 0.14, height * 0.14, arched=True, frame=FRAME)


def _draw_door(canvas: Canvas, house: _House, x: float) -> None:
    width, height = house.height * 0.17, min(house.height * 0.32, house.wall_height * 0.8)
    corner = width * (0.5 if house.kind == "cottage" else 0.12)
    canvas.round_rect(x - width * 0.62, house.y - height * 1.06, width * 1.24, height * 1.06, corner, paint(FRAME))
    canvas.round_rect(x - width / 2, house.y - height, width, height, corner, paint(house.door))


def _window(lights: LightSources, house: _House, x: float, sill_share: float) -> None:
    """A square pane on the height `sill_share` of the wall."""
    side = house.height * 0.15
    lights.window(x, house.y - house.wall_height * sill_share, side, side * 1.1, frame=FRAME)


def _draw_chimney(canvas: Canvas, house: _House, x: float) -> None:
    height = house.height
    stone = "#8d8a88" if house.kind == "cabin" else "#a8604a"
    canvas.rect(x - height * 0.06, house.y - height * 1.06, height * 0.12, height * 0.34, paint(stone))
    cap = paint(SNOW) if canvas.snow_covered else paint(shade(parse_hex(stone), 0.75))
    canvas.rect(x - height * 0.075, house.y - height * 1.08, height * 0.15, height * 0.045, cap)


def _draw_flower_bed(canvas: Canvas, house: _House) -> None:
    """Bushes along the foot of the walls, in blossom unless snow lies on them."""
    blossom = canvas.choice(["#e8554e", "#f08ab8", "#f5c531", "#b78af0"])
    for share in (-0.46, -0.3, 0.3, 0.46):
        bush_x, radius = house.x + share * house.width, house.height * canvas.uniform(0.06, 0.085)
        canvas.circle(bush_x, house.y - radius * 0.7, radius, paint("#4f8a3f"))
        crown = SNOW if canvas.snow_covered else blossom
        canvas.circle(bush_x, house.y - radius * 1.1, radius * 0.55, paint(crown))


def _draw_smoke(canvas: Canvas, x: float, y: float, house_height: float) -> None:
    drift = canvas.choice([-1, 1]) * canvas.uniform(0.6, 2.2)
    for index in range(7):
        puff_x = x + index * drift + canvas.uniform(-1, 1)
        colour = mix(canvas.lit("#ffffff", 0.8), canvas.palette.haze, 0.3)
        radius = house_height * (0.035 + 0.014 * index)
        veil = paint(colour, 0.5 - 0.05 * index, blur=house_height * 0.03)
        canvas.circle(puff_x, y - index * house_height * 0.075, radius, veil)

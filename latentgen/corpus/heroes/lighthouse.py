"""The lighthouse: tower with bands, a spiral or plain, gallery, lantern room and roof."""

from __future__ import annotations

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources
from latentgen.corpus.paint import outline, paint, polygon

IRON = "#3a3f4a"


def draw_lighthouse(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """A lighthouse that stands on y; the lantern is lit after dusk and in bad weather."""
    pattern = canvas.choice(["bands", "bands", "bands", "spiral", "plain"])
    primary = paint_colour(colour)
    secondary = parse_hex("#f7f5f0") if colour != "white" else parse_hex("#d9e0e6")
    roof = primary if colour != "white" else parse_hex("#c0392f")
    foot, neck = height * 0.125, height * 0.078  # half widths of the tower at its base and top
    tower_height = height * 0.74
    gallery_y = y - tower_height
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - height * 0.25, y - height * 1.1, x + height * 0.25, y + 4),
        side_light=SideLight(x - foot * 1.05, x + foot * 1.05, 1.0),
    ):
        plinth_top = y - height * 0.045
        plinth = [(x - foot * 1.35, y + 1), (x - foot * 1.2, plinth_top), (x + foot * 1.2, plinth_top)]
        canvas.path(polygon([*plinth, (x + foot * 1.35, y + 1)]), paint("#c9c3b8"))
        tower = outline(
            (x - foot, y - height * 0.04),
            (x - neck * 1.05, y - tower_height * 0.5, x - neck, gallery_y),
            (x + neck, gallery_y),
            (x + neck * 1.05, y - tower_height * 0.5, x + foot, y - height * 0.04),
        )
        canvas.path(tower, paint(secondary))
        with canvas.clipped(tower):
            if pattern == "bands":
                _draw_bands(canvas, x, gallery_y, tower_height, foot, neck, primary)
            elif pattern == "spiral":
                _draw_spiral(canvas, x, gallery_y, tower_height, foot, primary)
            elif colour != "white":
                canvas.rect(x - foot * 1.3, gallery_y, foot * 2.6, tower_height, paint(primary))
        for side, share in ((1, 0.22), (-1, 0.47), (1, 0.7)):
            sill = y - tower_height * share
            lights.window(x + side * neck * 0.18, sill, height * 0.028, height * 0.05, arched=True, frame="#e8e2d6")
        door_half = height * 0.028
        canvas.round_rect(x - door_half, y - height * 0.115, height * 0.056, height * 0.08, door_half, paint("#5a3a2a"))
        _draw_top(canvas, lights, x, gallery_y, height, neck, roof)
    lights.shine()


def _draw_bands(
    canvas: Canvas, x: float, top: float, tower_height: float, foot: float, neck: float, colour: Rgb
) -> None:
    bands = canvas.choice([5, 7])
    band = tower_height / bands
    for index in range(0, bands, 2):
        upper = top + index * band
        lower = upper + band
        canvas.path(
            outline(
                (x - foot * 1.2, upper),
                (x, upper + neck * 0.35, x + foot * 1.2, upper),
                (x + foot * 1.2, lower),
                (x, lower + neck * 0.4, x - foot * 1.2, lower),
            ),
            paint(colour),
        )


def _draw_spiral(canvas: Canvas, x: float, top: float, tower_height: float, foot: float, colour: Rgb) -> None:
    for turn in range(-2, 8):
        y = top + turn * tower_height / 5.5
        left, right = x - foot * 1.3, x + foot * 1.3
        ribbon = [
            (left, y),
            (right, y - tower_height * 0.14),
            (right, y - tower_height * 0.045),
            (left, y + tower_height * 0.095),
        ]
        canvas.path(polygon(ribbon), paint(colour))


def _draw_top(
    canvas: Canvas, lights: LightSources, x: float, gallery_y: float, height: float, neck: float, roof: Rgb
) -> None:
    """Gallery with its railing, lantern room, roof and finial."""
    gallery = neck * 1.65
    bracket_y = gallery_y + height * 0.022
    bracket = [(x - neck, bracket_y), (x - gallery, gallery_y), (x + gallery, gallery_y), (x + neck, bracket_y)]
    canvas.path(polygon(bracket), paint("#4a4f5a"))
    floor_y = gallery_y - height * 0.016
    canvas.rect(x - gallery, floor_y, gallery * 2, height * 0.018, paint(IRON))
    room, room_height = neck * 0.82, height * 0.085
    canvas.rect(x - room, floor_y - room_height, room * 2, room_height, paint("#bfe0ee"))
    for index in range(5):
        bar_x = x - room + index * room / 2
        canvas.line(bar_x, floor_y - room_height, bar_x, floor_y, paint(IRON, stroke=max(0.5, height * 0.006)))
    rail_y = gallery_y - height * 0.052
    for index in range(7):
        post_x = x - gallery + index * gallery / 3
        canvas.line(post_x, floor_y, post_x, rail_y, paint(IRON, stroke=max(0.4, height * 0.005)))
    canvas.line(x - gallery, rail_y, x + gallery, rail_y, paint(IRON, stroke=max(0.5, height * 0.006)))
    eaves_y = floor_y - room_height
    canvas.path(
        outline(
            (x - room * 1.3, eaves_y),
            (x - room * 1.0, eaves_y - height * 0.065, x, eaves_y - height * 0.075),
            (x + room * 1.0, eaves_y - height * 0.065, x + room * 1.3, eaves_y),
        ),
        paint(roof),
    )
    canvas.rect(x - room * 1.35, eaves_y - 0.4, room * 2.7, height * 0.012, paint(shade(roof, 0.7)))
    finial = paint(IRON, stroke=max(0.6, height * 0.007))
    canvas.line(x, eaves_y - height * 0.07, x, eaves_y - height * 0.125, finial)
    canvas.circle(x, eaves_y - height * 0.082, height * 0.011, paint(IRON))
    lights.lantern(x, floor_y - room_height * 0.5, room * 0.55)

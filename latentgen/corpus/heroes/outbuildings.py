"""Buildings of the farm and of the ice: barn and igloo."""

from __future__ import annotations

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources, contact_shadow, lights_are_on
from latentgen.corpus.paint import outline, oval_path, paint, polygon, upper_half_oval

SNOW = "#f4f8fd"
TRIM = "#f6f2ea"


def draw_barn(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """A gambrel-roofed barn with white trim, mostly with a silo on one side."""
    boards = paint_colour(colour)
    width = height * canvas.uniform(0.95, 1.15)
    contact_shadow(canvas, x, y, width * 1.1)
    roof = parse_hex(canvas.choice(["#5a4a48", "#4a4f5a", "#6b5a50"]))
    silo_side = canvas.choice([-1, 1, 0, -1, 1])
    knee, shoulder = canvas.uniform(0.46, 0.54), canvas.uniform(0.7, 0.78)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - width, y - height * 1.15, x + width, y + 4),
        side_light=SideLight(x - width * 0.6, x + width * 0.6, 0.7),
    ):
        if silo_side:
            _draw_silo(canvas, x + silo_side * width * 0.62, y, height * canvas.uniform(0.85, 1.0), width * 0.24)
        body = [
            (x - width * 0.5, y),
            (x - width * 0.5, y - height * knee),
            (x - width * 0.36, y - height * shoulder),
            (x, y - height * 0.92),
            (x + width * 0.36, y - height * shoulder),
            (x + width * 0.5, y - height * knee),
            (x + width * 0.5, y),
        ]
        canvas.path(polygon(body), paint(boards))
        with canvas.clipped(polygon(body)):
            for index in range(-3, 4):
                board_x = x + index * width * 0.14
                canvas.line(board_x, y - height, board_x, y, paint((0, 0, 0), 0.1, stroke=width * 0.02))
        roof_line = [
            (x - width * 0.55, y - height * (knee - 0.02)),
            (x - width * 0.38, y - height * (shoulder + 0.02)),
            (x, y - height * 0.95),
            (x + width * 0.38, y - height * (shoulder + 0.02)),
            (x + width * 0.55, y - height * (knee - 0.02)),
        ]
        canvas.path(polygon(roof_line, closed=False), paint(roof, stroke=height * 0.075))
        if canvas.snow_covered:
            raised = [(px, py - height * 0.03) for px, py in roof_line]
            canvas.path(polygon(raised, closed=False), paint(SNOW, stroke=height * 0.06))
        _draw_doors(canvas, x, y, width * 0.2, height * 0.38, shade(boards, 0.8), max(1.2, height * 0.024))
        lights.window(x, y - height * 0.54, width * 0.18, height * 0.17, frame=TRIM)
    lights.shine()


def _draw_silo(canvas: Canvas, x: float, y: float, height: float, width: float) -> None:
    left, shoulder = x - width / 2, y - height * 0.86
    canvas.rect(left, shoulder, width, height * 0.86, paint("#c9ced6"))
    dome = oval_path(left, shoulder - height * 0.16, left + width, shoulder + height * 0.16)
    canvas.path(dome, paint(SNOW if canvas.snow_covered else "#98a2b0"))
    for index in range(1, 5):
        hoop_y = y - height * 0.17 * index
        canvas.line(left, hoop_y, left + width, hoop_y, paint("#8a94a2", 0.6, stroke=height * 0.012))


def _draw_doors(canvas: Canvas, x: float, y: float, leaf: float, height: float, colour: Rgb, trim_width: float) -> None:
    """Two leaves with crossed white trim."""
    trim, top = paint(TRIM, stroke=trim_width), y - height
    canvas.rect(x - leaf, top, leaf * 2, height, paint(colour))
    for left, right in ((x - leaf, x), (x, x + leaf)):
        canvas.path(polygon([(left, top), (right, top), (right, y), (left, y)]), trim)
        canvas.line(left, top, right, y, trim)
        canvas.line(right, top, left, y, trim)


def draw_igloo(canvas: Canvas, x: float, y: float, height: float, haze: float = 0) -> None:
    """A dome of snow blocks with its entrance to the left, right or front, lit from inside in the dark."""
    height *= canvas.uniform(0.68, 0.8)
    radius = height * canvas.uniform(0.82, 1.0)
    contact_shadow(canvas, x, y, radius * 2, 0.4)
    facing = canvas.choice([-1, 0, 1])
    entrance_x, entrance = x + facing * radius * 0.66, radius * 0.36
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - radius * 1.8, y - height * 1.1, x + radius * 1.8, y + 4),
        side_light=SideLight(x - radius, x + radius, 1.0),
    ):
        dome = upper_half_oval(x, y, radius, height)
        canvas.path(dome, paint("#e3eefa"))
        joint = paint("#94b4d6", 0.95, stroke=max(1.1, height * 0.02))
        with canvas.clipped(dome):
            _draw_blocks(canvas, x, y, radius, height, canvas.choice([3, 4]))
        canvas.path(dome, joint)
        canvas.path(upper_half_oval(entrance_x, y, entrance, height * 0.54), paint("#d3e3f4"))
        canvas.path(upper_half_oval(entrance_x, y, entrance, height * 0.54), joint)
        opening = upper_half_oval(entrance_x, y, entrance * 0.64, height * 0.38)
        canvas.path(opening, paint("#2f4560"))
    if lights_are_on(canvas):
        canvas.path(opening, paint("#ffc866", 0.9))
        canvas.glow(entrance_x, y - height * 0.14, entrance * 2.4, (1, 0.7, 0.3), 0.6)


def _draw_blocks(canvas: Canvas, x: float, y: float, radius: float, height: float, courses: int) -> None:
    joint = paint("#94b4d6", 0.9, stroke=max(1.0, height * 0.018))
    step = 0.92 / courses
    for row in range(courses):
        row_y = y - height * step * row
        sag = height * 0.05
        course = outline((x - radius, row_y), (x, row_y + sag, x + radius, row_y), closed=False)
        canvas.path(course, joint)
        for column in range(-4, 5):
            joint_x = x + (column + 0.5 * (row % 2)) * radius * 0.4 * (1 - 0.16 * row)
            top_x = x + (joint_x - x) * 0.86
            canvas.line(joint_x, row_y + sag * 0.5, top_x, row_y - height * step + sag * 0.5, joint)

"""Dwellings: house, cottage and cabin (one drawing), barn, igloo."""

from __future__ import annotations

import skia

from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import mix, paint_colour, parse_hex, shade
from latentgen.corpus.heroes.parts import LightSources, contact_shadow, lights_are_on
from latentgen.corpus.paint import outline, oval_path, paint, polygon, upper_half_oval

SNOW = "#f4f8fd"
FRAME = "#f4efe6"


def draw_house(
    canvas: Canvas, x: float, y: float, height: float, colour: str = "white", *, cabin: bool = False, haze: float = 0
) -> None:
    """A gabled house seen at an angle, its long side to the left or right; a cabin is built of logs."""
    wall = paint_colour(colour)
    roof = parse_hex(canvas.choice(["#b5473a", "#5b6b86", "#8a4b3a", "#3f6b6f"]))
    width = height * canvas.uniform(1.0, 1.25)
    contact_shadow(canvas, x, y, width * 1.05)
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - width * 1.2, y - height * 1.15, x + width * 1.2, y + 2),
        side_light=SideLight(x - width * 0.6, x + width * 0.6, 0.8),
    ):
        wall_height = height * 0.52
        eaves_y = y - wall_height
        facing = canvas.choice([-1, 1])
        if cabin:
            wall = parse_hex(canvas.choice(["#8a5a36", "#9c6a40", "#7a4c30"]))
            roof = parse_hex(canvas.choice(["#4a3a34", "#5a3a30", "#3f4a3f"]))
        front_x, front_width = x - facing * width * 0.22, width * 0.5
        half_front = front_width / 2
        side_left, side_right = sorted(
            (front_x + facing * front_width / 2, front_x + facing * (front_width / 2 + width * 0.55))
        )
        # Long side, its roof, and the chimney
        canvas.rect(side_left, eaves_y, side_right - side_left, wall_height, paint(shade(wall, 0.86)))
        ridge_y, drip_y = y - height * 0.92, eaves_y + height * 0.03
        far_eaves = front_x + facing * (front_width / 2 + width * 0.62)
        side_roof = [
            (front_x, ridge_y),
            (front_x + facing * width * 0.52, ridge_y),
            (far_eaves, drip_y),
            (front_x + facing * front_width * 0.5, drip_y),
        ]
        canvas.path(polygon(side_roof), paint(roof))
        chimney_x = front_x + facing * width * 0.38
        canvas.rect(chimney_x - height * 0.05, y - height * 1.06, height * 0.1, height * 0.24, paint("#a8604a"))
        canvas.rect(chimney_x - height * 0.062, y - height * 1.07, height * 0.124, height * 0.035, paint("#7f463a"))
        # Gable front
        gable = [
            (front_x - half_front, y),
            (front_x - half_front, eaves_y),
            (front_x, y - height * 0.9),
            (front_x + half_front, eaves_y),
            (front_x + half_front, y),
        ]
        canvas.path(polygon(gable), paint(wall))
        if cabin:
            logs_left, logs_right = min(front_x - half_front, side_left), max(front_x + half_front, side_right)
            for index in range(1, 8):
                log_y = y - wall_height * index / 8
                seam = paint("#3a2418", 0.35, stroke=max(0.4, height * 0.01))
                canvas.line(logs_left, log_y, logs_right, log_y, seam)
        gable_edge = [
            (front_x - front_width * 0.6, eaves_y + height * 0.05),
            (front_x, y - height * 0.93),
            (front_x + front_width * 0.6, eaves_y + height * 0.05),
        ]
        canvas.path(polygon(gable_edge, closed=False), paint(shade(roof, 0.82), stroke=height * 0.07))
        if canvas.snow_covered:
            snow_y = y - height * 0.96
            snow_slab = [
                (front_x, snow_y),
                (front_x + facing * width * 0.53, snow_y),
                (far_eaves, eaves_y),
                (front_x + facing * front_width * 0.55, eaves_y),
            ]
            canvas.path(polygon(snow_slab), paint(SNOW))
            snow_edge = [
                (front_x - front_width * 0.62, drip_y),
                (front_x, snow_y),
                (front_x + front_width * 0.62, drip_y),
            ]
            canvas.path(polygon(snow_edge, closed=False), paint(SNOW, stroke=height * 0.065))
        # Door and windows
        door = height * 0.15
        door_colour = canvas.choice(["#6b3f2a", "#2f5f6f", "#8a2f2f", "#3f5a3a"])
        canvas.round_rect(front_x - door / 2, y - height * 0.28, door, height * 0.28, door * 0.3, paint(door_colour))
        canvas.circle(front_x + door * 0.28, y - height * 0.13, height * 0.012, paint("#f0d080"))
        lights.window(front_x, y - wall_height * 0.98, height * 0.12, height * 0.13, arched=True, frame=FRAME)
        if front_width > height * 0.5:
            for side in (-1, 1):
                pane_x = front_x + side * front_width * 0.32
                lights.window(pane_x, y - height * 0.16, height * 0.1, height * 0.14, frame=FRAME)
        side_middle = (side_left + side_right) / 2
        for side in (-1, 1):
            pane_x = side_middle + side * (side_right - side_left) * 0.22
            lights.window(pane_x, y - height * 0.18, height * 0.11, height * 0.15, frame=FRAME)
    lights.shine()
    if canvas.chance(0.5):
        _draw_smoke(canvas, chimney_x, y - height * 1.08, height)


def _draw_smoke(canvas: Canvas, x: float, y: float, house_height: float) -> None:
    for index in range(7):
        puff_x = x + index * 1.6 + canvas.uniform(-1, 1)
        colour = mix(canvas.lit("#ffffff", 0.8), canvas.palette.haze, 0.3)
        radius = house_height * (0.035 + 0.014 * index)
        veil = paint(colour, 0.4 - 0.045 * index, blur=house_height * 0.03)
        canvas.circle(puff_x, y - index * house_height * 0.075, radius, veil)


def draw_barn(canvas: Canvas, x: float, y: float, height: float, colour: str = "red", haze: float = 0) -> None:
    """A gambrel-roofed barn with a silo beside it."""
    boards = paint_colour(colour)
    width = height * 1.05
    contact_shadow(canvas, x, y, width * 1.1)
    roof = parse_hex("#5a4a48") if colour != "black" else parse_hex("#8a3a30")
    lights = LightSources(canvas)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - width, y - height * 1.15, x + width, y + 4),
        side_light=SideLight(x - width * 0.5, x + width * 0.76, 0.7),
    ):
        silo_x = x + width * 0.52
        silo_width = width * 0.24
        canvas.rect(silo_x, y - height * 0.82, silo_width, height * 0.82, paint("#c9ced6"))
        dome = oval_path(silo_x, y - height * 0.98, silo_x + silo_width, y - height * 0.66)
        canvas.path(dome, paint("#a9b2bf"))
        for index in range(1, 8):
            hoop_y = y - height * 0.1 * index
            canvas.line(silo_x, hoop_y, silo_x + silo_width, hoop_y, paint("#8a94a2", 0.5, stroke=0.6))
        body = polygon(
            [
                (x - width * 0.5, y),
                (x - width * 0.5, y - height * 0.5),
                (x - width * 0.36, y - height * 0.74),
                (x, y - height * 0.92),
                (x + width * 0.36, y - height * 0.74),
                (x + width * 0.5, y - height * 0.5),
                (x + width * 0.5, y),
            ]
        )
        canvas.path(body, paint(boards))
        with canvas.clipped(body):
            for index in range(-7, 8):
                board_x = x + index * width * 0.07
                canvas.line(board_x, y - height, board_x, y, paint((0, 0, 0), 0.1, stroke=0.6))
        roof_line = [
            (x - width * 0.55, y - height * 0.48),
            (x - width * 0.38, y - height * 0.76),
            (x, y - height * 0.95),
            (x + width * 0.38, y - height * 0.76),
            (x + width * 0.55, y - height * 0.48),
        ]
        canvas.path(polygon(roof_line, closed=False), paint(roof, stroke=height * 0.06))
        _draw_barn_doors(canvas, x, y, width * 0.2, height * 0.36, shade(boards, 0.8), max(0.8, height * 0.018))
        lights.window(x, y - height * 0.56, width * 0.16, height * 0.16, frame="#f6f2ea")
    lights.shine()


def _draw_barn_doors(
    canvas: Canvas,
    x: float,
    y: float,
    leaf_width: float,
    height: float,
    colour: tuple[float, float, float],
    trim_width: float,
) -> None:
    """Two leaves with crossed white trim."""
    trim = paint("#f6f2ea", stroke=trim_width)
    top = y - height
    canvas.rect(x - leaf_width, top, leaf_width * 2, height, paint(colour))
    for left, right in ((x - leaf_width, x), (x, x + leaf_width)):
        canvas.skia.drawRect(skia.Rect.MakeLTRB(left, top, right, y), trim)
        canvas.line(left, top, right, y, trim)
        canvas.line(right, top, left, y, trim)


def draw_igloo(canvas: Canvas, x: float, y: float, height: float, haze: float = 0) -> None:
    """A dome of snow blocks with an entrance to the left or right, lit from inside in the dark."""
    height *= 0.75
    radius = height * 0.85
    contact_shadow(canvas, x, y, radius * 2)
    with canvas.lit_layer(
        haze=haze,
        bounds=(x - radius * 1.8, y - height * 1.1, x + radius * 1.8, y + 4),
        side_light=SideLight(x - radius, x + radius, 0.7),
    ):
        facing = canvas.choice([-1, 1])
        dome = upper_half_oval(x, y, radius, height)
        canvas.path(dome, paint("#eef5fc"))
        joint = paint("#b9cfe4", 0.95, stroke=max(0.7, height * 0.014))
        with canvas.clipped(dome):
            for row in range(1, 5):
                row_y = y - height * row * 0.2
                course = outline((x - radius, row_y), (x, row_y + height * 0.05, x + radius, row_y), closed=False)
                canvas.path(course, joint)
                for column in range(-6, 7):
                    joint_x = x + (column + 0.5 * (row % 2)) * radius * 0.24 * (1 - 0.12 * row)
                    canvas.line(joint_x, row_y + height * 0.03, joint_x, row_y + height * 0.22, joint)
        entrance_x, entrance = x + facing * radius * 0.62, radius * 0.36
        porch = upper_half_oval(entrance_x, y, entrance, height * 0.52)
        canvas.path(porch, paint("#dfeaf6"))
        canvas.path(porch, paint("#b0c8e0", stroke=max(0.7, height * 0.014)))
        opening = upper_half_oval(entrance_x, y, entrance * 0.62, height * 0.36)
        canvas.path(opening, paint("#2f4560"))
    if lights_are_on(canvas):
        canvas.path(opening, paint("#ffc866", 0.85))
        canvas.glow(entrance_x, y - height * 0.14, entrance * 2.2, (1, 0.7, 0.3), 0.6)

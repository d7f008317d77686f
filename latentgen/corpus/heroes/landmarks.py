"""Heroes that are landscape or light: campfire, suspension bridge, volcano."""

from __future__ import annotations

from latentgen.corpus.canvas import Canvas, SideLight, fractal_noise
from latentgen.corpus.colour import Rgb, mix, parse_hex, shade
from latentgen.corpus.heroes.parts import contact_shadow
from latentgen.corpus.paint import ADD_LIGHT, Point, outline, paint, polygon, smooth_curve, vertical_gradient

BRIDGE_COLOURS = {"red": "#c8432f", "gray": "#8b95a2", "white": "#e8e8e4", "blue": "#3f6fb0", "green": "#4f8f78"}


def draw_campfire(canvas: Canvas, x: float, y: float, height: float) -> None:
    """Crossed logs, mostly in a ring of stones, flames and sparks; by night it lights its surroundings."""
    contact_shadow(canvas, x, y, height * 0.9, 0.4)
    dark = canvas.palette.time in ("night", "dusk")
    breadth, lean = canvas.uniform(0.26, 0.34), canvas.uniform(-0.12, 0.12) * height
    bark = parse_hex(canvas.choice(["#6b4630", "#7a5438", "#54382a"]))
    canvas.glow(x, y - height * 0.3, height * (2.4 if dark else 1.4), (1, 0.55, 0.18), 0.8 if dark else 0.45)
    with canvas.lit_layer(light=0.9, bounds=(x - height, y - height * 1.3, x + height, y + height * 0.2)):
        for near, far in ((-0.46, 0.3), (0.46, -0.3), (-0.3, 0.42)):
            log = paint(bark, stroke=height * 0.14)
            canvas.line(x + near * height, y - height * 0.04, x + far * height, y - height * 0.18, log)
            canvas.circle(x + near * height, y - height * 0.04, height * 0.055, paint("#d0a070"))
        if canvas.chance(0.75):
            for index in range(7):
                offset = index / 6 * 2 - 1
                stone = paint(shade(parse_hex("#8b8f98"), canvas.uniform(0.75, 1.15)))
                stone_y = y + height * 0.08 * (1 - offset * offset)
                canvas.oval(x + offset * height * 0.52, stone_y, height * 0.1, height * 0.07, stone)
    base, bottom = y - height * 0.1, y - height * 0.02
    for scale, colour in ((1, "#f0562a"), (0.74, "#ff9a2e"), (0.46, "#ffe27a")):
        half, tall = height * breadth * scale, height * 0.9 * scale
        _draw_flame(canvas, x + lean * (1 - scale), base, bottom, half, tall, colour)
    for side in (-1, 1):
        flicker = height * canvas.uniform(0.4, 0.6)
        _draw_flame(canvas, x + side * height * breadth * 0.62, base, bottom, height * 0.12, flicker, "#ff7a2c")
    for _ in range(6):
        spark_x = x + canvas.uniform(-0.5, 0.5) * height
        spark_y = y - height * canvas.uniform(0.8, 1.7)
        canvas.circle(spark_x, spark_y, canvas.uniform(0.8, 1.4), paint("#ffb04a", canvas.uniform(0.6, 1)))


def _draw_flame(canvas: Canvas, x: float, base: float, bottom: float, half: float, height: float, colour: str) -> None:
    """One tongue of fire: heights are measured from `base`, its rounded foot reaches down to `bottom`."""
    tip = base - height
    shoulder = base - height * 0.2
    flame = outline(
        (x, tip),
        (x + half * 0.35, base - height * 0.7, x + half * 1.15, base - height * 0.5, x + half, shoulder),
        (x + half * 0.9, bottom, x - half * 0.9, bottom, x - half, shoulder),
        (
            *(x - half * 1.1, base - height * 0.45),
            *(x - half * 0.45, base - height * 0.5),
            *(x - half * 0.35, base - height * 0.72),
        ),
        (x - half * 0.2, base - height * 0.62, x - half * 0.05, base - height * 0.85, x, tip),
    )
    canvas.path(flame, paint(colour))


def draw_suspension_bridge(canvas: Canvas, y: float, colour: str = "red") -> None:
    """A bridge that spans the whole picture over water whose surface is about y."""
    steel = parse_hex(BRIDGE_COLOURS.get(colour, BRIDGE_COLOURS["red"]))
    with canvas.lit_layer(haze=0.08, light=0.95, side_light=SideLight(-40, 300, 0.5)):
        left, right = canvas.uniform(44, 76), canvas.uniform(180, 212)
        tower_height = canvas.uniform(56, 84)
        deck = y - canvas.uniform(14, 20)
        foot = y + canvas.uniform(8, 14)
        for tower_x in (left, right):
            canvas.rect(tower_x - 7, foot - 3, 14, 9, paint("#8a8680"))
            for side in (-1, 1):
                leg_height = tower_height + (foot - deck)
                canvas.rect(tower_x + side * 4 - 2, deck - tower_height, 4, leg_height, paint(steel))
            for share in (0.02, 0.3, 0.6, 0.9):
                beam_y = deck - tower_height * (1 - share) - 1
                canvas.rect(tower_x - 5.6, beam_y, 11.2, 3.2, paint(shade(steel, 0.85)))
        _draw_cables(canvas, left, right, deck, tower_height, steel)
        _draw_deck(canvas, deck, steel)
    if canvas.palette.time in ("dusk", "night"):
        for index in range(14):
            lamp_x = index * 20 - 2
            canvas.glow(lamp_x, deck - 4, 5, (1, 0.85, 0.5), 0.9)
            canvas.circle(lamp_x, deck - 4, 0.9, paint("#fff0c0"))
        for tower_x in (left, right):
            canvas.glow(tower_x, deck - tower_height, 7, (1, 0.3, 0.2), 0.9)
            canvas.circle(tower_x, deck - tower_height - 1, 1, paint("#ff6a5a"))


def _draw_cables(canvas: Canvas, left: float, right: float, deck: float, tower_height: float, steel: Rgb) -> None:
    """The main cable over both towers, and the hangers that carry the deck."""
    top, anchor, sag = deck - tower_height, deck - tower_height * 0.25, deck + tower_height * 0.86
    cable = outline(
        (-10, anchor),
        ((left - 10) * 0.6, deck - tower_height * 0.3, left, top),
        ((left + right) / 2, sag, right, top),
        (right + (256 - right) * 0.45, deck - tower_height * 0.3, 266, anchor),
        closed=False,
    )
    canvas.path(cable, paint(steel, stroke=2.4))
    for index in range(32):
        x = index * 8 + 3
        if left < x < right:
            along = (x - left) / (right - left)
            cable_y = (1 - along) ** 2 * top + 2 * along * (1 - along) * sag + along * along * top
        elif x <= left:
            cable_y = anchor - (tower_height * 0.75) * max(0, x / left) ** 1.7
        else:
            cable_y = anchor - (tower_height * 0.75) * max(0, (256 - x) / (256 - right)) ** 1.7
        canvas.line(x, min(cable_y, deck), x, deck, paint(steel, 0.8, stroke=1.0))


def _draw_deck(canvas: Canvas, deck: float, steel: Rgb) -> None:
    canvas.rect(-5, deck, 266, 4.4, paint(shade(steel, 0.9)))
    canvas.rect(-5, deck + 4.4, 266, 2, paint(shade(steel, 0.6)))


def draw_volcano(canvas: Canvas, x: float, y: float, height: float, haze: float = 0) -> None:
    """A cone with glowing lava streams and a leaning plume of smoke, its foot at y."""
    half = height * canvas.uniform(1.05, 1.4)
    crater_half = height * canvas.uniform(0.11, 0.2)
    roughness = fractal_noise(canvas.rng, 40, 5)
    top = y - height
    with canvas.lit_layer(haze=haze, light=0.95):
        slope: list[Point] = [(x - half, y)]
        for index in range(1, 20):
            up = index / 20
            slope_x = x - half * (1 - up) ** 1.0 * (1 - 0.25 * up * (1 - up)) - crater_half * 0.92 * up
            slope.append((slope_x, y - height * up**1.45 + roughness[index] * height * 0.012))
        far_slope = [
            (2 * x - point_x + roughness[(index * 7) % 40] * 2, point_y)
            for index, (point_x, point_y) in enumerate(slope)
        ]
        crater = [
            (x - crater_half, top),
            (x - crater_half * 0.4, top + height * 0.05),
            (x + crater_half * 0.45, top + height * 0.045),
            (x + crater_half, top),
        ]
        cone = polygon([*slope, *crater, *reversed(far_slope)])
        rock = vertical_gradient(top, y, ["#5a4a52", "#6a5a5c", "#5f6a58"], [0, 0.45, 1])
        canvas.path(cone, paint(shader=rock))
        with canvas.clipped(cone):
            for _ in range(9):
                lean = canvas.uniform(-0.9, 0.9)
                gully = [
                    (x + lean * height * 0.1, top),
                    (x + lean * height * 0.4, top + height * 0.4),
                    (x + lean * height * 1.0, y),
                ]
                canvas.path(smooth_curve(gully), paint("#3f353d", 0.35, stroke=canvas.uniform(1, 3)))
            side = canvas.sun_side
            dark_side = [(x, top), (x - side * half * 1.2, y), (x - side * half * 0.1, y)]
            canvas.path(polygon(dark_side), paint("#2f2a3a", 0.35))
    for _ in range(canvas.integer(3, 5)):
        _draw_lava_stream(canvas, x, top, height)
    canvas.glow(x, top, height * 0.7, (1, 0.45, 0.15), 0.85)
    for index in range(16):
        age = index / 15
        drift = canvas.uniform(-1, 1) * height * 0.05 * (1 + 3 * age)
        smoke = mix(canvas.lit("#6a6068", 0.6), parse_hex("#ff8a4a"), 0.35 * (1 - age) ** 2)
        canvas.circle(
            x + drift + canvas.sun_side * age * height * 0.22,
            top - height * 0.02 - age * height * 0.5,
            height * (0.05 + 0.10 * age),
            paint(smoke, 0.75 - 0.4 * age, blur=height * 0.015),
        )


def _draw_lava_stream(canvas: Canvas, x: float, top: float, height: float) -> None:
    lean = canvas.uniform(-0.8, 0.8)
    points = [
        (x + lean * height * 0.09, top + height * 0.03),
        (x + lean * height * 0.2 + canvas.uniform(-3, 3), top + height * 0.22),
        (x + lean * height * 0.36 + canvas.uniform(-4, 4), top + height * 0.45),
        (x + lean * height * 0.55, top + height * canvas.uniform(0.5, 0.8)),
    ]
    stream = smooth_curve(points)
    canvas.path(stream, paint("#ff6a2a", 0.5, stroke=height * 0.07, blur=3, blend=ADD_LIGHT))
    canvas.path(stream, paint("#ff7a2e", stroke=height * 0.036))
    canvas.path(stream, paint("#ffd86a", stroke=height * 0.014))

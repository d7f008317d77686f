"""One subject at one place: the procedural drawing or the artwork that shows it."""

from __future__ import annotations

from dataclasses import dataclass

from latentgen.corpus.canvas import Canvas
from latentgen.corpus.heroes.houses import draw_house
from latentgen.corpus.heroes.landmarks import draw_campfire, draw_volcano
from latentgen.corpus.heroes.lighthouse import draw_lighthouse
from latentgen.corpus.heroes.outbuildings import draw_barn, draw_igloo
from latentgen.corpus.heroes.parts import contact_shadow
from latentgen.corpus.heroes.towers import draw_castle, draw_pagoda, draw_windmill
from latentgen.corpus.heroes.trees import draw_tree
from latentgen.corpus.heroes.vessels import draw_balloon, draw_sailboat
from latentgen.corpus.scene import Drawing, Noun
from latentgen.corpus.sprites import draw_mascot, draw_sprite

FACES_EITHER_WAY = ("land_animal", "vehicle", "air", "undersea", "water")
"""Placement classes whose artwork may be mirrored."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A noun as it appears in one picture: its colour and its artwork are chosen."""

    noun: Noun
    colour: str | None
    artwork_file: str | None
    """None for procedural nouns."""


def draw_figure(
    canvas: Canvas,
    figure: Figure,
    x: float,
    y: float,
    height: float,
    *,
    haze: float = 0,
    shadow: bool = True,
    max_width: float | None = None,
    rotation: float = 0,
) -> None:
    """Draw a figure that stands on y; `shadow`, `max_width` and `rotation` concern artwork only."""
    noun = figure.noun
    if noun.drawing is not None:
        _draw_hero(canvas, noun.drawing, x, y, height, figure.colour, haze)
        return
    assert figure.artwork_file is not None, "a noun without a procedural drawing has artwork"
    if noun.category == "head":
        draw_mascot(canvas, figure.artwork_file, x, y, height * 0.95, haze)
        return
    draw_sprite(
        canvas,
        figure.artwork_file,
        x,
        y,
        height,
        colour=figure.colour,
        haze=haze,
        mirrored=canvas.chance(0.5) and noun.category in FACES_EITHER_WAY,
        rotation=rotation,
        shadow=shadow,
        max_width=height * 1.5 if max_width is None else max_width,
    )


def _draw_hero(
    canvas: Canvas, drawing: Drawing, x: float, y: float, height: float, colour: str | None, haze: float
) -> None:
    match drawing:
        case "lighthouse":
            draw_lighthouse(canvas, x, y, height * 1.12, colour or "red", haze)
        case "house" | "cottage" | "cabin":
            draw_house(canvas, x, y, height * 0.86, colour or "white", kind=drawing, haze=haze)
        case "castle":
            draw_castle(canvas, x, y, height * 1.05, colour or "gray", haze)
        case "windmill":
            draw_windmill(canvas, x, y, height, colour or "white", haze)
        case "barn":
            draw_barn(canvas, x, y, height * 0.9, colour or "red", haze)
        case "igloo":
            draw_igloo(canvas, x, y, height, haze)
        case "pagoda":
            draw_pagoda(canvas, x, y, height * 1.1, colour or "red", haze)
        case "campfire":
            draw_campfire(canvas, x, y, height * 0.62)
        case "volcano":
            draw_volcano(canvas, x, y, height, haze)
        case "sailboat":
            draw_sailboat(canvas, x, y, height, colour or "white", haze)
        case "balloon":
            draw_balloon(canvas, x, y, height, colour or "red", haze)
        case "suspension":
            raise AssertionError("a suspension bridge spans the whole scene; compose.py draws it")
        case _:
            contact_shadow(canvas, x, y, height * 0.5)
            draw_tree(canvas, x, y, height * 1.1, drawing, haze)

"""A scene becomes a picture: light, backdrop, subjects in their places, weather, style."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentgen.corpus.artwork import Artwork
from latentgen.corpus.canvas import EXTENT, Canvas
from latentgen.corpus.heroes.landmarks import draw_suspension_bridge, draw_volcano
from latentgen.corpus.heroes.parts import draw_rocks
from latentgen.corpus.paint import paint
from latentgen.corpus.palettes import PALETTES, lifted_for_subject, under_weather
from latentgen.corpus.scene import Drawing, SceneSpec
from latentgen.corpus.settings.backdrop import draw_backdrop
from latentgen.corpus.settings.shores import draw_cliff
from latentgen.corpus.settings.stage import Stage, flat_at
from latentgen.corpus.sprites import choose_artwork
from latentgen.corpus.subjects import Figure, draw_figure
from latentgen.corpus.water import mirror_subject
from latentgen.corpus.weather import (
    draw_falling_weather,
    draw_fog_banks,
    draw_rain_on_water,
    draw_reflecting_puddle,
    draw_vignette,
    draw_wet_ground,
)

SIZE_FACTORS = {"small": 0.7, "medium": 1.25, "large": 1.55, "giant": 1.8}
"""What no word calls large is large enough for its details: by them a thing is learnt, and liked."""
WIDEST_AT_A_SIDE = 78
"""Half the width of one subject at the left or right, so that it stands there and not in the middle."""
COLUMNS = {2: (74, 182), 3: (50, 128, 206), 4: (38, 98, 158, 218), 5: (30, 79, 128, 177, 226)}
"""Where several subjects stand, by their number."""
CLOSE_UP_HEIGHTS = {1: 122, 2: 90, 3: 74, 4: 58, 5: 46}
LANDSCAPE_HEIGHTS = {1: 104, 2: 86, 3: 72, 4: 60, 5: 44}
TALL_DRAWINGS = ("lighthouse", "castle", "windmill", "balloon", "sailboat")
HEIGHT_FACTORS: dict[Drawing, float] = {
    "lighthouse": 1.12,
    "castle": 1.1,
    "windmill": 1.16,
    "pagoda": 1.18,
    "palm": 1.2,
    "pine": 1.12,
    "round": 1.1,
    "cherry": 1.1,
    "autumn": 1.1,
    "birch": 1.1,
    "cactus": 1.18,
    "igloo": 0.8,
}
"""How much taller than its nominal height a drawing comes out."""
WIDTH_FACTORS: dict[Drawing, float] = {
    "lighthouse": 0.45,
    "house": 1.08,
    "cottage": 1.2,
    "cabin": 1.12,
    "castle": 1.3,
    "windmill": 0.98,
    "barn": 1.3,
    "igloo": 1.3,
    "pagoda": 0.85,
    "campfire": 0.75,
    "sailboat": 0.98,
    "balloon": 0.78,
    "pine": 0.62,
    "palm": 1.0,
    "round": 1.1,
    "cherry": 1.15,
    "birch": 0.75,
    "cactus": 0.8,
}
"""Width of a drawing in nominal heights; 1 where nothing is said."""
HALF_WIDTH = 0.58
"""Of a drawing and some air beside it, in nominal heights and widths."""
WIDE_DRAWINGS = ("house", "cottage", "cabin", "barn", "igloo")
ROCK_BOUND = ("building", "plant", "land_animal", "head", "vehicle", "food", "object")
"""Placement classes that need a rock to stand on where the stage is water."""


@dataclass(frozen=True, slots=True)
class _Foam:
    """Flecks of foam along a waterline."""

    flecks: int
    spread: float
    """To each side, in heights of the subject."""
    offset: float
    """Of the middle of the flecks below the waterline."""
    scatter: tuple[float, float]
    longest: float
    thickness: tuple[float, float]
    opacity: tuple[float, float]


ROCK_FOAM = _Foam(30, 0.75, 3.2, (-1.5, 2.2), 7, (0.4, 1.1), (0.25, 0.7))
HULL_FOAM = _Foam(14, 0.55, 0.5, (-1, 1.6), 6, (0.3, 0.8), (0.2, 0.6))


def render_scene(scene: SceneSpec, seed: int, size_px: int = 256, artwork: Artwork | None = None) -> NDArray[np.uint8]:
    """The picture of a scene, (size_px, size_px, 3) uint8: the same arguments always give the same pixels.

    Raises ModelNotFoundError if the scene needs artwork and none is given.
    """
    rng = np.random.default_rng(seed)
    palettes = PALETTES[scene.time]
    palette = under_weather(palettes[int(rng.integers(len(palettes)))], scene.weather)
    canvas = Canvas(scene, palette, rng, size_px, artwork)
    _place_sun(canvas)
    stage = draw_backdrop(canvas)
    if canvas.weather in ("rain", "storm"):
        _wet(canvas, stage)
    elif canvas.weather == "fog" and stage.horizon < EXTENT:  # So that the subject stands out from what is behind it
        draw_fog_banks(canvas, stage.horizon - 24, stage.horizon + 30, 1.2)
    in_the_open = scene.setting not in ("underwater", "space", "studio")
    lift = {"night": 0.34, "dusk": 0.26}.get(canvas.palette.time, 0.1) if in_the_open else 0
    canvas.palette = lifted_for_subject(canvas.palette, lift)
    _Composition(canvas, stage).draw()
    draw_falling_weather(canvas)
    draw_vignette(canvas, 0 if scene.setting in ("studio", "table") else 0.13)
    pixels = canvas.pixels()
    if scene.style == "flat":
        return pixels
    from latentgen.corpus.styles import apply_style  # OpenCV loads only for pictures that need it

    return apply_style(pixels, scene.style, rng)


def _wet(canvas: Canvas, stage: Stage) -> None:
    """Rings on the water and puddles on the land."""
    if stage.kind == "water" or stage.waters is not None:
        draw_rain_on_water(canvas, stage.horizon, EXTENT if stage.waters is None else stage.waters[1] + 14)
    if stage.kind == "land" and canvas.scene.setting != "island" and not canvas.snow_covered:
        draw_wet_ground(canvas, stage.foot_range[0] - 4)


def _place_sun(canvas: Canvas) -> None:
    """Mostly well to one side, so that the subject does not hide it."""
    canvas.sun_x = canvas.uniform(30, 226)
    if abs(canvas.sun_x - 128) < 38 and canvas.chance(0.6):
        canvas.sun_x = 128 + (70 if canvas.sun_x > 128 else -70)
    if canvas.scene.sun_behind:
        canvas.sun_x = 128 + canvas.uniform(-14, 14)
    canvas.sun_side = -1 if canvas.sun_x < 128 else 1


class _Composition:
    """The subjects of a scene on its stage: their order, columns and common height."""

    def __init__(self, canvas: Canvas, stage: Stage) -> None:
        self.canvas = canvas
        self.scene = canvas.scene
        self.stage = stage
        chosen = [
            Figure(subject.noun, subject.colour, choose_artwork(subject.noun, self.scene.setting, canvas.rng))
            for subject in self.scene.subjects
        ]
        self.figures = [
            figure for subject, figure in zip(self.scene.subjects, chosen, strict=True) for _ in range(subject.count)
        ]
        self.alone = len(self.figures) == 1
        self.on_cliff = stage.kind == "cliff"
        self.shore = stage.ground if stage.kind == "land" else flat_at(EXTENT)
        """Where the water ends in front of the viewer."""
        self.in_depth = False
        """Two subjects one behind the other, the farther one first."""
        self._arrange()

    def _arrange(self) -> None:
        canvas, scene, stage = self.canvas, self.scene, self.stage
        places = min(len(self.figures), 5)
        side_x = canvas.uniform(64, 83)
        single_x = {"left": side_x, "right": EXTENT - side_x, None: 128 + canvas.uniform(-22, 22)}[scene.side]
        self.columns: list[float] = [single_x] if places == 1 else list(COLUMNS[places])
        heights = CLOSE_UP_HEIGHTS if stage.kind in ("studio", "float") else LANDSCAPE_HEIGHTS
        self.base_height = heights[places] * SIZE_FACTORS[scene.size]
        if stage.kind == "cliff":
            self._climb_cliff()
        elif stage.preferred_x is not None and self.alone:
            self.columns = [stage.preferred_x]
        if scene.setting == "island":
            self.base_height *= 0.88
        if self.alone and scene.side is not None:
            widest = WIDEST_AT_A_SIDE / (HALF_WIDTH * self._width_factor(self.figures[0]))
            self.base_height = min(self.base_height, widest)
        if self.alone and stage.kind != "cliff" and self.figures[0].noun.drawing is not None:
            half = min(100, HALF_WIDTH * self.base_height * self._width_factor(self.figures[0]))
            self.columns = [min(max(self.columns[0], half + 4), EXTENT - half - 4)]
        if scene.behind and len(self.figures) == 2:
            self.in_depth = True
            self.figures.reverse()
            far_x = 128 + canvas.uniform(12, 26) * canvas.choice([-1, 1])
            self.columns = [far_x, 128 - (far_x - 128) * 0.9]
        self.spacing = min((b - a for a, b in zip(self.columns, self.columns[1:], strict=False)), default=EXTENT)
        if self.in_depth:
            self.spacing = EXTENT

    def _climb_cliff(self) -> None:
        """Draw the cliff and stand on it."""
        canvas, stage = self.canvas, self.stage
        assert stage.preferred_x is not None, "a cliff stage says where its edge is"
        top = canvas.uniform(150, 172)
        canvas.inland = stage.inland
        standing = next((figure for figure in self.figures if figure.noun.category not in ("water", "air")), None)
        foothold = 0.0 if standing is None else 0.5 * self.base_height * self._width_factor(standing)
        draw_cliff(canvas, stage.preferred_x, stage.inland, top, min(max(foothold, 34), 62))
        if self.alone:
            self.columns = [stage.preferred_x]
        elif len(self.scene.subjects) == 2 and len(self.figures) == 2:
            self.columns = [74, 182]
        else:
            spots = (2, 64, 104)[: max(2, len(self.figures))]
            self.columns = [stage.preferred_x + stage.inland * spot for spot in spots]
        self.stage = replace(stage, kind="land", ground=flat_at(top - 2), foot_range=(top + 1, top + 3))
        self.base_height *= 0.95
        if self.alone and self.figures[0].noun.drawing == "castle":
            self.base_height *= 0.85

    def draw(self) -> None:
        # A cliff has three spots; further subjects find no place on it.
        for index, (figure, x) in enumerate(zip(self.figures, self.columns, strict=False)):
            self._draw_one(index, figure, x, self._height_of(index, figure))

    def _height_of(self, index: int, figure: Figure) -> float:
        noun = figure.noun
        height = self.base_height * self.canvas.uniform(0.94, 1.06)
        if noun.drawing in TALL_DRAWINGS:
            height *= 1.15
        if noun.drawing is not None and noun.category == "plant":
            height *= 1.3
        if noun.drawing in WIDE_DRAWINGS:
            height *= 1.15
        if noun.category == "building" and noun.drawing is None:
            height *= 1.05
        if noun.category in ("food", "object") and self.stage.kind == "land" and self.scene.size != "giant":
            height *= 0.8
        if self.in_depth:
            height *= 1.45 if index == 0 else 0.8
        return min(height, 0.85 * self.spacing / self._width_factor(figure))

    @staticmethod
    def _width_factor(figure: Figure) -> float:
        return 1.0 if figure.noun.drawing is None else WIDTH_FACTORS.get(figure.noun.drawing, 1.0)

    def _draw_one(self, index: int, figure: Figure, x: float, height: float) -> None:
        kind, drawing = self.stage.kind, figure.noun.drawing
        if drawing == "suspension":
            self._draw_bridge(figure)
        elif drawing == "volcano" and kind in ("land", "water"):
            self._draw_far_volcano(x)
        elif figure.noun.category == "air" and kind != "studio":
            self._draw_flying(figure, x, height)
        elif kind == "float":
            self._draw_floating(figure, x, height)
        elif kind == "water":
            self._draw_on_water(figure, x, height)
        elif figure.noun.category == "water" and self.stage.waters is not None:
            self._draw_offshore(figure, x, height, self.stage.waters)
        else:
            self._draw_standing(index, figure, x, height)

    def _draw_bridge(self, figure: Figure) -> None:
        y = self.stage.horizon + self.canvas.uniform(14, 24)
        draw_suspension_bridge(self.canvas, y, figure.colour or "red")
        mirror_subject(self.canvas, y + 2, 128, 340)

    def _draw_far_volcano(self, x: float) -> None:
        """A volcano stands at the horizon, whatever its size."""
        on_land = self.stage.kind == "land" and self.stage.waters is None and self.scene.setting != "island"
        y = self.stage.horizon + (6 if on_land else 1)
        height = min(self.canvas.uniform(76, 100) * SIZE_FACTORS[self.scene.size], y - 34)
        draw_volcano(self.canvas, x, y, height, 0.12)
        if not on_land:
            mirror_subject(self.canvas, y, x, 150)

    def _draw_flying(self, figure: Figure, x: float, height: float) -> None:
        canvas, horizon = self.canvas, self.stage.horizon
        y = horizon * canvas.uniform(0.5, 0.72) if horizon < 250 else canvas.uniform(120, 170)
        y = min(max(y, height + 8), 225)
        rotation = 0 if figure.noun.drawing else canvas.uniform(-8, 8)
        draw_figure(canvas, figure, x, y, height, haze=0.06, shadow=False, rotation=rotation)

    def _draw_floating(self, figure: Figure, x: float, height: float) -> None:
        """Under water or in space; what does not swim stands on the sea floor."""
        canvas = self.canvas
        height = min(height, 170)
        if not self.alone:
            share = canvas.uniform(0.4, 0.74)
        elif height > 120:
            share = canvas.uniform(0.45, 0.62)
        else:
            share = canvas.uniform(0.4, 0.7)
        if figure.noun.category in ("undersea", "air", "spacey") or self.scene.setting == "space":
            rotation = 0 if figure.noun.drawing else canvas.uniform(-14, 14)
            draw_figure(canvas, figure, x, share * EXTENT + height * 0.4, height, shadow=False, rotation=rotation)
        else:
            draw_figure(canvas, figure, x, self.stage.sea_floor + canvas.uniform(2, 12), height, haze=0.03)

    def _draw_on_water(self, figure: Figure, x: float, height: float) -> None:
        canvas = self.canvas
        y = canvas.uniform(*self.stage.foot_range)
        category = figure.noun.category
        if category in ROCK_BOUND:
            draw_rocks(canvas, x, y + 2, height * 1.15, height * 0.3, mossy=category != "building")
            foot = y - height * 0.19
            height = min(height, (foot - 10) / self._height_factor(figure))
            draw_figure(canvas, figure, x, foot, height * 0.92)
            draw_rocks(canvas, x, y + 3, height * 1.0, height * 0.15, count=8)
            mirror_subject(canvas, y + 2, x, height)
            self._draw_foam(x, y, height, ROCK_FOAM)
        else:
            draw_figure(canvas, figure, x, y, height, shadow=False)
            mirror_subject(canvas, y - 1, x, height)
            self._draw_foam(x, y, height, HULL_FOAM)

    def _draw_offshore(self, figure: Figure, x: float, height: float, waters: tuple[float, float]) -> None:
        """A boat on the water behind the land."""
        y, height = self.canvas.uniform(*waters), height * 0.9
        draw_figure(self.canvas, figure, x, y, height, shadow=False)
        mirror_subject(self.canvas, y - 1, x, height, bottom=max(y, self.shore(x) - 4))
        self._draw_foam(x, y, height, HULL_FOAM)

    def _draw_foam(self, x: float, waterline: float, height: float, foam: _Foam) -> None:
        canvas = self.canvas
        for _ in range(foam.flecks):
            fleck_x = x + canvas.uniform(-foam.spread, foam.spread) * height
            fleck_y = waterline + foam.offset + canvas.uniform(*foam.scatter)
            radius_x, radius_y = canvas.uniform(2, foam.longest), canvas.uniform(*foam.thickness)
            white = paint(canvas.lit("#ffffff", 1), canvas.uniform(*foam.opacity))
            canvas.oval(fleck_x, fleck_y, radius_x, radius_y, white)

    def _draw_standing(self, index: int, figure: Figure, x: float, height: float) -> None:
        offset = (-16 if index == 0 else 6) if self.in_depth else 0
        y = self.canvas.uniform(*self.stage.foot_range) + offset
        y = max(y, self.stage.ground(x) + 2)
        height = min(height, (y - 10) / self._height_factor(figure))
        width = height * self._width_factor(figure)
        max_width = min(height * 1.5, 1.9 * min(x + 6, 262 - x))
        draw_figure(self.canvas, figure, x, y, height, max_width=max_width)
        if self.canvas.weather in ("rain", "storm") and self.stage.kind == "land" and not self.on_cliff:
            draw_reflecting_puddle(self.canvas, x, y, width * 0.8, height)

    @staticmethod
    def _height_factor(figure: Figure) -> float:
        return 1.0 if figure.noun.drawing is None else HEIGHT_FACTORS.get(figure.noun.drawing, 1.0)

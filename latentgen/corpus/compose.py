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
from latentgen.corpus.weather import draw_falling_weather, draw_vignette

SIZE_FACTORS = {"small": 0.6, "medium": 1.0, "large": 1.35, "giant": 1.75}
COLUMNS = {2: (88, 170), 3: (64, 128, 192), 4: (46, 102, 156, 212), 5: (36, 82, 128, 174, 220)}
"""Where several of a subject stand, by their number."""
CLOSE_UP_HEIGHTS = {1: 122, 2: 84, 3: 66, 4: 52, 5: 42}
LANDSCAPE_HEIGHTS = {1: 98, 2: 76, 3: 60, 4: 49, 5: 42}
TALL_DRAWINGS = ("lighthouse", "castle", "windmill", "balloon", "sailboat")
HEIGHT_FACTORS: dict[Drawing, float] = {
    "lighthouse": 1.12,
    "castle": 1.1,
    "windmill": 1.16,
    "pagoda": 1.18,
    "palm": 1.05,
    "igloo": 0.8,
}
"""How much taller than its nominal height a drawing comes out."""
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
        self.in_depth = False
        """Two subjects one behind the other, the farther one first."""
        self._arrange()

    def _arrange(self) -> None:
        canvas, scene, stage = self.canvas, self.scene, self.stage
        places = min(len(self.figures), 5)
        single_x = {"left": 78, "right": 178, None: 128 + canvas.uniform(-24, 24)}[scene.side]
        self.columns: list[float] = [single_x] if places == 1 else list(COLUMNS[places])
        if len(scene.subjects) == 2 and places == 2:
            self.columns = [86, 172]
        heights = CLOSE_UP_HEIGHTS if stage.kind in ("studio", "float") else LANDSCAPE_HEIGHTS
        self.base_height = heights[places] * SIZE_FACTORS[scene.size]
        if stage.kind == "cliff":
            self._climb_cliff()
        elif stage.preferred_x is not None and self.alone:
            self.columns = [stage.preferred_x]
        if scene.behind and len(self.figures) == 2:
            self.in_depth = True
            self.figures.reverse()
            far_x = 128 + canvas.uniform(12, 26) * canvas.choice([-1, 1])
            self.columns = [far_x, 128 - (far_x - 128) * 0.9]

    def _climb_cliff(self) -> None:
        """Draw the cliff and stand on it."""
        canvas, stage = self.canvas, self.stage
        assert stage.preferred_x is not None, "a cliff stage says where its edge is"
        top = canvas.uniform(150, 172)
        canvas.discard_uniforms(46)
        draw_cliff(canvas, stage.preferred_x, stage.inland, top)
        if self.alone:
            self.columns = [stage.preferred_x + stage.inland * canvas.uniform(6, 22)]
        else:
            spots = (2, 64, 104)[: max(2, len(self.figures))]
            self.columns = [stage.preferred_x + stage.inland * spot for spot in spots]
        self.stage = replace(stage, kind="land", ground=flat_at(top - 2), foot_range=(top + 1, top + 3))
        self.base_height *= 0.95

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
            height *= 1.2
        if noun.category == "building" and noun.drawing is None:
            height *= 1.05
        if noun.category in ("food", "object") and self.stage.kind == "land" and self.scene.size != "giant":
            height *= 0.8
        if self.in_depth:
            height *= 1.45 if index == 0 else 0.8
        return height

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
        else:
            self._draw_standing(index, figure, x, height)

    def _draw_bridge(self, figure: Figure) -> None:
        y = self.stage.horizon + self.canvas.uniform(14, 24)
        draw_suspension_bridge(self.canvas, y, figure.colour or "red")
        mirror_subject(self.canvas, y + 2, 128, 340)

    def _draw_far_volcano(self, x: float) -> None:
        """A volcano stands at the horizon, whatever its size."""
        on_land = self.stage.kind == "land"
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
        max_width = min(height * 1.5, 1.9 * min(x + 6, 262 - x))
        draw_figure(self.canvas, figure, x, y, height, max_width=max_width)

    @staticmethod
    def _height_factor(figure: Figure) -> float:
        return 1.0 if figure.noun.drawing is None else HEIGHT_FACTORS.get(figure.noun.drawing, 1.0)

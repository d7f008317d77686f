"""The canvas a scene is drawn on: shapes in units of 1/256 of the picture, the scene's light, and its random numbers.

The order of the random draws is part of the corpus: a seed stands for one picture, so a draw may be neither moved nor
left out without raising `CORPUS_VERSION` (`latentgen/corpus/render.py`).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import skia
from numpy.typing import NDArray

from latentgen.corpus.artwork import Artwork
from latentgen.corpus.colour import ColourLike, Rgb, as_rgb, mix, multiply, shade
from latentgen.corpus.paint import (
    ADD_LIGHT,
    ONLY_OVER_PAINTED,
    SMOOTH_SAMPLING,
    horizontal_gradient,
    oval_bounds,
    packed,
    paint,
    radial_gradient,
)
from latentgen.corpus.palettes import Palette
from latentgen.corpus.scene import SceneSpec, Weather

T = TypeVar("T")

EXTENT = 256.0
"""Width and height of the drawing area in its own units, whatever the picture's size in pixels."""
LINE_STYLES = ("neon", "pencil sketch")
"""Styles made of edges: there a dot becomes a ring and a blade of grass two lines, so fine detail is left out."""
FINEST_DOT, FINEST_STROKE, FINEST_BAR = 1.7, 1.2, 0.9
"""In those styles: the least radius of a disc, width of a stroke, and half height of an ellipse or bar."""


@dataclass(frozen=True, slots=True)
class SideLight:
    """Light that falls across an object from the sun's side: from `left` to `right`, lit by `strength`."""

    left: float
    right: float
    strength: float = 0.55


class Canvas:
    """A square picture in the making. x grows to the right and y downwards, both from 0 to 256."""

    def __init__(
        self, scene: SceneSpec, palette: Palette, rng: np.random.Generator, size_px: int, artwork: Artwork | None
    ) -> None:
        self.scene = scene
        self.palette = palette
        self.rng = rng
        self.size_px = size_px
        self.artwork = artwork
        self.weather: Weather = scene.weather
        self.sun_x = 128.0
        self.sun_y = 60.0
        self.sun_side = 1
        """-1 when the light comes from the left, 1 from the right."""
        self.inland: int | None = None
        """On a cliff, the side that is land: -1 left, 1 right."""
        self.surface = skia.Surface(size_px, size_px)
        self.skia = self.surface.getCanvas()
        self.skia.scale(size_px / EXTENT, size_px / EXTENT)

    @property
    def scale(self) -> float:
        """Pixels per unit."""
        return self.size_px / EXTENT

    @property
    def snow_covered(self) -> bool:
        return self.scene.snow_covered

    def pixels(self) -> NDArray[np.uint8]:
        """The picture so far, (size_px, size_px, 3) uint8."""
        image = self.surface.makeImageSnapshot()
        return np.ascontiguousarray(image.toarray(colorType=skia.kRGBA_8888_ColorType)[..., :3])

    # Random numbers

    def uniform(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def integer(self, low: int, high: int) -> int:
        """From `low` to `high`, both included."""
        return int(self.rng.integers(low, high + 1))

    def choice(self, options: Sequence[T]) -> T:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    # Light

    def lit(self, colour: ColourLike, light: float = 1.0, haze: float = 0.0) -> Rgb:
        """A surface colour in the scene's light: 0 in shadow to 1 in the sun, then faded into the distance by haze."""
        direction = mix(self.palette.shadow_light, self.palette.key_light, light)
        return mix(multiply(as_rgb(colour), direction), self.palette.haze, self._thickened(haze))

    def _thickened(self, haze: float) -> float:
        """Fog hides what is far; what is near (haze 0) it leaves."""
        return haze + (1 - haze) * 0.5 * min(1, haze * 3) if self.weather == "fog" else haze

    @contextmanager
    def lit_layer(
        self,
        *,
        haze: float = 0.0,
        light: float = 1.0,
        bounds: tuple[float, float, float, float] | None = None,
        side_light: SideLight | None = None,
    ) -> Generator[None]:
        """What is drawn inside is drawn in daylight colours, then lit as one object when the layer ends.

        `bounds` (left, top, right, bottom) clips the layer and makes it cheap; None covers the picture.
        """
        clip = None if bounds is None else skia.Rect.MakeLTRB(*bounds)
        self.skia.save()
        if clip is not None:
            self.skia.clipRect(clip)
        tint = mix(self.palette.shadow_light, self.palette.key_light, light)
        self.skia.saveLayer(clip, skia.Paint(ColorFilter=_light_filter(tint, self._thickened(haze), self.palette.haze)))
        yield
        if side_light is not None:
            self._shade_across(side_light)
        self.skia.restore()
        self.skia.restore()

    def _shade_across(self, side: SideLight) -> None:
        """Brighten the sun's side of the layer and darken the other; the layer is tinted afterwards."""
        key, shadow = self.palette.key_light, self.palette.shadow_light
        contrast = (shadow[0] / key[0], shadow[1] / key[1], shadow[2] / key[2])
        bright, dark = (side.left, side.right) if self.sun_side < 0 else (side.right, side.left)
        stops = [
            packed((1, 1, 1), (0.3 if self.palette.time == "night" else 0.16) * side.strength),
            packed((1, 1, 1), 0),
            packed(shade(contrast, 0.5), 0.75 * side.strength),
        ]
        self.skia.drawPaint(
            paint(shader=horizontal_gradient(bright, dark, stops, [0, 0.4, 1]), blend=ONLY_OVER_PAINTED)
        )

    # Shapes

    @property
    def is_line_style(self) -> bool:
        """Whether the style keeps edges only; then fine detail is not drawn."""
        return self.scene.style in LINE_STYLES

    def _is_too_fine(self, brush: skia.Paint, half_width: float, half_height: float) -> bool:
        if not self.is_line_style:
            return False
        if brush.getStyle() == skia.Paint.kStroke_Style:
            return brush.getStrokeWidth() < FINEST_STROKE
        return max(half_width, half_height) < FINEST_DOT or min(half_width, half_height) < FINEST_BAR

    def rect(self, x: float, y: float, width: float, height: float, brush: skia.Paint) -> None:
        self.skia.drawRect(skia.Rect.MakeXYWH(x, y, width, height), brush)

    def round_rect(self, x: float, y: float, width: float, height: float, radius: float, brush: skia.Paint) -> None:
        if not self._is_too_fine(brush, width / 2, height / 2):
            self.skia.drawRoundRect(skia.Rect.MakeXYWH(x, y, width, height), radius, radius, brush)

    def oval(self, x: float, y: float, radius_x: float, radius_y: float, brush: skia.Paint) -> None:
        if not self._is_too_fine(brush, radius_x, radius_y):
            self.skia.drawOval(oval_bounds(x, y, radius_x, radius_y), brush)

    def circle(self, x: float, y: float, radius: float, brush: skia.Paint) -> None:
        if not self._is_too_fine(brush, radius, radius):
            self.skia.drawCircle(x, y, radius, brush)

    def line(self, x0: float, y0: float, x1: float, y1: float, brush: skia.Paint) -> None:
        if not self._is_too_fine(brush, EXTENT, EXTENT):
            self.skia.drawLine(x0, y0, x1, y1, brush)

    def path(self, path: skia.Path, brush: skia.Paint) -> None:
        if not self._is_too_fine(brush, EXTENT, EXTENT):
            self.skia.drawPath(path, brush)

    def glow(self, x: float, y: float, radius: float, colour: ColourLike, alpha: float = 1.0) -> None:
        """A soft disc of light, added to what is there."""
        stops = [packed(colour, alpha), packed(colour, alpha * 0.35), packed(colour, 0)]
        self.circle(x, y, radius, paint(shader=radial_gradient(x, y, radius, stops, [0, 0.35, 1]), blend=ADD_LIGHT))

    def texture(
        self,
        pixels: NDArray[np.float64],
        x: float,
        y: float,
        width: float,
        height: float,
        *,
        blend: skia.BlendMode | None = None,
    ) -> None:
        """A coarse picture, (rows, columns, 4) RGBA in [0, 1], stretched smoothly over a rectangle."""
        levels = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
        image = skia.Image.fromarray(np.ascontiguousarray(levels), colorType=skia.kRGBA_8888_ColorType, copy=True)
        source = skia.Rect.MakeWH(image.width(), image.height())
        target = skia.Rect.MakeXYWH(x, y, width, height)
        self.skia.drawImageRect(image, source, target, SMOOTH_SAMPLING, paint(blend=blend))

    @contextmanager
    def clipped(self, area: skia.Path | skia.Rect) -> Generator[None]:
        """Draw inside an area only: antialiased along a path, on whole pixels along a rectangle."""
        self.skia.save()
        if isinstance(area, skia.Rect):
            self.skia.clipRect(area)
        else:
            self.skia.clipPath(area, skia.ClipOp.kIntersect, True)
        yield
        self.skia.restore()

    @contextmanager
    def rotated(self, degrees: float, x: float, y: float) -> Generator[None]:
        """Draw turned clockwise around a point."""
        self.skia.save()
        self.skia.rotate(degrees, x, y)
        yield
        self.skia.restore()


def _light_filter(tint: Rgb, haze: float, haze_colour: Rgb) -> skia.ColorFilter:
    """Multiply by the light's tint, then fade towards the haze."""
    clear = 1 - haze
    red, green, blue = tint[0] * clear, tint[1] * clear, tint[2] * clear
    rows = (
        (red, 0, 0, 0, haze_colour[0] * haze),
        (0, green, 0, 0, haze_colour[1] * haze),
        (0, 0, blue, 0, haze_colour[2] * haze),
        (0, 0, 0, 1, 0),
    )
    return skia.ColorFilters.Matrix([value for row in rows for value in row])


def fractal_noise(
    rng: np.random.Generator, length: int, octaves: int = 5, roughness: float = 0.5
) -> NDArray[np.float64]:
    """One-dimensional value noise, (length,), roughly in [-2, 2]: outlines of ridges, cliffs and curtains of light."""
    position = np.linspace(0, 1, length)
    total = np.zeros(length)
    amplitude = 1.0
    frequency = 1.0
    for _ in range(octaves):
        knots = int(2 * frequency) + 3
        values = rng.uniform(-1, 1, knots)
        along = (position * frequency + rng.uniform(0, 1)) % (knots - 2)
        left = along.astype(int)
        blend = along - left
        blend = blend * blend * (3 - 2 * blend)
        total += amplitude * (values[left] * (1 - blend) + values[left + 1] * blend)
        amplitude *= roughness
        frequency *= 2.03
    return total


def noise_field(
    rng: np.random.Generator, rows: NDArray[np.float64], columns: NDArray[np.float64], octaves: int = 4
) -> NDArray[np.float64]:
    """Two-dimensional value noise in about [0, 1] at the given coordinates (any shape, not negative): cloud layers."""
    total = np.zeros(rows.shape)
    amplitude = 0.5
    for octave in range(octaves):
        v, u = rows * 2**octave, columns * 2**octave
        top, left = v.astype(int), u.astype(int)
        knots = rng.random((int(top.max()) + 2, int(left.max()) + 2))
        down, along = v - top, u - left
        down, along = down * down * (3 - 2 * down), along * along * (3 - 2 * along)
        upper = knots[top, left] * (1 - along) + knots[top, left + 1] * along
        lower = knots[top + 1, left] * (1 - along) + knots[top + 1, left + 1] * along
        total += amplitude * (upper * (1 - down) + lower * down)
        amplitude *= 0.5
    return total / (1 - amplitude * 2)

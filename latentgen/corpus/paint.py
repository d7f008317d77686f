"""Skia paints, gradients and paths in the few forms the corpus draws with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import skia

from latentgen.corpus.colour import ColourLike, as_rgb

Point = tuple[float, float]
Stop = ColourLike | int
"""A colour of a gradient: opaque (a triple or hex string), or packed with its alpha by `packed`."""

ADD_LIGHT = skia.BlendMode.kScreen
"""Light over what is there: never darker, never clipped hard."""
ONLY_OVER_PAINTED = skia.BlendMode.kSrcATop
LINEAR_SAMPLING = skia.SamplingOptions(skia.FilterMode.kLinear)
SMOOTH_SAMPLING = skia.SamplingOptions(skia.CubicResampler.Mitchell())
MIPMAP_SAMPLING = skia.SamplingOptions(skia.FilterMode.kLinear, skia.MipmapMode.kLinear)


def packed(colour: ColourLike, alpha: float = 1.0) -> int:
    """A colour and its alpha as Skia's 32-bit integer."""
    red, green, blue = (min(1, max(0, part)) for part in as_rgb(colour))
    return skia.Color4f(red, green, blue, alpha).toColor()


def paint(
    colour: ColourLike | None = None,
    alpha: float = 1.0,
    *,
    blur: float = 0,
    stroke: float = 0,
    blend: skia.BlendMode | None = None,
    shader: skia.Shader | None = None,
) -> skia.Paint:
    """An antialiased paint: a fill, or a round-capped stroke where `stroke` is a width; `blur` softens its edge."""
    result = skia.Paint(AntiAlias=True)
    if colour is not None:
        result.setColor(packed(colour, alpha))
    elif alpha < 1:
        result.setAlphaf(alpha)
    if shader is not None:
        result.setShader(shader)
    if blur:
        result.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    if stroke:
        result.setStyle(skia.Paint.kStroke_Style)
        result.setStrokeWidth(stroke)
        result.setStrokeCap(skia.Paint.kRound_Cap)
        result.setStrokeJoin(skia.Paint.kRound_Join)
    if blend is not None:
        result.setBlendMode(blend)
    return result


def _packed_stops(stops: Iterable[Stop]) -> list[int]:
    return [stop if isinstance(stop, int) else packed(stop) for stop in stops]


def linear_gradient(
    start: Point, end: Point, stops: Iterable[Stop], positions: Sequence[float] | None = None
) -> skia.Shader:
    """Colours along the line from `start` to `end`."""
    return skia.GradientShader.MakeLinear(points=[start, end], colors=_packed_stops(stops), positions=positions)


def vertical_gradient(
    top: float, bottom: float, stops: Iterable[Stop], positions: Sequence[float] | None = None
) -> skia.Shader:
    """Colours from height `top` down to `bottom`."""
    return linear_gradient((0, top), (0, bottom), stops, positions)


def horizontal_gradient(
    left: float, right: float, stops: Iterable[Stop], positions: Sequence[float] | None = None
) -> skia.Shader:
    """Colours from `left` to `right`."""
    return linear_gradient((left, 0), (right, 0), stops, positions)


def radial_gradient(
    x: float, y: float, radius: float, stops: Iterable[Stop], positions: Sequence[float] | None = None
) -> skia.Shader:
    """Colours from the centre outwards."""
    return skia.GradientShader.MakeRadial(
        center=(x, y), radius=radius, colors=_packed_stops(stops), positions=positions
    )


def polygon(points: Iterable[Point], *, closed: bool = True) -> skia.Path:
    """Straight lines through the points."""
    path = skia.Path()
    path.addPoly([skia.Point(float(x), float(y)) for x, y in points], closed)
    return path


def smooth_curve(points: Sequence[Point], down_to: float | None = None) -> skia.Path:
    """A Catmull-Rom curve through the points; with `down_to` the area between it and that height."""
    path = skia.Path()
    path.moveTo(float(points[0][0]), float(points[0][1]))
    last = len(points) - 1
    for index in range(last):
        before, start = points[max(0, index - 1)], points[index]
        end, after = points[index + 1], points[min(last, index + 2)]
        path.cubicTo(
            start[0] + (end[0] - before[0]) / 6,
            start[1] + (end[1] - before[1]) / 6,
            end[0] - (after[0] - start[0]) / 6,
            end[1] - (after[1] - start[1]) / 6,
            float(end[0]),
            float(end[1]),
        )
    if down_to is not None:
        path.lineTo(points[-1][0], down_to)
        path.lineTo(points[0][0], down_to)
        path.close()
    return path


def outline(start: Point, *segments: tuple[float, ...], closed: bool = True) -> skia.Path:
    """A path of segments: two numbers are a line to a point, four a quadratic and six a cubic Bézier curve."""
    path = skia.Path()
    path.moveTo(*start)
    for segment in segments:
        if len(segment) == 2:
            path.lineTo(*segment)
        elif len(segment) == 4:
            path.quadTo(*segment)
        else:
            path.cubicTo(*segment)
    if closed:
        path.close()
    return path


def oval_path(left: float, top: float, right: float, bottom: float) -> skia.Path:
    """An ellipse inside a rectangle, as a path."""
    path = skia.Path()
    path.addOval(skia.Rect.MakeLTRB(left, top, right, bottom))
    return path


def upper_half_oval(x: float, y: float, radius_x: float, radius_y: float) -> skia.Path:
    """The upper half of an ellipse, closed along its diameter: a dome or an arch."""
    path = skia.Path()
    path.addArc(oval_bounds(x, y, radius_x, radius_y), 180, 180)
    path.close()
    return path


def oval_bounds(x: float, y: float, radius_x: float, radius_y: float) -> skia.Rect:
    """The rectangle around an ellipse."""
    return skia.Rect.MakeLTRB(x - radius_x, y - radius_y, x + radius_x, y + radius_y)

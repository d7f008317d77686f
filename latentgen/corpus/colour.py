"""Colour arithmetic on linear-looking sRGB triples in [0, 1]; no drawing library is needed here."""

from __future__ import annotations

Rgb = tuple[float, float, float]
ColourLike = Rgb | str
"""A triple in [0, 1], or a hex string such as `#d8382f`."""

BLACK: Rgb = (0, 0, 0)

PAINT_COLOURS = {
    "red": "#d8382f",
    "orange": "#f08a2c",
    "yellow": "#f5c531",
    "green": "#3f9a55",
    "teal": "#1f9c9a",
    "blue": "#2f6fd0",
    "purple": "#7a4fc0",
    "pink": "#ee7fa8",
    "white": "#f6f4ee",
    "black": "#34373f",
    "brown": "#8a5a36",
    "gray": "#8b939e",
}
"""What a colour word of a caption looks like on a painted object."""


def parse_hex(text: str) -> Rgb:
    """`#rrggbb` (or `rrggbb`) as a triple."""
    digits = text.lstrip("#")
    return int(digits[0:2], 16) / 255, int(digits[2:4], 16) / 255, int(digits[4:6], 16) / 255


def as_rgb(colour: ColourLike) -> Rgb:
    """The triple of either spelling."""
    return parse_hex(colour) if isinstance(colour, str) else colour


def paint_colour(name: str) -> Rgb:
    """The triple of a colour word, or of a hex string."""
    return parse_hex(PAINT_COLOURS.get(name, name))


def mix(first: Rgb, second: Rgb, share: float) -> Rgb:
    """Straight line from `first` (share 0) to `second` (share 1); a share outside [0, 1] extrapolates."""
    return (
        first[0] + (second[0] - first[0]) * share,
        first[1] + (second[1] - first[1]) * share,
        first[2] + (second[2] - first[2]) * share,
    )


def multiply(colour: Rgb, light: Rgb) -> Rgb:
    """A surface colour under a coloured light, clipped at 1."""
    return min(1, colour[0] * light[0]), min(1, colour[1] * light[1]), min(1, colour[2] * light[2])


def shade(colour: Rgb, factor: float) -> Rgb:
    """Darker (factor below 1) or lighter (above 1), clipped to [0, 1]."""
    return (
        min(1, max(0, colour[0] * factor)),
        min(1, max(0, colour[1] * factor)),
        min(1, max(0, colour[2] * factor)),
    )


def luminance(colour: Rgb) -> float:
    """Perceived brightness, with the rounded Rec. 601 weights."""
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def saturate(colour: Rgb, amount: float) -> Rgb:
    """Move away from gray (amount above 1) or towards it (below 1), clipped to [0, 1]."""
    gray = luminance(colour)
    return (
        min(1, max(0, gray + (colour[0] - gray) * amount)),
        min(1, max(0, gray + (colour[1] - gray) * amount)),
        min(1, max(0, gray + (colour[2] - gray) * amount)),
    )

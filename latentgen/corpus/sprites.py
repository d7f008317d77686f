"""Subjects shown by artwork: which of two drawings, in which colour, and how it is set into the scene's light."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import skia
from numpy.typing import NDArray

from latentgen.corpus.artwork import FETCH_HINT, Artwork, fluent_file, noto_file
from latentgen.corpus.canvas import Canvas, SideLight
from latentgen.corpus.colour import Rgb, mix, shade
from latentgen.corpus.heroes.parts import contact_shadow
from latentgen.corpus.paint import MIPMAP_SAMPLING, paint, radial_gradient
from latentgen.corpus.scene import Noun, Setting
from latentgen.errors import ModelNotFoundError

Floats = NDArray[np.floating[Any]]

NOTO_SHARE = 0.42
POOR_IN_NOTO = {"raccoon"}
POOR_IN_FLUENT = {"tent", "bus"}
FLOATS_ONLY_IN_FLUENT = {"duck", "swan"}
"""Noto draws these with feet, which looks wrong on water."""

HUES = {
    "red": 0.995,
    "orange": 0.075,
    "yellow": 0.14,
    "green": 0.36,
    "teal": 0.49,
    "blue": 0.6,
    "purple": 0.74,
    "pink": 0.92,
}


def choose_artwork(noun: Noun, setting: Setting, rng: np.random.Generator) -> str | None:
    """One of the noun's two drawings; None for procedural nouns. Draws one number in every case."""
    draw = rng.random()
    if noun.drawing is not None:
        return None
    on_water = noun.category == "water" or setting in ("sea", "lake")
    if noun.noto is None or noun.name in POOR_IN_NOTO or (on_water and noun.name in FLOATS_ONLY_IN_FLUENT):
        return fluent_file(noun)
    return noto_file(noun) if noun.name in POOR_IN_FLUENT or draw < NOTO_SHARE else fluent_file(noun)


def _artwork_of(canvas: Canvas) -> Artwork:
    if canvas.artwork is None:
        names = " and ".join(subject.noun.name for subject in canvas.scene.subjects)
        raise ModelNotFoundError(f"a scene with {names} cannot be drawn without artwork", hint=FETCH_HINT)
    return canvas.artwork


@lru_cache(512)
def _sprite(artwork: Artwork, file: str, colour: str | None) -> skia.Image:
    pixels = artwork.pixels(file)
    if colour is not None:
        pixels = recoloured(pixels, colour)
    return skia.Image.fromarray(np.ascontiguousarray(pixels), colorType=skia.kRGBA_8888_ColorType, copy=True)


def recoloured(pixels: NDArray[np.uint8], colour: str) -> NDArray[np.uint8]:
    """Turn the dominant hue of a sprite into `colour`; grays and other hues stay. (H, W, 4) uint8 in and out."""
    rgb = pixels[..., :3].astype(np.float32) / 255
    brightest, darkest = rgb.max(-1), rgb.min(-1)
    chroma = brightest - darkest
    saturation = np.where(brightest > 0, chroma / np.maximum(brightest, 1e-6), 0)
    hue = _hue(rgb, brightest, chroma)
    # The dominant hue: the fullest of 36 bins, weighted by how colourful and bright a pixel is
    weight = saturation * brightest * (pixels[..., 3] > 128)
    histogram = np.histogram(hue, 36, (0, 1), weights=weight * (saturation > 0.35))[0]
    histogram = histogram + np.roll(histogram, 1) + np.roll(histogram, -1)
    dominant = (histogram.argmax() + 0.5) / 36
    offset = (hue - dominant + 0.5) % 1 - 0.5
    affected = (np.abs(offset) < 0.14) & (saturation > 0.22)
    value = brightest
    if colour in HUES:
        hue = np.where(affected, (HUES[colour] + offset * 0.35) % 1, hue)
        if colour == "yellow":
            value = np.where(affected, np.minimum(1, brightest * 1.15), brightest)
    elif colour == "white":
        saturation = np.where(affected, saturation * 0.08, saturation)
        value = np.where(affected, 0.62 + 0.38 * brightest, brightest)
    else:  # black
        saturation = np.where(affected, saturation * 0.15, saturation)
        value = np.where(affected, brightest * 0.34, brightest)
    result = pixels.copy()
    result[..., :3] = (_rgb_from_hsv(hue, saturation, value) * 255).clip(0, 255)
    return result


def _hue(rgb: Floats, brightest: Floats, chroma: Floats) -> Floats:
    """Hue of each pixel in [0, 1)."""
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    divisor = np.maximum(chroma, 1e-6)
    from_red = ((green - blue) / divisor) % 6
    from_green = (blue - red) / divisor + 2
    from_blue = (red - green) / divisor + 4
    return np.where(brightest == red, from_red, np.where(brightest == green, from_green, from_blue)) / 6


def _rgb_from_hsv(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    sector = np.floor(hue * 6)
    within = hue * 6 - sector
    low = value * (1 - saturation)
    falling = value * (1 - saturation * within)
    rising = value * (1 - saturation * (1 - within))
    index = sector.astype(int) % 6
    return np.stack(
        [
            np.choose(index, [value, falling, low, low, rising, value]),
            np.choose(index, [rising, value, value, falling, low, low]),
            np.choose(index, [low, low, rising, value, value, falling]),
        ],
        -1,
    )


def draw_sprite(
    canvas: Canvas,
    file: str,
    x: float,
    y: float,
    height: float,
    *,
    colour: str | None = None,
    haze: float = 0,
    mirrored: bool = False,
    rotation: float = 0,
    shadow: bool = True,
    max_width: float,
) -> None:
    """Artwork standing on y, never wider than `max_width`, slightly skewed and stretched so that no two are alike."""
    image = _sprite(_artwork_of(canvas), file, colour)
    width = height * image.width() / image.height()
    if width > max_width:
        height *= max_width / width
        width = max_width
    if shadow:
        contact_shadow(canvas, x, y - 0.4, width)
    middle_y = y - height / 2
    reach = max(width, height) * 0.75 + 2
    with canvas.lit_layer(
        haze=haze,
        light=0.95,
        bounds=(x - reach, middle_y - reach, x + reach, middle_y + reach),
        side_light=SideLight(x - width * 0.5, x + width * 0.5, 0.55),
    ):
        canvas.skia.save()
        if rotation:
            canvas.skia.rotate(rotation, x, middle_y)
        canvas.skia.translate(x, y)
        canvas.skia.skew(canvas.uniform(-0.05, 0.05), 0)
        canvas.skia.scale(canvas.uniform(0.93, 1.07), 1)
        canvas.skia.translate(-x, -y)
        if mirrored:
            canvas.skia.translate(x, 0)
            canvas.skia.scale(-1, 1)
            canvas.skia.translate(-x, 0)
        _draw_image(canvas, image, x - width / 2, y - height, width, height)
        canvas.skia.restore()


def draw_mascot(canvas: Canvas, file: str, x: float, y: float, height: float, haze: float = 0) -> None:
    """A face-only sprite on a sitting toy body, in the face's own colour."""
    artwork = _artwork_of(canvas)
    fur = _median_colour(artwork.pixels(file))
    contact_shadow(canvas, x, y, height * 0.7)
    with canvas.lit_layer(haze=haze, light=0.95, side_light=SideLight(x - height * 0.35, x + height * 0.35, 0.5)):
        body_colour, belly = shade(fur, 0.93), mix(fur, (1, 1, 1), 0.45)
        for side in (-1, 1):
            foot = paint(shade(fur, 0.85))
            canvas.oval(x + side * height * 0.2, y - height * 0.06, height * 0.13, height * 0.07, foot)
        stops = [mix(body_colour, (1, 1, 1), 0.15), body_colour, shade(body_colour, 0.72)]
        light_x = x + canvas.sun_side * height * 0.1
        body = paint(shader=radial_gradient(light_x, y - height * 0.36, height * 0.42, stops))
        canvas.oval(x, y - height * 0.24, height * 0.27, height * 0.25, body)
        canvas.oval(x, y - height * 0.2, height * 0.16, height * 0.17, paint(belly, 0.75, blur=1))
        for side in (-1, 1):
            with canvas.rotated(side * -18, x + side * height * 0.22, y - height * 0.28):
                arm_x, arm_y = x + side * height * 0.235, y - height * 0.24
                canvas.oval(arm_x, arm_y, height * 0.065, height * 0.13, paint(shade(fur, 0.84)))
        face = _sprite(artwork, file, None)
        face_height = height * 0.62
        face_width = face_height * face.width() / face.height()
        _draw_image(canvas, face, x - face_width / 2, y - height, face_width, face_height)


def _median_colour(pixels: NDArray[np.uint8]) -> Rgb:
    opaque = pixels[pixels[..., 3] > 200][:, :3]
    red, green, blue = np.median(opaque, 0) / 255
    return float(red), float(green), float(blue)


def _draw_image(canvas: Canvas, image: skia.Image, x: float, y: float, width: float, height: float) -> None:
    source = skia.Rect.MakeWH(image.width(), image.height())
    canvas.skia.drawImageRect(image, source, skia.Rect.MakeXYWH(x, y, width, height), MIPMAP_SAMPLING)

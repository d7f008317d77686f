"""Styles as filters over the finished picture: pixel art, watercolor, pencil, oil, neon.

Pictures are (n, n, 3) uint8 RGB in and out; inside, float32 in [0, 1].
"""

from __future__ import annotations

from typing import Any, cast

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentgen.corpus.scene import Style

Pixels = NDArray[np.uint8]
Floats = NDArray[np.floating[Any]]

WATERCOLOR_PAPER = (0.985, 0.975, 0.95)
SKETCH_PAPER = (0.985, 0.97, 0.94)
GRAPHITE = (0.14, 0.14, 0.18)
SPECK = np.array([[0, 1, 1, 1, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 0]], np.uint8)
"""The largest bright spot that a pencil sketch leaves without an outline."""


def apply_style(pixels: Pixels, style: Style, rng: np.random.Generator) -> Pixels:
    """The picture in a style; `flat` is the picture itself."""
    match style:
        case "flat":
            return pixels
        case "pixel art":
            return _pixel_art(pixels)
        case "watercolor":
            return _watercolor(pixels, rng)
        case "pencil sketch":
            return _pencil_sketch(pixels, rng)
        case "oil painting":
            return _oil_painting(pixels, rng)
        case "neon":
            return _neon(pixels)


def _blurred(image: cv2.typing.MatLike, sigma: float) -> Floats:
    return cast("Floats", cv2.GaussianBlur(image, (0, 0), sigma))


def _smooth_noise(rng: np.random.Generator, side: int, sigma: float, amplitude: float) -> Floats:
    """Gaussian noise blurred to a grain of `sigma` pixels, (side, side)."""
    white = rng.normal(0, 1, (side, side)).astype(np.float32)
    return _blurred(white, sigma) * sigma * amplitude


def _as_floats(pixels: Pixels) -> Floats:
    return pixels.astype(np.float32) / 255


def _as_pixels(image: NDArray[np.floating]) -> Pixels:
    return (np.clip(image, 0, 1) * 255).astype(np.uint8)


def _pixel_grid(side: int) -> tuple[Floats, Floats]:
    """x and y of every pixel, each (side, side)."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    return x, y


def _distance_to_edge(x: Floats, y: Floats) -> Floats:
    last = x.shape[0] - 1
    return np.minimum.reduce([x, y, last - x, last - y])


def _pixel_art(pixels: Pixels) -> Pixels:
    """A quarter of the resolution in 28 colours, spread so that a small bright thing has its own; nights are lifted."""
    side = pixels.shape[0]
    small = _as_floats(cast("Pixels", cv2.resize(pixels, (side // 4, side // 4), interpolation=cv2.INTER_AREA)))
    small = np.clip(small + (small - small.mean(-1, keepdims=True)) * 0.2, 0, 1)
    lifted = _as_pixels(small ** min(1, 0.65 + 0.8 * float(small.mean())))
    palette = Image.fromarray(lifted).quantize(28, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    reduced = np.array(palette.convert("RGB"))
    return cast("Pixels", cv2.resize(reduced, (side, side), interpolation=cv2.INTER_NEAREST))


def _watercolor(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Wobbling edges, flat washes with darker rims, granulating pigment, unpainted paper at the border."""
    side = pixels.shape[0]
    image = _as_floats(pixels)
    mean = image.mean()
    image = image ** (1 if mean > 0.5 else max(0.5, 0.45 + 1.1 * mean))  # Paper never gets as dark as night
    image = image + (image - image.mean(-1, keepdims=True)) * (0.15 if mean > 0.35 else 0.45)
    image = np.clip(image, 0, 1)
    x, y = _pixel_grid(side)
    wobble_x = x + _smooth_noise(rng, side, 7, 4.0)
    wobble_y = y + _smooth_noise(rng, side, 7, 4.0)
    wash = cv2.remap(image, wobble_x, wobble_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    wash = cv2.bilateralFilter(wash, 9, 0.16, 5)
    rims = np.abs(_blurred(wash, 0.8) - _blurred(wash, 3.0)).mean(-1, keepdims=True)
    wash = wash * (1 - 1.1 * rims)
    coarse = 0.5 * _smooth_noise(rng, side, 14, 1.1)[..., None] * 0.35
    fine = _smooth_noise(rng, side, 1.6, 0.06)[..., None] * 0.5
    pigment = 1 + coarse + fine
    wash = 1 - (1 - wash) * np.clip(0.86 * pigment, 0.3, 1.2)
    border = _distance_to_edge(x, y) + _smooth_noise(rng, side, 9, 7)
    painted = np.clip((border - 7) / 5, 0, 1)[..., None]
    paper = np.array(WATERCOLOR_PAPER, np.float32)
    return _as_pixels(paper * (1 - painted) + wash * paper * painted)


def _pencil_sketch(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Graphite lines along edges, soft tone in the shadows and a light tooth, on cream paper.

    The lines are two pixels wide and the tooth is faint: finer marks would be lost to an autoencoder. Night is a
    shaded sky, out of which stars, moon, aurora and lit windows are left as paper.
    """
    side = pixels.shape[0]
    gray = cast("Floats", cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)).astype(np.float32) / 255
    darkness = max(0.0, 0.45 - float(gray.mean())) / 0.45
    low, high = np.percentile(gray, (1, 99))
    gray = np.clip((gray - low) / max(0.3, high - low), 0, 1)
    if gray.mean() < 0.45:
        gray = gray ** (0.55 + 0.1 * darkness)
    calm = cast("Pixels", cv2.bilateralFilter(pixels, 7, 30, 5))
    without_specks = cv2.morphologyEx(calm, cv2.MORPH_OPEN, SPECK)  # Stars, flakes and rain are left as paper
    soft = _blurred(_as_floats(cast("Pixels", without_specks)), 1.3)
    slope_x, slope_y = (cast("Floats", cv2.Sobel(soft, cv2.CV_32F, dx, dy, ksize=3)) for dx, dy in ((1, 0), (0, 1)))
    lines = np.clip(np.hypot(slope_x, slope_y).max(-1) * (1.9 + darkness) - 0.16, 0, 1)
    white_noise = rng.normal(0, 1, (side, side)).astype(np.float32)
    tooth = _blurred(white_noise, 1.3)
    tooth /= tooth.std()
    specks = _blurred(gray - cast("Floats", cv2.morphologyEx(gray, cv2.MORPH_OPEN, SPECK)), 0.7)
    tone = _blurred(np.clip(0.92 - gray, 0, 1), 1.6) * np.clip(1 - 5 * specks, 0, 1) + 0.06 * (specks > 0.05)
    lightness = 1 - lines * 0.75 * (1 - 0.6 * darkness * gray) - tone * (0.42 + 0.5 * darkness) * (1 + 0.07 * tooth)
    x, y = _pixel_grid(side)
    ragged = _blurred(white_noise, 9)
    ragged /= ragged.std()
    drawn = np.clip((_distance_to_edge(x, y) * 256 / side + ragged * 3 - 8) / 12, 0, 1)
    lightness = np.clip(1 - (1 - lightness) * drawn, 0.05, 1)[..., None]
    return _as_pixels(lightness * np.array(SKETCH_PAPER) + (1 - lightness) * np.array(GRAPHITE))


def _oil_painting(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """More contrast and saturation, then flat strokes with relief."""
    image = _as_floats(pixels)
    mean = image.mean()
    image = image ** (1 if mean > 0.42 else 0.6 + 0.95 * mean)
    image = np.clip((image - image.mean()) * 1.12 + image.mean(), 0, 1)
    image = np.clip(image + (image - image.mean(-1, keepdims=True)) * 0.25, 0, 1)
    return _brush_strokes((image * 255).astype(np.uint8), 6, rng)


def _brush_strokes(pixels: Pixels, width: int, rng: np.random.Generator) -> Pixels:
    """Kuwahara filter (Kuwahara et al., 1976): each pixel takes the mean of its least varying quadrant."""
    side = pixels.shape[0]
    x, y = _pixel_grid(side)
    wobble_x = x + _smooth_noise(rng, side, 2.2, 2.2)
    wobble_y = y + _smooth_noise(rng, side, 2.2, 2.2)
    image = cv2.remap(pixels.astype(np.float32), wobble_x, wobble_y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    image += _smooth_noise(rng, side, 2.0, 16)[..., None]
    mean = cv2.blur(image, (width, width))
    variance = np.maximum(cv2.blur(image * image, (width, width)) - mean * mean, 0).sum(-1)
    half = width // 2
    strokes, least = None, None
    for dx, dy in ((-half, -half), (half, -half), (-half, half), (half, half)):
        shift = np.array([[1, 0, dx], [0, 1, dy]], np.float32)
        quadrant = cv2.warpAffine(mean, shift, (side, side), borderMode=cv2.BORDER_REFLECT)
        spread = cv2.warpAffine(variance, shift, (side, side), borderMode=cv2.BORDER_REFLECT)
        if strokes is None or least is None:
            strokes, least = quadrant, spread
            continue
        calmer = spread < least
        least = np.where(calmer, spread, least)
        strokes = np.where(calmer[..., None], quadrant, strokes)
    assert strokes is not None, "there are four quadrants"
    height_map = _blurred(cast("Floats", strokes), 0.5).mean(-1) + _smooth_noise(rng, side, 1.1, 7)
    emboss = np.array([[-1, -0.6, 0], [-0.6, 0, 0.6], [0, 0.6, 1]], np.float32)
    relief = cv2.filter2D(height_map, -1, emboss) * 0.22
    return np.clip(strokes + np.clip(relief, -14, 14)[..., None], 0, 255).astype(np.uint8)


def _neon(pixels: Pixels) -> Pixels:
    """Strong edges as glowing tubes in the picture's own hues, over a dim violet ghost of it.

    Inside its tubes a thing glows faintly in what sets it off from its surroundings, so that a red house by day is
    red, and the sun and an aurora are lights. White things have white tubes.
    """
    image = _as_floats(pixels)
    edges = np.abs(cv2.Laplacian(_blurred(image, 1.2), cv2.CV_32F, ksize=3))
    edges = np.clip(_blurred(edges, 0.9) * 7 - 0.16, 0, 1)
    hsv = cast("Pixels", cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)).astype(np.float32)
    hsv[..., 1] = np.clip(hsv[..., 1] * 2.6 - 15, 0, 255)
    hsv[..., 2] = 255
    gas = cast("Pixels", cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB)).astype(np.float32) / 255
    ghost = image * np.array([0.15, 0.12, 0.24]) + np.array([0.02, 0.01, 0.06])
    own_light = np.clip((image - _surroundings(image)).max(-1, keepdims=True), 0, 1)
    tubes = gas * edges.max(-1, keepdims=True)
    return _as_pixels(ghost + gas * own_light * 0.8 + tubes * 0.9 + _blurred(tubes, 4) * 0.8)


def _surroundings(image: Floats) -> Floats:
    """The picture without anything smaller than a third of it: blurred at an eighth of its size."""
    side = image.shape[0]
    small = cv2.resize(image, (side // 8, side // 8), interpolation=cv2.INTER_AREA)
    return cast("Floats", cv2.resize(_blurred(small, side / 64), (side, side), interpolation=cv2.INTER_LINEAR))

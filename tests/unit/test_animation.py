from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from latentgen.errors import InputError
from latentgen.images.animation import ANIMATIONS, encode_animation, even_steps, with_one_palette
from latentgen.images.pixels import Pixels


@pytest.fixture
def frames() -> list[Pixels]:
    """A gradient over which a square moves; the left half never changes."""
    y, x = np.mgrid[0:48, 0:64]
    ground = np.stack([x * 4, y * 5, 255 - x * 2], axis=-1).astype(np.uint8)
    pictures = [ground.copy() for _ in range(5)]
    for k, picture in enumerate(pictures):
        picture[8 * k : 8 * k + 8, 40:56] = (255, 240, 20)
    return pictures


def decoded(data: bytes) -> tuple[list[Pixels], list[int], int | None]:
    """Frames, milliseconds of each, and how often they are repeated (0: for ever)."""
    with Image.open(io.BytesIO(data)) as image:
        pictures, durations = [], []
        for k in range(image.n_frames):
            image.seek(k)
            pictures.append(np.asarray(image.convert("RGB")))
            durations.append(round(image.info["duration"]))
        return pictures, durations, image.info.get("loop")


@pytest.mark.parametrize("format", ANIMATIONS.values())
def test_frames_come_back_in_order_and_the_last_stays(format: str, frames: list[Pixels]) -> None:
    pictures, durations, loop = decoded(encode_animation(frames, format, frame_ms=80, last_ms=1200))
    assert loop == 0
    assert durations == [80] * 4 + [1200]
    for picture, frame in zip(pictures, frames, strict=True):
        error = np.abs(picture.astype(int) - frame).mean()
        assert error <= {"PNG": 0, "GIF": 8, "WEBP": 4}[format]


def test_a_gif_has_one_palette_and_what_stands_still_does_not_flicker(frames: list[Pixels]) -> None:
    pictures, *_ = decoded(encode_animation(frames, "GIF"))
    colours = {tuple(colour) for picture in pictures for colour in picture.reshape(-1, 3).tolist()}
    assert len(colours) <= 255
    assert all(np.array_equal(picture[:, :40], pictures[0][:, :40]) for picture in pictures)
    # The writer changed nothing of what the palette gave.
    palettes = with_one_palette([Image.fromarray(frame) for frame in frames])
    for picture, image in zip(pictures, palettes, strict=True):
        assert np.array_equal(picture, np.asarray(image.convert("RGB")))


def test_frames_take_the_size_of_the_last(frames: list[Pixels]) -> None:
    small = frames[0][::2, ::2]
    pictures, *_ = decoded(encode_animation([np.ascontiguousarray(small), frames[1]], "PNG"))
    assert [picture.shape for picture in pictures] == [(48, 64, 3)] * 2


def test_no_frames_are_refused() -> None:
    with pytest.raises(InputError, match="at least one"):
        encode_animation([], "GIF")


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [(5, 24, [0, 1, 2, 3, 4]), (10, 3, [2, 6, 9]), (1, 24, [0]), (1000, 4, [249, 499, 749, 999])],
)
def test_steps_are_chosen_evenly_and_the_last_is_among_them(total: int, count: int, expected: list[int]) -> None:
    assert even_steps(total, count) == expected

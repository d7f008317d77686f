from __future__ import annotations

from dataclasses import replace

import numpy as np
from PIL import ImageFont

from latentgen.images.grid import BACKGROUND, MAX_SIDE_PX, Layout, draw_sheet, lay_out, wrap
from latentgen.images.pixels import Pixels
from latentgen.request import GenerationRequest

REQUEST = GenerationRequest(
    prompt="a red boat",
    seed=1,
    width_px=64,
    height_px=48,
    steps=20,
    guidance=7.5,
    sampler="euler",
    schedule="karras",
)
FONT = ImageFont.load_default(12)


def flat(value: int, height: int = 48, width: int = 64) -> Pixels:
    return np.full((height, width, 3), value, np.uint8)


def places_of(sheet: Pixels, value: int) -> tuple[int, int, int, int]:
    """Top, left, height and width of the one rectangle of that colour."""
    rows, columns = np.nonzero((sheet == value).all(axis=-1))
    top, left = int(rows.min()), int(columns.min())
    return top, left, int(rows.max()) - top + 1, int(columns.max()) - left + 1


def test_two_settings_become_rows_and_columns() -> None:
    requests = [replace(REQUEST, guidance=g, steps=s) for s in (10, 20) for g in (3.0, 6.0, 9.0)]
    layout = lay_out(requests)
    assert layout.cells == ((0, 1, 2), (3, 4, 5))
    assert layout.row_labels == ("10 steps", "20 steps")
    assert layout.column_labels == ("guidance 3", "guidance 6", "guidance 9")
    assert set(layout.captions) == {""}
    assert layout.title == "a red boat: euler, karras, seed 1"


def test_the_order_of_the_requests_does_not_matter() -> None:
    requests = [replace(REQUEST, guidance=g, seed=s) for g, s in ((3.0, 2), (6.0, 1), (3.0, 1), (6.0, 2))]
    layout = lay_out(requests)
    assert layout.row_labels == ("seed 2", "seed 1")
    assert layout.column_labels == ("guidance 3", "guidance 6")
    assert layout.cells == ((0, 3), (2, 1))


def test_prompts_with_their_own_seeds_become_rows() -> None:
    requests = [replace(REQUEST, prompt=prompt, seed=seed) for prompt, seed in (("a", 7), ("a", 8), ("b", 3), ("b", 4))]
    layout = lay_out(requests)
    assert layout.cells == ((0, 1), (2, 3))
    assert (layout.row_labels, layout.column_labels) == (("a", "b"), ())
    assert layout.captions == ("seed 7", "seed 8", "seed 3", "seed 4")


def test_seeds_alone_become_a_block() -> None:
    layout = lay_out([replace(REQUEST, seed=seed) for seed in range(5)])
    assert layout.cells == ((0, 1, 2), (3, 4, None))
    assert layout.captions[4] == "seed 4"


def test_one_picture_is_a_sheet_too() -> None:
    layout = lay_out([REQUEST])
    assert layout.cells == ((0,),)
    assert draw_sheet([flat(7)], layout).shape[2] == 3


def test_pictures_stand_whole_in_their_places() -> None:
    requests = [replace(REQUEST, guidance=g, steps=s) for s in (10, 20) for g in (3.0, 6.0)]
    sheet = draw_sheet([flat(101 + k) for k in range(4)], lay_out(requests))
    places = [places_of(sheet, 101 + k) for k in range(4)]
    assert {(height, width) for _, _, height, width in places} == {(48, 64)}
    (top, left), (_, right), (bottom, _), _ = [place[:2] for place in places]
    assert [place[:2] for place in places] == [(top, left), (top, right), (bottom, left), (bottom, right)]
    assert right - left > 64
    assert bottom - top > 48
    assert tuple(sheet[0, 0]) == BACKGROUND
    # Words stand left of the rows and above the columns, and nowhere over a picture.
    ink = (sheet < 80).all(axis=-1)
    assert ink[top : top + 48, : left - 1].any()
    assert ink[:top, left : left + 64].any()
    assert not ink[top : top + 48, left : left + 64].any()


def test_captions_stand_below_their_own_picture() -> None:
    sheet = draw_sheet([flat(101), flat(102)], Layout(((0, 1),), (), (), ("one", "")))
    top, left, height, width = places_of(sheet, 101)
    _, right, _, _ = places_of(sheet, 102)
    ink = (sheet < 80).all(axis=-1)
    assert ink[top + height :, left : left + width].any()
    assert not ink[:, right : right + width].any()


def test_pictures_of_several_sizes_are_fitted_and_centred() -> None:
    sheet = draw_sheet([flat(101, 96, 64), flat(102, 48, 64)], Layout(((0, 1),), (), (), ("", "")))
    assert places_of(sheet, 101)[2:] == (96, 64)
    assert places_of(sheet, 102)[0] - places_of(sheet, 101)[0] == 24


def test_a_large_sheet_stays_within_its_limit() -> None:
    layout = Layout(tuple((k, k, k, k) for k in range(2)), (), (), ("", ""))
    sheet = draw_sheet([flat(1, 2000, 3000), flat(2, 2000, 3000)], layout)
    assert max(sheet.shape) <= MAX_SIDE_PX


def test_long_labels_are_wrapped_and_cut() -> None:
    lines = wrap("a very long prompt of many words that goes on and on", FONT, 90, 3)
    assert len(lines) == 3
    assert lines[-1].endswith("...")
    assert all(FONT.getlength(line) <= 90 for line in lines)
    assert wrap("short", FONT, 90, 3) == ["short"]
    assert wrap("", FONT, 90, 3) == []
    (word,) = wrap("x" * 200, FONT, 90, 3)
    assert word.endswith("...")
    assert FONT.getlength(word) <= 90

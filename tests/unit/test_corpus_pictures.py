"""The drawing itself: every procedural hero in some setting, against thumbnails that were looked at and kept.

After a wanted change of drawing, raise `CORPUS_VERSION`, write the sheet again with
`python -m tests.unit.test_corpus_pictures`, and look at it.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from latentgen.corpus.canvas import Canvas
from latentgen.corpus.colour import multiply, paint_colour
from latentgen.corpus.compose import render_scene
from latentgen.corpus.hero_scenes import sample_hero_scene
from latentgen.corpus.paint import paint
from latentgen.corpus.palettes import PALETTES, lifted_for_subject
from latentgen.corpus.scene import Category, Drawing, Noun, SceneSpec, Setting, Style, Subject, TimeOfDay, Weather

SHEET = Path(__file__).with_name("corpus_golden.png")
THUMBNAIL_PX = 16
COLUMNS = 6
TOLERANCE = 1
"""Of a thumbnail's pixel, the mean of 256: another CPU's rounding moves it by less, a moved window by more."""


def _subject(drawing: Drawing, category: Category, colour: str | None = None, count: int = 1) -> tuple[Subject, ...]:
    return (Subject(Noun(drawing, category, drawing), count, colour),)


def _scenes() -> list[SceneSpec]:
    """All 21 drawings, 21 settings, 5 times, 9 weathers and 6 styles, in few pictures."""
    lighthouse = _subject("lighthouse", "building", "red")
    return [
        SceneSpec("cliff", "sunset", lighthouse),
        SceneSpec("sea", "night", _subject("lighthouse", "building", "white"), "cloudy", sun_behind=True),
        SceneSpec("island", "dawn", _subject("palm", "plant"), "rainbow"),
        SceneSpec("beach", "day", _subject("palm", "plant", count=3), side=None),
        SceneSpec("sea", "dusk", _subject("sailboat", "water", "blue", 2), "clear"),
        SceneSpec("lake", "day", _subject("cabin", "building"), "snow"),
        SceneSpec("meadow", "sunset", _subject("windmill", "building"), "cloudy", "watercolor"),
        SceneSpec("hills", "night", _subject("castle", "building", "pink"), "aurora"),
        SceneSpec("village", "day", _subject("barn", "building", "red"), "rain"),
        SceneSpec("snow", "dusk", _subject("igloo", "building"), size="large"),
        SceneSpec("garden", "dawn", _subject("pagoda", "building"), "fog"),
        SceneSpec("forest", "night", _subject("campfire", "building")),
        SceneSpec("sea", "day", _subject("suspension", "building"), "overcast"),
        SceneSpec("mountains", "day", _subject("volcano", "building"), "storm"),
        SceneSpec("farm", "sunset", _subject("balloon", "air", "yellow"), side="left", size="small"),
        SceneSpec("autumn", "day", _subject("autumn", "plant"), style="oil painting"),
        SceneSpec("river", "dawn", _subject("house", "building", "blue"), "clear", "pencil sketch"),
        SceneSpec("desert", "night", _subject("cactus", "plant"), style="neon"),
        SceneSpec("city", "dusk", _subject("round", "plant", count=2), style="pixel art"),
        SceneSpec("table", "sunset", _subject("birch", "plant"), "cloudy"),
        SceneSpec("studio", "day", _subject("cherry", "plant"), backdrop="teal", size="giant"),
        SceneSpec("underwater", "day", _subject("house", "building")),
        SceneSpec("space", "day", _subject("balloon", "air", "white")),
        SceneSpec("hills", "day", (*lighthouse, *_subject("pine", "plant")), behind=True),
        SceneSpec("meadow", "night", _subject("cottage", "building", "yellow"), "rain"),
        SceneSpec("beach", "day", (*_subject("house", "building", "red"), *_subject("sailboat", "water", "blue"))),
        SceneSpec("cliff", "night", (*_subject("sailboat", "water", "white"), *lighthouse), "aurora"),
        SceneSpec("snow", "dusk", _subject("pine", "plant", count=4), "snow"),
        SceneSpec("lake", "sunset", _subject("windmill", "building", "blue"), "storm", side="right"),
        SceneSpec("sea", "night", _subject("sailboat", "water", "yellow", 3), "fog"),
    ]


def _thumbnail(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    block = pixels.shape[0] // THUMBNAIL_PX
    return pixels.reshape(THUMBNAIL_PX, block, THUMBNAIL_PX, block, 3).mean((1, 3))


def _sheet() -> NDArray[np.uint8]:
    thumbnails = [_thumbnail(render_scene(scene, seed)) for seed, scene in enumerate(_scenes())]
    rows = [np.hstack(thumbnails[i : i + COLUMNS]) for i in range(0, len(thumbnails), COLUMNS)]
    return np.vstack(rows).round().astype(np.uint8)


def test_every_hero_is_drawn_as_before() -> None:
    kept = np.array(Image.open(SHEET)).astype(int)
    difference = np.abs(_sheet().astype(int) - kept).max(-1)
    assert difference.shape == (5 * THUMBNAIL_PX, COLUMNS * THUMBNAIL_PX)
    tiles = difference.reshape(5, THUMBNAIL_PX, COLUMNS, THUMBNAIL_PX).max((1, 3)).ravel()
    changed = {f"{scene.subjects[-1].noun.name}, {scene.setting}": int(tile) for scene, tile in
               zip(_scenes(), tiles, strict=True) if tile > TOLERANCE}  # fmt: skip
    assert not changed, "drawn differently from the kept thumbnails (levels of difference)"


def test_a_picture_depends_on_its_seed_alone() -> None:
    scene = sample_hero_scene(np.random.default_rng(5))
    first, between, again = render_scene(scene, 5), render_scene(scene, 6), render_scene(scene, 5)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, between)


@pytest.mark.parametrize("size_px", [64, 96, 512])
def test_size_changes_the_resolution_and_not_the_scene(size_px: int) -> None:
    scene = SceneSpec("meadow", "day", _subject("windmill", "building", "red"))
    picture = render_scene(scene, 3, size_px)
    assert picture.shape == (size_px, size_px, 3)
    assert picture.dtype == np.uint8
    coarse = np.array(Image.fromarray(picture).resize((8, 8), Image.Resampling.BOX)).astype(int)
    reference = np.array(Image.fromarray(render_scene(scene, 3, 256)).resize((8, 8), Image.Resampling.BOX)).astype(int)
    assert np.abs(coarse - reference).mean() < 3


def test_colour_word_colours_the_hero() -> None:
    red, blue = (
        render_scene(SceneSpec("sea", "day", _subject("sailboat", "water", colour), size="large"), 1).astype(int)
        for colour in ("red", "blue")
    )
    changed = np.abs(red - blue).sum(-1) > 60
    assert changed.mean() > 0.01
    assert (red - blue)[changed][:, 0].mean() > 20
    assert (red - blue)[changed][:, 2].mean() < -20


@pytest.mark.parametrize("drawing", ["lighthouse", "house", "cottage", "castle", "windmill", "sailboat", "balloon"])
def test_a_noun_is_a_family_of_drawings(drawing: Drawing) -> None:
    """In the studio nothing but the subject changes much: two seeds differ inside the subject's own area."""
    category: Category = {"sailboat": "water", "balloon": "air"}.get(drawing, "building")  # type: ignore[assignment]
    scene = SceneSpec("studio", "day", _subject(drawing, category, "red"), backdrop="white")
    pictures = [render_scene(scene, seed, 64).astype(int) for seed in range(6)]
    drawn = [np.abs(picture - np.median(picture, (0, 1))).sum(-1) > 120 for picture in pictures]
    shares = [(drawn[a] ^ drawn[b]).sum() / max(1, (drawn[a] | drawn[b]).sum()) for a in range(6) for b in range(a)]
    assert np.median(shares) > 0.1


def test_a_colour_is_the_same_in_every_light() -> None:
    """A yellow sail at sunset is yellow, not orange: the hue of what is drawn stays within a few degrees."""
    for colour, low, high in (("yellow", 35, 62), ("red", -15, 20), ("blue", 200, 250)):
        for time in ("day", "dawn", "sunset", "dusk", "night"):
            scene = SceneSpec("studio", "day", _subject("sailboat", "water", colour), backdrop="white")
            palette = lifted_for_subject(PALETTES[time][0], {"night": 0.34, "dusk": 0.26}.get(time, 0.1))
            lit = multiply(paint_colour(scene.subjects[0].colour or ""), palette.key_light)
            hue = colorsys.rgb_to_hsv(*lit)[0] * 360
            hue = hue - 360 if hue > 330 else hue
            assert low <= hue <= high, (colour, time, hue)


def _sky_at(weather: Weather, time: TimeOfDay = "sunset", seed: int = 3) -> NDArray[np.float64]:
    """The upper 96 rows of the sky over a sea, by row: (96, 3)."""
    scene = SceneSpec("sea", time, _subject("sailboat", "water", "white"), weather, size="small")
    return render_scene(scene, seed)[:96, 200:].astype(float).mean(1)


def _colourfulness(rows: NDArray[np.float64]) -> float:
    return float((rows.max(1) - rows.min(1)).mean())


@pytest.mark.parametrize("weather", ["overcast", "rain", "storm", "snow"])
def test_a_closed_sky_at_sunset_is_gray(weather: Weather) -> None:
    """A caption may say "gray clouds" at any hour but night: at sunset too the clouds are gray, not orange."""
    for seed in (3, 4, 5):
        closed, clear = (_colourfulness(_sky_at(each, seed=seed)[:64]) for each in (weather, "clear"))
        assert closed < 25 < 40 < clear, seed


def test_fog_at_night_is_pale() -> None:
    assert _sky_at("fog", "night").mean() > 1.5 * _sky_at("clear", "night").mean()


@pytest.mark.parametrize("setting", ["lake", "sea"])
def test_an_aurora_is_not_hidden_by_mountains(setting: Setting) -> None:
    for seed in range(4):
        balloon = _subject("balloon", "air", "red")
        dark, lit = (
            render_scene(SceneSpec(setting, "night", balloon, weather, side="left", size="small"), seed, 128)[:64, 64:]
            for weather in ("clear", "aurora")
        )
        green = lit[..., 1].astype(float) - lit[..., 0]
        assert np.percentile(green, 97) > np.percentile(dark[..., 1].astype(float) - dark[..., 0], 97) + 20, seed


@pytest.mark.parametrize(("style", "is_drawn"), [("flat", True), ("neon", False), ("pencil sketch", False)])
def test_styles_of_lines_leave_fine_detail_out(style: Style, is_drawn: bool) -> None:
    scene = SceneSpec("meadow", "day", _subject("house", "building"), style=style)
    canvas = Canvas(scene, PALETTES["day"][0], np.random.default_rng(0), 256, None)
    canvas.circle(40, 40, 1.2, paint("#ffffff"))
    canvas.line(60, 60, 100, 60, paint("#ffffff", stroke=0.8))
    canvas.oval(150, 150, 8, 0.6, paint("#ffffff"))
    assert bool(canvas.pixels().any()) == is_drawn
    canvas.circle(40, 40, 2.5, paint("#ffffff"))
    assert canvas.pixels().any()


@pytest.mark.parametrize("time", ["day", "night"])
def test_neon_keeps_the_colour_of_a_thing(time: TimeOfDay) -> None:
    red, blue = (
        render_scene(SceneSpec("sea", time, _subject("sailboat", "water", colour), style="neon", size="large"), 1)
        for colour in ("red", "blue")
    )
    difference = red.astype(int) - blue
    sail = np.abs(difference).sum(-1) > 60
    assert sail.mean() > 0.05
    assert difference[sail][:, 0].mean() > 30
    assert difference[sail][:, 2].mean() < -30


def test_pixel_art_keeps_the_moon_white() -> None:
    for seed in range(3):
        scene = SceneSpec("sea", "night", _subject("palm", "plant"), style="pixel art", side="left", size="small")
        assert render_scene(scene, seed).min(-1).max() > 190


@pytest.mark.parametrize("drawing", ["pine", "palm", "cactus", "round", "cherry", "autumn", "birch"])
def test_a_large_plant_stays_inside_the_picture(drawing: Drawing) -> None:
    """The topmost rows show the smooth wall of the studio and nothing else."""
    for seed in range(3):
        scene = SceneSpec("studio", "day", _subject(drawing, "plant"), size="large", backdrop="white")
        top = render_scene(scene, seed, 128)[:2].astype(int)
        assert np.abs(np.diff(top, axis=1)).max() < 8, seed


@pytest.mark.parametrize("drawing", ["house", "barn"])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_counted_subjects_stand_apart(drawing: Drawing, count: int) -> None:
    """Blue walls before a white one: between neighbours there are columns without blue, so that they can be counted."""
    for seed in range(3):
        scene = SceneSpec("studio", "day", _subject(drawing, "building", "blue", count), backdrop="white")
        picture = render_scene(scene, seed, 128).astype(int)
        blue = (picture[..., 2] - picture[..., 0] > 60).any(0)
        starts = np.flatnonzero(np.diff(blue.astype(int), prepend=0) == 1)
        assert len(starts) == count, (seed, starts)


if __name__ == "__main__":
    Image.fromarray(_sheet()).save(SHEET, optimize=True)

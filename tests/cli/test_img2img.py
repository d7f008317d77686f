"""`generate` from pictures: what is read, said, drawn and refused."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentgen.images.files import read_picture
from latentgen.images.pixels import Pixels, pixels_sha256
from tests.cli.conftest import Cli, snapshot


def a_photo(path: Path, width: int = 64, height: int = 48, seed: int = 0) -> Pixels:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


def a_mask(path: Path, width: int = 64, height: int = 48) -> None:
    mask = np.zeros((height, width), np.uint8)
    mask[8:32, 12:40] = 255
    Image.fromarray(mask).save(path)


def request_in(path: Path) -> dict[str, object]:
    document = read_picture(path)[1].document
    assert document is not None
    return document["request"]


def test_a_picture_is_drawn_from_a_picture(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = a_photo(tmp_path / "photo.png")
    flags = ("-m", tiny_model, "-s", "5", "--steps", "30", "--guidance", "1")
    outcome = cli("generate", "a cat", *flags, "-i", "photo.png", "--strength", "0.6", "-o", "a.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "a.png\n", "img2img: 18 of 30 steps\n")
    assert request_in(tmp_path / "a.png")["init"] == {
        "sha256": pixels_sha256(pixels),
        "strength": 0.6,
        "mask_sha256": None,
        "mask_blur_px": 0,
        "invert_mask": False,
        "outpaint": [0, 0, 0, 0],
    }
    from_text = cli("generate", "a cat", *flags, "-H", "48", "-o", "b.png")
    assert from_text.code == 0
    assert not np.array_equal(read_picture(tmp_path / "a.png")[0], read_picture(tmp_path / "b.png")[0])
    assert "photo" not in (tmp_path / "a.png").read_bytes().decode("latin-1"), "no file name travels along"


def test_a_dry_run_and_json_say_the_real_steps(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    a_photo(tmp_path / "photo.png")
    flags = ("-m", tiny_model, "-s", "5", "--steps", "30", "-i", "photo.png", "--denoise", "0.6", "-o", "a.png")
    shown = cli("generate", "a cat", *flags, "--dry-run")
    assert "a.png  64x48  seed 5  18 of 30 steps dpmpp_2m" in shown.out
    assert shown.err == "img2img: 18 of 30 steps\n"
    (line,) = cli("generate", "a cat", *flags, "--dry-run", "--json", "--hires", "1.5x").out.splitlines()
    assert json.loads(line)["steps_drawn"] == 18 + 15
    events = [json.loads(each) for each in cli("generate", "a cat", *flags, "--json").out.splitlines()]
    assert [each["done"] for each in events if each["event"] == "step"] == list(range(1, 19))
    assert {each["total"] for each in events if each["event"] == "step"} == {18}


@pytest.mark.parametrize(
    ("photo", "flags", "size", "note"),
    [
        ((64, 48), (), "64x48", ""),
        ((200, 100), (), "80x32", "photo.png 200x100 -> 80x32\n"),
        ((20, 20), (), "64x64", "photo.png 20x20 -> 64x64\n"),
        ((70, 50), (), "64x48", "photo.png 70x50 -> 64x48\n"),
        ((200, 100), ("-W", "96"), "96x48", "photo.png 200x100 -> 96x48\n"),
        ((200, 100), ("--size", "48x80"), "48x80", "photo.png 200x100 -> 48x80\n"),
        (
            (64, 48),
            ("--outpaint", "16,0,16,0"),
            "96x48",
            "photo.png 64x48 -> 96x48, 16 px left, 16 px right drawn on\n",
        ),
        (
            (60, 50),
            ("--outpaint", "10,0,0,0"),
            "80x64",
            "photo.png 60x50 -> 80x64, 20 px left, 14 px bottom drawn on\n",
        ),
    ],
)
def test_the_size_follows_the_picture(
    photo: tuple[int, int], flags: tuple[str, ...], size: str, note: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    """The model's own is 64x64 in steps of 16; a picture of half to twice that area keeps its size."""
    a_photo(tmp_path / "photo.png", *photo)
    outcome = cli("generate", "a", "-m", tiny_model, "-i", "photo.png", *flags, "-o", "a.png", "-s", "1", "--dry-run")
    assert outcome.code == 0, outcome.err
    assert f"  {size}  " in outcome.out
    steps = "outpaint: 4 of 4 steps\n" if "--outpaint" in flags else "img2img: 3 of 4 steps\n"
    assert outcome.err == note + steps


@pytest.mark.parametrize("blur", ["0", "2"])
def test_what_the_mask_keeps_is_the_files_own(blur: str, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = a_photo(tmp_path / "photo.png")
    a_mask(tmp_path / "mask.png")
    flags = ("-m", tiny_model, "-s", "1", "-i", "photo.png", "--mask", "mask.png", "--strength", "1", "-o", "a.png")
    outcome = cli("generate", "a", *flags, "--mask-blur", blur)
    assert (outcome.code, outcome.err) == (0, "inpaint: 4 of 4 steps\n")
    drawn = read_picture(tmp_path / "a.png")[0]
    reach = 4 * int(blur)
    near = np.zeros((48, 64), bool)
    near[max(8 - reach, 0) : 32 + reach, max(12 - reach, 0) : 40 + reach] = True
    assert np.array_equal(drawn[~near], pixels[~near])
    assert (drawn[16:24, 20:32] != pixels[16:24, 20:32]).mean() > 0.5


def test_the_other_side_of_a_mask(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = a_photo(tmp_path / "photo.png")
    a_mask(tmp_path / "mask.png")
    flags = ("-m", tiny_model, "-s", "1", "-i", "photo.png", "--mask", "mask.png", "--invert-mask", "--mask-blur", "0")
    assert cli("generate", "a", *flags, "-o", "a.png").code == 0
    drawn = read_picture(tmp_path / "a.png")[0]
    assert np.array_equal(drawn[8:32, 12:40], pixels[8:32, 12:40])
    assert (drawn[40:] != pixels[40:]).mean() > 0.5


def test_a_pictures_own_transparency_can_be_the_mask(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = a_photo(tmp_path / "photo.png")
    alpha = np.full((48, 64), 255, np.uint8)
    alpha[8:32, 12:40] = 0
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "cut.png")
    flags = ("-m", tiny_model, "-s", "1", "-i", "cut.png", "--mask", "alpha", "--mask-blur", "0", "-o", "a.png")
    assert cli("generate", "a", *flags).code == 0
    drawn = read_picture(tmp_path / "a.png")[0]
    assert np.array_equal(drawn[alpha == 255], pixels[alpha == 255])
    assert cli("generate", "a", "-m", tiny_model, "-i", "photo.png", "--mask", "alpha").code == 2


def test_an_outpainted_picture_holds_the_picture(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = a_photo(tmp_path / "photo.png")
    outcome = cli(
        "generate", "a", "-m", tiny_model, "-s", "1", "-i", "photo.png", "--outpaint", "16,0,0,16", "-o", "a.png"
    )
    assert outcome.code == 0, outcome.err
    drawn = read_picture(tmp_path / "a.png")[0]
    assert drawn.shape == (64, 80, 3)
    assert np.array_equal(drawn[:48, 16:], pixels)


def test_a_second_pass_draws_larger(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "a", "-m", tiny_model, "-s", "1", "--hires", "1.5x", "-o", "a.png")
    assert (outcome.code, outcome.err) == (0, "hires: 96x96, 2 of 4 steps\n")
    planned = cli("generate", "a", "-m", tiny_model, "-s", "1", "--hires", "1.5x", "-o", "b.png", "--dry-run")
    assert planned.out.startswith("b.png  64x64 -> 96x96  seed 1  4 + 2 steps ")
    assert read_picture(tmp_path / "a.png")[0].shape == (96, 96, 3)
    assert request_in(tmp_path / "a.png")["hires"] == {"scale": 1.5, "strength": 0.5}


def test_three_from_one_picture_are_each_the_one_of_its_seed(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    a_photo(tmp_path / "photo.png")
    flags = ("-m", tiny_model, "-i", "photo.png")
    assert cli("generate", "a", *flags, "-s", "7", "-n", "3", "-o", "{seed}.png").code == 0
    assert cli("generate", "a", *flags, "-s", "8", "-o", "alone.png").code == 0
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "8.png").read_bytes()
    assert (tmp_path / "7.png").read_bytes() != (tmp_path / "8.png").read_bytes()


def test_a_jsonl_line_may_start_from_a_picture_of_its_own(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    first, second = (a_photo(tmp_path / f"{i}.png", seed=i) for i in (1, 2))
    rows = [
        {"prompt": "a", "init_image": "1.png", "strength": 0.5},
        {"prompt": "b", "init-img": "2.png", "outpaint": "16,0,0,0"},
        {"prompt": "c", "hires": "2x"},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = cli("generate", "--prompts", "p.jsonl", "-m", tiny_model, "-s", "1", "-o", "out/{n}.png")
    assert outcome.code == 2, "the folder is not there"
    (tmp_path / "out").mkdir()
    outcome = cli("generate", "--prompts", "p.jsonl", "-m", tiny_model, "-s", "1", "-o", "out/{n}.png")
    assert outcome.code == 0, outcome.err
    inits = [request_in(tmp_path / "out" / f"{n}.png").get("init") for n in (1, 2, 3)]
    assert inits[0]["sha256"] == pixels_sha256(first)  # pyright: ignore
    assert (inits[1]["sha256"], inits[1]["outpaint"]) == (pixels_sha256(second), [16, 0, 0, 0])  # pyright: ignore
    assert inits[2] is None


# Reading


def test_a_photo_is_turned_as_its_camera_says_and_keeps_nothing_else(
    cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010F] = "a camera"
    exif.get_ifd(0x8825)[1] = "N"  # a place on the map
    image.save(tmp_path / "photo.jpg", exif=exif, quality=100)
    outcome = cli("generate", "a", "-m", tiny_model, "-s", "1", "-i", "photo.jpg", "-o", "a.jpg")
    assert outcome.code == 0, outcome.err
    with Image.open(tmp_path / "a.jpg") as drawn:
        assert drawn.size == (48, 64)
        assert 0x010F not in drawn.getexif()
        assert not drawn.getexif().get_ifd(0x8825)


@pytest.mark.parametrize(
    ("tag", "kind"), [(0x0213, 2), (0x0213, 4), (0x011A, 2), (0x011A, 13)], ids=["text", "long", "no number", "section"]
)
def test_one_damaged_tag_keeps_no_photo_on_its_side(tag: int, kind: int, tmp_path: Path) -> None:
    """A tag of another type than its own, which Pillow cannot write anew; then an orientation that says nothing."""
    from latentgen.images.inputs import read_input

    exif = Image.Exif()
    exif[0x0112], exif[0x011A], exif[0x0213] = 6, 72.0, 1
    data = bytearray(exif.tobytes())
    place = data.index(struct.pack(">HH", tag, 3 if tag == 0x0213 else 5)) + 2
    data[place : place + 2] = struct.pack(">H", kind)
    image = Image.new("RGB", (16, 8), "red")
    image.save(tmp_path / "photo.jpg", exif=bytes(data))
    assert read_input(tmp_path / "photo.jpg").shape == (16, 8, 3)
    place = data.index(struct.pack(">HH", 0x0112, 3)) + 2
    data[place : place + 2] = struct.pack(">H", 2)
    image.save(tmp_path / "photo.jpg", exif=bytes(data))
    assert read_input(tmp_path / "photo.jpg").shape == (8, 16, 3)


def test_alpha_is_white_and_sixteen_bits_are_scaled(tmp_path: Path) -> None:
    from latentgen.images.inputs import read_input, read_mask

    rgba = np.zeros((4, 4, 4), np.uint8)
    rgba[:, 2:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert read_input(tmp_path / "rgba.png")[0, :, 0].tolist() == [255, 255, 0, 0]
    assert read_mask(tmp_path / "rgba.png").max() == 0
    Image.fromarray(np.full((4, 4), 0x7FFF, np.uint16)).save(tmp_path / "deep.png")
    assert set(read_input(tmp_path / "deep.png").flat) == {127}
    assert set(read_mask(tmp_path / "deep.png").flat) == {127}


# Refusals: code 2 or 3, one line, nothing written


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("-i", "none.png"), 3, "error: there is no file none.png"),
        (("-i", "text.png"), 2, "error: text.png is not a whole PNG, JPEG or WebP picture"),
        (("--strength", "0.5"), 2, "error: --strength needs a picture to start from (--init-image FILE)"),
        (("--mask", "mask.png"), 2, "error: --mask needs a picture to start from (--init-image FILE)"),
        (("--outpaint", "8,8,8,8"), 2, "error: --outpaint needs a picture to start from (--init-image FILE)"),
        (("--hires-strength", "0.5"), 2, "error: --hires-strength is for --hires (--hires 2x)"),
        (("--hires", "big"), 2, "error: --hires big is not a scale (for instance 2x or 1.5x)"),
        (("--hires", "1x"), 2, "error: --hires would change nothing (a scale above 1 and a strength above 0)"),
        (("-i", "photo.png", "--strength", "0"), 2, "error: --strength 0 would leave the picture as it is"),
        (("-i", "photo.png", "--strength", "1.5"), 2, "error: --strength 1.5 is out of range (0 to 1)"),
        (
            ("-i", "photo.png", "--strength", "0.2"),
            2,
            "leaves none of 4 steps to draw (0.25 is enough)",
        ),
        (("-i", "photo.png", "--mask", "large.png"), 2, "differ in size: 80x48 and 64x48"),
        (("-i", "photo.png", "--mask", "mask.png", "--mask-blur", "-1"), 2, "error: --mask-blur -1 is out of range"),
        (("-i", "photo.png", "--mask", "black.png"), 2, "error: the mask is all black: nothing would be redrawn"),
        (("-i", "photo.png", "--mask", "none.png"), 3, "error: there is no file none.png"),
        (("-i", "photo.png", "--invert-mask"), 2, "error: --invert-mask is for --mask"),
        (("-i", "photo.png", "--mask-blur", "2"), 2, "error: --mask-blur is for --mask and --outpaint"),
        (("-i", "photo.png", "--outpaint", "8,8"), 2, "error: --outpaint 8,8 is not four widths"),
        (("-i", "photo.png", "--outpaint", "9000,0,0,0"), 2, "error: --outpaint 9000 is out of range"),
        (("-i", "photo.png", "--outpaint", "32,0,32,0", "--size", "64x64"), 2, "error: --outpaint leaves no room"),
        (("-i", "photo.png", "--mask", "mask.png", "--hires", "2x"), 2, "error: --hires redraws the whole picture"),
        (("-i", "photo.png", "-W", "50"), 2, "error: --width 50 does not fit this model"),
        (("--vae-tiling", "some"), 2, "error: --vae-tiling some is not known (auto, on or off)"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything_is(
    flags: tuple[str, ...], code: int, message: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    a_photo(tmp_path / "photo.png")
    a_mask(tmp_path / "mask.png")
    a_mask(tmp_path / "large.png", width=80)
    Image.new("L", (64, 48)).save(tmp_path / "black.png")
    (tmp_path / "text.png").write_text("no picture")
    before = snapshot(tmp_path)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "1", *flags)
    assert outcome.code == code
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert snapshot(tmp_path) == before


def test_a_line_of_a_file_is_named_whose_picture_is_not_there(cli: Cli, tiny_model: Path) -> None:
    Path("a.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "init_image": "no.png"}\n')
    outcome = cli("generate", "--prompts", "a.jsonl", "-m", tiny_model, "--dry-run")
    assert (outcome.code, outcome.err) == (3, "error: a.jsonl line 2: there is no file no.png\n")

"""Pictures as training sees them, and the file that keeps them."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from latentgen.data.array_file import open_array, write_array
from latentgen.data.decode import decode, inspect
from latentgen.data.pixels import PixelCache, to_float
from latentgen.data.record import Record
from latentgen.data.records import list_records
from latentgen.errors import InputError, RuntimeFailure
from tests.limits import file_size_limit


def record(path: Path, picture: Image.Image | None = None, **options: Any) -> Record:
    if picture is not None:
        picture.save(path, **options)
    return Record("a", ("x",), path)


def two_halves(width: int, height: int) -> Image.Image:
    """Left red, right blue."""
    picture = Image.new("RGB", (width, height), "red")
    picture.paste("blue", (width // 2, 0, width, height))
    return picture


def test_a_picture_of_the_right_size_is_untouched(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    assert np.array_equal(decode(record(tmp_path / "a.png", Image.fromarray(noise)), (16, 16)), noise)


@pytest.mark.parametrize("size", [(48, 16), (16, 48), (96, 32)])
def test_other_shapes_are_cropped_at_the_centre(size: tuple[int, int], tmp_path: Path) -> None:
    picture = Image.new("RGB", size, "white")
    width, height = size
    side = min(size)
    picture.paste("red", ((width - side) // 2, (height - side) // 2, (width + side) // 2, (height + side) // 2))
    read = decode(record(tmp_path / "a.png", picture), (16, 16))
    inside = 0 if side == 16 else 3  # made smaller: Lanczos looks three pixels across the cut
    assert (read[inside : 16 - inside, inside : 16 - inside] == (255, 0, 0)).all()


@pytest.mark.parametrize(
    ("orientation", "turned"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, 1)),
    ],
)
def test_exif_orientation(
    orientation: int, turned: Callable[[NDArray[np.uint8]], NDArray[np.uint8]], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    plain = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    read = decode(record(tmp_path / "a.png", Image.fromarray(plain), exif=exif), (8, 8))
    assert np.array_equal(read, turned(plain))
    size_px = (8, 24) if orientation < 5 else (24, 8)
    for name, whole in (("a.png", True), ("a.png", False), ("a.jpg", True), ("a.jpg", False)):
        looked = inspect(record(tmp_path / name, Image.new("RGB", (8, 24)), exif=exif), whole=whole)
        assert isinstance(looked, Record)
        assert looked.size_px == size_px


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    """Not over whatever colour the invisible pixels happen to hold."""
    half = np.zeros((16, 16, 4), np.uint8)
    half[:, 8:] = (0, 0, 200, 255)
    half[:8, :8] = (255, 0, 0, 0)
    read = decode(record(tmp_path / "a.png", Image.fromarray(half)), (16, 16))
    assert (read[:, :8] == 255).all()
    assert (read[:, 8:] == (0, 0, 200)).all()
    palette = Image.new("P", (16, 16), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    assert (decode(record(tmp_path / "p.png", palette, transparency=1), (16, 16)) == 255).all()
    assert (decode(record(tmp_path / "q.png", palette), (16, 16)) == (40, 50, 60)).all()


@pytest.mark.parametrize(("mode", "value", "grey"), [("L", 100, 100), ("1", 1, 255), ("LA", (100, 255), 100)])
def test_grey_pictures(mode: str, value: Any, grey: int, tmp_path: Path) -> None:
    assert (decode(record(tmp_path / "a.png", Image.new(mode, (16, 16), value)), (16, 16)) == grey).all()


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    read = decode(record(tmp_path / "a.png", Image.fromarray(ramp)), (16, 16))
    assert np.array_equal(read[..., 0], (ramp >> 8).astype(np.uint8))
    assert float(read.mean()) == pytest.approx(127.5, abs=1)


def test_cmyk_jpeg(tmp_path: Path) -> None:
    read = decode(record(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (255, 0, 0, 0)), quality=100), (16, 16))
    assert np.abs(read.astype(int) - (0, 255, 255)).max() <= 2


def png_bytes() -> bytes:
    buffer = io.BytesIO()
    two_halves(16, 16).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<!DOCTYPE html>",
        png_bytes()[:60],
        png_bytes()[:-30],
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 16 16\n",
        png_bytes().replace(b"IDAT", b"IDAX"),
    ],
    ids=["empty", "html", "cut-header", "cut-data", "postscript", "no-data"],
)
def test_files_that_are_no_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(InputError, match=r"picture a.png cannot be used: "):
        decode(record(tmp_path / "a.png"), (16, 16))


def test_other_formats_animations_and_bombs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no PNG, JPEG or WebP picture"):
        decode(record(tmp_path / "a.tiff", two_halves(16, 16)), (16, 16))
    frames = [two_halves(16, 16), Image.new("RGB", (16, 16))]
    with pytest.raises(InputError, match="animation: 2 frames"):
        decode(record(tmp_path / "a.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True), (16, 16))
    big = record(tmp_path / "big.png", Image.new("1", (9000, 9000)))
    with pytest.raises(InputError, match=r"9000x9000 pixels are more than 64000000"):
        decode(big, (16, 16))
    with pytest.raises(InputError, match="cannot be used: No such file"):
        decode(Record("a", ("x",), tmp_path / "vanished.png"), (16, 16))


def test_float_pixels() -> None:
    pixels = torch.tensor([0, 255, 128], dtype=torch.uint8).reshape(1, 1, 1, 3)
    result = to_float(pixels)
    assert result.shape == (1, 3, 1, 1)
    torch.testing.assert_close(result.flatten(), torch.tensor([-1.0, 1.0, 128 / 127.5 - 1]))


# The cache


def write_set(folder: Path, count: int) -> list[Record]:
    folder.mkdir(exist_ok=True)
    for i in range(count):
        Image.new("RGB", (8, 8), (i, 2 * i % 256, 7)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"picture {i}")
    return list_records(folder)


def test_cache_holds_every_picture_in_order(tmp_path: Path) -> None:
    """130 pictures: more than one chunk, so decoded in several processes where there are several cores."""
    cache = PixelCache(write_set(tmp_path / "data", 130), 8, tmp_path / "cache", lambda text: None)
    assert len(cache) == 130
    batch = cache.batch([0, 65, 129])
    assert batch.shape == (3, 8, 8, 3)
    assert batch[:, 0, 0].tolist() == [[0, 0, 7], [65, 130, 7], [129, 2, 7]]


def test_cache_is_made_once_and_for_this_data(tmp_path: Path) -> None:
    said: list[str] = []
    records = write_set(tmp_path / "data", 3)
    first = PixelCache(records, 8, tmp_path / "cache", said.append)
    second = PixelCache(records, 8, tmp_path / "cache", said.append)
    assert said == ["decoding 3 pictures at 8 px"]
    assert torch.equal(first.batch([0, 1, 2]), second.batch([0, 1, 2]))
    PixelCache(records, 16, tmp_path / "cache", said.append)
    PixelCache(write_set(tmp_path / "data", 4), 8, tmp_path / "cache", said.append)
    assert said[1:] == ["decoding 3 pictures at 16 px", "decoding 4 pictures at 8 px"]
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_crop(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("x")
    cache = PixelCache(list_records(tmp_path), 8, tmp_path / "cache", lambda text: None)
    crop = cache.crop(0, 2, 3, 4)
    assert np.array_equal(crop.numpy(), noise[2:6, 3:7])
    crop.zero_()
    assert np.array_equal(cache.batch([0])[0].numpy(), noise), "a crop is a copy"


def test_one_bad_picture_leaves_no_cache(tmp_path: Path) -> None:
    records = write_set(tmp_path / "data", 130)
    records[100].path.write_bytes(b"")
    with pytest.raises(InputError, match=r"picture 100\.png cannot be used"):
        PixelCache(records, 8, tmp_path / "cache", lambda text: None)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_one_line_and_leaves_no_cache(tmp_path: Path) -> None:
    records = write_set(tmp_path / "data", 3)
    with file_size_limit(400), pytest.raises(RuntimeFailure, match=r"cannot write .*: File too large"):
        PixelCache(records, 8, tmp_path / "cache", lambda text: None)
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"", lambda data: b"x" * len(data)])
def test_a_damaged_cache_says_so(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    records = write_set(tmp_path / "data", 3)
    cache = PixelCache(records, 8, tmp_path / "cache", lambda text: None)
    (path,) = cache.paths
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"is damaged .*delete it"):
        PixelCache(records, 8, tmp_path / "cache", lambda text: None)


def test_arrays_are_numpys_own_format(tmp_path: Path) -> None:
    expected = np.random.default_rng(0).normal(size=(5, 2, 3)).astype(np.float16)
    write_array(tmp_path / "a.npy", (5, 2, 3), np.float16, [expected[:2], expected[2:]])
    np.save(tmp_path / "b.npy", expected)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    assert np.array_equal(open_array(tmp_path / "a.npy", (5, 2, 3), np.float16), expected)
    with pytest.raises(InputError, match="is damaged"):
        open_array(tmp_path / "a.npy", (4, 2, 3), np.float16)

from __future__ import annotations

import json
import os
import stat
import struct
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from latentgen.errors import InputError, LatentgenError, ModelNotFoundError, RuntimeFailure
from latentgen.images.a1111 import A1111Parameters, format_parameters, parse_parameters
from latentgen.images.files import (
    FORMATS,
    PictureText,
    encode_picture,
    read_picture,
    read_picture_text,
    write_file,
)
from latentgen.images.metadata import COMPILED, Computation, PictureMetadata
from latentgen.images.pixels import Pixels, pixel_difference, pixels_sha256, to_pixels
from latentgen.kernels.unet import Kernels
from latentgen.request import GenerationRequest, LoRAUse
from tests.limits import file_size_limit

METADATA = PictureMetadata(
    request=GenerationRequest(
        prompt="a red boat, 🌲\nüber water",
        negative_prompt="fog",
        seed=965400086,
        width_px=48,
        height_px=64,
        steps=20,
        guidance=0.1 + 0.2,
        sampler="dpmpp_2m",
        schedule="karras",
    ),
    model="a, model: x",
    fingerprint="45dee52b12",
    version="0.1.0",
    pixels_sha256="00" * 32,
    computation=Computation(device="cpu", dtype="float32", torch="2.14.1", cpu="AVX512", threads=2, batch_size=1),
)
PARAMETERS = format_parameters(METADATA.a1111(sampler_title="DPM++ 2M", schedule_title="Karras"))
TEXT = PictureText(PARAMETERS, METADATA.to_json())


@pytest.mark.parametrize("kernels", [*get_args(Kernels), COMPILED])
def test_every_form_of_the_unet_is_read_back(kernels: str) -> None:
    metadata = replace(METADATA, computation=replace(METADATA.computation, kernels=kernels))
    assert PictureMetadata.from_json(metadata.to_json()) == metadata


@pytest.fixture
def pixels() -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8)


# Pixels


def test_pixels_are_rounded_and_clipped() -> None:
    values = torch.tensor([-1.0, 1.0, 0.0, -9.0, 9.0, 2 / 255 - 1, 2.9 / 255 - 1, 3.1 / 255 - 1])
    row = to_pixels(values.expand(3, 1, -1))[0, :, 0]
    assert row.tolist() == [0, 255, 128, 0, 255, 1, 1, 2]


def test_every_byte_is_reached_from_its_own_float() -> None:
    ramp = torch.arange(256).repeat_interleave(3)
    assert np.array_equal(to_pixels((ramp / 127.5 - 1).expand(3, 1, -1))[0, :, 0], ramp)


def test_channels_rows_and_columns_keep_their_places() -> None:
    picture = torch.full((3, 2, 4), -1.0)
    picture[1, 0, 3] = 1.0
    pixels = to_pixels(picture)
    assert pixels.shape == (2, 4, 3)
    assert np.argwhere(pixels).tolist() == [[0, 3, 1]]


def test_pixel_difference_has_no_wrap_around() -> None:
    black, white = np.zeros((1, 2, 3), np.uint8), np.full((1, 2, 3), 255, np.uint8)
    assert pixel_difference(black, white) == (255, 1.0)
    assert pixel_difference(white, white) == (0, 0.0)


# A1111's text


def test_the_parameters_text_is_a1111s() -> None:
    assert PARAMETERS == (
        "a red boat, 🌲\nüber water\n"
        "Negative prompt: fog\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 0.30000000000000004, Seed: 965400086, "
        'Size: 48x64, Model hash: 45dee52b12, Model: "a, model: x", RNG: CPU, Version: latentgen 0.1.0'
    )


def test_without_a_negative_prompt_there_is_no_line_for_it() -> None:
    assert format_parameters(A1111Parameters("a cat", "", {"Steps": "5", "CFG scale": "7"})) == (
        "a cat\nSteps: 5, CFG scale: 7"
    )


def test_what_is_written_is_read_back() -> None:
    parameters = METADATA.a1111(sampler_title="DPM++ 2M", schedule_title="Karras")
    assert parse_parameters(format_parameters(parameters)) == parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "masterpiece, (cat:1.2)\nNegative prompt: lowres, \nbad\nSteps: 20, Sampler: Euler a, CFG scale: 7, "
            'Seed: 1, Size: 512x512, Lora hashes: "a: 1f, b: 2e", Version: v1.9.4',
            A1111Parameters(
                "masterpiece, (cat:1.2)",
                "lowres,\nbad",
                {
                    "Steps": "20",
                    "Sampler": "Euler a",
                    "CFG scale": "7",
                    "Seed": "1",
                    "Size": "512x512",
                    "Lora hashes": "a: 1f, b: 2e",
                    "Version": "v1.9.4",
                },
            ),
        ),
        ("just words", A1111Parameters("just words")),
        ("", A1111Parameters("")),
        (
            'x\nSteps: 20, Odd: "unclosed, Seed: 3',
            A1111Parameters("x", "", {"Steps": "20", "Odd": '"unclosed', "Seed": "3"}),
        ),
    ],
    ids=["webui", "no fields", "empty", "unclosed quote"],
)
def test_other_tools_texts_are_read(text: str, expected: A1111Parameters) -> None:
    assert parse_parameters(text) == expected


# Metadata


def test_metadata_survive_json_without_loss() -> None:
    assert PictureMetadata.from_json(json.loads(json.dumps(METADATA.to_json()))) == METADATA


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"request": None},
        {"model": 3},
        {"computation": {}},
        {"computation": {**METADATA.to_json()["computation"], "threads": "2"}},
        {"computation": {**METADATA.to_json()["computation"], "threads": 0}},
        {"computation": {**METADATA.to_json()["computation"], "threads": 10**9}},
        {"computation": {**METADATA.to_json()["computation"], "batch_size": -1}},
        {"computation": {**METADATA.to_json()["computation"], "batch_size": 1025}},
        {"computation": {**METADATA.to_json()["computation"], "batch_size": True}},
    ],
)
def test_foreign_metadata_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        PictureMetadata.from_json({**METADATA.to_json(), **change})


# Files


def png_chunks(data: bytes) -> list[bytes]:
    names, position = [], 8
    while position < len(data):
        (length,) = struct.unpack(">I", data[position : position + 4])
        names.append(data[position + 4 : position + 8])
        position += 12 + length
    return names


@pytest.mark.parametrize("ending", FORMATS)
def test_a_file_gives_its_words_back(ending: str, pixels: Pixels, tmp_path: Path) -> None:
    path = tmp_path / f"picture{ending}"
    write_file(path, encode_picture(pixels, FORMATS[ending], TEXT), overwrite=False)
    read, text = read_picture(path)
    assert text == TEXT
    assert read.shape == pixels.shape
    assert read_picture_text(path) == (FORMATS[ending], (48, 64), TEXT)
    if ending == ".png":
        assert pixels_sha256(read) == pixels_sha256(pixels)


def test_a_png_without_metadata_holds_pixels_alone(pixels: Pixels) -> None:
    assert set(png_chunks(encode_picture(pixels, "PNG", None))) == {b"IHDR", b"IDAT", b"IEND"}
    assert b"tIME" not in png_chunks(encode_picture(pixels, "PNG", TEXT))


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_without_metadata_there_is_no_exif(format: str, pixels: Pixels) -> None:
    assert b"Exif" not in encode_picture(pixels, format, None)
    assert b"Exif" in encode_picture(pixels, format, TEXT) or b"EXIF" in encode_picture(pixels, format, TEXT)


def test_the_same_picture_gives_the_same_bytes(pixels: Pixels) -> None:
    assert encode_picture(pixels, "PNG", TEXT) == encode_picture(pixels.copy(), "PNG", TEXT)


def test_a_prompt_too_long_for_a_jpeg_is_said_so(pixels: Pixels) -> None:
    long = PictureText("x" * 40_000, {})
    with pytest.raises(InputError, match="too long for a JPEG"):
        encode_picture(pixels, "JPEG", long)
    assert encode_picture(pixels, "WEBP", long)


def test_a_file_is_never_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_file(path, b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        write_file(path, b"second", overwrite=False)
    assert path.read_bytes() == b"first"
    write_file(path, b"third", overwrite=True)
    assert path.read_bytes() == b"third"
    assert os.listdir(tmp_path) == ["a.png"]


def test_what_an_ended_process_left_aside_does_not_stand_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".a.{os.getpid()}.part").write_bytes(b"half a picture")
    write_file(tmp_path / "a.png", b"whole", overwrite=False)
    assert (tmp_path / "a.png").read_bytes() == b"whole"
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_lora_has_its_tag_though_another_ones_begins_with_its_name() -> None:
    loras = tuple(LoRAUse(name=name, fingerprint="0123456789", scale=0.5) for name in ("ink", "ink2"))
    request = replace(METADATA.request, prompt="a <lora:ink2:0.5>", loras=loras)
    assert (
        replace(METADATA, request=request).a1111(sampler_title="", schedule_title="").prompt
        == "a <lora:ink2:0.5> <lora:ink:0.5>"
    )


def test_a_file_has_the_mode_of_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        write_file(tmp_path / "a.png", b"x", overwrite=False)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.png").stat().st_mode) == 0o644


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    with file_size_limit(100), pytest.raises(RuntimeFailure, match="File too large"):
        write_file(tmp_path / "a.png", b"x" * 1000, overwrite=False)
    assert os.listdir(tmp_path) == []


def test_a_file_system_without_links_still_never_replaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_file(tmp_path / "a.png", b"first", overwrite=False)
    with pytest.raises(FileExistsError):
        write_file(tmp_path / "a.png", b"second", overwrite=False)
    assert (tmp_path / "a.png").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a.png"]


def _damaged(path: Path) -> None:
    Image.new("RGB", (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:60])


def _huge(path: Path) -> None:
    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    with path.open("wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", header)
        PngImagePlugin.putchunk(file, b"IDAT", b"x")
        PngImagePlugin.putchunk(file, b"IEND", b"")


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda path: path.write_bytes(b""), InputError),
        (lambda path: path.write_text("<html>"), InputError),
        (lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), InputError),
        (_damaged, InputError),
        (_huge, InputError),
        (lambda path: path.mkdir(), InputError),
        (lambda path: None, ModelNotFoundError),
    ],
    ids=["empty", "web page", "EPS named png", "cut short", "60000 x 60000", "folder", "missing"],
)
def test_what_is_no_picture_is_refused(make, kind: type[LatentgenError], tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    make(path)
    with pytest.raises(kind, match=r"x\.png"):
        read_picture(path)


def test_a_foreign_latentgen_chunk_is_not_ours(tmp_path: Path, pixels: Pixels) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("latentgen", "[" * 100_000)
    chunks.add_text("prompt", '{"3": {}}')
    Image.fromarray(pixels).save(tmp_path / "x.png", pnginfo=chunks)
    assert read_picture(tmp_path / "x.png")[1] == PictureText(None, None, {"prompt": '{"3": {}}'})

"""The gallery shows what the shipped weights draw: a sample is drawn again and held against manifest and sheet."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen import TextToImage
from latentgen.images.metadata import PictureMetadata
from latentgen.images.similarity import psnr_db

WEIGHTS = Path(__file__).parent.parent.parent / "weights"
SHEET = WEIGHTS / "gallery.jpg"
PROMPTS = [json.loads(line) for line in (WEIGHTS / "gallery.jsonl").read_text(encoding="utf-8").splitlines()]
MANIFEST = [json.loads(line) for line in (WEIGHTS / "gallery-manifest.jsonl").read_text(encoding="utf-8").splitlines()]
REDRAWN = (0, 5, 17)
"""A picture takes a second on two cores."""
LEAST_PSNR_DB = 28.0
"""Between a picture and its place on the JPEG. Two different pictures have about 12."""


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load()


@pytest.fixture(scope="module")
def sheet() -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(SHEET).convert("RGB")))


def place(sheet: torch.Tensor, k: int) -> torch.Tensor:
    """Picture k as it stands on the sheet, (H, W, 3) uint8."""
    left, top = MANIFEST[k]["at"]
    request = MANIFEST[k]["request"]
    return sheet[top : top + request["height_px"], left : left + request["width_px"]]


def test_the_manifest_is_of_these_prompts_and_these_weights(model: TextToImage) -> None:
    """`make gallery` draws it anew where this fails: the list, the weights or their defaults have changed."""
    defaults = model.bundle.config.defaults
    shown = [PictureMetadata.from_json(row) for row in MANIFEST]
    assert [(each.request.prompt, each.request.seed) for each in shown] == [
        (row["prompt"], row["seed"]) for row in PROMPTS
    ]
    assert {each.fingerprint for each in shown} == {model.fingerprint}
    for each, row in zip(shown, PROMPTS, strict=True):
        names = ("steps", "sampler", "schedule", "guidance", "guidance_interval")
        drawn_with = {name: getattr(each.request, name) for name in names}
        assert drawn_with == {name: row.get(name, getattr(defaults, name)) for name in drawn_with}


def test_it_shows_variety_in_little_space() -> None:
    assert len({row["prompt"] for row in PROMPTS}) == len(PROMPTS) == 24
    assert SHEET.stat().st_size <= 400_000


@pytest.mark.parametrize("k", REDRAWN)
def test_a_picture_is_what_the_weights_draw(k: int, model: TextToImage, sheet: torch.Tensor) -> None:
    """To the bit where torch and the CPU are those of the manifest; elsewhere but for the losses of the JPEG."""
    recorded = PictureMetadata.from_json(MANIFEST[k])
    (result,) = model.generate([recorded.request])
    pixels = torch.from_numpy(result.pixels.copy())
    others = [place(sheet, j) for j in range(len(MANIFEST)) if j != k]
    assert psnr_db(pixels, place(sheet, k)) > LEAST_PSNR_DB
    assert max(psnr_db(pixels, other) for other in others) < LEAST_PSNR_DB - 5, "or the measure tells nothing"
    ours, theirs = (asdict(each.computation) | {"threads": 0} for each in (result.metadata, recorded))
    if ours == theirs:
        assert result.metadata.pixels_sha256 == recorded.pixels_sha256

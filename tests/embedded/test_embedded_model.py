"""The model that ships: it opens strictly, draws what it is asked for, and draws the same in diffusers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from numpy.typing import NDArray

from latentgen import GenerationResult, TextToImage, embedded_model_path
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.noise import NoiseSource, starting_point

ROOT = Path(__file__).parent.parent.parent
LARGEST_BYTES = 90_000_000


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage.load()


def draw(model: TextToImage, prompt: str, seed: int = 42, **given: object) -> GenerationResult:
    (result,) = model.draw(prompt, seed=seed, **given)  # type: ignore[arg-type]
    return result


def mean_colour(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    return pixels.reshape(-1, 3).mean(axis=0)


def test_its_files_stay_within_the_promised_size() -> None:
    size = sum(file.stat().st_size for file in embedded_model_path().rglob("*") if file.is_file())
    assert 1_000_000 < size < LARGEST_BYTES, "a folder of Git LFS pointers or none at all is small too"


def test_the_light_follows_the_prompt(model: TextToImage) -> None:
    """Sunset is warmer than day, and night is darker, for each of three seeds."""
    for seed in range(3):
        sunset, day, night = (
            mean_colour(draw(model, f"a lighthouse {when}", seed, steps=10).pixels)
            for when in ("at sunset", "under a blue sky", "at night")
        )
        assert sunset[0] - sunset[2] > day[0] - day[2] + 20, f"seed {seed}: sunset {sunset}, day {day}"
        assert night.mean() < day.mean() - 40, f"seed {seed}: night {night}, day {day}"


def test_diffusers_draws_the_same_picture() -> None:
    """Equal noise, ten DDIM steps, guidance 4, float32: the pictures agree to the last visible bit and beyond."""
    model = TextToImage.load(dtype="float32")
    ours = draw(
        model,
        "a lighthouse at sunset",
        7,
        steps=10,
        sampler="ddim",
        schedule="trailing",
        guidance=4.0,
        guidance_interval=(0, 1),
    )
    theirs = StableDiffusionPipeline.from_pretrained(embedded_model_path(), safety_checker=None, dtype=torch.float32)
    theirs.scheduler = DDIMScheduler.from_config(theirs.scheduler.config)
    theirs.set_progress_bar_config(disable=True)
    shape = LatentSpace.from_config(model.bundle.config.vae).shape(256, 256)
    noise = NoiseSource([7]).draw(shape)
    assert torch.equal(starting_point(noise, 0.0), noise), "diffusers starts from unit noise"
    (picture,) = theirs(
        "a lighthouse at sunset", num_inference_steps=10, guidance_scale=4.0, latents=noise, output_type="np"
    ).images
    error = ours.pixels.astype(np.float64) - picture * 255
    # Half a level of rounding on our side, and float32 noise.
    assert 20 * np.log10(255 / np.sqrt((error**2).mean())) > 55


def test_an_installed_wheel_draws_in_an_empty_folder(tmp_path: Path) -> None:
    built = tmp_path / "wheel"
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(built)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (wheel,) = built.glob("*.whl")
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    # -P keeps the checkout off the path; PYTHONPATH puts the wheel's content before the editable install.
    answer = subprocess.run(
        [sys.executable, "-P", "-m", "latentgen", "generate", "a lighthouse", "--seed", "1", "--steps", "2", "--json"],
        cwd=empty, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    events = [json.loads(line) for line in answer.stdout.splitlines()]
    assert any(event.get("path") for event in events), answer.stdout
    assert len(list(empty.rglob("*.png"))) == 1
    where = subprocess.run(
        [sys.executable, "-P", "-c", "import latentgen; print(latentgen.embedded_model_path())"],
        cwd=empty, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(site) in where.stdout

"""`encode`, `decode` and `reconstruct`."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from latentgen.checkpoints import single_layout
from latentgen.checkpoints.folder import load_vae
from latentgen.checkpoints.io import write_tensors
from latentgen.images.files import read_picture
from latentgen.images.similarity import psnr_db, ssim
from tests.cli.conftest import Cli, snapshot
from tests.tiny import TINY_VAE


def a_photo(path: Path, width: int = 64, height: int = 48) -> torch.Tensor:
    """A smooth picture (H, W, 3)."""
    y, x = np.mgrid[0:height, 0:width] / 64
    pixels = np.stack([40 + 150 * x, 60 + 120 * y, 200 - 100 * x * y], axis=-1).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return torch.from_numpy(pixels)


@torch.inference_mode()
def test_latents_are_the_scaled_mean_of_the_posterior(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pixels = a_photo(tmp_path / "a.png")
    outcome = cli("encode", "a.png", "-o", "a.safetensors", "-m", tiny_model)
    assert (outcome.code, outcome.out, outcome.err) == (0, "a.safetensors\n", "")
    (latents,) = load_file(tmp_path / "a.safetensors").values()
    vae = load_vae(tiny_model)
    mean, _ = vae.encode(pixels.permute(2, 0, 1)[None] / 127.5 - 1)
    torch.testing.assert_close(latents, mean[0] * 0.18215, rtol=1e-5, atol=1e-6)


def test_decoding_gives_the_picture_that_reconstruct_gives(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    a_photo(tmp_path / "a.png")
    assert cli("encode", "a.png", "-o", "a.safetensors", "-m", tiny_model).code == 0
    assert cli("decode", "a.safetensors", "-o", "b.png", "-m", tiny_model).out == "b.png\n"
    assert cli("reconstruct", "a.png", "-o", "c.png", "-m", tiny_model).code == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_a_vae_of_its_own_is_a_model_too(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that holds the autoencoder alone, as fine-tuned ones are published; here it is of the tiny shape."""
    monkeypatch.setattr(single_layout, "SD_VAE", TINY_VAE)
    a_photo(tmp_path / "a.png")
    shutil.copy(tiny_model / "vae" / "diffusion_pytorch_model.safetensors", "vae.safetensors")
    assert cli("reconstruct", "a.png", "-o", "b.png", "-m", "vae.safetensors").code == 0
    assert cli("reconstruct", "a.png", "-o", "c.png", "-m", tiny_model).code == 0
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


def test_several_pictures_are_one_file_and_one_folder(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    a_photo(tmp_path / "a.png")
    a_photo(tmp_path / "other" / "a.jpg", 32, 64)
    a_photo(tmp_path / "b.webp", 20, 37)
    outcome = cli("encode", "a.png", "other/a.jpg", "b.webp", "-o", "x.safetensors", "-m", tiny_model)
    assert outcome.code == 0
    assert outcome.err == "b.webp 20x37, of which the middle 16x32\n"
    outcome = cli("decode", "x.safetensors", "-o", "out", "-m", tiny_model)
    assert outcome.out.split() == ["out/a-00001.png", "out/a-00002.png", "out/b.png"]
    sizes = [read_picture(tmp_path / name)[0].shape[:2] for name in outcome.out.split()]
    assert sizes == [(48, 64), (64, 32), (32, 16)]


def test_reconstruct_says_what_comes_back(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    original = a_photo(tmp_path / "a.png")
    a_photo(tmp_path / "longer.png", 32, 64)
    outcome = cli("reconstruct", "a.png", "longer.png", "-o", "out", "-m", tiny_model)
    assert outcome.code == 0, outcome.err
    rows = re.findall(r"^(\S+) +PSNR +([0-9.]+) dB +SSIM (-?[0-9.]+)$", outcome.out, flags=re.MULTILINE)
    assert [name for name, _, _ in rows] == ["a.png", "longer.png", "mean"]
    again = torch.from_numpy(read_picture(tmp_path / "out" / "a.png")[0].copy())
    assert rows[0][1:] == (f"{psnr_db(original, again):.2f}", f"{ssim(original, again):.4f}")
    first, second, mean = (float(psnr) for _, psnr, _ in rows)
    assert mean == pytest.approx((first + second) / 2, abs=0.006)
    event = json.loads(cli("reconstruct", "a.png", "-m", tiny_model, "--json").out)
    assert event == {"event": "reconstruction", "picture": "a.png", "psnr_db": first, "ssim": float(rows[0][2])}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("encode", "a.png", "-o", "a.bin"), 2, "--output a.bin is not a safetensors file (a.safetensors)"),
        (("encode", "none.png", "-o", "b.safetensors"), 3, "there is no file none.png"),
        (("encode", "small.png", "-o", "b.safetensors"), 2, "small.png is 7x40: this model's smallest side is 8"),
        (("encode", "a.png", "-o", "a.safetensors"), 2, "--output a.safetensors exists (--overwrite replaces it)"),
        (("encode", "a.png", "-o", "no/b.safetensors"), 2, "there is no folder no (mkdir -p no)"),
        (("decode", "none.safetensors", "-o", "b.png"), 3, "there is no file none.safetensors"),
        (("decode", "a.png", "-o", "b.png"), 3, "a.png"),
        (("decode", "weights.safetensors", "-o", "b.png"), 3, "does not hold latents (they are made by: "),
        (("decode", "other.safetensors", "-o", "b.png"), 2, "--model names the model it was encoded with"),
        (("decode", "a.safetensors", "-o", "a.png"), 2, "--output a.png exists"),
        (("decode", "two.safetensors", "-o", "b.png"), 2, "--output b.png is one file for 2 pictures (name a folder)"),
        (("decode", "nan.safetensors", "-o", "b.png"), 3, "latents.00000 holds infinite or NaN values"),
        (("decode", "shape.safetensors", "-o", "b.png"), 3, "latents.00000 is not (C, 6, 8) float32"),
        (("decode", "missing.safetensors", "-o", "b.png"), 3, "it names 1 pictures and holds 0 tensors"),
        (("reconstruct", "tiny.png",), 2, "tiny.png is too small to be compared (sides are at least 11 px)"),
        (("reconstruct", "a.png", "-o", "a.png"), 2, "--output a.png exists"),
    ],
)  # fmt: skip
def test_refusals(
    arguments: tuple[str, ...], code: int, message: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    a_photo(tmp_path / "a.png")
    a_photo(tmp_path / "small.png", 7, 40)
    a_photo(tmp_path / "tiny.png", 8, 40)
    for name, channels, shape, pictures in (
        ("a", 4, (6, 8), 1),
        ("other", 16, (6, 8), 1),
        ("shape", 4, (6, 7), 1),
        ("nan", 4, (6, 8), 1),
        ("two", 4, (6, 8), 2),
        ("missing", 4, (6, 8), 0),
    ):
        about = {
            "format": 1,
            "kind": "latents",
            "model": "tiny",
            "fingerprint": "0123456789",
            "downscale": 8,
            "pictures": [{"name": f"{i}.png", "width_px": 64, "height_px": 48} for i in range(max(pictures, 1))],
        }
        fill = float("nan") if name == "nan" else 0.5
        tensors = {f"latents.{i:05}": torch.full((channels, *shape), fill) for i in range(pictures)}
        write_tensors(tmp_path / f"{name}.safetensors", tensors, {"latentgen": json.dumps(about)})
    write_tensors(tmp_path / "weights.safetensors", {"w": torch.zeros(2)})
    before = snapshot(tmp_path)
    outcome = cli(*arguments, "-m", tiny_model)
    assert outcome.code == code, outcome.err
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert snapshot(tmp_path) == before


def test_another_models_latents_are_decoded_with_a_warning(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    a_photo(tmp_path / "a.png")
    assert cli("encode", "a.png", "-o", "a.safetensors", "-m", tiny_model).code == 0
    other = tmp_path / "other"
    (other / "vae").mkdir(parents=True)
    for path in (tiny_model / "vae").iterdir():
        (other / "vae" / path.name).write_bytes(path.read_bytes())
    for part in ("unet", "text_encoder", "tokenizer", "scheduler", "model_index.json"):
        (other / part).symlink_to(tiny_model / part)
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    write_tensors(weights, {name: tensor * 1.01 for name, tensor in load_file(weights).items()}, {"format": "pt"})
    outcome = cli("decode", "a.safetensors", "-o", "b.png", "-m", other)
    assert outcome.code == 0
    assert outcome.err == "warning: a.safetensors was encoded with tiny, another autoencoder than other's\n"

"""A U-Net turned to rotated latents predicts what it did before, rotated; and a model moved draws with both."""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch

from latentgen.checkpoints.folder import load_unet, load_vae, save_vae
from latentgen.training.latent_statistics import fold_latent_map
from scripts.move_unet import main, rotation_between, turn
from tests.tiny import TINY_UNET, TINY_VAE, tiny_unet, tiny_vae
from tests.tiny_bundle import save_tiny_model
from tests.training.tiny_runs import VAE, write_pictures


def random_rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0]


def test_a_turned_unet_predicts_the_same_rotated() -> None:
    torch.manual_seed(0)
    rotation = random_rotation(4)
    unet = tiny_unet()
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, TINY_UNET.cross_attention_dim)
    with torch.no_grad():
        expected = torch.einsum("ji,bihw->bjhw", rotation, unet(x, t, context))
        turn(unet, rotation)
        answer = unet(torch.einsum("ji,bihw->bjhw", rotation, x), t, context)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_the_rotation_between_two_spaces_is_found_and_what_it_tells() -> None:
    torch.manual_seed(0)
    rotation = random_rotation(6)
    before = torch.randn(4000, 6) * torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5, 0.5])
    found, share = rotation_between(before, before @ rotation.T)
    torch.testing.assert_close(found, rotation, rtol=1e-4, atol=1e-4)
    assert share == pytest.approx(1, abs=1e-5)
    noise = torch.randn(4000, 6)
    _, share = rotation_between(before, before @ rotation.T + noise)
    energies = before.square().sum(), noise.square().sum()
    assert share == pytest.approx(float(energies[0] / sum(energies)), abs=0.02)


def call(*arguments: Path | str) -> None:
    with patch.object(sys, "argv", ["move_unet.py", *map(str, arguments)]):
        main()


def test_a_model_moved_to_rotated_latents_has_that_autoencoder_and_a_turned_unet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    model, pictures = save_tiny_model(tmp_path / "model"), write_pictures(tmp_path / "pictures", 12, side_px=64)
    rotation, other = random_rotation(4), tiny_vae()
    linear = TINY_VAE.scaling_factor * rotation.double()
    other.config = fold_latent_map(other, torch.zeros(4, dtype=torch.float64), linear, torch.zeros(4))
    save_vae(other, tmp_path / "other" / "vae")
    call(model, pictures, tmp_path / "moved", "--vae", tmp_path / "other")
    assert "tell 100% of the new ones" in capsys.readouterr().out
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, TINY_UNET.cross_attention_dim)
    with torch.no_grad():
        torch.testing.assert_close(load_vae(tmp_path / "moved").encode(picture)[0], other.encode(picture)[0])
        expected = torch.einsum("ji,bihw->bjhw", rotation, load_unet(model)(x, t, context))
        answer = load_unet(tmp_path / "moved")(torch.einsum("ji,bihw->bjhw", rotation, x), t, context)
    torch.testing.assert_close(answer, expected, rtol=1e-2, atol=1e-3)


def test_without_another_autoencoder_its_own_is_energy_scaled(tmp_path: Path) -> None:
    model, pictures = save_tiny_model(tmp_path / "model"), write_pictures(tmp_path / "pictures", 12, side_px=64)
    call(model, pictures, tmp_path / "scaled")
    before, after = load_vae(model), load_vae(tmp_path / "scaled")
    picture = torch.rand(1, 3, 64, 64) * 2 - 1
    with torch.no_grad():
        same = [vae.decode(vae.encode(picture)[0]) for vae in (before, after)]
    torch.testing.assert_close(*same, rtol=1e-3, atol=1e-4)
    assert after.config.scaling_factor == 1
    old, new = (load_unet(folder).conv_in.weight for folder in (model, tmp_path / "scaled"))
    assert not torch.allclose(old, new)
    torch.testing.assert_close(old.square().sum(), new.square().sum())


def test_latents_of_another_shape_are_refused_in_one_line(tmp_path: Path) -> None:
    model, pictures = save_tiny_model(tmp_path / "model"), write_pictures(tmp_path / "pictures", 3, side_px=64)
    save_vae(tiny_vae(VAE), tmp_path / "other" / "vae")
    with pytest.raises(SystemExit) as ended:
        call(model, pictures, tmp_path / "moved", "--vae", tmp_path / "other")
    assert str(ended.value).startswith("move_unet.py: latents of 4 channels at 1/8 cannot become 2 at 1/2")
    assert not (tmp_path / "moved").exists()


def test_a_folder_that_is_there_is_left_alone(tmp_path: Path) -> None:
    model, pictures = save_tiny_model(tmp_path / "model"), write_pictures(tmp_path / "pictures", 3, side_px=64)
    before = (model / "unet" / "config.json").read_bytes()
    with pytest.raises(SystemExit) as ended:
        call(model, pictures, model)
    assert str(ended.value).endswith("is there already (name a new folder)")
    assert (model / "unet" / "config.json").read_bytes() == before

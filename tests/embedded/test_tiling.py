"""The embedded model's autoencoder in tiles against the whole picture."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latentgen import embedded_model_path
from latentgen.checkpoints.folder import load_vae
from latentgen.diffusion.latents import LatentSpace
from latentgen.images.similarity import psnr_db
from latentgen.pipeline import tiling
from latentgen.pipeline.decoding import decode, encode


def test_a_tiled_picture_is_nearly_the_whole_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of half the usual side, so that four are quick; the larger ones differ less."""
    monkeypatch.setattr(tiling, "TILE_PX", 256)
    vae = load_vae(embedded_model_path())
    space = LatentSpace.from_config(vae.config)
    coarse = torch.rand((1, 3, 12, 12), generator=torch.Generator().manual_seed(0))
    pixels = F.interpolate(coarse, size=(384, 384), mode="bicubic").clamp(0, 1) * 2 - 1
    latents = encode(vae, space, pixels)
    whole, tiled = (torch.from_numpy(decode(vae, space, latents, how)) for how in ("off", "on"))
    assert psnr_db(whole, tiled) > 35
    difference = encode(vae, space, pixels, "on") - latents
    assert difference.std() < 0.1 * latents.std()

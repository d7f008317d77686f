from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from latentgen.config import VAEConfig
from latentgen.diffusion.latents import LatentSpace
from latentgen.images.pixels import to_pixels
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline import tiling
from latentgen.pipeline.decoding import decode, encode
from latentgen.pipeline.tiling import needs_tiles, tiles
from tests.tiny import TINY_VAE, tiny_vae

CONVOLUTIONAL = replace(TINY_VAE, mid_block_add_attention=False)
"""Attention over a tile sees less than over the whole; it is left out where tiles and the whole are compared."""


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """12 cells with 4 shared."""
    monkeypatch.setattr(tiling, "TILE_PX", 96)
    monkeypatch.setattr(tiling, "OVERLAP_PX", 32)


def scene(height: int, width: int, seed: int = 0) -> Tensor:
    """(1, 3, H, W): a gradient, so that the tiles' statistics differ, with noise on it."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    noise = 0.1 * torch.randn((3, height, width), generator=torch.Generator().manual_seed(seed))
    return (torch.stack([x, y, x * y])[None] + noise).clamp(-1, 1)


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (8, [(0, 8)]),
        (12, [(0, 12)]),
        (13, [(0, 12), (1, 13)]),
        (20, [(0, 12), (8, 20)]),
        (28, [(0, 12), (8, 20), (16, 28)]),
    ],
)
def test_tiles_cover_evenly_and_share_what_they_should(length: int, expected: list[tuple[int, int]]) -> None:
    assert tiles(length, 12, 4) == expected


@pytest.mark.parametrize("length", range(13, 100))
def test_neighbours_share_at_least_the_overlap(length: int) -> None:
    found = tiles(length, 12, 4)
    assert (found[0][0], found[-1][1]) == (0, length)
    assert all(left[1] - right[0] >= 4 for left, right in pairwise(found))


@pytest.mark.usefixtures("small_tiles")
@torch.inference_mode()
def test_what_sees_single_cells_is_blended_to_exactly_the_whole() -> None:
    network = nn.Conv2d(4, 3, 1)
    z = torch.randn((1, 4, 30, 17))

    def function(tile: Tensor) -> Tensor:
        return network(tile).repeat_interleave(8, 2).repeat_interleave(8, 3)

    tiled = tiling._tiled(function, network, z, 8, entries_in=1, entries_out=8)  # pyright: ignore[reportPrivateUsage]
    torch.testing.assert_close(tiled, function(z), rtol=1e-5, atol=1e-6)


@pytest.mark.usefixtures("small_tiles")
@torch.inference_mode()
def test_all_tiles_are_normed_by_the_statistics_of_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly of the whole: the one cell that two tiles share counts twice."""
    monkeypatch.setattr(tiling, "OVERLAP_PX", 8)
    norm = nn.Sequential(nn.GroupNorm(1, 3))
    x = scene(23, 23)

    def error() -> float:
        tiled = tiling._tiled(norm, norm, x, 8, entries_in=1, entries_out=1)  # pyright: ignore[reportPrivateUsage]
        return float((tiled - norm(x)).square().mean().sqrt())

    shared = error()
    monkeypatch.setattr(tiling._SharedNorms, "share", lambda self: None)  # pyright: ignore[reportPrivateUsage]
    assert shared < 0.05 < 0.2 < error()


@torch.inference_mode()
def test_norms_with_the_statistics_of_one_tile_are_the_norms_themselves() -> None:
    vae = tiny_vae(TINY_VAE)
    z = torch.randn((1, 4, 8, 8))
    plain = vae.decode(z)
    with tiling._SharedNorms(vae.decoder) as norms:  # pyright: ignore[reportPrivateUsage]
        vae.decode(z)
        norms.share()
        shared = vae.decode(z)
    # Variance as E[x^2] - E[x]^2 instead of about the mean: float32 rounding through some ten layers.
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    assert torch.equal(vae.decode(z), plain), "the hooks are gone afterwards"


def test_whether_a_picture_is_tiled_follows_from_its_size() -> None:
    stable_diffusion = VAEConfig(block_out_channels=(128, 256, 512, 512), latent_channels=4, scaling_factor=0.18215)
    with torch.device("meta"):
        vae = AutoencoderKL(stable_diffusion)
    assert not needs_tiles(vae, 1024, 1024)
    assert needs_tiles(vae, 1024, 1536)


def refuse_large(function: Callable[[Tensor], Tensor], limit: int, error: Exception) -> Callable[[Tensor], Tensor]:
    def guarded(x: Tensor) -> Tensor:
        if x.shape[-1] > limit:
            raise error
        return function(x)

    return guarded


@pytest.mark.usefixtures("small_tiles")
@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_what_does_not_fit_into_memory_is_tried_again_in_tiles(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = tiny_vae(CONVOLUTIONAL)
    space = LatentSpace.from_config(CONVOLUTIONAL)
    latents = torch.randn((1, 4, 20, 28))
    in_tiles = decode(vae, space, latents, "on")
    monkeypatch.setattr(vae, "decode", refuse_large(vae.decode, 12, error))
    with pytest.warns(UserWarning, match="not enough memory for the whole picture"):
        assert (decode(vae, space, latents, "auto") == in_tiles).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (decode(vae, space, latents, "on") == in_tiles).all()


def test_another_failure_is_not_taken_for_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    vae = tiny_vae(CONVOLUTIONAL)
    monkeypatch.setattr(vae, "decode", refuse_large(vae.decode, 0, RuntimeError("shapes differ")))
    with pytest.raises(RuntimeError, match="shapes differ"):
        decode(vae, LatentSpace.from_config(CONVOLUTIONAL), torch.randn((1, 4, 4, 4)))


@pytest.mark.usefixtures("small_tiles")
def test_half_precision_goes_through_tiles_too() -> None:
    vae = tiny_vae(CONVOLUTIONAL)
    space = LatentSpace.from_config(CONVOLUTIONAL)
    full = encode(vae, space, scene(160, 160), "on")
    vae.to(torch.bfloat16)
    half = encode(vae, space, scene(160, 160), "on")
    assert half.dtype == torch.float32
    assert (half - full).std() < 0.1 * full.std(), "bfloat16 has 8 bits of mantissa"


@torch.inference_mode()
def test_encoding_is_the_posteriors_mean_and_decoding_undoes_the_scale() -> None:
    vae, space = tiny_vae(), LatentSpace.from_config(TINY_VAE)
    pixels = scene(64, 48)
    latents = encode(vae, space, pixels)
    mean, _ = vae.encode(pixels)
    torch.testing.assert_close(latents, mean * 0.18215)
    assert (decode(vae, space, latents) == to_pixels(vae.decode(mean)[0])).mean() > 0.99

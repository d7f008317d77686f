"""The autoencoder's fast form: against the plain one in float32, on any threads, and where it is not taken up."""

from __future__ import annotations

import copy
import weakref
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentgen.diffusion.latents import LatentSpace
from latentgen.kernels import library
from latentgen.kernels.layers import FastGroupNorm
from latentgen.kernels.vae import FastVAEResnetBlock, is_fast, speed_up_vae, why_not_fast_vae
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline import TextToImage, decoding, tiling
from tests.tiny import TINY_VAE, randomize
from tests.tiny_bundle import tiny_bundle
from tests.unit.test_kernels import bf16, on_threads, relative_error, runs_here

CONFIG = replace(TINY_VAE, block_out_channels=(16, 32, 48))


def autoencoder(dtype: torch.dtype = torch.bfloat16) -> AutoencoderKL:
    vae = randomize(AutoencoderKL(CONFIG)).eval().to(torch.bfloat16).to(dtype)
    assert isinstance(vae, AutoencoderKL)
    return vae


def fast_autoencoder() -> AutoencoderKL:
    vae = autoencoder()
    speed_up_vae(vae)
    return vae


def both_ways(vae: AutoencoderKL, z: Tensor, pixels: Tensor) -> Tensor:
    """What it decodes and what it encodes, in a row."""
    with torch.inference_mode():
        return torch.cat([vae.decode(z).flatten(), vae.encode(pixels)[0].flatten()])


@runs_here
@pytest.mark.parametrize(("height", "width"), [(8, 8), (13, 9)])
def test_the_fast_form_errs_no_more_than_bfloat16_does(height: int, width: int) -> None:
    z, pixels = bf16(2, 4, height, width), bf16(2, 3, 4 * height, 4 * width, seed=1)
    expected = both_ways(autoencoder(torch.float32), z.float(), pixels.float()).double()
    plain = relative_error(both_ways(autoencoder(), z, pixels), expected)
    vae = fast_autoencoder()
    assert is_fast(vae)
    assert plain < 0.1
    assert relative_error(both_ways(vae, z, pixels), expected) < 1.2 * plain


@runs_here
def test_pictures_do_not_depend_on_threads_or_on_what_else_is_decoded() -> None:
    """Sides of more than 1024 pixels, which no number of threads divides evenly."""
    z, pixels = bf16(1, 4, 13, 11), bf16(1, 3, 52, 44, seed=1)
    vae = fast_autoencoder()
    results = on_threads(lambda: both_ways(vae, z, pixels))
    with torch.inference_mode():
        one_of_two = vae.decode(torch.cat([z, bf16(1, 4, 13, 11, seed=2)]))[:1].flatten()
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(one_of_two, results[0][: len(one_of_two)])


@runs_here
def test_norms_in_place_of_their_input_are_the_norms_themselves() -> None:
    plain = nn.GroupNorm(4, 32)
    randomize(plain)
    norm = FastGroupNorm(plain.bfloat16())
    x = bf16(2, 32, 9, 70).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        expected, before = norm(x, silu=True), x.clone()
        assert torch.equal(x, before), "unless asked for, what goes in stays"
        results = on_threads(lambda: norm(x.clone(memory_format=torch.channels_last), silu=True, in_place=True))
        assert norm(x, silu=True, in_place=True).data_ptr() == x.data_ptr()
    assert all(torch.equal(result, expected) for result in (*results, x))


@runs_here
def test_no_map_is_held_longer_than_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a block of the finest level computes, the input of the one before is gone."""
    maps: list[weakref.ref[Tensor]] = []
    forward = FastVAEResnetBlock.forward

    def watched(block: FastVAEResnetBlock, x: Tensor) -> Tensor:
        if x.shape[-1] == 32:
            assert [each() for each in maps if each() is not None] == []
            maps.append(weakref.ref(x))
        return forward(block, x)

    monkeypatch.setattr(FastVAEResnetBlock, "forward", watched)
    both_ways(fast_autoencoder(), bf16(1, 4, 8, 8), bf16(1, 3, 32, 32))
    assert len(maps) == 2 * CONFIG.layers_per_block + 1


@runs_here
def test_in_tiles_it_draws_what_the_plain_form_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any threads; and its own norms are back afterwards."""
    monkeypatch.setattr(tiling, "TILE_PX", 32)
    monkeypatch.setattr(tiling, "OVERLAP_PX", 8)
    z, pixels = bf16(1, 4, 17, 20), bf16(1, 3, 68, 80, seed=1)

    def in_tiles(vae: AutoencoderKL, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode():
            decoded, encoded = tiling.decode_tiled(vae, z.to(dtype)), tiling.encode_tiled(vae, pixels.to(dtype))
        return torch.cat([decoded.flatten(), encoded.flatten()])

    expected = in_tiles(autoencoder(torch.float32), torch.float32).double()
    plain = relative_error(in_tiles(autoencoder(), torch.bfloat16), expected)
    vae = fast_autoencoder()
    whole = both_ways(vae, z, pixels)
    results = on_threads(lambda: in_tiles(vae, torch.bfloat16))
    assert plain < 0.1
    assert relative_error(results[0], expected) < 1.2 * plain
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(both_ways(vae, z, pixels), whole)


@runs_here
def test_asked_again_in_float32_it_answers_as_the_plain_form_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """On any threads; and the next picture is as it would have been."""
    space, latents = LatentSpace.from_config(CONFIG), bf16(1, 4, 13, 11).float()
    vae = fast_autoencoder()
    before = decoding.decode(vae, space, latents)
    plain = decoding.decode(autoencoder(torch.float32), space, latents)
    is_finite = torch.isfinite
    monkeypatch.setattr(torch, "isfinite", lambda x: is_finite(x) & (x.dtype == torch.float32))
    answers = on_threads(lambda: torch.from_numpy(decoding.decode(vae, space, latents)))
    monkeypatch.undo()
    assert all(torch.equal(answer, torch.from_numpy(plain)) for answer in answers)
    assert torch.equal(torch.from_numpy(decoding.decode(vae, space, latents)), torch.from_numpy(before))


def test_what_has_no_fast_form_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    in_float32, narrow = (
        autoencoder(torch.float32),
        AutoencoderKL(replace(CONFIG, block_out_channels=(8, 16))).bfloat16(),
    )
    monkeypatch.setattr("latentgen.kernels.vae.why_unavailable", lambda: None)
    assert why_not_fast_vae(in_float32) == "it is for bfloat16 on a CPU"
    assert why_not_fast_vae(narrow) == f"its channels are no multiples of {library.LANES}"
    monkeypatch.setattr("latentgen.kernels.vae.why_unavailable", lambda: "they were not compiled")
    uncompiled = autoencoder()
    for vae in (in_float32, narrow, uncompiled):
        names = list(vae.state_dict())
        speed_up_vae(vae)
        assert (is_fast(vae), list(vae.state_dict())) == (False, names)


@runs_here
def test_a_model_takes_it_up_unless_told_otherwise() -> None:
    bundle = tiny_bundle()
    bundle.vae, bundle.config = autoencoder(), replace(bundle.config, vae=CONFIG)
    plain = copy.deepcopy(bundle)
    for part in (bundle.unet, bundle.text_encoder, plain.unet, plain.text_encoder):
        part.bfloat16()
    assert not is_fast(TextToImage(plain, fast=False).bundle.vae)
    assert is_fast(TextToImage(bundle).bundle.vae)

"""The autoencoder's fast form: against the plain one in float32, on any threads, and where it is not taken up."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from latentgen.diffusion.latents import LatentSpace
from latentgen.kernels import library
from latentgen.kernels.vae import is_fast, speed_up_vae, why_not_fast_vae
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline import TextToImage, decoding
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

"""Drawing from a picture, and inpainting, against diffusers' pipelines with the same weights and the same noise.

Theirs samples the encoder's posterior; here it takes the mean, as we do, so the first noise drawn from the generator is
the starting noise. Tolerance: as for whole pictures in `test_folder.py`, 1e-4 on pixels in [0, 1], and a byte is 4e-3:
the bytes are equal but where a value lies within 1e-4 of a rounding edge, so one step of 255 at most.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from PIL import Image

from latentgen.checkpoints.folder import ModelBundle, save_model
from latentgen.images.pixels import Pixels, pixels_sha256
from latentgen.models.tokenizer import Tokenizer
from latentgen.pipeline import TextToImage
from latentgen.request import GenerationRequest, InitPicture
from tests.tiny import TINY_MODEL, TINY_UNET, tiny_text_encoder, tiny_unet, tiny_vae
from tests.tiny_bundle import MERGES

PROMPT, NEGATIVE, SEED, STEPS, GUIDANCE = "a red lighthouse", "blurry", 7, 6, 3.0
INPAINTING = replace(TINY_MODEL, unet=replace(TINY_UNET, in_channels=9))
LARGEST_DIFFERENCE = 1


def bundle_of(config: Any) -> ModelBundle:
    return ModelBundle(
        unet=tiny_unet(config.unet, seed=1),
        vae=tiny_vae(config.vae, seed=2),
        text_encoder=tiny_text_encoder(config.text_encoder, seed=3),
        tokenizer=Tokenizer.published(MERGES),
        config=config,
    )


def a_picture() -> Pixels:
    """64x48, smooth and coloured, so that neither clipping nor rounding decides."""
    y, x = np.mgrid[0:48, 0:64] / 64
    return np.stack([40 + 160 * x, 60 + 120 * y, 200 - 100 * x * y], axis=-1).astype(np.uint8)


def a_mask() -> Pixels:
    """White on whole latent cells, where the published way of scaling a mask down and ours are one."""
    mask = np.zeros((48, 64), np.uint8)
    mask[16:40, 8:40] = 255
    return mask


def theirs(kind: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, sampler: str, **given: Any) -> Pixels:
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    pipeline = kind.from_pretrained(folder, safety_checker=None)
    # Theirs keeps DDIM's x variance-preserving, Euler's variance-exploding: noise is added in both scales.
    scheduler = EulerDiscreteScheduler if sampler == "euler" else DDIMScheduler
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config, set_alpha_to_one=True)
    pipeline.set_progress_bar_config(disable=True)
    answer = pipeline(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        image=Image.fromarray(a_picture()),
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=torch.Generator().manual_seed(SEED),
        output_type="np",
        **given,
    ).images[0]
    return np.rint(answer * 255).astype(np.uint8)


def ours(bundle: ModelBundle, sampler: str, init: InitPicture) -> Pixels:
    request = GenerationRequest(
        prompt=PROMPT,
        negative_prompt=NEGATIVE,
        seed=SEED,
        width_px=64,
        height_px=48,
        steps=STEPS,
        guidance=GUIDANCE,
        sampler=sampler,
        schedule="leading",
        init=init,
    )
    pictures = {pixels_sha256(each): each for each in (a_picture(), a_mask())}
    (result,) = TextToImage(bundle).generate([request], pictures=pictures)
    return result.pixels


def init_picture(strength: float, *, masked: bool = False) -> InitPicture:
    mask = pixels_sha256(a_mask()) if masked else None
    return InitPicture(sha256=pixels_sha256(a_picture()), strength=strength, mask_sha256=mask)


def largest_difference(a: Pixels, b: Pixels) -> int:
    return int(np.abs(a.astype(int) - b.astype(int)).max())


@pytest.mark.parametrize("sampler", ["euler", "ddim"])
@pytest.mark.parametrize("strength", [0.34, 0.75])
def test_img2img(sampler: str, strength: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(TINY_MODEL)
    save_model(bundle, tmp_path / "model")
    expected = theirs(StableDiffusionImg2ImgPipeline, tmp_path / "model", monkeypatch, sampler, strength=strength)
    drawn = ours(bundle, sampler, init_picture(strength))
    assert drawn.std() > 10, "a flat picture would prove nothing"
    assert largest_difference(drawn, a_picture()) > 20, "nor one that is not redrawn"
    assert largest_difference(drawn, expected) <= LARGEST_DIFFERENCE


def test_inpainting_with_an_ordinary_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Holding the clean estimate is, with Euler, the published way of setting the latents at every step."""
    bundle = bundle_of(TINY_MODEL)
    save_model(bundle, tmp_path / "model")
    settings = {"mask_image": Image.fromarray(a_mask()), "strength": 0.75, "height": 48, "width": 64}
    expected = theirs(StableDiffusionInpaintPipeline, tmp_path / "model", monkeypatch, "euler", **settings)
    drawn = ours(bundle, "euler", init_picture(0.75, masked=True))
    inside = a_mask() > 0
    assert largest_difference(drawn[inside], a_picture()[inside]) > 20
    assert largest_difference(drawn[inside], expected[inside]) <= LARGEST_DIFFERENCE
    assert np.array_equal(drawn[~inside], a_picture()[~inside]), "theirs come back through the autoencoder"


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_inpainting_with_a_model_made_for_it(strength: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = bundle_of(INPAINTING)
    save_model(bundle, tmp_path / "model")
    settings = {"mask_image": Image.fromarray(a_mask()), "strength": strength, "height": 48, "width": 64}
    expected = theirs(StableDiffusionInpaintPipeline, tmp_path / "model", monkeypatch, "euler", **settings)
    drawn = ours(bundle, "euler", init_picture(strength, masked=True))
    inside = a_mask() > 0
    assert drawn[inside].std() > 10
    assert largest_difference(drawn[inside], expected[inside]) <= LARGEST_DIFFERENCE
    assert np.array_equal(drawn[~inside], a_picture()[~inside])

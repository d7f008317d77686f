"""Two words exchanged in a caption and the two errors compared, against a sum written out with diffusers' scheduler."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from latentgen.checkpoints.diffusers_config import write_scheduler
from latentgen.checkpoints.folder import ModelBundle
from latentgen.diffusion.fixed_draws import fixed_noise, fixed_timesteps
from latentgen.diffusion.latents import LatentSpace
from latentgen.evaluation.words import Exchange, Pair, measure_words
from tests.tiny import randomize
from tests.tiny_bundle import tiny_bundle

CAPTIONS = ("a castle left of a cabin", "a castle right of a cabin")


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a cabin left of a house", "a cabin right of a house"),
        ("a cabin on the left and a house on the right", "a cabin on the right and a house on the left"),
        ("Left, and a leftover", "right, and a leftover"),
        ("a bright copyright", None),
        ("nothing of either", None),
    ],
)
def test_whole_words_are_exchanged(caption: str, expected: str | None) -> None:
    assert Exchange("left", "right").apply(caption) == expected


def test_phrases_and_signs() -> None:
    assert (
        Exchange("hot air balloon", "balloon").apply("a balloon, a hot air balloon") == "a hot air balloon, a balloon"
    )
    assert Exchange("(x)", "y.").apply("an (x) and y.") == "an y. and (x)"
    assert Exchange("été", "hiver").apply("un été, l'hiver") == "un hiver, l'été"


def pairs(count: int) -> list[Pair]:
    generator = np.random.default_rng(0)
    return [Pair(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8), *CAPTIONS) for _ in range(count)]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_the_errors_are_those_of_diffusers_scheduler(prediction: str) -> None:
    bundle = tiny_bundle()
    randomize(bundle.unet)
    diffusion = replace(bundle.config.diffusion, prediction_type=prediction)  # pyright: ignore[reportArgumentType]
    bundle = replace(bundle, config=replace(bundle.config, diffusion=diffusion))
    heard = measure_words(bundle, pairs(3))
    scheduler = DDIMScheduler.from_config(write_scheduler(diffusion))
    errors: list[list[Tensor]] = []
    with torch.inference_mode():
        for place, pair in enumerate(pairs(3)):
            picture = torch.from_numpy(pair.pixels.copy()).permute(2, 0, 1)[None] / 127.5 - 1
            latents = LatentSpace.from_config(bundle.config.vae).normalize(bundle.vae.encode(picture)[0])
            eps, t = fixed_noise(place, latents.shape[1:]), fixed_timesteps(place, 1000)
            clean = latents.expand(eps.shape)
            noisy = scheduler.add_noise(clean, eps, t)  # pyright: ignore[reportArgumentType]
            target = eps if prediction == "epsilon" else scheduler.get_velocity(clean, eps, t)  # pyright: ignore[reportArgumentType]
            contexts = bundle.text_encoder(bundle.tokenizer.encode(list(CAPTIONS)))
            predictions = [bundle.unet(noisy, t, context.expand(8, *context.shape)) for context in contexts]
            errors.append([(each - target).square().mean(dim=(1, 2, 3)) for each in predictions])
    own, other = (torch.stack([each[k] for each in errors]) for k in (0, 1))
    assert heard.share.total == 3
    assert heard.share.right == int((own.mean(dim=1) < other.mean(dim=1)).sum())
    quarters = [each.reshape(3, 4, 2).mean(dim=(0, 2)) for each in (own, other)]
    expected = ((quarters[1] - quarters[0]) / quarters[0]).tolist()
    assert heard.gains == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert any(abs(gain) > 1e-4 for gain in heard.gains), "the captions are told apart"


class Listening(torch.nn.Module):
    """Foresees the noise the better, the nearer the context is to a caption's."""

    def __init__(self, bundle: ModelBundle, caption: str, places: int) -> None:
        super().__init__()
        self.anchor = torch.nn.Parameter(bundle.text_encoder(bundle.tokenizer.encode([caption]))[0].detach())
        self.noise = [fixed_noise(place, (4, 8, 8)) for place in range(places)]
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        eps = self.noise[self.calls // 2].to(x)
        self.calls += 1
        return eps + (context[0] - self.anchor).abs().mean()


@pytest.mark.parametrize(("listens_to", "right"), [(0, 5), (1, 0)])
def test_who_listens_is_right(listens_to: int, right: int) -> None:
    bundle = tiny_bundle()
    diffusion = replace(bundle.config.diffusion, prediction_type="epsilon")
    bundle = replace(bundle, config=replace(bundle.config, diffusion=diffusion))
    network = Listening(bundle, CAPTIONS[listens_to], 5)
    heard = measure_words(replace(bundle, unet=network), pairs(5))  # pyright: ignore[reportArgumentType]
    assert (heard.share.right, heard.share.total) == (right, 5)

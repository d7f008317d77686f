"""The same seed draws the same picture: what is promised today, and no more (see `TextToImage`)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.images.pixels import pixel_difference, pixels_sha256
from latentgen.pipeline import TextToImage
from latentgen.request import MAX_SEED, GenerationRequest
from latentgen.samplers.registry import SAMPLERS
from latentgen.samplers.step import Step
from tests.tiny_bundle import tiny_bundle

REQUEST = GenerationRequest(
    prompt="a cat",
    seed=0,
    width_px=48,
    height_px=80,
    steps=4,
    guidance=3.0,
    sampler="euler",
    schedule="karras",
)
SEEDS = (0, 1, 2, MAX_SEED)


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return TextToImage(tiny_bundle())


def first_states(model: TextToImage, seeds: tuple[int, ...], batch_size: int) -> dict[int, torch.Tensor]:
    """Where sampling starts, by seed."""
    rows: list[torch.Tensor] = []

    def on_step(step: Step) -> None:
        if step.index == 0:
            rows.extend(step.x)

    list(model.generate([replace(REQUEST, seed=seed) for seed in seeds], batch_size=batch_size, on_step=on_step))
    return dict(zip(seeds, rows, strict=True))


def test_count_and_batch_size_do_not_change_the_noise(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "one_by_one", False)  # as on a GPU
    alone = {seed: first_states(model, (seed,), 1)[seed] for seed in SEEDS}
    for batch_size in (1, 2, 3, 4):
        together = first_states(model, SEEDS, batch_size)
        for seed in SEEDS:
            assert torch.equal(together[seed], alone[seed]), f"seed {seed} in batches of {batch_size}"


def test_the_noise_is_the_seeds_own(model: TextToImage) -> None:
    sigmas = model.schedule.inference_sigmas(REQUEST.steps, REQUEST.schedule)
    expected = starting_point(NoiseSource([7]).draw((4, 10, 6)), float(sigmas[0]))[0]
    assert torch.equal(first_states(model, (7,), 1)[7], expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_number_of_pictures_changes_no_bit(sampler: str, model: TextToImage) -> None:
    requests = [replace(REQUEST, seed=seed, sampler=sampler) for seed in SEEDS]
    together = [result.metadata.pixels_sha256 for result in model.generate(requests)]
    alone = [next(model.generate([request])).metadata.pixels_sha256 for request in reversed(requests)]
    assert together == alone[::-1]
    assert len(set(together)) == len(SEEDS)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_batches_of_one_and_four_agree_within_one_255th(
    sampler: str, model: TextToImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    eta = 1.0 if SAMPLERS[sampler].accepts_eta else 0.0
    requests = [replace(REQUEST, seed=seed, sampler=sampler, eta=eta) for seed in SEEDS]
    monkeypatch.setattr(model, "one_by_one", False)  # as on a GPU
    singles = list(model.generate(requests, batch_size=1))
    batch = list(model.generate(requests, batch_size=4))
    for single, batched in zip(singles, batch, strict=True):
        assert single.request == batched.request
        assert single.pixels.std() > 10
        # Not exact: a matrix product of four rows is summed in another order than one of a single row.
        assert pixel_difference(single.pixels, batched.pixels)[0] <= 1


def test_the_global_random_state_plays_no_part(model: TextToImage) -> None:
    request = replace(REQUEST, sampler="euler_a", seed=5)
    torch.manual_seed(1)
    (first,) = model.generate([request])
    torch.manual_seed(2)
    np.random.seed(9)
    state = torch.get_rng_state()
    (second,) = model.generate([request])
    assert pixels_sha256(first.pixels) == pixels_sha256(second.pixels)
    assert torch.equal(torch.get_rng_state(), state), "drawing must not advance torch's own generator"

"""Shares with intervals, ratios, the table; distances between pictures by features."""

from __future__ import annotations

import math

import pytest
import torch

from latentgen.evaluation.autoencoder import measure_autoencoder
from latentgen.evaluation.features import (
    NeutralFeatures,
    cosine_distances,
    frechet_distance,
    mean_pairwise_distance,
    nearest,
)
from latentgen.evaluation.scores import Score, Share, Verdict, score, scores_json, table
from tests.tiny import tiny_vae


def test_wilson_intervals_are_the_published_ones() -> None:
    # Newcombe 1998, "Two-sided confidence intervals for the single proportion", table I, method 3.
    for right, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        found = Share(right, total).interval()
        assert found == pytest.approx((low, high), abs=5e-5)


def test_a_share_of_nothing_says_nothing() -> None:
    assert Share(0, 0).interval() == (0.0, 1.0)
    assert math.isnan(Share(0, 0).value)
    assert Share(0, 0).to_json()["share"] is None
    with pytest.raises(ValueError, match="3 of 2"):
        Share(3, 2)


VERDICTS = [
    Verdict("colour", "seen", True, Share(2, 2)),
    Verdict("colour", "seen", False, Share(2, 2)),
    Verdict("colour", "held-out phrasing", False, Share(1, 2)),
    Verdict("counting", "seen", True, Share(0, 0)),
]


def test_scores_are_shares_of_what_the_probe_can_see() -> None:
    seen = score(VERDICTS, "colour", "seen")
    assert seen == Score(Share(1, 2), Share(4, 4))
    assert seen.ratio == 0.5
    assert score(VERDICTS, "counting", "seen").ratio is None, "there was no render to judge by"
    assert score(VERDICTS, None, None).model == Share(2, 4)
    assert scores_json(VERDICTS)["colour"]["all"]["model"]["total"] == 3


def test_the_table_shows_every_category_and_leaves_no_empty_cell() -> None:
    lines = table(VERDICTS).splitlines()
    colour = next(line for line in lines if line.startswith("colour"))
    assert "50% [9-91] of 100% = 0.50" in colour
    assert "0% [0-79] of 50% = 0.00" in colour
    assert "no prompts" in colour
    assert "100% [21-100] n=1" in next(line for line in lines if line.startswith("counting"))


def test_frechet_distance_of_gaussians_is_the_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(400, 3, generator=generator), 2 * torch.randn(500, 3, generator=generator) + 1
    mean = a.double().mean(0) - b.double().mean(0)
    ca, cb = torch.cov(a.double().T), torch.cov(b.double().T)
    values = torch.linalg.eigvals(ca @ cb).real.clamp(min=0).sqrt()
    expected = mean.square().sum() + ca.trace() + cb.trace() - 2 * values.sum()
    assert frechet_distance(a, b) == pytest.approx(float(expected), rel=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    few = torch.randn(5, 64, generator=generator)  # fewer pictures than features
    assert frechet_distance(few, few + 1) == pytest.approx(64, rel=1e-6)


def test_distances_of_features() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert torch.allclose(cosine_distances(a, a), torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    assert mean_pairwise_distance(a) == pytest.approx(1)
    distances, rows = nearest(torch.tensor([[3.0, 0.1]]), a)
    assert rows.tolist() == [0]
    assert float(distances) < 0.01


def test_neutral_features_tell_pictures_apart() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (40, 40, 3), generator=generator).byte().numpy()
    grey = torch.full((64, 64, 3), 128, dtype=torch.uint8).numpy()
    features = NeutralFeatures()([noise, grey, noise])
    assert features.shape == (3, 1280)
    distances = cosine_distances(features, features)
    assert float(distances[0, 2]) < 1e-4
    assert float(distances[0, 1]) > 0.1


def test_an_autoencoder_is_measured_on_bytes() -> None:
    vae = tiny_vae()
    pictures = [torch.full((64, 64, 3), value, dtype=torch.uint8).numpy() for value in (40, 200)]
    figures = measure_autoencoder(vae, pictures)
    assert figures.pictures == 2
    assert figures.psnr_db_lowest <= figures.psnr_db
    assert 0 <= figures.overflow_pictures <= 2
    assert (figures.overflow_places > 0) == (figures.logvar_max > 0)
    with torch.no_grad():
        vae.quant_conv.bias[vae.config.latent_channels :] += 40.0  # now every log-variance runs off
    assert measure_autoencoder(vae, pictures).overflow_pictures == 2
    assert measure_autoencoder(vae, pictures).overflow_places == 2 * 4 * 8 * 8

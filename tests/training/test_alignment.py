"""Representation alignment: its loss against a sum written out, where its gradient goes, and what it leaves behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentgen.errors import RuntimeFailure
from latentgen.training.alignment import FeatureCache, FrozenNetwork, unet_tensors
from latentgen.training.rng import Draw
from tests.tiny import randomize
from tests.training.tiny_runs import ALIGN_WEIGHT, TinyData, colours, state_hashes, train

LAST = 4


def features_of(data: TinyData, see: Callable[[Tensor], Tensor] = colours, name: str = "colours") -> FeatureCache:
    return FeatureCache(data.pixels, FrozenNetwork(see, name), data.cache, lambda note: None)


def draws(count: int = 4) -> list[Draw]:
    return [Draw(0, i, i) for i in range(count)]


def test_features_are_standardised_and_brought_to_the_latents_size(tiny_data: TinyData) -> None:
    features = features_of(tiny_data)
    assert features.channels == 3
    side = tiny_data.pixels.shapes[0][0] // 2
    whole = torch.stack([features.features(item, side, side) for item in range(len(tiny_data.pixels))])
    torch.testing.assert_close(whole.mean(dim=(0, 2, 3)), torch.zeros(3), atol=2e-3, rtol=0)
    torch.testing.assert_close(whole.std(dim=(0, 2, 3)), torch.ones(3), atol=1e-2, rtol=0)
    assert features.features(0, side // 2, side // 2).shape == (3, side // 2, side // 2)


def test_features_are_kept_by_what_they_were_made_from(tiny_data: TinyData) -> None:
    calls: list[int] = []

    def counted(pictures: Tensor) -> Tensor:
        calls.append(len(pictures))
        return colours(pictures)

    features_of(tiny_data, counted, "counted")
    made = sum(calls)
    features_of(tiny_data, counted, "counted")
    assert (made, sum(calls) - made) == (len(tiny_data.pixels) + 1, 1), "the second time only an example is looked at"
    with pytest.raises(RuntimeFailure, match="not finite in float16"):
        features_of(tiny_data, lambda pictures: pictures * 1e6, "too large")
    assert not list(tiny_data.cache.glob("*too large*"))


def test_the_loss_is_the_denoising_loss_and_the_cosine(tiny_data: TinyData) -> None:
    objective = tiny_data.aligned()
    randomize(objective.network)
    batch = objective.batch(draws())
    with torch.no_grad():
        loss, figures = objective.loss(objective.network, batch, 0)
        alone, _ = objective.denoising.loss(objective.network.unet, objective.denoising.batch(draws()), 0)
        noisy = objective.denoising.schedule.add_noise(batch.latents, batch.eps, batch.t)
        _, told = objective.network(noisy, batch.t, batch.context)
    assert told.shape == batch.features.shape
    lengths = told.norm(dim=1) * batch.features.norm(dim=1)
    cosine = ((told * batch.features).sum(dim=1) / lengths).mean()
    torch.testing.assert_close(figures["alignment"], cosine)
    torch.testing.assert_close(figures["denoising"], alone)
    torch.testing.assert_close(loss, alone + ALIGN_WEIGHT * (1 - cosine))


def test_alignment_teaches_what_comes_before_the_finest_way_up(tiny_data: TinyData) -> None:
    objective = tiny_data.aligned()
    randomize(objective.network)
    batch = objective.batch(draws())
    noisy = objective.denoising.schedule.add_noise(batch.latents, batch.eps, batch.t)
    objective.network(noisy, batch.t, batch.context)[1].square().sum().backward()
    taught = {name for name, each in objective.network.named_parameters() if each.grad is not None and each.grad.any()}
    assert {"unet.conv_in.weight", "unet.up_blocks.0.resnets.0.conv1.weight", "head.0.weight"} <= taught
    assert not any(name.startswith(("unet.up_blocks.1.", "unet.conv_out.", "unet.conv_norm_out.")) for name in taught)


def test_it_learns_both(tiny_data: TinyData) -> None:
    objective = tiny_data.aligned()
    batch = objective.batch(draws())
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=1e-2)
    seen: list[dict[str, float]] = []
    for _ in range(40):
        loss, figures = objective.loss(objective.network, batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append({name: float(value) for name, value in figures.items()})
    assert seen[-1]["denoising"] < 0.7 * seen[0]["denoising"]
    assert seen[-1]["alignment"] > 0.8 > seen[0]["alignment"]


def test_resumed_equals_uninterrupted_and_the_unet_comes_out_alone(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.aligned(), tmp_path / "whole", max_steps=LAST)
    expected = state_hashes(tmp_path / "whole", LAST)
    train(tiny_data.aligned(), tmp_path / "stopped", max_steps=2)
    objective = tiny_data.aligned(seed=9)
    train(objective, tmp_path / "stopped", max_steps=LAST, resume="latest")
    assert state_hashes(tmp_path / "stopped", LAST) == expected
    tensors = unet_tensors(objective.network.state_dict())
    assert list(tensors) == list(objective.network.unet.state_dict())
    figures = objective.validate(objective.network)
    assert figures == objective.denoising.validate(objective.network.unet)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_data: TinyData) -> None:
    gradients: list[list[Tensor]] = []
    for checkpointed in (False, True):
        objective = tiny_data.aligned()
        if checkpointed:
            objective.network.unet.enable_gradient_checkpointing()
        randomize(objective.network)
        objective.loss(objective.network, objective.batch(draws()), 0)[0].backward()
        gradients.append([p.grad for p in objective.network.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(list(objective.network.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))

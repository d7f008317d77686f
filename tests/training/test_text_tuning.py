"""The text encoder trained along: the same loss, a gradient that reaches its tokens, and both parts come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from latentgen.training.alignment import AlignedObjective, part_of, unet_tensors
from latentgen.training.rng import Draw
from latentgen.training.text_tuning import DENOISER, TEXT_ENCODER
from tests.tiny import randomize
from tests.training.tiny_runs import TinyData, state_hashes, train

LAST = 4
EMBEDDING = "text_model.embeddings.token_embedding.weight"


def draws(count: int = 4) -> list[Draw]:
    return [Draw(0, i, i) for i in range(count)]


@pytest.mark.parametrize("aligned", [False, True])
def test_the_loss_is_that_of_the_states_of_a_frozen_encoder(tiny_data: TinyData, *, aligned: bool) -> None:
    """Which are kept in half precision."""
    frozen = tiny_data.aligned() if aligned else tiny_data.unet()
    randomize(frozen.network)
    prompted = tiny_data.prompted(aligned=aligned)
    prompted.network.denoiser.load_state_dict(frozen.network.state_dict())
    with torch.no_grad():
        expected, figures = frozen.loss(frozen.network, frozen.batch(draws()), 0)
        loss, same = prompted.loss(prompted.network, prompted.batch(draws()), 0)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    assert same.keys() == figures.keys()
    for denoising in (prompted.denoising, frozen.denoising if isinstance(frozen, AlignedObjective) else frozen):
        denoising.validation = (0, 3)
    with torch.inference_mode():
        validated, expected = prompted.validate(prompted.network), frozen.validate(frozen.network)
    assert validated == pytest.approx(expected, rel=1e-3)
    assert "val_loss" in validated


def test_tokens_learn_that_are_in_the_captions_and_no_others(tiny_data: TinyData) -> None:
    objective = tiny_data.prompted()
    randomize(objective.network.denoiser)
    batch = objective.batch(draws())
    objective.loss(objective.network, batch, 0)[0].backward()
    gradient = dict(objective.network.text_encoder.named_parameters())[EMBEDDING].grad
    assert gradient is not None
    learnt = set(gradient.abs().sum(dim=1).nonzero().flatten().tolist())
    assert learnt == set(batch.context.unique().tolist())
    assert all(each.grad is not None for each in objective.network.parameters())


def test_captions_of_one_state_come_apart(tiny_data: TinyData) -> None:
    """What a U-Net on frozen states could never learn: here all tokens begin as one."""
    objective = tiny_data.prompted()
    encoder = objective.network.text_encoder
    token_ids = tiny_data.tokenizer.encode(["a red picture", "a green picture"])
    with torch.no_grad():
        rows = dict(encoder.named_parameters())[EMBEDDING]
        rows.copy_(rows[:1].expand_as(rows))

    def difference() -> float:
        with torch.no_grad():
            red, green = encoder(token_ids)
        return float((red - green).norm() / red.norm())

    assert difference() < 1e-6
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=1e-2)
    for _ in range(40):
        loss, _ = objective.loss(objective.network, objective.batch(draws()), 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert difference() > 0.05


@pytest.mark.parametrize("aligned", [False, True])
def test_resumed_equals_uninterrupted_and_both_parts_come_out(
    tiny_data: TinyData, tmp_path: Path, *, aligned: bool
) -> None:
    train(tiny_data.prompted(aligned=aligned), tmp_path / "whole", max_steps=LAST)
    expected = state_hashes(tmp_path / "whole", LAST)
    train(tiny_data.prompted(aligned=aligned), tmp_path / "stopped", max_steps=2)
    objective = tiny_data.prompted(seed=9, aligned=aligned)
    train(objective, tmp_path / "stopped", max_steps=LAST, resume="latest")
    assert state_hashes(tmp_path / "stopped", LAST) == expected
    tensors = objective.network.state_dict()
    denoiser = part_of(tensors, DENOISER)
    assert list(unet_tensors(denoiser) if aligned else denoiser) == list(objective.denoising.network.state_dict())
    assert list(part_of(tensors, TEXT_ENCODER)) == list(objective.network.text_encoder.state_dict())


def test_its_rate_is_a_setting_of_the_run(tiny_data: TinyData) -> None:
    """A resume with another is refused, as are runs of a frozen encoder."""
    described = [tiny_data.prompted(rate=rate).describe() for rate in (0.3, 0.5)]
    assert [each["text_encoder_rate"] for each in described] == [0.3, 0.5]
    assert described[0]["objective"] == "unet and text encoder"
    aligned = tiny_data.prompted(aligned=True)
    assert isinstance(aligned.objective, AlignedObjective)
    assert aligned.describe()["objective"] == "aligned unet and text encoder"

"""The order of a step, and how a run ends: numbers that are not finite, signals, accumulation."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentgen.checkpoints.io import is_finite
from latentgen.config import TrainConfig
from latentgen.errors import InputError, RuntimeFailure
from latentgen.training import loop
from latentgen.training.loop import Objective
from latentgen.training.run_dir import RunDir
from latentgen.training.vae import VAEObjective
from tests.training.tiny_runs import TinyData, build, gradient_difference, log_events, train


class Spoiled(VAEObjective):
    """A VAE objective to which something happens in its n-th forward pass."""

    def spoil(self, forward_pass: int, what: str) -> Spoiled:
        self.countdown, self.what = forward_pass, what
        return self

    def loss(self, network: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, metrics = super().loss(network, batch, step)
        self.countdown -= 1
        if self.countdown == 0:
            if self.what == "loss":
                return loss * torch.nan, metrics
            if self.what == "gradient":  # of sqrt at 0: infinite, where the value is 0
                zero = next(network.parameters()).sum() * 0
                return loss + torch.sqrt(zero), metrics
            if self.what == "signal":
                os.kill(os.getpid(), signal.SIGTERM)
            if self.what == "weight":
                with torch.no_grad():
                    list(network.parameters())[-1].fill_(torch.inf)
        return loss, metrics


def spoiled(data: TinyData, forward_pass: int, what: str) -> Spoiled:
    objective = data.vae()
    objective.__class__ = Spoiled
    assert isinstance(objective, Spoiled)
    return objective.spoil(forward_pass, what)


def all_finite(objective: Objective) -> bool:
    return all(is_finite(value) for value in objective.network.state_dict().values())


@pytest.mark.parametrize(("what", "message"), [("loss", "the loss became nan"), ("gradient", "the gradient's norm")])
def test_not_finite_stops_before_the_weights_take_it_in(
    what: str, message: str, tiny_data: TinyData, tmp_path: Path
) -> None:
    objective = spoiled(tiny_data, 2 * 3, what)  # in step 3, second forward pass
    with pytest.raises(RuntimeFailure, match=f"{message}.* at step 3"):
        train(objective, tmp_path, save_every_steps=1)
    assert all_finite(objective)
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.step == 2
    for name, value in objective.network.state_dict().items():
        torch.testing.assert_close(value, checkpoint.model[name], rtol=0, atol=0)
    assert log_events(tmp_path)[-1]["failed"] is True


def test_weights_that_are_not_finite_are_never_saved(tiny_data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(RuntimeFailure, match="not finite after step 2"):
        train(spoiled(tiny_data, 4, "weight"), tmp_path, save_every_steps=1)
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.step == 1


def test_a_signal_ends_the_run_after_its_step_with_a_checkpoint(tiny_data: TinyData, tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    outcome = train(spoiled(tiny_data, 3, "signal"), tmp_path)
    assert (outcome.step, outcome.interrupted_by) == (2, signal.SIGTERM)
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.step == 2
    assert not (tmp_path / "samples").exists(), "a run that is asked to stop draws no pictures"
    assert signal.getsignal(signal.SIGTERM) == handler


def test_accumulating_four_by_one_is_one_by_four(tiny_data: TinyData, tmp_path: Path) -> None:
    """Float tolerance: sums in another order."""
    for batch_size, grad_accum in ((1, 4), (4, 1)):
        folder = tmp_path / str(batch_size)
        outcome = train(tiny_data.vae(), folder, batch_size=batch_size, grad_accum=grad_accum, max_steps=3)
        assert outcome.images_seen == 12
    assert gradient_difference(tmp_path / "1", tmp_path / "4") < 1e-3
    losses = [[event["loss"] for event in log_events(tmp_path / side) if "loss" in event] for side in ("1", "4")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    metrics = [[event["l1"] for event in log_events(tmp_path / side) if "l1" in event] for side in ("1", "4")]
    assert metrics[0] == pytest.approx(metrics[1], rel=1e-4), "metrics are the mean over all forward passes"


@pytest.mark.parametrize("part", ["unet", "vae", "clip"])
def test_batches_made_ahead_are_the_same_run(
    part: str, tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside a GPU: stopped and resumed too, since what was made ahead is made again."""
    options = {"batch_size": 2, "grad_accum": 2}
    train(build(tiny_data, part), tmp_path / "in-turn", max_steps=3, **options)
    monkeypatch.setattr(loop, "works_ahead", lambda device: True)
    train(build(tiny_data, part), tmp_path / "ahead", max_steps=1, **options)
    train(build(tiny_data, part), tmp_path / "ahead", max_steps=3, resume="latest", **options)
    expected, result = RunDir(tmp_path / "in-turn").latest(), RunDir(tmp_path / "ahead").latest()
    assert expected is not None
    assert result is not None
    assert all(torch.equal(result.model[name], value) for name, value in expected.model.items())
    assert all(torch.equal(result.optimizer[name], value) for name, value in expected.optimizer.items())


def test_settings_that_no_device_here_can_run(tiny_data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        train(tiny_data.vae(), tmp_path, TrainConfig(lr=1e-3, batch_size=1, max_steps=1, mixed_precision="fp16"))


def test_samples_show_the_average_and_leave_the_weights(tiny_data: TinyData, tmp_path: Path) -> None:
    """With an EMA of decay near 1 the sheet of a run shows other weights than the network trains."""
    drawn: list[dict[str, Tensor]] = []

    class Watched(VAEObjective):
        def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
            assert not network.training
            drawn.append({name: value.clone() for name, value in network.state_dict().items()})
            super().write_samples(network, folder, step)

    objective = tiny_data.vae()
    objective.__class__ = Watched
    train(objective, tmp_path, max_steps=2)
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert len(drawn) == 1
    assert (tmp_path / "samples" / "step_00000002.png").exists()
    assert objective.network.training
    for name, value in objective.network.state_dict().items():
        assert torch.equal(drawn[0][name], checkpoint.ema[name])
        assert torch.equal(value, checkpoint.model[name])
    assert any(not torch.equal(drawn[0][name], checkpoint.model[name]) for name in drawn[0])

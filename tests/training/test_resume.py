"""A resumed run is the run that was never stopped: SHA-256 over weights, EMA and optimizer state, no tolerance."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentgen.config import TrainConfig
from latentgen.errors import InputError, ModelNotFoundError
from latentgen.training.loop import Objective
from latentgen.training.run_dir import RunDir
from tests.training.tiny_runs import SHORT_RUN, TinyData, log_events, state_hashes, train

LAST = 6


def build(data: TinyData, name: str) -> Objective:
    return {"vae": data.vae, "clip": data.clip, "unet": data.unet}[name]()


@pytest.mark.parametrize("muon_lr", [None, 0.02], ids=["adamw", "muon"])
@pytest.mark.parametrize("name", ["vae", "clip", "unet"])
def test_resumed_equals_uninterrupted(name: str, muon_lr: float | None, tiny_data: TinyData, tmp_path: Path) -> None:
    """Stops: mid-epoch (8 samples of 10), across an epoch's end within a forward pass (16), at an epoch's end (40)."""
    train(build(tiny_data, name), tmp_path / "whole", muon_lr=muon_lr)
    expected = state_hashes(tmp_path / "whole", LAST)
    assert set(expected) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    for stop in (1, 2, 5):
        folder = tmp_path / f"stopped-{stop}"
        train(build(tiny_data, name), folder, muon_lr=muon_lr, max_steps=stop)
        # What only watches may differ: here sample sheets are drawn on the way.
        outcome = train(build(tiny_data, name), folder, muon_lr=muon_lr, resume="latest", sample_every_steps=1)
        assert (outcome.step, outcome.images_seen) == (LAST, LAST * 8)
        assert state_hashes(folder, LAST) == expected, f"stopped after step {stop}"
    assert [event["step"] for event in log_events(tmp_path / "stopped-5")] == [0, 1, 2, 3, 4, 5, 5, 6]


def test_another_seed_is_another_run(tiny_data: TinyData, tmp_path: Path) -> None:
    """What the test above would not notice if nothing depended on the draws."""
    train(tiny_data.vae(), tmp_path / "a", max_steps=2)
    train(tiny_data.vae(), tmp_path / "b", max_steps=2, seed=1)
    assert state_hashes(tmp_path / "a", 2) != state_hashes(tmp_path / "b", 2)


def test_stopping_often_equals_never_stopping(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.unet(), tmp_path / "whole")
    for stop in range(1, LAST + 1):
        train(tiny_data.unet(), tmp_path / "parts", max_steps=stop, resume="auto")
    assert state_hashes(tmp_path / "parts", LAST) == state_hashes(tmp_path / "whole", LAST)


def test_cosine_goes_on_with_the_same_end_only(tiny_data: TinyData, tmp_path: Path) -> None:
    cosine = TrainConfig(lr=1e-3, batch_size=4, max_steps=4, lr_scheduler="cosine", warmup_steps=1, save_every_steps=2)
    train(tiny_data.vae(), tmp_path / "whole", cosine)
    train(tiny_data.vae(), tmp_path / "parts", cosine, max_minutes=0.0)
    with pytest.raises(InputError, match="max_steps: 4 then, 8 now"):
        train(tiny_data.vae(), tmp_path / "parts", cosine, max_steps=8, resume="latest")
    train(tiny_data.vae(), tmp_path / "parts", cosine, resume="latest")
    assert state_hashes(tmp_path / "parts", 4) == state_hashes(tmp_path / "whole", 4)


def test_changed_settings_are_named(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=1)
    with pytest.raises(InputError) as error:
        train(tiny_data.vae(crop_px=16), tmp_path, lr=2e-3, seed=5, resume="latest")
    for difference in ("crop_px: 8 then, 16 now", "lr: 0.001 then, 0.002 now", "seed: 0 then, 5 now"):
        assert difference in error.value.message
    assert "max_steps" not in error.value.message


def test_a_run_is_not_overwritten_and_not_invented(tiny_data: TinyData, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no run to resume"):
        train(tiny_data.vae(), tmp_path, resume="latest")
    train(tiny_data.vae(), tmp_path, max_steps=1, resume="auto")
    with pytest.raises(InputError, match="already holds a run"):
        train(tiny_data.vae(), tmp_path)


def test_a_run_that_is_done_is_left_as_it_is(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=2)
    before = (tmp_path / "step_00000002" / "manifest.json").stat().st_mtime_ns
    assert train(tiny_data.vae(), tmp_path, max_steps=2, resume="latest").step == 2
    assert (tmp_path / "step_00000002" / "manifest.json").stat().st_mtime_ns == before


def test_no_time_at_all_still_leaves_a_checkpoint(tiny_data: TinyData, tmp_path: Path) -> None:
    assert train(tiny_data.vae(), tmp_path, max_minutes=0.0).step == 0
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.step == 0
    assert checkpoint.images_seen == 0
    assert SHORT_RUN.max_steps == LAST

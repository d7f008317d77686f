"""A resumed run is the run that was never stopped: SHA-256 over weights, EMA and optimizer state, no tolerance."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentgen.config import TrainConfig
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.training.run_dir import RunDir
from tests.training.tiny_runs import (
    LAST,
    SHORT_RUN,
    TinyData,
    build,
    log_events,
    state_hashes,
    train,
    train_until_killed,
)

STOPS = (2, 3, 4, 7, 9, 10)
"""Forward passes of four samples, two a step, over ten pictures: an odd number of them is within an accumulation, 2 is
mid-epoch, 4 across an epoch's end, 10 at one."""


@pytest.mark.parametrize(
    ("name", "muon_lr"), [("vae", 0.02), ("clip", None), ("unet", None), ("unet", 0.02)], ids=lambda value: str(value)
)
def test_resumed_equals_uninterrupted(name: str, muon_lr: float | None, tiny_data: TinyData, tmp_path: Path) -> None:
    train(build(tiny_data, name), tmp_path / "whole", muon_lr=muon_lr)
    expected = state_hashes(tmp_path / "whole", LAST)
    assert set(expected) == {"model.safetensors", "ema.safetensors", "optimizer.safetensors"}
    for stop in STOPS:
        folder = tmp_path / f"stopped-{stop}"
        train_until_killed(build(tiny_data, name), folder, stop, muon_lr=muon_lr)
        # What only watches may differ: here sample sheets are drawn on the way.
        outcome = train(build(tiny_data, name), folder, muon_lr=muon_lr, resume="latest", sample_every_steps=2)
        assert (outcome.step, outcome.images_seen) == (LAST, LAST * 8)
        assert state_hashes(folder, LAST) == expected, f"killed after {stop} forward passes"
        assert [event["step"] for event in log_events(folder) if event.get("start")] == [0, stop // 2]


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


def test_a_last_step_that_is_past_is_refused_and_nothing_is_changed(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=2)
    before = (tmp_path / "config.json").read_bytes()
    with pytest.raises(InputError, match="stands at step 2, beyond --max-steps 1"):
        train(tiny_data.vae(), tmp_path, max_steps=1, lr=2e-3, resume="latest", override=["lr"])
    assert (tmp_path / "config.json").read_bytes() == before


def test_the_last_step_is_logged_however_short_the_run(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=3, log_every_steps=2)
    assert [event["step"] for event in log_events(tmp_path) if "loss" in event] == [2, 3]


def test_no_time_at_all_still_leaves_a_checkpoint(tiny_data: TinyData, tmp_path: Path) -> None:
    assert train(tiny_data.vae(), tmp_path, max_minutes=0.0).step == 0
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.step == 0
    assert checkpoint.images_seen == 0
    assert SHORT_RUN.max_steps == LAST


def test_named_settings_may_differ(tiny_data: TinyData, tmp_path: Path) -> None:
    """--override: the named keys differ, the log says it, config.json follows and remembers."""
    train(tiny_data.vae(), tmp_path, max_steps=1)
    with pytest.raises(InputError, match=r"seed: 0 then, 5 now \(.*--override seed\)"):
        train(tiny_data.vae(), tmp_path, lr=2e-3, seed=5, resume="latest", override=["lr"])
    assert json.loads((tmp_path / "config.json").read_text())["lr"] == 1e-3, "what is refused changes nothing"
    with pytest.raises(InputError, match="--override lrr: no such setting"):
        train(tiny_data.vae(), tmp_path, resume="latest", override=["lrr"])
    train(tiny_data.vae(), tmp_path, lr=2e-3, seed=5, max_steps=2, resume="latest", override=["lr", "seed"])
    settings = json.loads((tmp_path / "config.json").read_text())
    assert (settings["lr"], settings["seed"]) == (2e-3, 5)
    assert settings["history"] == [{"step": 1, "changed": {"lr": [1e-3, 2e-3], "seed": [0, 5]}}]
    logged = [event["override"] for event in log_events(tmp_path) if "override" in event]
    assert logged == [{"lr": [1e-3, 2e-3], "seed": [0, 5]}]
    train(tiny_data.vae(), tmp_path, lr=2e-3, seed=5, max_steps=3, resume="latest")
    train(tiny_data.vae(), tmp_path, lr=3e-3, seed=5, max_steps=4, resume="latest", override=["lr"])
    settings = json.loads((tmp_path / "config.json").read_text())
    assert [entry["step"] for entry in settings["history"]] == [1, 3]
    assert settings["max_steps"] == 4, "what may change is no override, but stands there as it is now"


def test_world_size_threads_and_data_are_settings_too(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=1)
    path = tmp_path / "config.json"
    settings = json.loads(path.read_text())
    for key, other in (("processes", 2), ("threads", settings["threads"] + 1), ("data", "0" * 16)):
        path.write_text(json.dumps({**settings, key: other}))
        with pytest.raises(InputError, match=f"{key}: {other!r} then, {settings[key]!r} now"):
            train(tiny_data.vae(), tmp_path, resume="latest")
        assert train(tiny_data.vae(), tmp_path, max_steps=1, resume="latest", override=[key]).step == 1


def test_another_optimizer_begins_its_own_state(
    tiny_data: TinyData, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=2)
    train(tiny_data.vae(), tmp_path, max_steps=4, muon_lr=0.02, resume="latest", override=["muon_lr"])
    assert "parameters begin with a fresh optimizer state" in caplog.text
    train(tiny_data.vae(), tmp_path, max_steps=5, resume="latest", override=["muon_lr", "ema_decay"], ema_decay=None)
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.ema == {}
    assert not any(name.endswith(":momentum") for name in checkpoint.optimizer)


def test_after_another_batch_size_a_step_begins_at_a_multiple_of_it(tiny_data: TinyData, tmp_path: Path) -> None:
    """Pictures of several shapes are dealt by the step: one that began in the middle of another's would mix them."""
    train(tiny_data.vae(), tmp_path, max_steps=3, batch_size=2, grad_accum=1)
    train(tiny_data.vae(), tmp_path, max_steps=4, batch_size=4, grad_accum=1, resume="latest", override=["batch_size"])
    checkpoint = RunDir(tmp_path).latest()
    assert checkpoint is not None
    assert checkpoint.images_seen == 8 + 4, "6 seen, rounded up to 8"


def test_another_network_is_one_line(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path, max_steps=1)
    before = (tmp_path / "config.json").read_bytes(), (tmp_path / "log.jsonl").read_bytes()
    different = {*tiny_data.vae().describe(), *tiny_data.unet().describe()}
    with pytest.raises(InputError, match="is a run of another network") as caught:
        train(tiny_data.unet(), tmp_path, resume="latest", override=sorted(different))
    assert "\n" not in str(caught.value)
    assert before == ((tmp_path / "config.json").read_bytes(), (tmp_path / "log.jsonl").read_bytes())


def test_clocks_and_time_stamps_mean_nothing(tiny_data: TinyData, tmp_path: Path) -> None:
    """A day forth or back, or shuffled: the step in the name counts."""
    train(tiny_data.vae(), tmp_path, max_steps=3, save_every_steps=1, keep=3)
    for day in (-1, 1):
        for place, step in enumerate((3, 1, 2)):
            moment = time.time() + 86400 * day + place
            folder = tmp_path / f"step_{step:08d}"
            for path in (*folder.iterdir(), folder):
                os.utime(path, (moment, moment))
        checkpoint = RunDir(tmp_path).latest()
        assert checkpoint is not None
        assert checkpoint.step == 3


def test_state_is_read_and_written_without_pickle(tmp_path: Path) -> None:
    """In a process of its own, because an audit hook stays: pickle looks up no class in a run and its resume."""
    script = f"""
import pickle, sys
from pathlib import Path
from tests.training.tiny_runs import TinyData, train
data = TinyData(Path({str(tmp_path)!r}), 10)
found = []
sys.addaudithook(lambda event, details: found.append(details) if event == "pickle.find_class" else None)
train(data.vae(), Path({str(tmp_path)!r}) / "run", max_steps=1)
train(data.vae(), Path({str(tmp_path)!r}) / "run", max_steps=2, resume="latest")
print(found)
pickle.loads(pickle.dumps(Path("x")))
assert found, "the hook hears of pickle"
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "[]"
    files = {path.suffix for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != ".lock"}
    assert files == {".json", ".jsonl", ".safetensors", ".png"}


def test_a_run_holds_no_paths(tiny_data: TinyData, tmp_path: Path) -> None:
    """Where the data lay, and whose it is, goes into no checkpoint, setting or log line."""
    train(tiny_data.unet(), tmp_path / "run", max_steps=1)
    for path in (tmp_path / "run").rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for place in (tmp_path, tiny_data.cache.parent):
                assert str(place).encode() not in content, path


# torch.compile


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced, but not translated to C++: what could go wrong with names and resumes comes before that."""
    monkeypatch.setattr("latentgen.kernels.gpu.COMPILER", "eager")
    torch.compiler.reset()


def test_a_compiler_that_is_missing_is_one_line(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(graph: object, inputs: object) -> None:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr("latentgen.kernels.gpu.COMPILER", missing)
    torch.compiler.reset()
    with pytest.raises(RuntimeFailure, match=r"torch.compile failed: .*leave out --compile"):
        train(tiny_data.vae(), tmp_path, max_steps=1, compile=True)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize("name", ["vae", "unet"])
def test_compiled_runs_have_the_same_files(name: str, tiny_data: TinyData, tmp_path: Path) -> None:
    train(build(tiny_data, name), tmp_path / "plain", max_steps=2)
    train(build(tiny_data, name), tmp_path / "compiled", max_steps=2, compile=True, sample_every_steps=1)
    compiled, plain = (RunDir(tmp_path / run).latest() for run in ("compiled", "plain"))
    assert compiled is not None
    assert plain is not None
    assert compiled.model.keys() == plain.model.keys()
    assert compiled.optimizer.keys() == plain.optimizer.keys()
    losses = [
        [event["loss"] for event in log_events(tmp_path / run) if "loss" in event] for run in ("compiled", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.usefixtures("quick_compiler")
def test_compiled_is_resumed_exactly_and_its_change_is_a_setting(tiny_data: TinyData, tmp_path: Path) -> None:
    train(tiny_data.vae(), tmp_path / "whole", max_steps=3, compile=True)
    train(tiny_data.vae(), tmp_path / "parts", max_steps=2, compile=True)
    with pytest.raises(InputError, match="compile: True then, False now"):
        train(tiny_data.vae(), tmp_path / "parts", max_steps=3, resume="latest")
    train(tiny_data.vae(), tmp_path / "parts", max_steps=3, compile=True, resume="latest")
    assert state_hashes(tmp_path / "parts", 3) == state_hashes(tmp_path / "whole", 3)
    train(tiny_data.vae(), tmp_path / "parts", max_steps=4, resume="latest", override=["compile"])
    assert state_hashes(tmp_path / "parts", 4)

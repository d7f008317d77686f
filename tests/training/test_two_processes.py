"""Two processes: the step of one with twice the accumulation, the same resumed run bit for bit, and one common end."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentgen.checkpoints.folder import read_folder_part
from latentgen.checkpoints.single_file import ModelPart
from latentgen.errors import InputError
from latentgen.training.processes import join_processes
from latentgen.training.run_dir import RunDir
from latentgen.training.sharding import check_can_shard, is_sharding_asked
from tests.tiny_bundle import save_tiny_model
from tests.training.test_attention_cap import loud
from tests.training.tiny_runs import (
    LAST,
    SHORT_RUN,
    TinyData,
    build,
    gradient_difference,
    log_events,
    state_hashes,
    train,
    write_pictures,
)

ROOT = Path(__file__).parents[2]
STOPS = (3, 2, 4, 7, 9, 10)
"""Forward passes, two a step: within an accumulation, mid-epoch, across an epoch's end, at it (40 samples)."""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two processes have done what `tests.training.two` says."""
    folder = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.two", str(folder), ",".join(map(str, STOPS)), str(LAST)],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for code, stderr in json.loads(done.stdout.splitlines()[-1]):
        assert code == 0, stderr[-3000:]
    return folder


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in log_events(run) if "loss" in event]


@pytest.mark.parametrize("part", ["vae", "unet", "aligned", "prompted"])
def test_two_processes_are_one_with_twice_the_accumulation(
    part: str, two: Path, tiny_data: TinyData, tmp_path: Path
) -> None:
    """Float tolerance: the same sums in another order; and the loss logged is the mean over the processes."""
    train(build(tiny_data, part), tmp_path, batch_size=2, grad_accum=2, max_steps=3)
    for how in ("replicated", "sharded"):
        assert gradient_difference(two / how / part, tmp_path) < 1e-3, how
        assert losses(two / how / part) == pytest.approx(losses(tmp_path), rel=1e-4), how
    assert json.loads((two / "replicated" / part / "config.json").read_text())["processes"] == 2


def test_negatives_of_a_pair_are_those_of_its_process(two: Path, tiny_data: TinyData) -> None:
    """CLIP's loss is no mean over samples; and sample k is process k modulo 2's, so the pairs 0, 2 and 1, 3 meet."""
    objective = tiny_data.clip()
    order = objective.order(SHORT_RUN.seed, 4)
    with torch.no_grad():
        of_each = [
            float(objective.loss(objective.network, objective.batch([order.draw(i) for i in share]), 0)[0])
            for share in ((0, 2), (1, 3), (0, 1, 2, 3))
        ]
    logged = losses(two / "replicated" / "clip")[0]
    assert logged == pytest.approx((of_each[0] + of_each[1]) / 2, rel=1e-4)
    assert logged != pytest.approx(of_each[2], rel=1e-2)


@pytest.mark.parametrize("stop", STOPS)
def test_resumed_equals_uninterrupted(stop: int, two: Path) -> None:
    """SHA-256 over weights, EMA and optimizer state, no tolerance."""
    assert state_hashes(two / "exact" / f"stop-{stop}", LAST) == state_hashes(two / "exact" / "whole", LAST)


@pytest.mark.parametrize("how", ["exact-sharded", "exact-three"])
def test_resumed_equals_uninterrupted_otherwise(how: str, two: Path) -> None:
    """Sharded; and of three processes, where the order of a sum's terms is seen."""
    folder = two / how
    assert state_hashes(folder / f"stop-{STOPS[0]}", LAST) == state_hashes(folder / "whole", LAST)


def test_a_sharded_run_leaves_the_same_files(two: Path) -> None:
    """Whole tensors under the same names, which the optimizer has too; their averages follow them."""
    for part in ("vae", "unet", "aligned", "prompted"):
        sharded, replicated = (RunDir(two / how / part).latest() for how in ("sharded", "replicated"))
        assert sharded is not None
        assert replicated is not None
        for ours, theirs in (
            (sharded.model, replicated.model),
            (sharded.ema, replicated.ema),
            (sharded.optimizer, replicated.optimizer),
        ):
            assert ours.keys() == theirs.keys()
            for name in ours:
                assert ours[name].shape == theirs[name].shape, name
                # A gradient that is all but 0 makes a whole step of Adam's, in either direction.
                torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=2e-3)


def test_muon_shared_out_is_muon_by_each_process(two: Path) -> None:
    """Each process orthogonalizes some of the matrices: the same bits as when each does all of them."""
    shared, unshared = (RunDir(two / "replicated" / run).latest() for run in ("muon", "muon-unshared"))
    assert shared is not None
    assert unshared is not None
    assert any(name.endswith(":momentum") for name in shared.optimizer)
    for ours, theirs in ((shared.model, unshared.model), (shared.optimizer, unshared.optimizer)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_muon_orthogonalizes_whole_matrices(two: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    """Sharded by rows, a matrix is put together first; of rows alone the update is another."""
    train(build(tiny_data, "unet"), tmp_path, batch_size=2, grad_accum=2, max_steps=3, muon_lr=0.02)
    sharded, alone = (RunDir(run).latest() for run in (two / "sharded" / "muon", tmp_path))
    assert sharded is not None
    assert alone is not None
    names = [name.removesuffix(":momentum") for name in alone.optimizer if name.endswith(":momentum")]
    start = build(tiny_data, "unet").network.state_dict()
    apart = [
        float((sharded.model[name] - alone.model[name]).norm() / (alone.model[name] - start[name]).norm())
        for name in names
    ]
    # bfloat16 may carry the rounding of the smallest gradients far; another update would be off everywhere.
    assert statistics.median(apart) < 0.15


def test_processes_cap_attention_by_the_same(two: Path, tiny_data: TinyData, tmp_path: Path) -> None:
    """Each watches a sample of its own, and all scale by what the largest asks for; sharded, each its part."""
    objective = tiny_data.unet()
    loud(objective.network)
    free = objective.network.state_dict()
    replicated, sharded = (
        [json.loads((two / how / f"capped-{rank}.json").read_text()) for rank in (0, 1)]
        for how in ("replicated", "sharded")
    )
    assert replicated[0] == replicated[1]
    assert sharded[0] == sharded[1]
    for name, values in replicated[0].items():
        torch.testing.assert_close(torch.tensor(sharded[0][name]), torch.tensor(values), rtol=1e-2, atol=1e-3)
    shares = {
        name: [float(torch.tensor(values).view_as(free[name])[rows].norm() / free[name][rows].norm())
               for rows in torch.arange(len(free[name])).chunk(2)]
        for name, values in replicated[0].items()
    }  # fmt: skip
    assert all(share < 0.2 for of_heads in shares.values() for share in of_heads)
    assert all(max(of_heads) > 1.01 * min(of_heads) for of_heads in shares.values()), "each head by its own"


def test_a_sharded_run_draws_and_validates_on_the_way(two: Path) -> None:
    """And goes on as the run that does neither."""
    folder = two / "watched"
    assert sorted(path.name for path in (folder / "samples").iterdir()) == [f"step_{k:08d}.png" for k in (1, 2, 3)]
    assert state_hashes(folder, 3) == state_hashes(two / "sharded" / "vae", 3)


def test_one_signal_stops_both(two: Path) -> None:
    ends = [json.loads((two / f"rank-{rank}.json").read_text())[:3] for rank in (0, 1)]
    assert ends == [[3, signal.SIGTERM, True], [3, signal.SIGTERM, False]]


def test_samples_are_shared_out_without_overlap(two: Path) -> None:
    """Process k computes the samples k modulo 2: together all 24 of three steps, each once."""
    drawn = [json.loads((two / f"rank-{rank}.json").read_text())[3] for rank in (0, 1)]
    assert drawn == [list(range(0, 24, 2)), list(range(1, 24, 2))]


def test_what_cannot_be_sharded(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="logit_scale is a single number"):
        check_can_shard(tiny_data.clip().network, SHORT_RUN)
    assert not is_sharding_asked()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert is_sharding_asked()
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InputError, match="FSDP 2 only"):
        is_sharding_asked()


def test_torchrun_starts_two_and_passes_a_signal_on(tmp_path: Path) -> None:
    """The real launcher and the real command line; interrupted, both processes end after a step that is saved."""
    write_pictures(tmp_path / "data", 10)
    command = ["train-vae", "--data", "data", "--out", "run", "--resolution", "16", "--crop", "16"]
    command += ["--channels", "8,8,8", "--latent-channels", "2", "--batch-size", "2", "--max-steps", "100000"]
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "latentgen", *command, "--perceptual", "none", "--log-every", "1", "--no-progress"),
        ],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
    )
    log = tmp_path / "run" / "log.jsonl"
    try:
        until = time.monotonic() + 120
        while not (log.exists() and '"step": 3' in log.read_text()):
            assert launcher.poll() is None, launcher.communicate()[1][-3000:]
            assert time.monotonic() < until, "the run did not begin"
            time.sleep(0.1)
        launcher.send_signal(signal.SIGINT)
        _, stderr = launcher.communicate(timeout=60)
    finally:
        launcher.kill()
    assert stderr.count("stopping after this step, then saving") == 2
    assert 'Traceback (most recent call last):\n  File "/work' not in stderr
    checkpoint = RunDir(tmp_path / "run").latest()
    assert checkpoint is not None
    assert checkpoint.step >= 3
    assert f"saved step {checkpoint.step};" in stderr
    assert json.loads((tmp_path / "run" / "config.json").read_text())["processes"] == 2


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        (
            "train-vae --channels 8,8,8 --latent-channels 2 --perceptual none --crop 16 --scaling measured",
            {"vae": "vae."},
        ),
        ("train-unet --init model --train-text-encoder", {"unet": "denoiser.", "text_encoder": "text_encoder."}),
    ],
)
def test_a_sharded_run_ends_with_its_model(command: str, parts: dict[ModelPart, str], tmp_path: Path) -> None:
    """The real launcher and command line: what lies in parts in two processes is one model in the end."""
    write_pictures(tmp_path / "data", 10)
    save_tiny_model(tmp_path / "model")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "latentgen", *command.split(), "--data", "data", "--out", "run", "--resolution", "32"),
            *("--batch-size", "2", "--max-steps", "2", "--no-progress"),
        ],
        cwd=tmp_path,
        env=ENVIRONMENT | {"ACCELERATE_USE_FSDP": "true"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = RunDir(tmp_path / "run").latest()
    assert checkpoint is not None
    assert json.loads((tmp_path / "run" / "config.json").read_text())["sharded"] is True
    for part, prefix in parts.items():
        tensors = read_folder_part(tmp_path / "run" / "model" / part, part)
        trained = {name: each for name, each in checkpoint.ema.items() if name.startswith(prefix)}
        assert tensors.keys() == {name.removeprefix(prefix) for name in trained}
        assert all(torch.equal(tensors[name.removeprefix(prefix)], each) for name, each in trained.items())


def test_fewer_processes_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process, with this in its environment."""
    for name, value in {"ACCELERATE_MIXED_PRECISION": "no", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(InputError, match="asked for several processes, but 1 train together"):
        join_processes()


def test_accelerate_launch_of_two_on_a_cpu_is_refused(tmp_path: Path) -> None:
    """As accelerate itself starts it: one line, nothing trained."""
    write_pictures(tmp_path / "data", 2)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "-m", "latentgen"]
    done = subprocess.run(
        [*launch, "train-vae", "--data", "data", "--out", "run", "--max-steps", "1"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode != 0
    assert (
        "error: accelerate was asked for several processes, but 1 train together (launch with torchrun" in done.stderr
    )
    assert not (tmp_path / "run").exists()

"""Two processes under torchrun, gloo: the step that one process takes with twice the batch, and one common end."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training.tiny_runs import TinyData, gradient_difference, log_events, train

ROOT = Path(__file__).parents[2]


def main(folder: Path) -> None:
    """What each of the two processes does."""
    from tests.training.test_loop import spoiled

    rank = int(os.environ["RANK"])
    data = TinyData(folder / f"data-{rank}", 10)
    first = train(data.vae(), folder / "equal", batch_size=2, max_steps=3)
    # Only the second process is signalled, in its third step's first forward pass; both must stop after that step.
    objective = spoiled(data, 5, "signal" if rank == 1 else "nothing")
    second = train(objective, folder / "signal", batch_size=2, max_steps=50)
    ends = [(each.step, each.interrupted_by, each.is_main_process) for each in (first, second)]
    (folder / f"rank-{rank}.json").write_text(json.dumps(ends))
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_processes_are_one_with_twice_the_batch(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
            *("-m", "tests.training.test_two_processes", str(tmp_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = [json.loads((tmp_path / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ends == [[[3, None, main], [3, 15, main]] for main in (True, False)]
    assert json.loads((tmp_path / "equal" / "config.json").read_text())["processes"] == 2

    train(TinyData(tmp_path / "data-alone", 10).vae(), tmp_path / "alone", batch_size=4, max_steps=3)
    assert gradient_difference(tmp_path / "equal", tmp_path / "alone") < 1e-3, "the same sums in another order"
    losses = [[event["loss"] for event in log_events(tmp_path / run) if "loss" in event] for run in ("equal", "alone")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4), "the loss is the mean over the processes"


if __name__ == "__main__":
    main(Path(sys.argv[1]))

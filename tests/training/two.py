"""What two processes do in `test_two_processes`: data-parallel ones, then sharded ones; they leave run folders.

python -m tests.training.two FOLDER STOPS
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

from torch import nn
from torch.optim import AdamW

from latentgen.training import attention_cap, loop
from latentgen.training.optimizer import make_optimizer
from latentgen.training.rng import Draw
from latentgen.training.sharding import SWITCH, whole
from latentgen.training.vae import VAEBatch
from tests.training.ranks import fork_ranks, wait_for
from tests.training.test_attention_cap import loud
from tests.training.test_loop import spoiled
from tests.training.tiny_runs import LAST, TinyData, build, train, train_until_killed

PARTS = ("vae", "clip", "unet", "aligned", "prompted")
RESUMED = "unet"
SHARDED = ("vae", "unet", "aligned", "prompted")


def exact(data: TinyData, folder: Path, stops: list[int], *, last: int = LAST, muon_lr: float | None = None) -> None:
    """One run that is never stopped, and one killed after each of these forward passes and taken up again."""
    options = {"batch_size": 2, "max_steps": last, "muon_lr": muon_lr}
    train(build(data, RESUMED), folder / "whole", **options)
    for stop in stops:
        train_until_killed(build(data, RESUMED), folder / f"stop-{stop}", stop, **options)
        train(build(data, RESUMED), folder / f"stop-{stop}", resume="latest", **options)


def equal(data: TinyData, folder: Path, parts: tuple[str, ...]) -> None:
    """Runs to be compared with those of one process with twice the accumulation."""
    for part in parts:
        train(build(data, part), folder / part, batch_size=2, grad_accum=1, max_steps=3)


def capped(data: TinyData, folder: Path, rank: int) -> None:
    """A run whose attention logits are too large from the start, and what this process's network has become."""
    objective = build(data, "unet")
    loud(objective.network)
    with patch.multiple(attention_cap, EVERY_STEPS=1, SMALLEST_FACTOR=1e-3):
        train(objective, folder, batch_size=2, grad_accum=1, max_steps=3, muon_lr=1e-4, attention_cap=1.0)
    weights = {name: whole(value).flatten().tolist() for name, value in objective.network.named_parameters()}
    folder.with_name(f"{folder.name}-{rank}.json").write_text(
        json.dumps({name: value for name, value in weights.items() if "to_q" in name or "to_k" in name})
    )


def make_unshared(network: nn.Module, **options: Any) -> AdamW:
    return make_optimizer(network, **options | {"shares": 1})


def main(folder: Path, stops: list[int], last: int) -> None:
    def replicated(rank: int) -> int:
        data = TinyData(folder / f"data-{rank}", 10)
        equal(data, folder / "replicated", PARTS)
        options = {"batch_size": 2, "grad_accum": 1, "max_steps": 3, "muon_lr": 0.02}
        train(build(data, "unet"), folder / "replicated" / "muon", **options)
        capped(data, folder / "replicated" / "capped", rank)
        with patch.object(loop, "make_optimizer", make_unshared):
            train(build(data, "unet"), folder / "replicated" / "muon-unshared", **options)
        exact(data, folder / "exact", stops, last=last)
        # Only the second process is signalled, in its third step's first forward pass; both stop after that step.
        signalled = spoiled(data, 5, "signal" if rank == 1 else "nothing")
        batch, drawn = signalled.batch, list[int]()

        def noting(draws: Sequence[Draw]) -> VAEBatch:
            drawn.extend(draw.index for draw in draws)
            return batch(draws)

        signalled.batch = noting
        outcome = train(signalled, folder / "signal", batch_size=2, max_steps=50)
        (folder / f"rank-{rank}.json").write_text(
            json.dumps([outcome.step, outcome.interrupted_by, outcome.is_main_process, drawn])
        )
        return 0

    def sharded(rank: int) -> int:
        data = TinyData(folder / f"data-{rank}", 10)
        equal(data, folder / "sharded", SHARDED)
        train(build(data, "unet"), folder / "sharded" / "muon", batch_size=2, grad_accum=1, max_steps=3, muon_lr=0.02)
        capped(data, folder / "sharded" / "capped", rank)
        exact(data, folder / "exact-sharded", stops[:1], last=last, muon_lr=0.02)
        options = {"batch_size": 2, "grad_accum": 1, "max_steps": 3, "sample_every_steps": 1, "validate_every_steps": 1}
        train(build(data, "vae"), folder / "watched", **options)
        return 0

    def three(rank: int) -> int:
        exact(TinyData(folder / f"data-{rank}", 10), folder / "exact-three", stops[:1], last=last)
        return 0

    ends = [
        *wait_for(fork_ranks(three, folder / "three", processes=3), folder / "three"),
        *wait_for(fork_ranks(replicated, folder / "replicated"), folder / "replicated"),
        *wait_for(fork_ranks(sharded, folder / "sharded", environment={SWITCH: "true"}), folder / "sharded"),
    ]
    print(json.dumps([[end.code, end.stderr] for end in ends]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(stop) for stop in sys.argv[2].split(",")], int(sys.argv[3]))

"""Runs of two processes to which something happens, and what becomes of them.

    python -m tests.faults.ranks FOLDER CASE...

Prints a JSON line a case. No launcher tells a process that another has failed: all must find out by themselves.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from latentgen.cli.boundary import run_guarded
from latentgen.training.vae import VAEObjective
from latentgen.training.watch import STALL_VARIABLE
from tests.training.ranks import PATIENCE_S, fork_ranks, is_running, wait_for
from tests.training.tiny_runs import TinyData, train

FAULTY_STEP = 4
"""Counted from 1; checkpoints are of every step."""


class Faulty(VAEObjective):
    """A VAE objective that does something in its first forward pass of step `FAULTY_STEP`."""

    fault: Callable[[], None]
    spoils: bool
    validation_s: float

    def loss(self, network: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        loss, metrics = super().loss(network, batch, step)
        if step == FAULTY_STEP - 1:
            self.fault()
            if self.spoils:
                return loss * torch.nan, metrics
        return loss, metrics

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Work of the first process alone, while the others wait."""
        time.sleep(self.validation_s)
        return {}


CASES = ("killed", "first_killed", "raised", "left", "hung", "patient", "nan", "nan_everywhere", "killed_launcher")


def act(case: str, rank: int, marker: Path) -> Callable[[], None]:
    """What happens in a process; it notes the time."""
    faulty_rank = 0 if case == "first_killed" else 1

    def fault() -> None:
        if case in ("patient", "nan_everywhere") or rank != faulty_rank:
            return
        marker.write_text(repr(time.time()))
        if case in ("killed", "first_killed"):
            os.kill(os.getpid(), signal.SIGKILL)
        if case == "raised":
            raise ZeroDivisionError("of this process alone")
        if case == "left":
            os._exit(0)
        if case in ("hung", "killed_launcher"):
            time.sleep(1000)

    return fault


def rank_main(case: str, folder: Path, rank: int) -> int:
    """What one process does; its exit code is that of the command line."""

    def command() -> None:
        objective = TinyData(folder / f"data-{rank}", 10).vae()
        objective.__class__ = Faulty
        assert isinstance(objective, Faulty)
        objective.fault = act(case, rank, folder / "fault")
        objective.spoils = case == "nan_everywhere" or (case == "nan" and rank == 1)
        objective.validation_s = 4.0 if case == "patient" else 0.0
        train(objective, folder / "run", batch_size=2, max_steps=8, save_every_steps=1, validate_every_steps=5)

    return run_guarded(command, [])


def start(case: str, folder: Path) -> list[int]:
    limit = "3" if case in ("hung", "patient") else "1000"
    return fork_ranks(lambda rank: rank_main(case, folder, rank), folder, environment={STALL_VARIABLE: limit})


def run_case(case: str, folder: Path) -> dict[str, Any]:
    if case == "killed_launcher":
        return run_killed_launcher(folder)
    ends = wait_for(start(case, folder), folder)
    marker = folder / "fault"
    happened = float(marker.read_text()) if marker.exists() else max(end.at for end in ends)
    return {
        "codes": [end.code for end in ends],
        "seconds": round(max(end.at for end in ends) - happened, 2),
        # Of torch's own complaints about lost connections there is no end.
        "errors": [[line for line in end.stderr.splitlines() if line.startswith("error: ")] for end in ends],
        "tracebacks": sum("Traceback" in end.stderr for end in ends),
    }


def run_killed_launcher(folder: Path) -> dict[str, Any]:
    """Fork a launcher, which starts two processes, and kill it."""
    folder.mkdir(parents=True)
    launcher = os.fork()
    if launcher == 0:
        try:
            (folder / "pids").write_text(json.dumps(start("killed_launcher", folder)))
            time.sleep(1000)
        finally:
            os._exit(1)
    while not (folder / "fault").exists():
        time.sleep(0.05)
    ranks: list[int] = json.loads((folder / "pids").read_text())
    happened = time.time()
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    while (left := [pid for pid in ranks if is_running(pid)]) and time.time() < happened + PATIENCE_S:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return {"orphans": len(left), "seconds": round(time.time() - happened, 2)}


def main(folder: Path, cases: list[str]) -> None:
    for case in cases:
        print(json.dumps({"case": case, **run_case(case, folder / case)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

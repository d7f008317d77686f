"""What the training commands share once they compute: the process they run in, the loop, and the last words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentgen.cli.console import Console
from latentgen.config import TrainConfig
from latentgen.errors import RuntimeFailure

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from latentgen.training.loop import Objective, Outcome


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run that reached its end leaves."""

    outcome: Outcome
    weights: dict[str, Tensor]
    """To be exported: the averaged ones where there are such."""


def start_process(config: TrainConfig, out: Path, resume: str | None, threads: int | None) -> PartialState:
    """This process among those that train together, and its device.

    Raises InputError for a precision that the device has not, and as `RunDir.check_start` does.
    """
    import torch

    from latentgen.training.loop import check_precision
    from latentgen.training.processes import device_of, join_processes
    from latentgen.training.run_dir import RunDir

    if threads is not None:
        torch.set_num_threads(threads)
    process = join_processes()
    check_precision(config, device_of(process))
    if process.is_main_process:
        RunDir(out).check_start(resume)
    return process


def say_in(process: PartialState) -> Callable[[str], None]:
    """Notes to stderr from the first process alone."""
    return Console(quiet=not process.is_main_process).note


def run_training(objective: Objective, config: TrainConfig, out: Path, resume: str | None) -> Trained | None:
    """Run the loop to its end; None in the processes that write nothing.

    A run that a signal ended has saved a checkpoint and nothing else: the process ends here, with the signal's code.
    """
    from latentgen.training.loop import fit
    from latentgen.training.processes import join_processes
    from latentgen.training.run_dir import RunDir

    console, run = Console(), RunDir(out)
    outcome = fit(objective, config, run, resume=resume, report=lambda event: console.note(_progress(event, config)))
    join_processes().destroy_process_group()
    if outcome.interrupted_by is not None:
        if outcome.is_main_process:
            console.note(f"saved step {outcome.step}; the same command with --resume latest goes on from it")
        raise SystemExit(128 + outcome.interrupted_by)
    if not outcome.is_main_process:
        return None
    checkpoint = run.latest()
    if checkpoint is None:
        raise RuntimeFailure(f"the last checkpoint in {out} has vanished")
    return Trained(outcome, checkpoint.ema or checkpoint.model)


def finish(out: Path, outcome: Outcome, figures: Mapping[str, Any]) -> None:
    """Log the figures of the trained part, and print where it is."""
    from latentgen.training.run_dir import RunDir

    RunDir(out).log({"end": True, "step": outcome.step, "images_seen": outcome.images_seen, **figures})
    shown = "".join(f", {name} {value}" for name, value in figures.items())
    console = Console()
    console.note(f"{outcome.step} steps, {outcome.images_seen} samples{shown}")
    console.result(out / "model")


def _progress(event: Mapping[str, Any], config: TrainConfig) -> str:
    end = "" if config.max_steps is None else f"/{config.max_steps}"
    shown = "  ".join(f"{k} {v:.4g}" for k, v in event.items() if k != "elapsed_s" and isinstance(v, float))
    return f"step {event['step']}{end}  {shown}  {event['elapsed_s'] / 60:.1f} min"

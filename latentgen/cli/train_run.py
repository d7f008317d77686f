"""What the training commands share once they compute: the process they run in, the loop, and the last words."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from latentgen.cli.console import Console, Progress
from latentgen.cli.train_progress import TrainingWatch
from latentgen.config import TrainConfig
from latentgen.errors import InputError, LatentgenError

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

    from latentgen.cli.train_options import RunOptions
    from latentgen.training.loop import Objective, Outcome


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run that reached its end leaves."""

    outcome: Outcome
    weights: dict[str, Tensor]
    """To be exported: the averaged ones where there are such."""


def start_process(config: TrainConfig, options: RunOptions) -> PartialState:
    """This process among those that train together, and its device.

    Raises InputError for a precision that the device has not, for an --out that is a file, and as `RunDir.check_start`
    does.
    """
    import torch

    from latentgen.kernels.memory import keep_freed_memory
    from latentgen.training.loop import check_precision
    from latentgen.training.processes import device_of, join_processes
    from latentgen.training.run_dir import RunDir

    keep_freed_memory()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    process = join_processes()
    check_precision(config, device_of(process))
    if process.is_main_process:
        if options.out.exists() and not options.out.is_dir():
            raise InputError(f"cannot write to {options.out}: it is a file", hint="choose another --out")
        RunDir(options.out).check_start(options.resume)
    if config.max_steps is not None and 2 * config.warmup_steps > config.max_steps:
        say_in(process, options)(
            f"the learning rate rises for {min(config.warmup_steps, config.max_steps)} of {config.max_steps} steps "
            "(a smaller --warmup trains more)"
        )
    return process


def say_in(process: PartialState, options: RunOptions) -> Callable[[str], None]:
    """Notes to stderr from the first process alone."""
    return _console(options, quiet=not process.is_main_process).note


def run_training(
    objective: Objective, config: TrainConfig, options: RunOptions, on_start: Callable[[], None]
) -> Trained | None:
    """Run the loop to its end; None in the processes that write nothing.

    on_start: called in the first process when the run's settings are accepted.

    While it runs, the first process shows its progress and keeps OUT/report.html up to date; however it ends, the
    report says how. A run that a signal ended has saved a checkpoint and nothing else: the process ends here, with the
    signal's code.
    """
    from latentgen.training.loop import fit
    from latentgen.training.processes import join_processes
    from latentgen.training.run_dir import RunDir

    console, run, process = _console(options), RunDir(options.out), join_processes()
    # The other processes are told nothing, and draw no bar.
    shown = console if process.is_main_process else Console(quiet=True)
    with shown.progress(with_figures=True) as bar, _watchers(shown, config, options, bar) as report:

        def tell(event: Mapping[str, Any]) -> None:
            if event.get("start"):
                on_start()
            report(event)

        outcome = fit(objective, config, run, resume=options.resume, override=options.override or (), report=tell)
        if outcome.interrupted_by is not None and outcome.is_main_process:
            run.log({"interrupted": True, "step": outcome.step, "signal": outcome.interrupted_by})
    process.destroy_process_group()
    if outcome.interrupted_by is not None:
        if outcome.is_main_process:
            console.event("interrupted", step=outcome.step, signal=outcome.interrupted_by)
            newest = run.checkpoint_folders()[-1].name == f"step_{outcome.step:08d}"
            again = f"the same command with --resume {'latest' if newest else outcome.step} goes on from it"
            console.note(f"saved step {outcome.step}; {again}, or with --max-minutes 0 as well writes its model")
        raise SystemExit(128 + outcome.interrupted_by)
    if not outcome.is_main_process:
        return None
    checkpoint = run.at(outcome.step)
    # A checkpoint of before --no-ema holds averages still.
    return Trained(outcome, (checkpoint.ema if config.ema_decay is not None else {}) or checkpoint.model)


def finish(options: RunOptions, outcome: Outcome, figures: Mapping[str, Any]) -> None:
    """Log the figures of the trained part, and print where it is."""
    from latentgen.training.report import RunReport
    from latentgen.training.run_dir import RunDir

    end = {"step": outcome.step, "images_seen": outcome.images_seen, **figures}
    RunDir(options.out).log({"end": True, **end})
    RunReport(options.out).write()
    shown = "".join(f", {name} {value}" for name, value in figures.items())
    console = _console(options)
    console.note(f"{outcome.step} steps, {outcome.images_seen} samples{shown}")
    if console.json_events:
        console.event("done", path=str(options.out / "model"), **end)
    else:
        console.result(options.out / "model")


def _console(options: RunOptions, *, quiet: bool = False) -> Console:
    return Console(quiet=quiet or options.quiet, json_events=options.json_events, progress_bar=not options.no_progress)


@contextmanager
def _watchers(
    console: Console, config: TrainConfig, options: RunOptions, bar: Progress
) -> Generator[Callable[[Mapping[str, Any]], None]]:
    """A function that hands each event to all who show the run; they are told of its end however it comes.

    Used in the first process alone: `fit` calls it nowhere else, so nothing is written where it is not called.
    """
    from latentgen.training.report import RunReport
    from latentgen.training.trackers import TensorBoard

    report = RunReport(options.out)
    board = TensorBoard(options.out / "tensorboard", options.out / "samples") if options.log == "tensorboard" else None
    watchers = [TrainingWatch(console, config, bar), report, *([board] if board is not None else [])]

    def tell(event: Mapping[str, Any]) -> None:
        for watcher in watchers:
            watcher(event)

    try:
        yield tell
    except LatentgenError as error:
        report.failed(error.message)
        raise
    finally:
        if board is not None:
            board.close()
        report.close()

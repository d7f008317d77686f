"""What the training commands share: their options, and the settings made from them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from latentgen.config import TrainConfig
from latentgen.errors import InputError

RUN = "The run"
OPTIMIZER = "Optimizer"
FILES = "Log and checkpoints"

Data = Annotated[
    Path,
    typer.Option("--data", "--train-data-dir", help="Folder of tar shards, or of pictures with a .txt beside each."),
]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="Run folder: log, checkpoints, sample pictures, the trained part.")
]
Init = Annotated[Path | None, typer.Option("--init", help="Start from this model folder's weights.")]
Resolution = Annotated[int, typer.Option("--resolution", min=16, help="Side of the training pictures, in pixels.")]

Resume = Annotated[
    str | None,
    typer.Option("--resume", rich_help_panel=RUN, help="latest: continue the run in --out; auto: if there is one."),
]
Seed = Annotated[
    int,
    typer.Option("--seed", "-s", min=0, max=2**32 - 1, rich_help_panel=RUN, help="Fixes every random draw of the run."),
]
BatchSize = Annotated[
    int,
    typer.Option("--batch-size", "--train-batch-size", min=1, rich_help_panel=RUN, help="Samples a forward pass."),
]
GradAccum = Annotated[
    int,
    typer.Option(
        "--grad-accum",
        "--gradient-accumulation-steps",
        min=1,
        rich_help_panel=RUN,
        help="Forward passes an optimizer step.",
    ),
]
MaxSteps = Annotated[
    int | None,
    typer.Option("--max-steps", "--max-train-steps", min=1, rich_help_panel=RUN, help="Optimizer steps in all."),
]
MaxMinutes = Annotated[
    float | None, typer.Option("--max-minutes", min=0, rich_help_panel=RUN, help="Save and end after this time.")
]
Precision = Annotated[str, typer.Option("--mixed-precision", rich_help_panel=RUN, help="no, bf16 or fp16.")]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, rich_help_panel=RUN, help="CPU threads (default: all cores).")
]
DryRun = Annotated[bool, typer.Option("--dry-run", rich_help_panel=RUN, help="Print the resolved settings and stop.")]

LearningRate = Annotated[
    float, typer.Option("--lr", "--learning-rate", rich_help_panel=OPTIMIZER, help="Peak learning rate (AdamW).")
]
MuonLR = Annotated[
    float | None,
    typer.Option("--muon-lr", rich_help_panel=OPTIMIZER, help="Muon's rate on matrices; leave out for AdamW on all."),
]
Scheduler = Annotated[
    str, typer.Option("--lr-scheduler", rich_help_panel=OPTIMIZER, help="constant, or cosine to 0 over --max-steps.")
]
Warmup = Annotated[
    int,
    typer.Option("--warmup", "--lr-warmup-steps", min=0, rich_help_panel=OPTIMIZER, help="Steps of linear warm-up."),
]
WeightDecay = Annotated[
    float, typer.Option("--weight-decay", min=0, rich_help_panel=OPTIMIZER, help="On matrices and kernels only.")
]
Ema = Annotated[
    bool, typer.Option("--ema/--no-ema", rich_help_panel=OPTIMIZER, help="Keep averaged weights, and export them.")
]
EmaDecay = Annotated[
    float, typer.Option("--ema-decay", rich_help_panel=OPTIMIZER, help="Decay of the averaged weights.")
]

SaveEvery = Annotated[
    int,
    typer.Option(
        "--save-every", "--checkpointing-steps", min=1, rich_help_panel=FILES, help="Steps between checkpoints."
    ),
]
Keep = Annotated[
    int, typer.Option("--keep", "--checkpoints-total-limit", min=1, rich_help_panel=FILES, help="Checkpoints kept.")
]
SampleEvery = Annotated[
    int,
    typer.Option(
        "--sample-every", min=0, rich_help_panel=FILES, help="Steps between sample sheets; 0: only at the end."
    ),
]
LogEvery = Annotated[int, typer.Option("--log-every", min=1, rich_help_panel=FILES, help="Steps between log lines.")]


def train_config(
    *,
    resume: str | None,
    lr: float,
    batch_size: int,
    seed: int,
    grad_accum: int,
    max_steps: int | None,
    max_minutes: float | None,
    muon_lr: float | None,
    lr_scheduler: str,
    warmup: int,
    weight_decay: float,
    ema: bool,
    ema_decay: float,
    mixed_precision: str,
    save_every: int,
    keep: int,
    sample_every: int,
    log_every: int,
) -> TrainConfig:
    """The settings of a run. Raises InputError naming the option that is not one of its choices or out of range."""
    if resume is not None:
        one_of("--resume", resume, ("latest", "auto"))
    return TrainConfig(
        lr=lr,
        batch_size=batch_size,
        seed=seed,
        grad_accum=grad_accum,
        max_steps=max_steps,
        max_minutes=max_minutes,
        muon_lr=muon_lr,
        lr_scheduler=one_of("--lr-scheduler", lr_scheduler, ("constant", "cosine")),
        warmup_steps=warmup,
        weight_decay=weight_decay,
        ema_decay=ema_decay if ema else None,
        mixed_precision=one_of("--mixed-precision", mixed_precision, ("no", "bf16", "fp16")),
        save_every_steps=save_every,
        keep=keep,
        sample_every_steps=sample_every,
        log_every_steps=log_every,
    )


def one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    """The value, if it is one of the choices. Raises InputError naming them."""
    if value not in choices:
        raise InputError(f"{option} {value} is not one of {', '.join(choices)}")
    return value


def print_settings(config: TrainConfig, more: Mapping[str, Any]) -> None:
    """What --dry-run shows: the settings as JSON, as the run's config.json would hold them."""
    import json
    from dataclasses import asdict, is_dataclass

    shown = {key: asdict(cast("Any", value)) if is_dataclass(value) else value for key, value in more.items()}
    print(json.dumps({**asdict(config), **shown}, indent=2, default=str))

"""What the training commands share: their options, and the settings made from them."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass, fields
from functools import wraps
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

import typer

from latentgen.cli.model_names import named_folder
from latentgen.cli.option_file import read_option_file
from latentgen.cli.options import Json, NoProgress, Quiet
from latentgen.cli.train_guard import guarded
from latentgen.config import TrainConfig
from latentgen.errors import InputError, OutOfMemoryError, is_out_of_memory

WHAT, RUN = "What is trained", "The run"
DATA = "Data and run folder"
OPTIMIZER = "Optimizer"
FILES = "Log and checkpoints"

LAUNCHED_PRECISION = "ACCELERATE_MIXED_PRECISION"
"""What `accelerate launch` tells its processes."""

Data = Annotated[
    Path,
    typer.Option(
        "--data",
        "--train-data-dir",
        rich_help_panel=DATA,
        help="Folder of tar shards, or of pictures with a .txt beside each.",
    ),
]
Out = Annotated[
    Path,
    typer.Option(
        "--out",
        "-o",
        rich_help_panel=DATA,
        help="Run folder: log, report.html, checkpoints, sample pictures, the trained part.",
    ),
]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", rich_help_panel=DATA, help="Train without the pictures that `data check` finds fault with."
    ),
]
AspectBuckets = Annotated[
    bool,
    typer.Option(
        "--aspect-buckets",
        rich_help_panel=DATA,
        help="Keep each picture's shape, about --resolution squared in area.",
    ),
]
Init = Annotated[
    Path | None,
    typer.Option("--init", callback=named_folder, help="Start from this model's weights: a folder or a name."),
]
Resolution = Annotated[int, typer.Option("--resolution", min=16, help="Side of the training pictures, in pixels.")]

Resume = Annotated[
    str | None,
    typer.Option(
        "--resume",
        rich_help_panel=RUN,
        metavar="latest|auto|STEP",
        help="latest: continue the run in --out; auto: if there is one; a step: from that checkpoint, if it was kept; "
        "training on from there removes the later ones.",
    ),
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
    float | None,
    typer.Option("--max-minutes", min=0, rich_help_panel=RUN, help="Save and end after so long of training."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--mixed-precision",
        rich_help_panel=RUN,
        help="no, bf16 or fp16 (default: as `accelerate launch` says, else no).",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, rich_help_panel=RUN, help="CPU threads (default: all cores).")
]
Override = Annotated[
    list[str] | None,
    typer.Option("--override", rich_help_panel=RUN, help="On resume: a setting of config.json that may differ now."),
]
Compile = Annotated[
    bool, typer.Option("--compile/--no-compile", rich_help_panel=RUN, help="torch.compile the network.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", rich_help_panel=RUN, help="Print the resolved settings and stop.")]

LearningRate = Annotated[
    float, typer.Option("--lr", "--learning-rate", rich_help_panel=OPTIMIZER, help="Peak learning rate (AdamW).")
]
MuonLR = Annotated[
    float | None,
    typer.Option(
        "--muon-lr",
        rich_help_panel=OPTIMIZER,
        help="Muon's rate on matrices. Without it AdamW takes all; train-vae from scratch: 0.02.",
    ),
]
Scheduler = Annotated[
    str,
    typer.Option("--lr-scheduler", rich_help_panel=OPTIMIZER, help="constant; or linear, cosine: to 0 at --max-steps."),
]
Warmup = Annotated[
    int,
    typer.Option("--warmup", "--lr-warmup-steps", min=0, rich_help_panel=OPTIMIZER, help="Steps of linear warm-up."),
]
WeightDecay = Annotated[
    float, typer.Option("--weight-decay", min=0, rich_help_panel=OPTIMIZER, help="On matrices and kernels only.")
]
MaxGradNorm = Annotated[
    float, typer.Option("--max-grad-norm", rich_help_panel=OPTIMIZER, help="Gradients are clipped to this norm.")
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
ValidateEvery = Annotated[
    int,
    typer.Option(
        "--validate-every", min=0, rich_help_panel=FILES, help="Steps between validations; 0: only at the end."
    ),
]

Log = Annotated[
    str,
    typer.Option(
        "--log",
        "--report-to",
        rich_help_panel=FILES,
        help="jsonl: OUT/log.jsonl alone; tensorboard: OUT/tensorboard too.",
    ),
]
Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        rich_help_panel=RUN,
        help="TOML: options and their values (`batch-size = 8`); the command line goes first.",
    ),
]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What every training command is asked: its data and its folder, how long, how fast, what is kept.

    `run_command` spreads these fields into the command's own options.
    """

    data: Data
    out: Out
    skip_bad: SkipBad
    aspect_buckets: AspectBuckets
    resume: Resume
    override: Override
    seed: Seed
    batch_size: BatchSize
    grad_accum: GradAccum
    max_steps: MaxSteps
    max_minutes: MaxMinutes
    mixed_precision: Precision
    compile: Compile
    threads: Threads
    dry_run: DryRun
    lr: LearningRate
    muon_lr: MuonLR
    lr_scheduler: Scheduler
    warmup: Warmup
    weight_decay: WeightDecay
    max_grad_norm: MaxGradNorm
    ema: Ema
    ema_decay: EmaDecay
    save_every: SaveEvery
    keep: Keep
    sample_every: SampleEvery
    validate_every: ValidateEvery
    log_every: LogEvery
    log: Log
    quiet: Quiet
    json_events: Json
    no_progress: NoProgress

    def train_config(self) -> TrainConfig:
        """The settings of a run. Raises InputError naming the option that is not one of its choices or out of range."""
        if self.out.resolve().is_relative_to(self.data.resolve()):
            hint = "its sample pictures would be taken for data; choose another --out"
            raise InputError(f"--out {self.out} is in the data folder", hint=hint)
        if self.resume is not None and not re.fullmatch(r"latest|auto|[0-9]{1,12}", self.resume):
            raise InputError(f"--resume {self.resume} is not latest, auto, or the step of a checkpoint")
        if one_of("--log", self.log, ("jsonl", "tensorboard")) == "tensorboard" and find_spec("tensorboard") is None:
            raise InputError("--log tensorboard needs tensorboard", hint="pip install 'latentgen[log]'")
        return TrainConfig(
            lr=self.lr,
            batch_size=self.batch_size,
            seed=self.seed,
            grad_accum=self.grad_accum,
            max_steps=self.max_steps,
            max_minutes=self.max_minutes,
            muon_lr=self.muon_lr,
            lr_scheduler=one_of("--lr-scheduler", self.lr_scheduler, ("constant", "linear", "cosine")),
            warmup_steps=self.warmup,
            weight_decay=self.weight_decay,
            max_grad_norm=self.max_grad_norm,
            ema_decay=self.ema_decay if self.ema else None,
            mixed_precision=self._precision(),
            compile=self.compile,
            save_every_steps=self.save_every,
            keep=self.keep,
            sample_every_steps=self.sample_every,
            validate_every_steps=self.validate_every,
            log_every_steps=self.log_every,
        )

    def _precision(self) -> Literal["no", "bf16", "fp16"]:
        """What is given, else what `accelerate launch` was configured with."""
        choices = ("no", "bf16", "fp16")
        if self.mixed_precision is None and LAUNCHED_PRECISION in os.environ:
            return one_of(LAUNCHED_PRECISION, os.environ[LAUNCHED_PRECISION], choices)
        return one_of("--mixed-precision", self.mixed_precision or "no", choices)


DEFAULTS: Mapping[str, Any] = {
    "skip_bad": False, "aspect_buckets": False, "resume": None,
    "override": None, "seed": 0, "grad_accum": 1, "max_steps": None, "max_minutes": None,
    "mixed_precision": None, "compile": False, "threads": None, "dry_run": False, "muon_lr": None,
    "lr_scheduler": "constant", "warmup": 200, "weight_decay": 0.01, "max_grad_norm": 1.0, "ema": True,
    "ema_decay": 0.999, "save_every": 500, "keep": 2, "sample_every": 0, "validate_every": 0, "log_every": 50,
    "log": "jsonl", "quiet": False, "json_events": False, "no_progress": False,
}  # fmt: skip
"""Of the options that have one; a command may say otherwise."""


def run_command(
    *, init_lr: float | None = None, **defaults: Any
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A training command `f(run: RunOptions, *, ...)` as Typer is to see it: with all options side by side.

    Options without a panel of their own stand under "What is trained". `--config` fills in what the command line leaves
    out.
    init_lr: the learning rate with --init: one for fresh weights would undo what trained ones know.
    defaults: this command's own, before those of `DEFAULTS`.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        names = [field.name for field in fields(RunOptions)]
        kinds = get_type_hints(RunOptions, include_extras=True)
        values = {**DEFAULTS, **defaults}
        lr = values["lr"]
        if init_lr is not None:
            values["lr"] = None
            (option,) = kinds["lr"].__metadata__
            said = f"Peak learning rate of AdamW (default: {lr:g}; with --init {init_lr:g})."
            kinds["lr"] = _with(Annotated[float | None, option], help=said)
        own = [
            parameter.replace(annotation=_in_panel(parameter.annotation))
            for name, parameter in inspect.signature(command, eval_str=True).parameters.items()
            if name != "run"
        ]
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=values.get(name, inspect.Parameter.empty),
                annotation=kinds[name],
            )
            for name in names
        ]
        options = {parameter.name: parameter.annotation for parameter in (*shared, *own)}

        def fill_in(context: typer.Context, file: Path | None) -> None:
            """Called before any other option is looked at; what is in the default map counts as given."""
            if file is not None:
                context.default_map = read_option_file(file, options)

        config = inspect.Parameter(
            "config",
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=_with(Config, is_eager=True, callback=fill_in),
        )

        @wraps(command)
        def spread(*, config: Path | None, **given: Any) -> None:
            if given["lr"] is None:
                given["lr"] = lr if given.get("init") is None else init_lr
            run = RunOptions(**{name: given.pop(name) for name in names})
            guarded(None if run.dry_run else run.out, lambda: _with_enough_memory(command, run, given))

        parameters = [*shared[:2], *own, *shared[2:4], config, *shared[4:]]
        signature = inspect.Signature([p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters])
        spread.__signature__ = signature  # pyright: ignore[reportAttributeAccessIssue]  inspect reads it, Typer too
        spread.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
        return spread

    return decorate


def _with_enough_memory(command: Callable[..., None], run: RunOptions, given: Mapping[str, Any]) -> None:
    """Run a training command; what it says of too little memory names the options that training has."""
    try:
        command(run, **given)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        ways = ["a smaller --batch-size with --grad-accum", "a smaller --resolution", "--mixed-precision bf16"]
        ways += ["--gradient-checkpointing"] if given.get("gradient_checkpointing") is False else []
        hint = f"{', '.join(ways[:-1])} or {ways[-1]} needs less"
        raise OutOfMemoryError("not enough memory", hint=hint) from error


def _in_panel(annotation: Any) -> Any:
    """An option's annotation, in the panel of what is trained if it names none."""
    (option,) = annotation.__metadata__
    return annotation if option.rich_help_panel else _with(annotation, rich_help_panel=WHAT)


def _with(annotation: Any, **changes: Any) -> Any:
    """An option's annotation with some of what `typer.Option` says changed."""
    (option,) = annotation.__metadata__
    option = copy(option)
    for name, value in changes.items():
        setattr(option, name, value)
    return Annotated[annotation.__origin__, option]


def one_of(option: str, value: str, choices: tuple[str, ...]) -> Any:
    """The value, if it is one of the choices. Raises InputError naming them."""
    if value not in choices:
        raise InputError(f"{option} {value} is not one of {', '.join(choices)}")
    return value


def print_settings(config: TrainConfig, run: RunOptions, more: Mapping[str, Any]) -> None:
    """What --dry-run shows: the settings as JSON, as the run's config.json would hold them."""
    import json
    from dataclasses import asdict, is_dataclass

    shown = {key: asdict(cast("Any", value)) if is_dataclass(value) else value for key, value in more.items()}
    print(json.dumps({**asdict(config), "data": run.data, "out": run.out, **shown}, indent=2, default=str))

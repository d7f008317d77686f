"""Options that several commands share, each written once: names, aliases, help, and how a text becomes a value."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, NamedTuple

import typer

from latentgen.errors import InputError
from latentgen.images.metadata import MAX_BATCH_SIZE, MAX_THREADS
from latentgen.request import MAX_LONG_SEED

DRAWING, MODEL, FILES = "What to draw", "Model", "Files"
SEEING, COMPUTER, WORDS = "Seeing it come about", "Computer", "Messages"
"""Panels of the help page."""

RANDOM_SEED = -1
MAX_PROCESSES = 256


def parse_seed(text: str) -> int:
    """ASCII digits only: Python's int() also reads other scripts' digits and underscores."""
    if not re.fullmatch(r"-1|[0-9]{1,20}", text):
        raise InputError(
            f"--seed {text} is not a seed", hint=f"a whole number from 0 to {MAX_LONG_SEED}, or -1 for random"
        )
    return int(text)


def parse_size(text: str) -> tuple[int, int]:
    """`512x768` to (width, height)."""
    match = re.fullmatch(r"([0-9]{1,9})[xX×]([0-9]{1,9})", text.strip())
    if match is None:
        raise InputError(f"--size {text} is not a size", hint="for instance 512x768, width before height")
    return int(match[1]), int(match[2])


class Interval(NamedTuple):
    """Not a plain tuple, which typer would read from two arguments."""

    start: float
    end: float


def parse_interval(text: str) -> Interval:
    """`0.1,0.8` to two numbers; whether they make sense is the request's business."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?|\.[0-9]+),([0-9]+(?:\.[0-9]+)?|\.[0-9]+)", text.replace(" ", ""))
    if match is None:
        raise InputError(f"--guidance-interval {text} is not two numbers", hint="for instance 0.1,0.8")
    return Interval(float(match[1]), float(match[2]))


def parse_device(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|mps|cuda(:[0-9]{1,3})?", text):
        raise InputError(f"--device {text} is not known", hint="auto, cpu, cuda, cuda:N or mps")
    return text


def parse_dtype(text: str) -> str:
    short = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}.get(text, text)
    if short not in ("auto", "float32", "bfloat16", "float16"):
        raise InputError(f"--dtype {text} is not known", hint="auto, float32, bfloat16 or float16")
    return short


def parse_threads(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_THREADS:
        raise InputError(f"--threads {text} is out of range", hint=f"1 to {MAX_THREADS}")
    return int(text)


def parse_processes(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_PROCESSES:
        raise InputError(f"--processes {text} is out of range", hint=f"1 to {MAX_PROCESSES}")
    return int(text)


def parse_batch_size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_BATCH_SIZE:
        raise InputError(f"--batch-size {text} is out of range", hint=f"1 to {MAX_BATCH_SIZE}")
    return int(text)


Model = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="MODEL",
        rich_help_panel=MODEL,
        help="A model folder, a .safetensors file, or a name of `models list`, such as OWNER/NAME of a pulled one.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="PATH",
        rich_help_panel=FILES,
        help="A file, a folder, or a file name with {date}, {n}, {seed}, {prompt_slug}."
        " -: standard output. Default: outputs/{date}-{n:05}-{seed}.png",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", rich_help_panel=FILES, help="Replace files that exist.")]
Format = Annotated[
    str | None,
    typer.Option(
        "--format", metavar="png|jpg|webp", rich_help_panel=FILES, help="Default: what --output ends with, or png."
    ),
]
NoMetadata = Annotated[
    bool, typer.Option("--no-metadata", rich_help_panel=FILES, help="Pixels only: no prompt or settings in the file.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device", parser=parse_device, metavar="NAME", rich_help_panel=COMPUTER, help="cpu, cuda, cuda:N or mps."
    ),
]
Dtype = Annotated[
    str,
    typer.Option(
        "--dtype", parser=parse_dtype, metavar="NAME", rich_help_panel=COMPUTER, help="float32, bfloat16 or float16."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(
        "--batch-size",
        parser=parse_batch_size,
        metavar="N",
        rich_help_panel=COMPUTER,
        help="Pictures that a GPU computes together; the last bit may differ. Default: 4. A CPU draws one by one.",
    ),
]
Fast = Annotated[
    bool,
    typer.Option(
        "--fast/--no-fast",
        rich_help_panel=COMPUTER,
        help="On a CPU that has bfloat16: compute in it, with weights laid out for the CPU and compiled kernels.",
    ),
]
LowMemory = Annotated[
    bool,
    typer.Option(
        "--low-memory",
        rich_help_panel=COMPUTER,
        help="Keep one network in memory at a time, read when it is needed: less memory, a little slower.",
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", parser=parse_threads, metavar="N", rich_help_panel=COMPUTER, help="CPU threads."),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", rich_help_panel=WORDS, help="Say nothing but results and warnings.")
]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", rich_help_panel=WORDS, help="Say more: times, whole errors.")]
Json = Annotated[
    bool, typer.Option("--json", rich_help_panel=WORDS, help="Results as JSON on stdout, one event a line.")
]
NoProgress = Annotated[bool, typer.Option("--no-progress", rich_help_panel=WORDS, help="No progress bar.")]

PicturePath = Annotated[
    Path, typer.Argument(metavar="PICTURE", help="A PNG, JPEG or WebP with settings in it, ours or others'.")
]

"""The real command line, interrupted at a moment."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from latentgen.training.run_dir import RunDir

ROOT = Path(__file__).parents[2]
TINY = ("--resolution", "16", "--crop", "16", "--channels", "8,8,8", "--latent-channels", "2", "--batch-size", "2")
LONG = (*TINY, "--grad-accum", "500")
"""A step of these takes seconds."""


@dataclass(frozen=True, slots=True)
class Interrupted:
    code: int
    seconds: float
    """From the last signal to the end."""
    step: int | None
    """Of the last checkpoint."""
    stderr: str


def start(folder: Path, sizes: tuple[str, ...], *more: str) -> subprocess.Popen[str]:
    """train-vae without an end, in `folder`, on its pictures in `folder`/data."""
    command = ("train-vae", "--data", "data", "--out", "run", "--perceptual", "none", "--max-steps", "1000000")
    return subprocess.Popen(
        [sys.executable, "-m", "latentgen", *command, *sizes, "--log-every", "1", "--no-progress", *more],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(
    folder: Path,
    number: signal.Signals,
    *,
    sizes: tuple[str, ...] = TINY,
    after_log: str | None = '"step": 3',
    after_s: float = 0.0,
    again_after_s: float | None = None,
) -> Interrupted:
    """Signal a run `after_s` after its log holds `after_log` (None: after its start); and again after another while."""
    process = start(folder, sizes)
    log = folder / "run" / "log.jsonl"
    try:
        while after_log is not None and not (log.exists() and after_log in log.read_text()):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
        time.sleep(after_s)
        process.send_signal(number)
        sent = time.monotonic()
        if again_after_s is not None:
            time.sleep(again_after_s)
            process.send_signal(number)
            sent = time.monotonic()
        _, stderr = process.communicate(timeout=60)
        seconds = time.monotonic() - sent
    finally:
        process.kill()
    latest = RunDir(folder / "run").latest()
    return Interrupted(process.returncode, seconds, latest.step if latest is not None else None, stderr)

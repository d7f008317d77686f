"""What the processes of `test_ranks.py` do: runs of `generate` by one process and by two; they leave folders.

python -m tests.cli.ranks FOLDER
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from latentgen.cli.app import main
from latentgen.cli.ranks import Leader
from latentgen.pipeline import text_to_image
from tests.tiny_bundle import save_tiny_model
from tests.training.ranks import End, fork_ranks, wait_for

PROMPTS = ("a cat", "a dog", "a fox", "a hen", "a boat")
SPOILED_SEED = 7


class Spoiled(text_to_image.NoiseSource):
    """Noise of which one seed's picture cannot be made."""

    def __init__(self, seeds: list[int], rng: str) -> None:
        super().__init__(seeds, rng)
        self.is_spoiled = SPOILED_SEED in seeds

    def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        return super().draw(shape) * (float("nan") if self.is_spoiled else 1.0)


def run(name: str, *arguments: str, processes: int = 2, spoils: bool = False) -> list[End]:
    """One run of `generate` by some processes; their standard output and exit codes go to files."""
    logs = Path(f"{name}-logs")

    def work(rank: int) -> int:
        os.dup2(os.open(logs / f"stdout-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
        with patch.object(text_to_image, "NoiseSource", Spoiled if spoils else text_to_image.NoiseSource):
            code = main(["generate", "-m", "model", *arguments])
        (logs / f"code-{rank}").write_text(str(code))
        return code

    # One that has no share leaves at once; the other still draws.
    return wait_for(fork_ranks(work, logs, processes=processes), logs, patience_s=100)


def run_led(name: str, *arguments: str, others: list[str]) -> None:
    """One run of `generate --processes 2`, whose second process is this command."""

    def start(leader: Leader, index: int, port: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(others)

    with patch.object(Leader, "_start", start):
        run(name, "--processes", "2", *arguments, processes=1)


def work_in(folder: Path) -> None:
    os.chdir(folder)
    save_tiny_model(Path("model"))
    Path("p.txt").write_text("\n".join(PROMPTS))
    for name, processes in (("one", 1), ("two", 2)):
        run(name, "--prompts", "p.txt", "-s", "5", "--grid", "--json", "-o", f"{name}/", processes=processes)
        run(f"{name}-again", "a cow", "a pig", "-s", "5", "-o", f"{name}/", processes=processes)
        sweep = ("a cat", "--sweep", "guidance=2,3,4", "-s", "5", "-o", f"{name}-sweep/")
        run(f"{name}-sweep", *sweep, processes=processes)
        run(f"{name}-sweep-again", *sweep, processes=processes)
        manifest = Path(f"{name}-sweep/manifest.jsonl")
        shutil.copytree(f"{name}-sweep", f"{name}-other")
        lines = [json.loads(line) for line in manifest.read_text().splitlines()]
        # Two of three are another model's, which is known only once this one is loaded.
        told = [{**line, "fingerprint": "0" * 10} if k else line for k, line in enumerate(lines[::-1])][:2]
        Path(f"{name}-other/manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
        other = (*sweep[:-1], f"{name}-other/", "--overwrite")
        run(f"{name}-other", *other, processes=processes)
        spoiled = ("a cat", "-s", "5", "-n", "4", "-o", f"{name}-spoiled/")
        run(f"{name}-spoiled", *spoiled, processes=processes, spoils=True)
    run("random", "--prompts", "p.txt", "-o", "random/")
    run("single", "a cat", "-s", "5", "-o", "single.png")
    run("dry", "--prompts", "p.txt", "-s", "5", "-o", "dry/", "--dry-run")
    run_led("killed", "a cat", "a dog", "-s", "5", "-o", "killed/", others=["sh", "-c", "kill -9 $$"])
    run_led("failed", "a cat", "a dog", "-s", "5", "-o", "failed/", others=["sh", "-c", "exit 4"])
    run_led("missing", "a cat", "a dog", "-s", "5", "-o", "missing/", others=["true"])


if __name__ == "__main__":
    work_in(Path(sys.argv[1]))

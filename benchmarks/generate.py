"""Time the demo command as a stranger runs it: cold processes, and how one picture's time splits.

    python benchmarks/generate.py [--runs 5]

Prints a table. Whole-process figures are the operating system's own (wall, CPU and peak memory of a child process);
the split is measured inside one process.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPT = "a lighthouse at sunset"
COMMANDS = {
    "latentgen --help": ["--help"],
    "latentgen generate (bad argument)": ["generate", PROMPT, "--steps", "0"],
    "latentgen generate (demo)": ["generate", PROMPT, "--seed", "42", "--guidance", "7.5", "-o", "{out}/demo.png"],
}

SPLIT = """
import json, time
start = time.perf_counter()
import torch
torch_s = time.perf_counter() - start
from latentgen import GenerationRequest, TextToImage, embedded_model_path
imported_s = time.perf_counter() - start - torch_s
model = TextToImage.load()
loaded_s = time.perf_counter() - start - torch_s - imported_s
result = next(iter(model.draw({prompt!r}, seed=42, guidance=7.5)))
t = result.timings
print(json.dumps({{"import torch": torch_s, "import latentgen": imported_s, "load": loaded_s, "text": t.text_s,
                  "denoise": t.denoise_s, "decode": t.decode_s}}))
"""


def measure(arguments: list[str]) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak MiB of one cold process."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "latentgen", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, _, usage = os.wait4(process.pid, 0)
    return time.perf_counter() - started, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    print(f"{'command':36} {'wall s':>8} {'CPU s':>8} {'peak MiB':>9}   (medians of {runs} cold processes)")
    for title, arguments in COMMANDS.items():
        rows: list[tuple[float, float, float]] = []
        for _ in range(runs):
            with tempfile.TemporaryDirectory() as out:
                rows.append(measure([a.format(out=out) for a in arguments]))
        wall, cpu, peak = (statistics.median(column) for column in zip(*rows, strict=True))
        print(f"{title:36} {wall:8.2f} {cpu:8.2f} {peak:9.0f}")
    split: dict[str, list[float]] = {}
    for _ in range(runs):
        script = SPLIT.format(prompt=PROMPT)
        answer = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path.home()
        )
        for part, seconds in json.loads(answer.stdout).items():
            split.setdefault(part, []).append(seconds)
    print("\none picture, seconds: " + ", ".join(f"{part} {statistics.median(s):.2f}" for part, s in split.items()))


if __name__ == "__main__":
    main()

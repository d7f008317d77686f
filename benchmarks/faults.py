"""The trust table: what a training run survives, at full counts.

    python benchmarks/faults.py [--only kills,writes,...] [--kills 500] [--repeats 20]

Prints a line a row of the table, with counts, as each is done; half an hour on two cores. The tests in tests/faults and
tests/training hold the same rows at smaller counts.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("OMP_NUM_THREADS", "1")

from latentgen.training.run_dir import RunDir  # noqa: E402
from tests.faults import interrupts, saves  # noqa: E402
from tests.training import tiny_runs  # noqa: E402

STOPS = range(1, 13)
LAST = 7
STRACE = ("write", "fsync", "rename")


def kills(folder: Path, options: argparse.Namespace) -> None:
    for keep in (1, 2):
        outcomes = list(saves.kill_at_random(folder, options.kills // 2, keep=keep))
        lost = sum(found < saved for saved, found in outcomes)
        row(f"1 SIGKILL at random, keep {keep}", f"{len(outcomes)} kills, 0 unusable, {lost} lost a saved checkpoint")


def writes(folder: Path, options: argparse.Namespace) -> None:
    found = [saves.usable_step(run) for _, run in saves.stop_at_each_operation(folder, saves.die)]
    row("2 SIGKILL at each operation on files", f"{len(found)} places, {found.count(None)} unusable")
    sizes = range(0, 80_200, 256)
    found = [saves.usable_step(run) for _, run in saves.stop_at_each_size(folder, sizes, kill=True)]
    row("2 killed by the system within each write", f"{len(found)} places, {found.count(None)} unusable")
    for name, action in (("6 ENOSPC", saves.NO_SPACE), ("7 EIO", saves.IO_ERROR)):
        ends = [(code, saves.usable_step(run)) for code, run in saves.stop_at_each_operation(folder, action)]
        refused = sum(code == 7 for code, _ in ends)
        row(
            f"{name} at each operation",
            f"{len(ends)} places, {refused} refused, {sum(f is None for _, f in ends)} unusable",
        )
    ends = [(code, saves.usable_step(run)) for code, run in saves.stop_at_each_size(folder, sizes, kill=False)]
    wrong = sum(end != (7, 1) for end in ends)
    row("6 EFBIG at each size", f"{len(ends)} sizes, {wrong} without our error and the checkpoint before")


def tracer(folder: Path, options: argparse.Namespace) -> None:
    """The same with strace, which stops the process in the system call itself."""
    if shutil.which("strace") is None:
        return row("2 SIGKILL at each system call", "strace is not installed")
    save = (
        "import sys; from pathlib import Path; from latentgen.training.run_dir import RunDir; "
        "from tests.faults.saves import checkpoint; RunDir(Path(sys.argv[1])).save(checkpoint(2), keep=1)"
    )
    for call in STRACE:
        places = unusable = 0
        for n in range(1, 200):
            run = saves.fresh(folder)
            traced = ["strace", "-f", "-qq", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={n}"]
            done = subprocess.run(
                [*traced, sys.executable, "-c", save, str(folder)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                check=False,
            )
            if done.returncode == 0:
                break
            places += 1
            unusable += saves.usable_step(run) is None
        row(f"2 SIGKILL at each {call} (strace)", f"{places} places, {unusable} unusable")


def small_disk(folder: Path, options: argparse.Namespace) -> None:
    """A file system of one megabyte, filled; needs the right to mount."""
    folder.mkdir(parents=True, exist_ok=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=False).returncode:
        return row("6 a full disk", "no right to mount one")
    try:
        run, refused = RunDir(folder), 0
        run.save(saves.checkpoint(1), keep=1)
        for filler_kib in range(0, 1024, 32):
            (folder / "filler").write_bytes(b"")
            with contextlib.suppress(OSError):
                (folder / "filler").write_bytes(bytes(1024 * filler_kib))
            code = saves.exit_code(saves.in_child(lambda: run.save(saves.checkpoint(2, size=50_000), keep=2) and None))
            refused += code == 7
            assert saves.usable_step(run) is not None
            shutil.rmtree(folder / "step_00000002", ignore_errors=True)
            assert not list(folder.glob(".tmp-*"))
        row("6 a full disk (tmpfs of 1 MiB)", f"32 fillings, {refused} refused, 0 unusable, 0 leftovers")
    finally:
        subprocess.run(["umount", folder], check=False)


def stops(folder: Path, options: argparse.Namespace) -> None:
    data = tiny_runs.TinyData(folder / "data", 10)
    for name in ("vae", "clip", "unet"):
        tiny_runs.train(tiny_runs.build(data, name), folder / name / "whole", max_steps=LAST)
        expected = tiny_runs.state_hashes(folder / name / "whole", LAST)
        equal = 0
        for stop in STOPS:
            run = folder / name / str(stop)
            tiny_runs.train_until_killed(tiny_runs.build(data, name), run, stop, max_steps=LAST)
            tiny_runs.train(tiny_runs.build(data, name), run, max_steps=LAST, resume="latest")
            equal += tiny_runs.state_hashes(run, LAST) == expected
        row(f"16 resume, {name}, 1 process", f"{equal} of {len(STOPS)} stop points: equal SHA-256")
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.two", str(folder / "two"), ",".join(map(str, STOPS)), str(LAST)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    assert all(code == 0 for code, _ in json.loads(done.stdout.splitlines()[-1])), done.stdout
    expected = tiny_runs.state_hashes(folder / "two" / "exact" / "whole", LAST)
    runs = [folder / "two" / "exact" / f"stop-{stop}" for stop in STOPS]
    equal = sum(tiny_runs.state_hashes(run, LAST) == expected for run in runs)
    row("17 resume, unet, 2 processes", f"{equal} of {len(STOPS)} stop points: equal SHA-256")


def signals(folder: Path, options: argparse.Namespace) -> None:
    tiny_runs.write_pictures(folder / "pictures" / "data", 4)
    moments = random.Random(0)
    cases: list[tuple[str, signal.Signals, int, float, dict[str, object]]] = [
        ("4 SIGINT in the loop", signal.SIGINT, 130, 10, {}),
        ("5 SIGTERM in the loop", signal.SIGTERM, 143, 20, {}),
        (
            "4 SIGINT twice",
            signal.SIGINT,
            130,
            10,
            {"sizes": interrupts.LONG, "after_log": '"step": 1', "again_after_s": 0.2},
        ),
        ("4 SIGINT while loading", signal.SIGINT, 130, 10, {"after_log": None}),
        ("5 SIGTERM while loading", signal.SIGTERM, 143, 20, {"after_log": None}),
    ]
    for title, number, code, limit_s, how in cases:
        slowest, right, saved = 0.0, 0, 0
        for _ in range(options.repeats):
            shutil.rmtree(folder / "pictures" / "run", ignore_errors=True)
            wait_s = moments.uniform(0.4, 3.0) if how.get("after_log", "") is None else moments.uniform(0, 0.5)
            outcome = interrupts.interrupt(folder / "pictures", number, after_s=wait_s, **how)  # pyright: ignore
            slowest = max(slowest, outcome.seconds)
            right += outcome.code == code and outcome.seconds < limit_s and "Traceback" not in outcome.stderr
            saved += outcome.step is not None
        row(title, f"{right}/{options.repeats} end with {code}, at most {slowest:.1f} s; {saved} saved")


def ranks(folder: Path, options: argparse.Namespace) -> None:
    from tests.faults.test_processes import CASES

    titles = {
        **{
            "killed": "10 a process SIGKILLed",
            "first_killed": "10 the first process SIGKILLed",
            "raised": "11 exception",
        },
        **{"left": "12 early exit 0", "hung": "13 hangs (limit 3 s)", "patient": "13 works alone for 4 s (limit 3 s)"},
        **{"nan": "9 NaN in one process", "nan_everywhere": "8 NaN loss", "killed_launcher": "14 launcher SIGKILLed"},
    }
    repeats = max(1, options.repeats // 4)
    results: dict[str, list[dict[str, object]]] = {case: [] for case in CASES}
    for turn in range(repeats):
        done = subprocess.run(
            [sys.executable, "-m", "tests.faults.ranks", str(folder / str(turn)), *CASES],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            check=True,
        )
        for line in done.stdout.splitlines():
            found = json.loads(line)
            results[found["case"]].append(found)
    for case, rows in results.items():
        slowest = max(float(str(found["seconds"])) for found in rows)
        left = sum(-9 in list(found.get("codes", [])) and "killed" not in case for found in rows)  # pyright: ignore
        left += sum(int(str(found.get("orphans", 0))) for found in rows)
        said = {
            str([line[:40].split(" (")[0] for lines in list(found.get("errors", [])) for line in lines])
            for found in rows
        }  # pyright: ignore
        row(
            titles[case],
            f"{len(rows)} runs, all ended in at most {slowest:.1f} s, {left} orphans; {'; '.join(sorted(said))[:150]}",
        )


def second(folder: Path, options: argparse.Namespace) -> None:
    tiny_runs.write_pictures(folder / "data", 4)
    first = interrupts.start(folder, interrupts.TINY)
    log = folder / "run" / "log.jsonl"
    while not (log.exists() and '"step": 1' in log.read_text()):
        time.sleep(0.05)
    slowest, right = 0.0, 0
    for _ in range(options.repeats):
        began = time.monotonic()
        another = interrupts.start(folder, interrupts.TINY, "--resume", "auto")
        _, stderr = another.communicate(timeout=60)
        slowest = max(slowest, time.monotonic() - began)
        right += another.returncode == 2 and f"pid {first.pid}" in stderr
    first.kill()
    first.communicate()
    row(
        "21 a second run in the folder",
        f"{right}/{options.repeats} refused, naming the process, at most {slowest:.1f} s",
    )


ROWS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    **{"kills": kills, "writes": writes, "tracer": tracer, "small_disk": small_disk, "stops": stops},
    **{"signals": signals, "ranks": ranks, "second": second},
}


def row(title: str, outcome: str) -> None:
    print(f"{title:42} {outcome}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(ROWS), help="rows, with commas between")
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    # In memory where there is such a place: a kill falls into the work, not into the waiting for a disk.
    place = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for name in options.only.split(","):
        with tempfile.TemporaryDirectory(prefix="latentgen-faults-", dir=place) as folder:
            ROWS[name](Path(folder) / name, options)


if __name__ == "__main__":
    main()

"""Processes that train together, as torchrun would start them, but forked after everything is imported.

For programs of their own, in which nothing has been trained yet: `python -m tests...`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

PATIENCE_S = 30.0
"""After this a process that is still there when another has ended counts as an orphan, and is killed."""


@dataclass(frozen=True, slots=True)
class End:
    code: int
    at: float
    stderr: str


def fork_ranks(
    work: Callable[[int], int], folder: Path, *, processes: int = 2, environment: Mapping[str, str] | None = None
) -> list[int]:
    """Start `work(rank)` in each process, whose result is the exit code; stderr goes to files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children: list[int] = []
    for rank in range(processes):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                os.dup2(os.open(folder / f"stderr-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
                os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port)}
                os.environ |= {"WORLD_SIZE": str(processes), "LOCAL_WORLD_SIZE": str(processes)}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", **(environment or {})}
                code = work(rank)
            except BaseException:  # noqa: BLE001  a child must not return into the parent's program
                import traceback

                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(child)
    return children


def wait_for(children: list[int], folder: Path, *, patience_s: float = PATIENCE_S) -> list[End]:
    """How each process ended; code -9 for one that did not end so long after the first."""
    ends: dict[int, tuple[int, float]] = {}
    deadline: float | None = None
    while len(ends) < len(children):
        for child in children:
            if child not in ends:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    ends[child] = (os.waitstatus_to_exitcode(status), time.time())
                    deadline = deadline or time.time() + patience_s
        if deadline is not None and time.time() > deadline:
            for child in children:
                if child not in ends:
                    os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [End(*ends[child], (folder / f"stderr-{rank}").read_text()) for rank, child in enumerate(children)]


def is_running(pid: int) -> bool:
    """Whether there is such a process, dead ones that nobody has waited for left out."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


ROOT = Path(__file__).parents[2]


def torchrun(module: str, *arguments: str, processes: int = 2) -> None:
    """Run a module as torchrun runs it, in processes of their own; what they print shows when they fail."""
    launcher = ("--standalone", "--nproc_per_node", str(processes), "-m", module)
    run_module("torch.distributed.run", *launcher, *arguments, timeout_s=150)


def run_module(module: str, *arguments: str, timeout_s: float) -> None:
    """Run a module of the tests, or an installed one, on one thread; what it prints shows when it fails."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]

"""The processes of a run watch each other: one that dies or hangs ends all, and is named.

A collective waits for its partners. Gloo notices a closed connection; NCCL does not, and neither notices a process that
is alive and does nothing. So a thread in every process writes a line about it into the launcher's store each second,
and reads the others': who it is, how many times its main thread came past `advance`, and whether it is in the loop.

    dead      a process of this machine whose id is gone, or one from which nothing was heard for `SILENCE_S`
    stalled   nobody came past `advance` for the time limit, while all were in the loop: those that did so least often

What one process does alone while the others wait (caching, sample pictures, saving) has no limit.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]  public by its documentation

from latentgen.errors import InputError, RuntimeFailure

STALL_VARIABLE = "LATENTGEN_STALL_TIMEOUT_S"
STALL_S = 120.0
"""Default of the time limit between two advances of the slowest process; steps that take long raise it."""
STALL_IN_SLOWEST = 10.0
"""A stall is also at least this many times the slowest advance so far."""
FIRST_STALL_S = 1800.0
"""The limit until the first steps are done: kernels are chosen and networks compiled there."""
FIRST_ADVANCES = 6
SILENCE_S = 60.0
"""A process of another machine that is not heard of for this long counts as dead."""
BEAT_S = 1.0
INTACT = "the last checkpoint is intact"
STALL_HINT = f"{STALL_VARIABLE} sets the limit; {INTACT}"
NAMING_S = 5.0
"""How long the cause of a broken collective is looked for; twice that, a main thread has to end its process itself."""


@dataclass(frozen=True, slots=True)
class Sign:
    """What a process says of itself."""

    host: str
    namespace: str
    """Of process ids: containers of one host have their own."""
    pid: int
    beats: int
    advances: int
    in_loop: bool
    left: bool
    """It is done, and its end means nothing."""
    failure: str
    """Why it is about to end."""
    stalled: list[int]
    """The processes that hang, in its judgement: who sees it later must not find it gone and not know why."""
    stall_s: float
    """For how long they did."""


@dataclass(frozen=True, slots=True)
class Stall:
    """The processes that hang, and the time that was over."""

    processes: list[int]
    limit_s: float


class Watch:
    """The thread that watches, and what the main thread tells it."""

    def __init__(self, process_index: int, processes: int) -> None:
        """Begin to watch. Needs the launcher's environment, and its store, which `init_process_group` has made."""
        self.index, self.processes = process_index, processes
        self._host, self._namespace, self._pid = socket.gethostname(), _pid_namespace(), os.getpid()
        self._beats = 0  # the watching thread's; what follows is the main thread's
        self._advances, self._in_loop, self._left, self._failure = 0, False, False, ""
        self._stall = Stall([], 0.0)
        self._store = _connect()
        self._store_gone_at: float | None = None
        self._last: dict[int, Sign] = {}
        self._changed_at: dict[int, float] = {}
        self._pace = Pace(stall_limit_s())
        self._word = threading.Lock()
        """Held, and never given back, by the thread that tells why this process ends."""
        self._closed = threading.Event()
        self._parent = os.getppid()
        self._write()
        self._meet()
        self._thread = threading.Thread(target=self._watch, name="watch", daemon=True)
        self._thread.start()

    @property
    def closed(self) -> bool:
        return self._closed.is_set()

    # What the main thread tells

    def advance(self) -> None:
        """The main thread is in the loop, and came past here."""
        self._advances += 1
        self._in_loop = True

    @contextmanager
    def out_of_loop(self) -> Generator[None]:
        """Within the block this process works alone, for as long as it takes."""
        self._in_loop = False
        try:
            yield
        finally:
            self.advance()

    def fail(self, why: str) -> None:
        """Tell the others why this process is about to end."""
        self._failure = why
        self._write()

    def judge_stalled(self, stall: Stall) -> None:
        """Tell the others which processes hang; that this one ends now means nothing more."""
        self._stall, self._left = stall, True
        self._write()

    def close(self) -> None:
        """Stop watching and being watched: the run is over."""
        self._left = True
        self._closed.set()
        self._thread.join(timeout=NAMING_S)
        self._write()

    def explain(self) -> RuntimeFailure | None:
        """The failure to raise after a collective broke off; None where another process of this machine tells it.

        Waits a few seconds for the cause to show: a process ends some time after its connections do.
        """
        if not self._word.acquire(blocking=False):
            return None
        until = time.monotonic() + NAMING_S
        lost, stall = self._lost(), self._stalled()
        while not lost and not stall and time.monotonic() < until:
            time.sleep(0.1)
            lost, stall = self._lost(), self._stalled()
        if not lost and stall:
            return RuntimeFailure(self._hang(stall), hint=STALL_HINT) if self._speaks(stall.processes) else None
        if lost and not self._speaks(lost):
            return None
        return RuntimeFailure(self._loss(lost), hint=INTACT)

    def _meet(self) -> None:
        """Know all processes before the run begins, so that one that dies in its first second can be named."""
        until = time.monotonic() + NAMING_S
        while not self._lost() and len(self._last) < self.processes and time.monotonic() < until:
            time.sleep(0.01)

    # The thread

    def _watch(self) -> None:
        while not self._closed.wait(BEAT_S):
            if os.getppid() != self._parent:
                self._end("the launcher has ended", speaks=True)
            self._beats += 1
            self._write()
            lost = self._lost()
            if lost:
                self._end(self._loss(lost), speaks=self._speaks(lost))
            if self._store_gone_at is not None and time.monotonic() - self._store_gone_at > NAMING_S:
                self._end(
                    "the launcher's store does not answer any more",
                    speaks=self.index == min(self._last, default=self.index),
                )
            if stall := self._stalled():
                self.judge_stalled(stall)
                speaks = self._speaks(stall.processes)
                self._end(self._hang(stall), speaks=speaks, hint=STALL_HINT, linger_s=2 * BEAT_S)

    def _end(self, message: str, *, speaks: bool, hint: str = INTACT, linger_s: float = 0.0) -> None:
        """End this process, whatever its main thread is in; the main thread says why, if it is about to.

        linger_s: how long the others have to see why, before they find the connection to this process gone.
        """
        if self._word.acquire(blocking=False):
            if speaks and not self.closed:
                print(f"error: {message} ({hint})", file=sys.stderr, flush=True)
            self._closed.wait(linger_s)
        else:
            self._closed.wait(2 * NAMING_S)
        if not self.closed:
            os._exit(RuntimeFailure.exit_code)

    def _lost(self) -> list[int]:
        """The processes that have ended, or that say why they are about to."""
        now = time.monotonic()
        lost: list[int] = []
        for index, sign in self._read().items():
            if sign != self._last.get(index):
                self._last[index], self._changed_at[index] = sign, now
            here = self._is_here(sign)
            dead = now - self._changed_at[index] > SILENCE_S or (here and not is_alive(sign.pid))
            if index != self.index and not sign.left and (dead or sign.failure):
                lost.append(index)
        return lost

    def _loss(self, lost: list[int]) -> str:
        if not lost:
            return "the connection to another process of this run broke off"
        first = self._last[lost[0]]
        if first.failure:
            return f"{self._names(lost[:1])} failed: {first.failure}"
        return f"{self._names(lost)} has ended (pid {first.pid} on {first.host})"

    def _stalled(self) -> Stall | None:
        """The processes that hang, in the judgement of this process or of another."""
        if own := self._pace.stalled(self._last, time.monotonic()):
            return Stall(own, self._pace.limit_s)
        others = (Stall(sign.stalled, sign.stall_s) for sign in self._last.values() if sign.stalled)
        return next(others, None)

    def _hang(self, stall: Stall) -> str:
        return f"{self._names(stall.processes)} hangs: no step for {stall.limit_s:.0f} s"

    def _names(self, indices: list[int]) -> str:
        return "process " + ", ".join(str(index) for index in indices) + f" of {self.processes}"

    def _speaks(self, lost: list[int]) -> bool:
        """Whether this process is the first of its machine that is left, and so says what happened."""
        here = [index for index, sign in self._last.items() if self._is_here(sign) and index not in lost]
        return self.index == min(here, default=self.index)

    def _is_here(self, sign: Sign) -> bool:
        return (sign.host, sign.namespace) == (self._host, self._namespace)

    # The store

    def _write(self) -> None:
        sign = Sign(
            host=self._host,
            namespace=self._namespace,
            pid=self._pid,
            beats=self._beats,
            advances=self._advances,
            in_loop=self._in_loop,
            left=self._left,
            failure=self._failure,
            stalled=self._stall.processes,
            stall_s=self._stall.limit_s,
        )
        if self._store_gone_at is None:
            try:
                self._store.set(_key(self.index), json.dumps(asdict(sign)))
            except RuntimeError:
                self._store_gone_at = time.monotonic()

    def _read(self) -> dict[int, Sign]:
        """The signs of all processes that have given one; the last known, once the store is gone."""
        if self._store_gone_at is not None:
            return dict(self._last)
        try:
            there = [k for k in range(self.processes) if k in self._last or self._store.check([_key(k)])]
            rows = self._store.multi_get([_key(k) for k in there])
        except RuntimeError:
            self._store_gone_at = time.monotonic()
            return dict(self._last)
        return {k: Sign(**json.loads(row)) for k, row in zip(there, rows, strict=True)}


class Pace:
    """Whether a run comes on."""

    def __init__(self, stall_s: float) -> None:
        self.limit_s = self._stall_s = stall_s
        self._total = -1
        self._moved_at = 0.0
        self._slowest_s = 0.0

    def stalled(self, signs: Mapping[int, Sign], now: float) -> list[int]:
        """The processes that came past `advance` least, if all are in the loop and none did for too long."""
        if not signs:
            return []
        advances = {index: sign.advances for index, sign in signs.items()}
        total, all_in_loop = sum(advances.values()), all(sign.in_loop for sign in signs.values())
        if not all_in_loop or total != self._total:
            if all_in_loop and self._total >= 0:
                self._slowest_s = max(self._slowest_s, now - self._moved_at)
            self._total, self._moved_at = total if all_in_loop else -1, now
            return []
        self.limit_s = max(self._stall_s, STALL_IN_SLOWEST * self._slowest_s)
        if min(advances.values()) < FIRST_ADVANCES:
            self.limit_s = max(self.limit_s, FIRST_STALL_S)
        if now - self._moved_at < self.limit_s:
            return []
        return [index for index, count in advances.items() if count == min(advances.values())]


def stall_limit_s() -> float:
    """The time limit that the environment asks for. Raises InputError for one that is no positive number."""
    text = os.environ.get(STALL_VARIABLE, str(STALL_S))
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not limit > 0:
        raise InputError(f"{STALL_VARIABLE}={text} is not a number of seconds")
    return limit


def _key(index: int) -> str:
    # A launcher that restarts its processes keeps its store.
    return f"latentgen/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{index}"


def _connect() -> TCPStore:
    """A connection of our own to the store of the process group: its other users may hold theirs for hours."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60))


def _pid_namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def is_alive(pid: int) -> bool:
    """Whether there is such a process on this machine, and it runs; a dead one waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self").exists():
            return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True

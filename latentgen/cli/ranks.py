"""The processes that draw one run together: process k of N draws requests k, k + N, ... under the names of one process.

torchrun or accelerate launch starts them, or the first of them starts the others (`--processes`). No process draws with
another, so there is no process group; what little they say to each other goes through a store:

    first    plan, check, start the others, tell the seeds   load, meet, draw its share   collect: sheets, summary
    others   wait for the seeds, plan, check                 load, meet, draw its share   report

The others begin when the first has checked everything, so a mistake is one line. Nobody writes before all have met, so
all count on from the same file.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from latentgen.cli.options import RANDOM_SEED
from latentgen.cli.plan import MAX_PICTURES, Entry
from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.request import random_seed

if TYPE_CHECKING:
    from torch.distributed import Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]  public by its documentation

T = TypeVar("T")

CONNECT_S: Final = 300.0
"""How long the others look for the first process."""
MEET_S: Final = 1800.0
"""How long all wait for the slowest to plan and to load the model."""
POLL_S: Final = 0.02
END_S: Final = 10.0
"""How long a process that is told to end has for it."""


@dataclass(frozen=True, slots=True)
class Share:
    """What became of the requests that a process drew, or of all: by their number in the run."""

    drawn: Mapping[int, Path] = field(default_factory=dict[int, Path])
    failures: Mapping[int, LatentgenError] = field(default_factory=dict[int, LatentgenError])

    def to_json(self) -> str:
        drawn = {str(k): str(path) for k, path in self.drawn.items()}
        failures = {str(k): (failure.message, failure.hint) for k, failure in self.failures.items()}
        return json.dumps({"drawn": drawn, "failures": failures})

    @classmethod
    def from_json(cls, text: str | bytes) -> Share:
        said = json.loads(text)
        failures = {int(k): RuntimeFailure(message, hint=hint) for k, (message, hint) in said["failures"].items()}
        return cls({int(k): Path(path) for k, path in said["drawn"].items()}, failures)


class Alone:
    """One process, which draws everything: what `generate` asks of its processes."""

    index: int = 0
    count: int = 1

    def __init__(self) -> None:
        self._steps = 0

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all."""
        return self.index == 0

    def has_share(self, pictures: int) -> bool:
        """Whether anything is left for this process to do; the first always has the summary."""
        return self.is_first or self.index < pictures

    def follow(self) -> None:
        """Wait until the first process has found nothing wrong."""

    def with_seeds(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        """The entries with the same random seeds in every process."""
        return entries

    @contextmanager
    def together(self, pictures: int) -> Generator[None]:
        """The block in which so many pictures are drawn, once everything is checked."""
        yield

    def device(self, name: str) -> str:
        """This process's own, where the command line leaves the choice. Imports torch if there are several."""
        return name

    def threads(self, asked: int | None) -> int | None:
        """This process's threads; None is torch's own number."""
        return asked

    def meet(self) -> None:
        """Wait until every process is ready to draw."""

    def count_steps(self, pictures: int) -> int:
        """The steps that all processes have done, after one step of this many pictures."""
        self._steps += pictures
        return self._steps

    def collect(self, share: Share) -> Share:
        """In the first process all shares as one, when all are done; in the others their own."""
        return share


class Launched(Alone):
    """One of several processes, as a launcher started them."""

    def __init__(self, index: int, count: int, local_index: int) -> None:
        super().__init__()
        self.index, self.count = index, count
        self._local_index = local_index
        self._present = count
        self._followers = count - 1
        """Processes besides the first, those without a share among them."""
        self._seeds: list[int] = []
        self._store: Store | None = None

    def follow(self) -> None:
        if not self.is_first:
            self._store = _of_this_run(_connect(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])))
            self._seeds = json.loads(self._read("seeds"))

    def with_seeds(self, entries: Sequence[Entry]) -> Sequence[Entry]:
        if self.is_first:
            self._seeds = [_seed(entry) for entry in entries]
        if len(self._seeds) != len(entries):
            raise RuntimeFailure(
                f"process {self.index} reads {len(entries)} prompts, the first {len(self._seeds)}",
                hint="the prompt file must stay as it is",
            )
        return [
            replace(entry, flags=replace(entry.flags, seed=seed))
            for entry, seed in zip(entries, self._seeds, strict=True)
        ]

    @contextmanager
    def together(self, pictures: int) -> Generator[None]:
        self._present = max(1, min(self.count, pictures))
        if self.is_first:
            hosts = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
            place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            self._store = _of_this_run(_connect(*place, hosts=hosts))
            self._tell("seeds", json.dumps(self._seeds))
        yield

    def has_share(self, pictures: int) -> bool:
        if not self.is_first:
            self._add("planned", 1)
        return super().has_share(pictures)

    def device(self, name: str) -> str:
        """A GPU each; where there are fewer than processes, or each sees only its own, they are dealt in turn."""
        from latentgen.pipeline.devices import present_devices

        gpus = [each for each in present_devices() if each.startswith("cuda")]
        return gpus[self._local_index % len(gpus)] if name in ("auto", "cuda") and gpus else name

    def meet(self) -> None:
        # Those with nothing to draw as well: what the others write must not be there when they look for it.
        if self.is_first:
            self._wait_until(lambda: self._add("planned", 0) == self._followers)
        if self._add("ready", 1) == self._present:
            self._tell("met", "")
        self._read("met", limit_s=MEET_S)

    def count_steps(self, pictures: int) -> int:
        self._look_after_others()
        return self._add("steps", pictures)

    def collect(self, share: Share) -> Share:
        if not self.is_first:
            self._tell(f"share/{self.index}", share.to_json())
            return share
        shares = [share, *(Share.from_json(self._read(f"share/{k}")) for k in range(1, self._present))]
        drawn = {k: path for each in shares for k, path in each.drawn.items()}
        failures = {k: failure for each in shares for k, failure in each.failures.items()}
        return Share(dict(sorted(drawn.items())), dict(sorted(failures.items())))

    def _look_after_others(self) -> None:
        """Raise what has become of a process that will not do its share; a launcher sees to that itself."""

    def _tell(self, key: str, text: str) -> None:
        store = self._connected()
        _in_touch(lambda: store.set(key, text))

    def _add(self, key: str, number: int) -> int:
        store = self._connected()
        return _in_touch(lambda: store.add(key, number))

    def _has_told(self, key: str) -> bool:
        store = self._connected()
        return _in_touch(lambda: store.check([key]))

    def _read(self, key: str, *, limit_s: float | None = None) -> bytes:
        """What was told under this key, once it is. Waits awake, so that a signal ends the process at once."""
        store = self._connected()
        self._wait_until(lambda: self._has_told(key), limit_s=limit_s)
        return _in_touch(lambda: store.get(key))

    def _wait_until(self, is_so: Callable[[], bool], *, limit_s: float | None = MEET_S) -> None:
        until = None if limit_s is None else time.monotonic() + limit_s
        while not is_so():
            self._look_after_others()
            if until is not None and time.monotonic() > until:
                raise RuntimeFailure(f"not all {self.count} processes were ready after {limit_s:.0f} s")
            time.sleep(POLL_S)

    def _connected(self) -> Store:
        assert self._store is not None, "together, or with_seeds, comes first"
        return self._store


class Leader(Launched):
    """The first of several processes on this machine, which starts the others with this program's command line."""

    def __init__(self, count: int) -> None:
        super().__init__(0, count, 0)
        self._others: list[subprocess.Popen[bytes]] = []
        self._threads: int | None = None

    @contextmanager
    def together(self, pictures: int) -> Generator[None]:
        import torch

        self._present = max(1, min(self.count, pictures))
        self._followers = self._present - 1
        self._threads = max(1, torch.get_num_threads() // self._present)
        server = _connect("127.0.0.1", 0, hosts=True)
        self._store = _of_this_run(server)
        self._tell("seeds", json.dumps(self._seeds))
        try:
            for index in range(1, self._present):
                self._others.append(self._start(index, server.port))
            yield
        finally:
            self._end_others()

    def threads(self, asked: int | None) -> int | None:
        return self._threads if asked is None else asked

    def collect(self, share: Share) -> Share:
        done = super().collect(share)
        for other in self._others:
            other.wait()
        return done

    def _start(self, index: int, port: int) -> subprocess.Popen[bytes]:
        own = {"RANK": index, "LOCAL_RANK": index, "WORLD_SIZE": self.count, "OMP_NUM_THREADS": self._threads}
        place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        # Modules are looked for where this process looks: in the current folder only if it does so itself.
        safely = [] if sys.path[:1] in ([""], [os.getcwd()]) else ["-P"]
        return subprocess.Popen(
            [sys.executable, *safely, "-m", "latentgen", *sys.argv[1:]],
            env={**os.environ, **{name: str(value) for name, value in (own | place).items()}},
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the first process, which ends the others
        )

    def _look_after_others(self) -> None:
        for index, other in enumerate(self._others, start=1):
            code = other.poll()
            if code is None:
                continue
            if code > 0:
                raise SystemExit(code)  # it has said why
            if code == 0 and not self._has_told(f"share/{index}"):
                raise RuntimeFailure(f"process {index} found nothing to draw", hint="the files must stay as they are")
            if code < 0:
                raise RuntimeFailure(
                    f"process {index} was ended by {signal.Signals(-code).name}",
                    hint="fewer --processes need less memory" if code == -signal.SIGKILL else None,
                )

    def _end_others(self) -> None:
        for other in self._others:
            other.terminate()  # nothing, if it has ended
        for other in self._others:
            try:
                other.wait(END_S)
            except subprocess.TimeoutExpired:
                other.kill()
                other.wait()


def join_ranks(processes: int | None) -> Alone:
    """The processes this one belongs to: those of a launcher, or else as many as `--processes` asks for.

    Raises InputError if both speak and differ, or if the launcher's variables make no sense.
    """
    launched = _variable("WORLD_SIZE", default=1)
    if launched > 1 and processes not in (None, launched):
        raise InputError(
            f"--processes {processes} and the launcher's {launched} processes contradict each other",
            hint="one or the other",
        )
    if launched > 1:
        index = _variable("RANK")
        if "MASTER_ADDR" not in os.environ or index >= launched:
            raise InputError(f"WORLD_SIZE is {launched}, but this is no process of torchrun or accelerate launch")
        _variable("MASTER_PORT")
        return Launched(index, launched, _variable("LOCAL_RANK", default=index))
    return Alone() if processes in (None, 1) else Leader(processes)


def _variable(name: str, *, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name}={text} in the environment is no number", hint="a launcher such as torchrun sets it")
    return int(text)


def _seed(entry: Entry) -> int:
    """The entry's, or a random one that leaves room for any count."""
    seed = entry.flags.seed
    return random_seed(MAX_PICTURES) if seed is None or seed == RANDOM_SEED else seed


def _connect(address: str, port: int, *, hosts: bool = False) -> TCPStore:
    """The store at that place. hosts: this process keeps it; port 0 is a free one."""
    from torch.distributed import (
        DistError,
        TCPStore,  # pyright: ignore[reportPrivateImportUsage]  public by its documentation
    )

    limit = timedelta(seconds=CONNECT_S)
    try:
        return TCPStore(address, port, is_master=hosts, timeout=limit, wait_for_workers=False)
    except DistError:
        problem = "cannot be opened" if hosts else f"did not answer for {CONNECT_S:.0f} s"
        raise RuntimeFailure(f"the processes cannot find each other: {address} port {port} {problem}") from None


def _of_this_run(store: Store) -> Store:
    """The store without what an earlier attempt left in it: torchrun may start a failed run again."""
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]  public by its documentation

    return PrefixStore(f"latentgen-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _in_touch(call: Callable[[], T]) -> T:
    """Do something with the store. Raises RuntimeFailure if it is not there any more."""
    from torch.distributed import DistError

    try:
        return call()
    except DistError:
        raise RuntimeFailure("the first process of this run is not there", hint="it has said why it ended") from None

"""One run at a time in a folder. Free of torch, so that a second run is refused before anything is loaded."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from latentgen.errors import InputError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Generator[None]:
    """Hold a run's folder for this process; the kernel lets go when the process dies, however it dies.

    Raises InputError naming the process that holds it, or when the folder cannot be written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}", hint="choose another --out") from None
    with file:
        _take(file, folder)
        file.truncate(0)
        file.write(f"pid {os.getpid()}")
        file.flush()
        yield


def check_free(folder: Path) -> None:
    """Raise InputError, as `locked` does, if another process trains in this folder."""
    try:
        file = (folder / LOCK).open("r+")
    except OSError:  # there is none, or `locked` will say why not
        return
    with file:
        _take(file, folder)


def _take(file: TextIO, folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        raise InputError(f"another process ({holder}) is training in {folder}", hint="choose another --out") from None

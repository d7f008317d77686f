"""Large arrays on disk: `.npy` files that are whole or absent, and read through memory mapping."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from latentgen.errors import InputError, RuntimeFailure


def write_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike, parts: Iterable[NDArray[Any]]) -> None:
    """Write an array whose rows arrive in parts, (rows, *shape[1:]) each. Written aside, then renamed.

    Not through a mapping: where the disk is full, a mapped write ends the process with SIGBUS.
    Raises RuntimeFailure if the disk refuses, leaving no partial file.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            np.lib.format.write_array_header_1_0(file, header)
            rows = 0
            for part in parts:
                assert part.shape[1:] == shape[1:], f"a part is {part.shape}, the array {shape}"
                file.write(np.ascontiguousarray(part, dtype=dtype).data)
                rows += len(part)
            assert rows == shape[0], f"{rows} rows were given of {shape[0]}"
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise RuntimeFailure(f"cannot write {path}: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


def open_array(path: Path, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Map an array that `write_array` wrote. Raises InputError if it is not the whole of it."""
    try:
        array: NDArray[Any] | None = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):
        array = None
    if array is None or array.shape != shape or array.dtype != np.dtype(dtype):
        raise InputError(f"{path} is damaged", hint="delete it; it will be made again")
    return array

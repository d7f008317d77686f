"""Every error a user can cause, with the exit code the command line ends with.

A message is one line that names the cause; `hint` is the way out. `cli/boundary.py` is the only place that prints them.
"""

from __future__ import annotations

import sys
from typing import ClassVar


class LatentgenError(Exception):
    """Base of our errors: a cause, a way out, and the exit code it ends the process with (`cli/boundary.py`)."""

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RuntimeFailure(LatentgenError):
    """Something failed while running that is neither bad input nor a bug: disk full, non-finite numbers."""


class InputError(LatentgenError):
    """A flag, prompt, request or file that the user can correct."""

    exit_code = 2


class ConfigError(InputError):
    """A configuration that contradicts itself or the data it came with."""


class ShapeError(InputError):
    """A tensor or picture whose shape does not fit."""


class ModelNotFoundError(LatentgenError):
    """The named model or file does not exist."""

    exit_code = 3


class ModelLoadError(LatentgenError):
    """The model exists but its files cannot be used: damaged, incomplete, or of another kind."""

    exit_code = 3


class OutOfMemoryError(LatentgenError):
    """The device has not enough memory for the request."""

    exit_code = 4


class PartialFailure(LatentgenError):
    """Some of several pictures could not be made."""

    exit_code = 5


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was refused; torch is not imported for it."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    # On a CPU and on Apple's GPUs torch raises a plain RuntimeError.
    refusals = ("can't allocate memory", "MPS backend out of memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in refusals)

"""Where a user's own files and caches are, by the XDG variables."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

NOWHERE: Final = "/nonexistent"
"""The home of a user who has none, as Debian has it: what is looked for there is not found."""


def cache_home() -> Path:
    """`$XDG_CACHE_HOME`, or `~/.cache`."""
    return _home("XDG_CACHE_HOME", ".cache")


def data_home() -> Path:
    """`$XDG_DATA_HOME`, or `~/.local/share`."""
    return _home("XDG_DATA_HOME", ".local/share")


def _home(variable: str, below: str) -> Path:
    home = os.path.expanduser("~")  # says "~" where there is none
    return Path(os.environ.get(variable) or os.path.join(NOWHERE if home == "~" else home, below))

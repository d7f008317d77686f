"""Pictures that lie in a data folder and are no part of the data set, so that nobody believes they are trained on."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from latentgen.data.folders import METADATA, PICTURE_SUFFIXES
from latentgen.data.record import Record, Skipped


@dataclass(frozen=True, slots=True)
class Unread:
    """How many, and why."""

    count: int
    example: str
    why: str

    def __str__(self) -> str:
        lie = "picture is" if self.count == 1 else "pictures are"
        return f"{self.count} {lie} not read, such as {self.example}: {self.why}"


def unread_pictures(folder: Path, found: Iterable[Record | Skipped]) -> Unread | None:
    """The pictures in a data folder, and in folders inside it, that are not among what was found there.

    None if there are none. What cannot be looked at is passed over, and folders whose names begin with a dot.
    """
    known = {each.file if isinstance(each, Skipped) else os.path.relpath(each.path, folder) for each in found}
    names = sorted(name for name in _picture_names(folder) if name not in known)
    if not names:
        return None
    if any(folder.glob("*.tar")):
        why = "where there are tar shards they alone are"
    elif (folder / METADATA).exists():
        why = f"{METADATA} does not name them"
    else:
        why = f"folders inside are not looked into; name one of them, or list the pictures in a {METADATA}"
    return Unread(len(names), names[0], why)


def _picture_names(folder: Path) -> Iterable[str]:
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for file in files:
            if file.lower().endswith(PICTURE_SUFFIXES):
                yield os.path.relpath(os.path.join(place, file), folder)

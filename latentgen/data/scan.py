"""Looking at every picture of a data set before anything is trained: found = used + held out + skipped, exactly."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from latentgen.data.decode import available_cores, inspect, ordered_map
from latentgen.data.record import Record, Skipped, Stamp
from latentgen.data.records import is_wanted, list_found, refuse
from latentgen.data.unread import Unread, unread_pictures
from latentgen.errors import InputError, RuntimeFailure
from latentgen.jsonfile import write_text


@dataclass(frozen=True, slots=True)
class Seen:
    """What an earlier look at a picture found, and its file's stamp then."""

    stamp: Stamp
    sha256: str
    size_px: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scan:
    """A data set, every picture of it looked at."""

    folder: Path
    used: list[Record]
    skipped: list[Skipped]
    held_out: int
    """Pictures of compositions that are kept from training."""
    unread: Unread | None = None
    """Pictures in the folder that are no part of the data set."""

    @property
    def found(self) -> int:
        return len(self.used) + self.held_out + len(self.skipped)

    @property
    def reasons(self) -> dict[str, int]:
        """How many are skipped for which reason, the most frequent first."""
        return dict(Counter(each.fault.value for each in self.skipped).most_common())

    @property
    def identical(self) -> int:
        """Pictures used that have the same bytes as one before them."""
        return len(self.used) - len({record.sha256 for record in self.used})

    def require(self, *, skip_bad: bool) -> None:
        """Raise InputError if there is nothing to train on, or, unless `skip_bad`, anything that cannot be used."""
        if not skip_bad:
            refuse(self.folder, self.skipped, self.found)
        if not self.used:
            reasons = ", ".join(f"{reason} {count}" for reason, count in self.reasons.items())
            raise InputError(f"none of {self.found} pictures in {self.folder} can be used: {reasons or 'held out'}")

    def write_skipped(self, path: Path) -> None:
        """A JSON line for each picture left out: file and reason. Raises RuntimeFailure if the disk refuses."""
        lines = [json.dumps({"file": each.file, "reason": each.reason}) + "\n" for each in self.skipped]
        try:
            write_text(path, "".join(lines))
        except OSError as error:
            raise RuntimeFailure(f"cannot write {path}: {error.strerror}") from None


def scan(
    folder: Path,
    *,
    held_out: bool | None = None,
    captions: bool = True,
    seen: Mapping[str, Seen] | None = None,
    whole: bool = True,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scan:
    """List a data set and look at every picture, on `threads` threads (default: one a core).

    held_out and captions: as in `list_records`. whole: as in `inspect`. seen: earlier looks by the picture's name; a
    picture whose file has not been touched since is not read again.
    Raises as `list_found` does; what is wrong with single pictures is in the result.
    """
    found = list_found(folder, captions=captions)
    wanted = [each for each in found if isinstance(each, Skipped) or is_wanted(each, held_out)]
    look = partial(_look, {} if seen is None else seen, whole)
    used: list[Record] = []
    skipped: list[Skipped] = []
    looked = ordered_map(look, wanted, available_cores() if threads is None else threads)
    for done, each in enumerate(looked, 1):
        if isinstance(each, Skipped):
            skipped.append(each)
        else:
            used.append(each)
        if on_progress is not None:
            on_progress(done, len(wanted))
    return Scan(folder, used, skipped, len(found) - len(wanted), unread_pictures(folder, found))


def _look(seen: Mapping[str, Seen], whole: bool, each: Record | Skipped) -> Record | Skipped:
    if isinstance(each, Skipped):
        return each
    before = seen.get(each.name)
    if before is not None and before.stamp == _stamp(each.path):
        return replace(each, sha256=before.sha256, size_px=before.size_px, stamp=before.stamp)
    return inspect(each, whole=whole)


def _stamp(path: Path) -> Stamp | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return Stamp(status.st_size, status.st_mtime_ns, status.st_ctime_ns)

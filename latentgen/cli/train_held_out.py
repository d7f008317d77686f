"""The pictures that a training command only looks at, where the data set holds such."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.cli.train_options import RunOptions
from latentgen.cli.train_run import say_in

if TYPE_CHECKING:
    from accelerate import PartialState

    from latentgen.data.pixels import Pictures
    from latentgen.data.record import Record


def open_held_out(
    run: RunOptions, resolution: int, cache: Path, process: PartialState, *, count: int
) -> tuple[list[Record], Pictures] | None:
    """At most `count` of the records that are labelled `held_out`, spread evenly, and their pictures as squares.

    None where there are no such records. Those that cannot be used are passed over: nothing is trained on them.
    """
    from latentgen.data.decode import inspect
    from latentgen.data.pixels import PixelCache
    from latentgen.data.record import Record
    from latentgen.data.records import is_wanted, list_found

    found = [each for each in list_found(run.data) if isinstance(each, Record) and is_wanted(each, True)]
    count = min(count, len(found))
    looked_at = [inspect(found[k * len(found) // count]) for k in range(count)]
    records = [each for each in looked_at if isinstance(each, Record)]
    if not records:
        return None
    with process.main_process_first():
        return records, PixelCache(records, resolution, cache, say_in(process, run))

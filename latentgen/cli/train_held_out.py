"""The pictures that a training command only looks at: those that are labelled so, and those it sets aside."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli.train_options import RunOptions
from latentgen.cli.train_run import say_in
from latentgen.errors import InputError

if TYPE_CHECKING:
    from accelerate import PartialState

    from latentgen.data.pixels import Pictures
    from latentgen.data.record import Record

ValidationPictures = Annotated[
    int | None,
    typer.Option(
        "--validation-pictures",
        min=0,
        help="Pictures set aside from training to measure the run on (default: one in 100, at most 64; train-vae: 16).",
    ),
]


def items_set_aside(
    wanted: int | None,
    pictures: int,
    run: RunOptions,
    process: PartialState,
    *,
    most: int | None = None,
    held_out: bool = False,
) -> tuple[int, ...]:
    """The items that are kept from training, of which the first process tells. most: if `wanted` does not say.

    held_out: there are pictures that measure the run and were never trained on; none is set aside then.
    Raises InputError if none are left to train on.
    """
    if held_out:
        if wanted:
            say_in(process, run)("pictures labelled held_out measure the run: --validation-pictures sets none aside")
        return ()
    from latentgen.training.set_aside import MAX_PICTURES, pictures_to_set_aside, set_aside

    count = pictures_to_set_aside(pictures, MAX_PICTURES if most is None else most) if wanted is None else wanted
    if count >= pictures:
        raise InputError(f"--validation-pictures {count} leaves none of {pictures} pictures to train on")
    if count:
        say_in(process, run)(f"{count} of {pictures} pictures are set aside to measure the run on")
    return set_aside(pictures, count)


def check_can_validate(run: RunOptions, validation: tuple[int, ...], pictures: int) -> None:
    """Raise InputError where a U-Net or a LoRA should be measured on the way, and there are no pictures for it."""
    if run.validate_every and not validation:
        hint = f"--validation-pictures sets some of the {pictures} aside"
        raise InputError(f"--validate-every {run.validate_every} has no pictures to measure", hint=hint)


def check_can_sample(run: RunOptions, prompts: Sequence[str]) -> None:
    """Raise InputError where a U-Net or a LoRA should draw sheets on the way, and is not told what."""
    if run.sample_every and not prompts:
        hint = "give a file of them with --sample-prompts"
        raise InputError(f"--sample-every {run.sample_every} has no prompts to draw", hint=hint)


def open_held_out(
    run: RunOptions, resolution: int, cache: Path, process: PartialState, *, count: int, captions: bool = True
) -> tuple[list[Record], Pictures] | None:
    """At most `count` of the records that are labelled `held_out`, spread evenly, and their pictures as squares.

    captions: False where pictures alone are looked at. None where there are no such records. Those that cannot be used
    are passed over: nothing is trained on them.
    """
    from latentgen.data.decode import inspect
    from latentgen.data.pixels import PixelCache
    from latentgen.data.record import Record
    from latentgen.data.records import is_wanted, list_found

    found = [
        each for each in list_found(run.data, captions=captions) if isinstance(each, Record) and is_wanted(each, True)
    ]
    count = min(count, len(found))
    looked_at = [inspect(found[k * len(found) // count]) for k in range(count)]
    records = [each for each in looked_at if isinstance(each, Record)]
    if not records:
        return None
    with process.main_process_first():
        return records, PixelCache(records, resolution, cache, say_in(process, run))

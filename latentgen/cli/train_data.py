"""The data of a training command: every picture looked at, its shape chosen, and where its pixels come from.

What is found is kept in the run folder: `data.json`, a summary for people; `pictures.json`, what a resume compares;
and with --skip-bad `skipped.jsonl`, what was left out and why.
"""

from __future__ import annotations

from dataclasses import replace
from math import gcd
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from latentgen.cli.console import Console
from latentgen.cli.train_options import RunOptions
from latentgen.cli.train_run import say_in
from latentgen.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from accelerate import PartialState

    from latentgen.data.pixels import Pictures, Shape
    from latentgen.data.record import Record
    from latentgen.data.scan import Scan

PIXEL_CACHE_LIMIT_BYTES = 8 * 2**30
"""Decoded pictures up to this are kept in the cache folder: 43,000 at 256 px. More are decoded as they are needed."""


class TrainingPictures(NamedTuple):
    """What a run learns from."""

    records: list[Record]
    pixels: Pictures
    keep: Callable[[], None]
    """Writes down what the data is. Called when the run has begun, so that one which is refused changes nothing."""


def open_pictures(
    run: RunOptions,
    resolution: int,
    cache: Path,
    process: PartialState,
    *,
    size_multiple_px: int | None = None,
    captions: bool = True,
) -> TrainingPictures:
    """The records of --data and their pictures; small sets are decoded by the first process into the folder `cache`.

    size_multiple_px: what the sides of --aspect-buckets are multiples of; None: the largest power of two, at most 64,
    that divides the resolution. captions: False where pictures alone are trained on.
    Raises InputError when a picture cannot be used and --skip-bad is not given, and on a resume when the data is not
    what the run began with; both before anything is computed.
    """
    from latentgen.data.manifest import pictures_seen, read_manifest
    from latentgen.data.pixels import PixelCache
    from latentgen.data.scan import scan
    from latentgen.data.stream import PixelStream

    say = say_in(process, run)
    with process.main_process_first():
        before = read_manifest(run.out / "pictures.json")
        seen = {} if before is None else pictures_seen(before)
        console = Console(
            quiet=run.quiet or not process.is_main_process,
            json_events=run.json_events,
            progress_bar=not run.no_progress,
        )
        with console.progress() as report:
            scanned = scan(
                run.data,
                held_out=False,
                captions=captions,
                seen=seen,
                threads=run.threads,
                on_progress=lambda done, total: report(done, total, "looking at the pictures"),
            )
        scanned.require(skip_bad=run.skip_bad)
        if not captions:  # nor is it another set where one is corrected
            scanned = replace(scanned, used=[replace(record, captions=()) for record in scanned.used])
        shapes = _shapes(run, scanned.used, resolution, size_multiple_px)
        keep = _nothing
        if process.is_main_process:
            keep = _compare(run, scanned, shapes, before, captions=captions)
            if scanned.unread is not None:
                console.warn(f"{run.data}: {scanned.unread}")
            if scanned.skipped:
                say(f"{len(scanned.skipped)} of {scanned.found} pictures are left out: see {run.out / 'skipped.jsonl'}")
        if run.aspect_buckets:
            kinds = sorted(set(shapes), reverse=True)
            named = ", ".join(f"{width}x{height}" for height, width in kinds[:8])
            say(f"shapes of the pictures: {named}{', …' if len(kinds) > 8 else ''}")
        enlarged = sum(_is_smaller(each, shape) for each, shape in zip(scanned.used, shapes, strict=True))
        if enlarged:
            is_one = enlarged == 1
            say(
                f"{enlarged} of {len(shapes)} pictures {'is' if is_one else 'are'} smaller than "
                f"{'its' if is_one else 'their'} training size and will be enlarged: soft pictures teach softness"
            )
        size_bytes = sum(3 * height * width for height, width in shapes)
        if size_bytes <= PIXEL_CACHE_LIMIT_BYTES:
            return TrainingPictures(scanned.used, PixelCache(scanned.used, shapes, cache, say), keep)
    say(f"{size_bytes / 2**30:.0f} GiB of decoded pictures are too many to keep: each is decoded when it is needed")
    return TrainingPictures(scanned.used, PixelStream(scanned.used, shapes, run.threads), keep)


def _is_smaller(record: Record, shape: Shape) -> bool:
    """Whether a picture must be enlarged to fill a shape (h, w)."""
    height, width = shape
    return record.size_px[0] < width or record.size_px[1] < height


def _nothing() -> None:
    pass


def _shapes(run: RunOptions, records: Sequence[Record], resolution: int, multiple_px: int | None) -> list[Shape]:
    from latentgen.data.buckets import assign_buckets, bucket_shapes
    from latentgen.data.pixels import square_shapes

    if not run.aspect_buckets:
        return square_shapes(len(records), resolution)
    buckets = bucket_shapes(resolution, gcd(resolution, 64) if multiple_px is None else multiple_px)
    return assign_buckets((record.size_px for record in records), buckets)


def _compare(
    run: RunOptions, scanned: Scan, shapes: list[Shape], before: dict[str, Any] | None, *, captions: bool
) -> Callable[[], None]:
    """What writes down the data that a run begins with; on a resume raise InputError naming what is not as it was."""
    from collections import Counter

    from latentgen.data.manifest import data_manifest, describe_change, write_manifest
    from latentgen.training.run_dir import RunDir

    counts = Counter(f"{width}x{height}" for height, width in shapes)
    manifest = {**data_manifest(scanned.used), "shapes": sorted(counts)}
    resumed = run.resume is not None and bool(RunDir(run.out).checkpoint_folders())
    if resumed and "data" not in (run.override or ()):
        if before is not None:
            changes = [describe_change(before, manifest, captions=captions)]
            if before.get("shapes") != manifest["shapes"]:
                changes.append("the shapes of --resolution and --aspect-buckets are others")
            if any(changes):
                change = "; ".join(filter(None, changes))
                hint = "restore it, choose another --out, or --override data"
                raise InputError(f"cannot resume {run.out}: its data has changed: {change}", hint=hint)
        return _nothing
    summary = {
        "fingerprint": manifest["fingerprint"],
        "found": scanned.found,
        "used": len(scanned.used),
        "held out": scanned.held_out,
        "skipped": scanned.reasons,
        "identical pictures": scanned.identical,
        **({"captions": sum(len(record.captions) for record in scanned.used)} if captions else {}),
        "shapes": dict(sorted(counts.items())),
    }

    def keep() -> None:
        write_manifest(run.out / "pictures.json", manifest)
        write_manifest(run.out / "data.json", summary)
        if scanned.skipped:
            scanned.write_skipped(run.out / "skipped.jsonl")

    if resumed:
        return keep
    keep()  # at once: a start that is interrupted while it fills its caches need not look at the pictures again
    return _nothing

"""`latentgen compare`: how much two pictures, or two folders of them, differ, and in what they were asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from latentgen.cli import options
from latentgen.cli.boundary import escape
from latentgen.cli.console import Console
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure

if TYPE_CHECKING:
    from latentgen.images.pixels import Pixels

ENDINGS = (".png", ".jpg", ".jpeg", ".webp")
AMPLIFIED = 8
"""How many times a sheet shows the difference of two bytes."""
MOST_DB = 100
"""`similarity.PSNR_LIMIT_DB`, said without torch."""
SAID_ALREADY = frozenset({"format", "pixels_sha256"})
"""Entries of a picture's metadata that say nothing about how it was asked for."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """Two pictures of one size against each other."""

    psnr_db: float
    ssim: float | None
    """None for pictures that its window does not fit into."""
    largest: int
    """Of the differences of two bytes."""
    share: float
    """Of the bytes that differ."""


def compare(
    first: Annotated[Path, typer.Argument(metavar="ONE", help="A PNG, JPEG or WebP, or a folder of them.")],
    second: Annotated[Path, typer.Argument(metavar="OTHER", help="The same of the other side.")],
    min_psnr: Annotated[
        float | None,
        typer.Option("--min-psnr", metavar="DB", help="Exit with code 1 if a pair is less alike than this."),
    ] = None,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet",
            metavar="FILE",
            rich_help_panel=options.FILES,
            help=f"A PNG: a row a pair, one, other, and their difference {AMPLIFIED} times as strong.",
        ),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Say how alike two pictures are (PSNR in dB, SSIM), and in which settings they differ.

    Of two folders the pictures of equal names are compared; those that only one of them has are named.

    latentgen compare before.png after.png

    latentgen compare plain/ faster/ --min-psnr 40 --sheet differences.png
    """
    console = Console(quiet, json_events=json_events)
    if min_psnr is not None and not 0 <= min_psnr <= MOST_DB:
        raise InputError(f"--min-psnr {min_psnr:g} is out of range", hint=f"0 to {MOST_DB}, which equal pictures have")
    if sheet is not None:
        _check_sheet(sheet, overwrite=overwrite)
    pairs = _pairs(first, second, console)
    from latentgen.images.files import read_picture

    rows: list[tuple[Pixels, Pixels]] = []
    found: list[Likeness | None] = []
    width = max(len(escape(name)) for name, _, _ in pairs)
    for name, one, other in pairs:
        (a, of_one), (b, of_other) = read_picture(one), read_picture(other)
        likeness = _likeness(a, b) if a.shape == b.shape else None
        settings = dict(_differences(of_one.document, of_other.document))
        sizes = tuple(f"{each.shape[1]}x{each.shape[0]}" for each in (a, b))
        _say(console, name, width, likeness, sizes, settings)
        found.append(likeness)
        if likeness is not None and sheet is not None:
            rows.append((a, b))
    if sheet is not None:
        _write_sheet(sheet, rows, overwrite=overwrite)
        console.result(sheet, "sheet")
    below = [each for each in found if each is None or (min_psnr is not None and each.psnr_db < min_psnr)]
    if min_psnr is not None and below:
        raise RuntimeFailure(f"{len(below)} of {len(found)} pairs are less alike than {min_psnr:g} dB")


def _pairs(first: Path, second: Path, console: Console) -> list[tuple[str, Path, Path]]:
    """Names and the two files of each. Raises InputError where there is nothing to compare."""
    for path in (first, second):
        if not path.exists():
            raise ModelNotFoundError(f"no such file: {path}")
    if first.is_dir() != second.is_dir():
        raise InputError(f"one is a folder, the other a file: {first}, {second}")
    if not first.is_dir():
        return [(f"{first.name}, {second.name}" if first.name != second.name else first.name, first, second)]
    names = [
        {path.name for path in folder.iterdir() if path.suffix.lower() in ENDINGS and path.is_file()}
        for folder in (first, second)
    ]
    for folder, alone in ((first, names[0] - names[1]), (second, names[1] - names[0])):
        if alone:
            listed = ", ".join(sorted(alone)[:4]) + (", ..." if len(alone) > 4 else "")
            console.warn(f"only in {folder}: {listed}")
    both = sorted(names[0] & names[1])
    if not both:
        raise InputError(f"no pictures of equal names in {first} and {second}")
    return [(name, first / name, second / name) for name in both]


def _likeness(one: Pixels, other: Pixels) -> Likeness:
    import torch

    from latentgen.images.pixels import pixel_difference
    from latentgen.images.similarity import SSIM_WINDOW, psnr_db, ssim

    a, b = torch.from_numpy(one.copy()), torch.from_numpy(other.copy())
    fits = min(one.shape[:2]) >= SSIM_WINDOW
    return Likeness(psnr_db(a, b), ssim(a, b) if fits else None, *pixel_difference(one, other))


def _differences(
    one: Mapping[str, Any] | None, other: Mapping[str, Any] | None
) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """The settings in which two pictures of ours differ, by name; nothing if one of them carries none."""
    if one is None or other is None:
        return
    before, now = _flat(one), _flat(other)
    for name in sorted(before.keys() | now.keys()):
        if name not in SAID_ALREADY and before.get(name) != now.get(name):
            yield name, (before.get(name), now.get(name))


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings by the innermost names, with the outer one where there is more than one level below it."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            inner = _flat(cast("Mapping[str, Any]", value))
            prefix = "" if name in ("request", "computation") else f"{name}."
            flat |= {f"{prefix}{key}": each for key, each in inner.items()}
        else:
            flat[name] = value
    return flat


def _say(
    console: Console,
    name: str,
    width: int,
    likeness: Likeness | None,
    sizes: Sequence[str],
    settings: Mapping[str, tuple[Any, Any]],
) -> None:
    if console.json_events:
        figures: dict[str, Any] = {"sizes": list(sizes)}
        if likeness is not None:
            figures = {
                "psnr_db": round(likeness.psnr_db, 2),
                "ssim": None if likeness.ssim is None else round(likeness.ssim, 4),
                "largest": likeness.largest,
                "share": round(likeness.share, 6),
            }
        console.event("pair", picture=name, **figures, settings={key: list(values) for key, values in settings.items()})
        return
    if likeness is None:
        words = f"sizes differ: {' and '.join(sizes)}"
    elif likeness.largest == 0:
        words = "equal"
    else:
        of_structure = "" if likeness.ssim is None else f"  SSIM {likeness.ssim:.4f}"
        words = (
            f"PSNR {likeness.psnr_db:5.2f} dB{of_structure}  by up to {likeness.largest} of 255 in "
            f"{likeness.share:.2%} of the bytes"
        )
    print(f"{escape(name):{width}}  {words}", flush=True)
    for setting, (before, now) in settings.items():
        print(f"{'':{width}}  {setting}: {_shown(before)}, {_shown(now)}", flush=True)


def _shown(value: object) -> str:
    text = "none" if value is None else escape(str(value))
    return text if len(text) <= 80 else f"{text[:79]}…"


def _check_sheet(path: Path, *, overwrite: bool) -> None:
    if path.suffix.lower() != ".png":
        raise InputError(f"--sheet {path} is not a PNG", hint="a name that ends in .png")
    if path.exists() and not overwrite:
        raise InputError(f"--sheet {path} exists", hint="--overwrite replaces it")
    if not path.parent.is_dir():
        raise InputError(f"--sheet {path}: there is no folder {path.parent}")


def _write_sheet(path: Path, rows: Sequence[tuple[Pixels, Pixels]], *, overwrite: bool) -> None:
    import numpy as np

    from latentgen.images.files import encode_picture, write_file

    if not rows:
        raise InputError("--sheet has nothing to show: no pair is of one size")
    height = sum(one.shape[0] for one, _ in rows)
    sheet = np.full((height, 3 * max(one.shape[1] for one, _ in rows), 3), 255, np.uint8)
    top = 0
    for one, other in rows:
        distance = np.abs(one.astype(np.int16) - other) * AMPLIFIED
        row = np.concatenate([one, other, distance.clip(0, 255).astype(np.uint8)], axis=1)
        sheet[top : top + row.shape[0], : row.shape[1]] = row
        top += row.shape[0]
    try:
        write_file(path, encode_picture(sheet, "PNG", None), overwrite=overwrite)
    except FileExistsError:
        raise InputError(f"--sheet {path} exists", hint="--overwrite replaces it") from None

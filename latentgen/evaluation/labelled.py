"""Pictures with exact labels: read from a rendered corpus, or rendered on the spot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentgen.corpus.records import VocabularyName, make_record
from latentgen.data.decode import decode, ordered_map
from latentgen.data.record import Record
from latentgen.data.records import list_records
from latentgen.errors import InputError
from latentgen.images.pixels import Pixels

RENDER_PX: Final = 256
"""Side at which scenes are drawn, before they are made smaller for the probe."""

Change = Callable[[int, Pixels], Pixels]
"""Number and full-sized picture to what is learnt from instead: for instance an autoencoder's reconstruction."""
OnProgress = Callable[[int, int], None]
"""Called with the pictures that are ready and their total."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledPictures:
    """Pictures with the labels of `latentgen data render`."""

    pixels: Tensor
    """(n, S, S, 3) uint8."""
    labels: tuple[Mapping[str, Any], ...]

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.labels):
            raise InputError(f"{len(self.pixels)} pictures have {len(self.labels)} labels")

    def __len__(self) -> int:
        return len(self.labels)

    def hold_back(self, share: float, *, least: int) -> tuple[LabelledPictures, LabelledPictures]:
        """About that share of the pictures, `least` or more, held back from the others: (others, held back).

        A picture's own labels decide, whatever else is in the set: a probe that goes on from another one must not be
        measured on what that one learnt.
        """
        places = [_place(labels) for labels in self.labels]
        order = sorted(range(len(self)), key=places.__getitem__)
        count = max(least, sum(place < share for place in places))
        held = set(order[:count])
        parts = ([row for row in range(len(self)) if (row in held) is wanted] for wanted in (False, True))
        others, held_back = (LabelledPictures(self.pixels[rows], tuple(self.labels[k] for k in rows)) for rows in parts)
        return others, held_back


def _place(labels: Mapping[str, Any]) -> float:
    """A number in [0, 1) that follows from the labels alone."""
    digest = hashlib.sha256(json.dumps(labels, sort_keys=True).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def read_labelled(
    folders: Sequence[Path],
    size_px: int,
    *,
    limit: int | None = None,
    change: Change | None = None,
    on_progress: OnProgress | None = None,
) -> LabelledPictures:
    """The pictures of rendered corpora, made smaller, with their labels; the first `limit` of each folder.

    Raises ModelNotFoundError or InputError if a folder cannot be read or its pictures have no labels.
    """
    records: list[Record] = []
    for folder in folders:
        found = list_records(folder)
        records.extend(found[:limit])
        if not found[0].labels.get("subjects"):
            hint = "they are made by: latentgen data render --format webdataset"
            raise InputError(f"the pictures in {folder} have no labels", hint=hint)
    side_px = size_px if change is None else RENDER_PX
    pictures = ordered_map(lambda record: decode(record, (side_px, side_px)), records, threads=1)
    pixels = _gathered(pictures, len(records), size_px, change, on_progress)
    return LabelledPictures(pixels, tuple(record.labels for record in records))


def render_labelled(
    vocabulary: VocabularyName,
    number: int,
    seed: int,
    size_px: int,
    *,
    change: Change | None = None,
    on_progress: OnProgress | None = None,
) -> LabelledPictures:
    """Scenes of the seeds from `seed` upwards, held-out compositions among them, made smaller.

    A judge must know the compositions that the model is tested on and never saw. Needs the `corpus` extra.
    """
    from latentgen.corpus.compose import render_scene  # Skia loads only where something is drawn

    records = [make_record(vocabulary, each, captions_per_image=1) for each in islice(count(seed), number)]
    pictures = (render_scene(each.scene, each.seed, RENDER_PX) for each in records)
    pixels = _gathered(pictures, len(records), size_px, change, on_progress)
    return LabelledPictures(pixels, tuple(record.labels() for record in records))


def smaller(pixels: Pixels, size_px: int) -> Pixels:
    """A picture (H, W, 3) at (S, S, 3), by Lanczos' filter, as training pictures are."""
    if pixels.shape[:2] == (size_px, size_px):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels), "RGB")
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.LANCZOS))


def _gathered(
    pictures: Iterator[Pixels],
    number: int,
    size_px: int,
    change: Change | None,
    on_progress: OnProgress | None,
) -> Tensor:
    pixels = torch.empty(number, size_px, size_px, 3, dtype=torch.uint8)
    for row, picture in enumerate(pictures):
        changed = picture if change is None else change(row, picture)
        pixels[row] = torch.from_numpy(smaller(changed, size_px).copy())
        if on_progress is not None:
            on_progress(row + 1, number)
    return pixels

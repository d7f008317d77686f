"""`make gallery`, its second half: one sheet and a manifest of the pictures drawn from `weights/gallery.jsonl`.

    python scripts/gallery.py outputs/gallery

The pictures themselves are not committed: they would add 1.4 MB to the history whenever weights change. What is
committed is enough to hold a redrawn picture against: `gallery-manifest.jsonl` has what each PNG says of itself, with
the SHA-256 of its pixels, which the same kind of CPU gives again; and where it stands on `gallery.jpg`, where any CPU's
picture must look the same but for the JPEG's losses. `tests/embedded/test_gallery.py` does both.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentgen.images.files import read_picture, write_file
from latentgen.images.grid import Layout, draw_sheet
from latentgen.images.metadata import PictureMetadata
from latentgen.images.pixels import pixels_sha256

WEIGHTS = Path(__file__).parent.parent / "weights"
LIST, MANIFEST, SHEET = (WEIGHTS / name for name in ("gallery.jsonl", "gallery-manifest.jsonl", "gallery.jpg"))
COLUMNS = 6
MAX_SHEET_BYTES = 400_000
QUALITIES = range(92, 50, -3)
"""Of the JPEG: the first that is small enough."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path, help="the folder that `latentgen generate --output` wrote into")
    pictures, records = read_drawn(parser.parse_args().pictures)
    layout = lay_out(records)
    places = find_places(layout, pictures[0].shape)
    lines = [json.dumps({"at": at, **record.to_json()}) for at, record in zip(places, records, strict=True)]
    write_file(SHEET, encode(draw_sheet(pictures, layout)), overwrite=True)
    write_file(MANIFEST, "".join(f"{line}\n" for line in lines).encode(), overwrite=True)
    print(f"{SHEET}: {len(pictures)} pictures, {SHEET.stat().st_size} bytes")


def read_drawn(folder: Path) -> tuple[list[NDArray[np.uint8]], list[PictureMetadata]]:
    """The pictures (H, W, 3) and what they say of themselves, in the list's order."""
    wanted = [(row["prompt"], row["seed"]) for row in map(json.loads, LIST.read_text(encoding="utf-8").splitlines())]
    found: dict[tuple[str, int], tuple[NDArray[np.uint8], PictureMetadata]] = {}
    for path in sorted(folder.glob("*.png")):
        pixels, text = read_picture(path)
        if text.document is None:
            continue  # a sheet of --grid
        record = PictureMetadata.from_json(text.document)
        if pixels_sha256(pixels) != record.pixels_sha256:
            raise SystemExit(f"{path} was changed after it was drawn")
        found[record.request.prompt, record.request.seed] = (pixels, record)
    missing = [prompt for prompt, seed in wanted if (prompt, seed) not in found]
    if missing:
        raise SystemExit(f"{folder} lacks {len(missing)} of {len(wanted)} pictures: {missing[0]} ...")
    return [found[key][0] for key in wanted], [found[key][1] for key in wanted]


def lay_out(records: Sequence[PictureMetadata]) -> Layout:
    cells = tuple(tuple(range(len(records))[i : i + COLUMNS]) for i in range(0, len(records), COLUMNS))
    captions = tuple(f"{record.request.prompt} ({record.request.seed})" for record in records)
    return Layout(cells, (), (), captions)


def find_places(layout: Layout, shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Left and top of each picture on the sheet, found by drawing it with a plain colour for each."""
    colours = [np.full(shape, (k, 255, 0), np.uint8) for k in range(len(layout.captions))]
    sheet = draw_sheet(colours, layout)
    corners = [np.argwhere((sheet == colour[0, 0]).all(axis=-1))[0] for colour in colours]
    return [(int(x), int(y)) for y, x in corners]


def encode(sheet: NDArray[np.uint8]) -> bytes:
    """A JPEG of at most MAX_SHEET_BYTES."""
    for quality in QUALITIES:
        data = io.BytesIO()
        Image.fromarray(sheet).save(data, "JPEG", quality=quality, optimize=True, subsampling=0)
        if data.tell() <= MAX_SHEET_BYTES:
            return data.getvalue()
    raise SystemExit(f"the sheet does not fit into {MAX_SHEET_BYTES} bytes")


if __name__ == "__main__":
    main()

"""Pictures of a run on labelled sheets (`--grid`, `--sweep`), and a sweep's folder, where none is drawn twice."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from latentgen.cli.console import STDOUT
from latentgen.cli.plan import Entry
from latentgen.cli.sweep import Axis, places, spread
from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.cli.generate_options import FileOptions
    from latentgen.cli.sweep_options import SweepOptions, WildcardOptions
    from latentgen.images.grid import Layout
    from latentgen.images.metadata import VAEUse
    from latentgen.images.pixels import Pixels
    from latentgen.pipeline import GenerationResult, TextToImage

SWEEP_FOLDER: Final = "outputs/sweep/"
MANIFEST: Final = "manifest.jsonl"
SHEET: Final = "sheet.png"
WIDEST_ROW: Final = 8
"""Values of a single axis that stand in one row; more are a block."""


class Album(Protocol):
    """What happens to the pictures of a run beside their files."""

    def add(self, path: Path, result: GenerationResult) -> None: ...

    def finish(self, drawn: Sequence[tuple[Path, GenerationRequest]]) -> Sequence[Path]:
        """Write the sheets, with what was drawn in this run, in order; their files."""
        ...


class NoAlbum:
    def add(self, path: Path, result: GenerationResult) -> None:
        pass

    def finish(self, drawn: Sequence[tuple[Path, GenerationRequest]]) -> Sequence[Path]:
        return ()


class Grid:
    """All pictures of a run on one sheet beside them, `grid-00001.png`, which never replaces another."""

    def __init__(self, folder: Path, *, with_prompts: bool) -> None:
        self._folder = folder
        self._with_prompts = with_prompts

    def add(self, path: Path, result: GenerationResult) -> None:
        pass

    def finish(self, drawn: Sequence[tuple[Path, GenerationRequest]]) -> Sequence[Path]:
        from latentgen.images.files import write_file
        from latentgen.images.grid import Layout, lay_out

        if not drawn:
            return ()
        requests = [request for _, request in drawn]
        layout = lay_out(requests)
        if not self._with_prompts:
            width = math.ceil(math.sqrt(len(requests)))
            captions = tuple(f"seed {request.seed}" for request in requests)
            layout = Layout(_block(range(len(requests)), width), (), (), captions)
        data = _draw([path for path, _ in drawn], layout)
        number = 1
        while True:
            path = self._folder / f"grid-{number:05}.png"
            try:
                write_file(path, data, overwrite=False)
            except FileExistsError:
                number += 1
            else:
                return [path]


def open_sweep(sweeping: SweepOptions, wildcard: WildcardOptions, file: FileOptions, folder: Path) -> SweepFolder:
    """The folder of a sweep, as an earlier run may have left it. Raises InputError for options that contradict it."""
    if file.output == STDOUT:
        raise InputError(f"--output {STDOUT} is for one picture, and --sweep draws many", hint="name a folder")
    if file.no_metadata:
        raise InputError(f"--no-metadata and --sweep contradict each other: {MANIFEST} holds the prompts")
    if wildcard.combinatorial:
        raise InputError("--combinatorial and --sweep contradict each other", hint="a prompt is swept as prompt=…")
    if sweeping.grid:
        raise InputError("--grid and --sweep contradict each other", hint=f"a sweep has a sheet of its own, {SHEET}")
    found = SweepFolder(folder)
    found.check(overwrite=file.overwrite)
    return found


class SweepFolder:
    """A sweep's pictures, `manifest.jsonl` with a line for each, and the sheets.

    A line holds `file`, `request`, `fingerprint` and `model`, `pixels_sha256` and `seconds`, and where they are not
    usual `vae` (the fingerprint of another one) and `int8`. A picture is there if a line with the same request, drawn
    by the same, names a file that is there. A line is written after its picture is, so a run that is ended in any way
    leaves at most a picture without a line, which is drawn again.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._manifest = folder / MANIFEST
        self._axes: tuple[Axis, ...] = ()
        self._requests: Sequence[GenerationRequest] = ()
        self._keys: list[str] = []
        self._records = list(self._read())
        self._files = {_key(each["request"], _drawn_by(each)): each["file"] for each in self._records}

    def check(self, *, overwrite: bool) -> None:
        """Raise InputError if the sheet would replace a file that no sweep wrote."""
        sheet = self._folder / SHEET
        if sheet.exists() and not self._manifest.exists() and not overwrite:
            raise InputError(f"--output {sheet} exists", hint="--overwrite replaces it")

    def plan(self, axes: Sequence[Axis], entries: Sequence[Entry]) -> Sequence[Entry]:
        """An entry for each picture; a seed that is to be random is that of the first picture drawn here, if any."""
        seeds = (each["request"].get("seed") for each in self._records)
        sweep = spread(axes, entries, next((seed for seed in seeds if type(seed) is int and seed >= 0), None))
        self._axes = sweep.axes
        return sweep.entries

    def undrawn(self, requests: Sequence[GenerationRequest], by: str | None = None) -> list[GenerationRequest]:
        """The requests that have no picture here, each once. What they are drawn by, not known yet, counts as any."""
        known = set(self._files) if by else {_key(each["request"], "") for each in self._present()}
        found = {_key(request.to_json(), by or ""): request for request in requests}
        return [
            request
            for key, request in found.items()
            if key not in known or (by and not self._is_there(self._files[key]))
        ]

    def begin(self, requests: Sequence[GenerationRequest], pipeline: TextToImage) -> list[GenerationRequest]:
        """What is to be drawn of the sweep's requests with this model; the sheets will show all of them."""
        by = _drawn_by(_parts(pipeline.fingerprint, pipeline.vae, is_int8=pipeline.fast_form.int8))
        self._keys = [_key(request.to_json(), by) for request in requests]
        self._requests = requests
        return self.undrawn(requests, by)

    def add(self, path: Path, result: GenerationResult) -> None:
        metadata, timings = result.metadata, result.timings
        request = metadata.request.to_json()
        record = {
            "file": path.name,
            "request": request,
            "model": metadata.model,
            **_parts(metadata.fingerprint, metadata.vae, is_int8=metadata.computation.kernels.endswith(" int8")),
            "pixels_sha256": metadata.pixels_sha256,
            "seconds": round(timings.text_s + timings.denoise_s + timings.decode_s, 4),
        }
        self._append(json.dumps(record, ensure_ascii=False))

    def finish(self, drawn: Sequence[tuple[Path, GenerationRequest]]) -> Sequence[Path]:
        from latentgen.images.files import write_file

        # Read again, for the lines of other processes.
        self._files |= {_key(each["request"], _drawn_by(each)): each["file"] for each in self._read()}
        sheets = list(_sheets(self._axes, self._requests))
        written: list[Path] = []
        for number, (indices, layout) in enumerate(sheets, start=1):
            files = [self._files.get(self._keys[k]) for k in indices]
            paths = [self._folder / file if file and self._is_there(file) else None for file in files]
            path = self._folder / (SHEET if len(sheets) == 1 else f"sheet-{number:03}.png")
            if any(paths):
                write_file(path, _draw(paths, layout), overwrite=True)
                written.append(path)
        return written

    def _read(self) -> Iterator[dict[str, Any]]:
        """The lines that can be read: a torn last one belongs to a picture that is drawn again."""
        try:
            text = self._manifest.read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise InputError(f"{self._manifest} cannot be read: {error.strerror}") from None
        for line in text.split("\n"):
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if isinstance(record, dict) and isinstance(record.get("request"), dict):
                file, fingerprint = record.get("file"), record.get("fingerprint")
                if isinstance(file, str) and isinstance(fingerprint, str) and Path(file).name == file:
                    yield record

    def _present(self) -> list[dict[str, Any]]:
        return [each for each in self._records if self._is_there(each["file"])]

    def _is_there(self, file: str) -> bool:
        return (self._folder / file).is_file()

    def _append(self, line: str) -> None:
        """One line at the end, on a line of its own even if the last one is torn."""
        try:
            with self._manifest.open("ab+") as file:
                if file.tell():
                    file.seek(-1, 2)
                    line = line if file.read(1) == b"\n" else f"\n{line}"
                file.write(f"{line}\n".encode())
        except OSError as error:
            raise RuntimeFailure(f"{self._manifest} could not be written: {error.strerror}") from None


def _drawn_by(record: Mapping[str, Any]) -> str:
    """What drew a manifest's picture, so far as it makes another picture of the same request."""
    return " ".join(str(record.get(name, "")) for name in ("fingerprint", "vae", "int8"))


def _parts(fingerprint: str, vae: VAEUse | None, *, is_int8: bool) -> dict[str, Any]:
    """The same, to be recorded."""
    return {
        "fingerprint": fingerprint,
        **({} if vae is None else {"vae": vae.fingerprint}),
        **({"int8": True} if is_int8 else {}),
    }


def _key(request: Mapping[str, Any], by: str) -> str:
    return json.dumps([by, request], sort_keys=True)


def _sheets(axes: Sequence[Axis], requests: Sequence[GenerationRequest]) -> Iterator[tuple[list[int], Layout]]:
    """For each sheet the numbers of its pictures, and how they lie there."""
    from dataclasses import replace

    from latentgen.images.grid import lay_out

    groups: dict[tuple[int, ...], list[int]] = {}
    for k, place in enumerate(places(axes)):
        groups.setdefault(place[2:], []).append(k)
    for further, indices in groups.items():
        labels = [axis.values[k].label for axis, k in zip(axes[2:], further, strict=True)]
        shared = lay_out([requests[k] for k in indices]).title
        title = ", ".join([*(label for label in labels if label not in shared), shared])
        yield indices, replace(_layout(axes[:2]), title=title)


def _layout(axes: Sequence[Axis]) -> Layout:
    """Of one sheet: rows and columns, or the values of a single axis in a row or a block."""
    from latentgen.images.grid import Layout

    labels = [tuple(value.label for value in axis.values) for axis in axes]
    if len(labels) == 2:
        rows, columns = labels
        cells = _block(range(len(rows) * len(columns)), len(columns))
        return Layout(cells, rows, columns, ("",) * (len(rows) * len(columns)))
    values = labels[0] if labels else ("",)
    if len(values) <= WIDEST_ROW:
        return Layout((tuple(range(len(values))),), (), values, ("",) * len(values))
    return Layout(_block(range(len(values)), math.ceil(math.sqrt(len(values)))), (), (), values)


def _block(numbers: Sequence[int], width: int) -> tuple[tuple[int | None, ...], ...]:
    padded = [*numbers, *[None] * (-len(numbers) % width)]
    return tuple(tuple(padded[i : i + width]) for i in range(0, len(padded), width))


def _draw(paths: Sequence[Path | None], layout: Layout) -> bytes:
    """A sheet as a PNG; a picture that is not there leaves its place empty."""
    from dataclasses import replace

    from latentgen.images.files import encode_picture
    from latentgen.images.grid import MAX_SIDE_PX, draw_sheet

    longest = max(len(layout.cells), *map(len, layout.cells))
    pictures: list[Pixels] = []
    numbers: dict[int, int] = {}
    for k, path in enumerate(paths):
        picture = None if path is None else _read_small(path, MAX_SIDE_PX // longest)
        if picture is not None:
            numbers[k] = len(pictures)
            pictures.append(picture)
    if not pictures:
        raise RuntimeFailure("no picture for the sheet can be read")
    cells = tuple(tuple(None if k is None else numbers.get(k) for k in row) for row in layout.cells)
    captions = tuple(layout.captions[k] for k in numbers)
    return encode_picture(draw_sheet(pictures, replace(layout, cells=cells, captions=captions)), "PNG", None)


def _read_small(path: Path, side_px: int) -> Pixels | None:
    """A picture's pixels, made smaller if a side is longer, so that thousands fit into memory; None if it is gone."""
    import numpy as np
    from PIL import Image

    from latentgen.images.files import read_picture

    try:
        pixels, _ = read_picture(path)
    except LatentgenError:
        return None
    if max(pixels.shape[:2]) <= side_px:
        return pixels
    image = Image.fromarray(pixels, "RGB")
    image.thumbnail((max(side_px, 1), max(side_px, 1)), Image.Resampling.LANCZOS)
    return np.asarray(image)

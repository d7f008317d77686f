"""Rendering a corpus to disk: many records, several processes, always the same bytes.

Record i is the i-th accepted seed from `seed` upwards, and depends on that seed alone; so the bytes do not depend on
the number of workers, and corpora of disjoint seed ranges share no picture.
"""

from __future__ import annotations

import io
import multiprocessing
import signal
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, fields
from functools import cache, partial
from itertools import count as count_from
from itertools import islice
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy
import PIL
import skia
from PIL import Image

from latentgen import __version__
from latentgen.corpus.artwork import PACKAGES, Artwork, default_artwork_folder
from latentgen.corpus.compose import render_scene
from latentgen.corpus.records import SCENE_SOURCES, Colours, Settings, VocabularyName, make_record, scene_of
from latentgen.corpus.shards import RECORDS_PER_SHARD, EncodedRecord, PictureFolder, ShardWriter, TarShards
from latentgen.corpus.splits import held_out_pairs
from latentgen.errors import InputError, RuntimeFailure
from latentgen.jsonfile import read_json, write_json

CORPUS_VERSION = 4
"""Raised whenever the pictures, captions or labels of a seed change."""
PNG_COMPRESS_LEVEL = 3
"""Level 6 takes twice the time and saves an eighth of the bytes."""
MANIFEST = "manifest.json"
MAX_SEED = 2**63 - 1
SEEDS_PER_TASK = 8

CorpusFormat = Literal["webdataset", "folder"]
Choice = Literal["include", "exclude", "only"]
"""What happens to scenes of one kind."""
OnProgress = Callable[[int, int], None]
"""Called with the number of finished records and their total."""


@dataclass(frozen=True, slots=True)
class CorpusArguments:
    """What decides the bytes of a corpus, together with the versions of the code."""

    count: int
    seed: int = 0
    size_px: int = 256
    vocabulary: VocabularyName = "heroes"
    format: CorpusFormat = "webdataset"
    captions_per_image: int = 3
    held_out: Choice = "include"
    """Scenes with a reserved pair (`latentgen/corpus/splits.py`)."""
    several: Choice = "include"
    """Scenes of more than one thing: counted ones, and pairs."""
    large: Choice = "include"
    """Scenes of one thing drawn large."""
    aside: Choice = "include"
    """Scenes of one thing that stands on the left or on the right."""
    colours: Colours = "usual"
    """Of the heroes' nouns: each its own, or any."""
    settings: Settings = "usual"
    """As the colours: where each noun is shown, and so beside what."""

    def __post_init__(self) -> None:
        for value, low, high, name in (
            (self.count, 1, 10**9, "count"),
            (self.seed, 0, MAX_SEED, "seed"),
            (self.size_px, 16, 4096, "size"),
            (self.captions_per_image, 1, 100, "captions per image"),
        ):
            if not low <= value <= high:
                raise InputError(f"corpus: {name} {value} is not between {low} and {high}")
        for value, choices, name in (
            (self.vocabulary, VocabularyName, "vocabulary"),
            (self.format, CorpusFormat, "format"),
            (self.held_out, Choice, "held-out"),
            (self.several, Choice, "several"),
            (self.large, Choice, "large"),
            (self.aside, Choice, "aside"),
            (self.colours, Colours, "colours"),
            (self.settings, Settings, "settings"),
        ):
            if value not in get_args(choices):
                raise InputError(f"corpus: {name} {value!r} is not one of {', '.join(get_args(choices))}")
        for choice, name in ((self.large, "one thing large"), (self.aside, "one thing aside")):
            if self.several == choice == "only":
                raise InputError(f"corpus: no scene shows {name} and several things", hint="ask for one of the two")
        for freedom, name in ((self.colours, "colours"), (self.settings, "settings")):
            if freedom == "any" and self.vocabulary == "full":
                raise InputError(f"corpus: the things of the full vocabulary have no {name} but their own")

    @property
    def shards(self) -> int:
        return -(-self.count // RECORDS_PER_SHARD)

    def seeds(self) -> Iterator[int]:
        """The seeds of the records, in order."""
        return islice(filter(self._is_wanted, count_from(self.seed)), self.count)

    def _is_wanted(self, seed: int) -> bool:
        if self.held_out == self.several == self.large == self.aside == "include":
            return True
        scene = scene_of(self.vocabulary, seed, self.colours, self.settings)
        return (
            _is_chosen(self.held_out, bool(held_out_pairs(scene)))
            and _is_chosen(self.several, not scene.is_single)
            and _is_chosen(self.large, scene.is_single and scene.size in ("large", "giant"))
            and _is_chosen(self.aside, scene.is_single and scene.side is not None)
        )


_DEFAULTS = {each.name: each.default for each in fields(CorpusArguments) if each.default is not MISSING}
"""What a manifest without an argument means: it was written before there was such a one."""


def _is_chosen(choice: Choice, is_one: bool) -> bool:
    return choice == "include" or is_one == (choice == "only")


def render_corpus(
    out: Path,
    arguments: CorpusArguments,
    *,
    workers: int = 1,
    artwork_folder: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Render a corpus into `out`, or finish one that was interrupted; returns `out`.

    Shards that are complete are kept. Raises InputError if `out` holds anything else: another corpus, other files, or
    the same corpus by another version of the code; ModelNotFoundError if the vocabulary needs artwork that is absent.
    """
    if workers < 1:
        raise InputError(f"corpus: workers {workers} must be at least 1")
    artwork_folder = _artwork_folder(arguments, artwork_folder)
    _claim_folder(out, arguments)
    writer: ShardWriter = TarShards(out) if arguments.format == "webdataset" else PictureFolder(out)
    encode = partial(_encode_record, arguments, artwork_folder)
    seeds = arguments.seeds()
    done = 0
    with _mapper(encode, workers) as encode_all:
        for shard in range(arguments.shards):
            shard_seeds = list(islice(seeds, RECORDS_PER_SHARD))
            if writer.is_complete(shard):
                done += len(shard_seeds)
                _report(on_progress, done, arguments.count)
                continue
            tasks = list(enumerate(shard_seeds, start=shard * RECORDS_PER_SHARD))
            writer.write(shard, _counted(encode_all(tasks), done, arguments.count, on_progress))
            done += len(tasks)
    writer.finish(arguments.shards)
    return out


def _artwork_folder(arguments: CorpusArguments, folder: Path | None) -> Path | None:
    """The folder the workers read, checked before anything is written; None if no artwork is needed."""
    if not SCENE_SOURCES[arguments.vocabulary].needs_artwork:
        return None
    return Artwork(default_artwork_folder() if folder is None else folder).folder


def _manifest(arguments: CorpusArguments) -> dict[str, Any]:
    libraries = {"skia": skia, "opencv": cv2, "numpy": numpy, "pillow": PIL}
    artwork = {package.spec: package.sha256 for package in PACKAGES}
    return {
        "arguments": asdict(arguments),
        "corpus_version": CORPUS_VERSION,
        "latentgen": __version__,
        "libraries": {name: str(library.__version__) for name, library in libraries.items()},
        "artwork": artwork if SCENE_SOURCES[arguments.vocabulary].needs_artwork else {},
    }


def _claim_folder(out: Path, arguments: CorpusArguments) -> None:
    """Make `out` ours: new, empty, or begun with exactly these arguments."""
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file, not a folder")
    out.mkdir(parents=True, exist_ok=True)
    wanted = _manifest(arguments)
    path = out / MANIFEST
    if not path.exists():
        if any(out.iterdir()):
            raise InputError(f"{out} is not empty and holds no corpus", hint="name a new or empty folder")
        write_json(path, wanted)
        return
    found = read_json(path)
    if isinstance(arguments_found := found.get("arguments"), dict):
        found["arguments"] = {**_DEFAULTS, **arguments_found}
    if found != wanted:
        differences = ", ".join(_differences(found, wanted))
        raise InputError(f"{out} holds another corpus: {differences}", hint="name another folder, or delete this one")


def _differences(found: dict[str, Any], wanted: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key in sorted(found.keys() | wanted.keys()):
        before, now = found.get(key), wanted.get(key)
        if isinstance(before, dict) and isinstance(now, dict):
            yield from _differences(before, now, f"{prefix}{key}.")
        elif before != now:
            yield f"{prefix}{key} {before} there, {now} wanted"


def _report(on_progress: OnProgress | None, done: int, total: int) -> None:
    if on_progress is not None:
        on_progress(done, total)


def _counted(
    records: Iterator[EncodedRecord], before: int, total: int, on_progress: OnProgress | None
) -> Iterator[EncodedRecord]:
    for done, record in enumerate(records, start=before + 1):
        yield record
        _report(on_progress, done, total)


Task = tuple[int, int]
"""Index and seed of a record."""
Encode = Callable[[Task], EncodedRecord]


@contextmanager
def _mapper(encode: Encode, workers: int) -> Generator[Callable[[list[Task]], Iterator[EncodedRecord]]]:
    """`map` over tasks in order: in this process, or in fresh ones that share none of this one's threads."""
    if workers == 1:
        yield lambda tasks: map(encode, tasks)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_worker)
    finished = False
    try:
        yield lambda tasks: pool.map(encode, tasks, chunksize=SEEDS_PER_TASK)
        finished = True
    except BrokenProcessPool:
        raise RuntimeFailure(
            "a rendering process died", hint="out of memory? use fewer --workers; the same command goes on from here"
        ) from None
    finally:
        # Left to end by itself, a pool may find its pipes closed when the interpreter ends, and says so.
        pool.shutdown(wait=finished, cancel_futures=True)


def _start_worker() -> None:
    """A worker uses one core (OpenCV would use all), and leaves Ctrl-C to the process that started it."""
    cv2.setNumThreads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _artwork_at(folder: Path) -> Artwork:
    """An artwork folder is opened once in each process, and its pictures are kept."""
    return Artwork(folder)


def _encode_record(arguments: CorpusArguments, artwork_folder: Path | None, task: Task) -> EncodedRecord:
    index, seed = task
    artwork = None if artwork_folder is None else _artwork_at(artwork_folder)
    record = make_record(
        arguments.vocabulary,
        seed,
        arguments.captions_per_image,
        colours=arguments.colours,
        settings=arguments.settings,
    )
    pixels = render_scene(record.scene, seed, arguments.size_px, artwork)
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG", compress_level=PNG_COMPRESS_LEVEL)
    return EncodedRecord(f"{index:08d}", png.getvalue(), record.labels())

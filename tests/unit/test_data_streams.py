"""Aspect-ratio buckets, pictures decoded on demand, and the memory they take."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentgen.data.buckets import MAX_BUCKET_ASPECT, assign_buckets, bucket_shapes
from latentgen.data.decode import decode, ordered_map
from latentgen.data.pixels import Pictures, PixelCache
from latentgen.data.record import Record
from latentgen.data.records import list_records
from latentgen.data.stream import AHEAD, PixelStream
from latentgen.errors import InputError
from latentgen.training.rng import Draw, SampleOrder

ROOT = Path(__file__).parents[2]


def write_set(folder: Path, count: int, sizes: tuple[tuple[int, int], ...] = ((16, 16),)) -> list[Record]:
    """Pictures of one colour each, which is their number; sizes (width, height) in turn."""
    folder.mkdir()
    for i in range(count):
        Image.new("RGB", sizes[i % len(sizes)], (i, 2 * i % 256, 7)).save(folder / f"{i:03d}.png")
        (folder / f"{i:03d}.txt").write_text(f"picture {i}")
    return list_records(folder)


# Buckets


def test_buckets_at_512_are_the_usual_ones() -> None:
    assert bucket_shapes(512, 64) == [
        *((384, 640), (384, 704), (448, 576)),
        (512, 512),
        *((576, 448), (640, 384), (704, 384)),
    ]


@pytest.mark.parametrize(("side_px", "multiple_px"), [(512, 64), (256, 64), (256, 16), (128, 8), (96, 32), (768, 128)])
def test_bucket_sides_and_areas(side_px: int, multiple_px: int) -> None:
    shapes = bucket_shapes(side_px, multiple_px)
    assert (side_px, side_px) in shapes
    assert {(width, height) for height, width in shapes} == set(shapes), "as many tall as wide"
    for height, width in shapes:
        assert height % multiple_px == width % multiple_px == 0
        assert max(height, width) <= MAX_BUCKET_ASPECT * min(height, width)
        assert 0.75 < height * width / side_px**2 < 1.35


def test_small_pictures_have_finer_steps() -> None:
    assert len(bucket_shapes(256, 16)) > len(bucket_shapes(256, 64))
    assert bucket_shapes(16, 16) == [(16, 16)]


def test_a_picture_goes_to_the_nearest_aspect() -> None:
    shapes = bucket_shapes(512, 64)
    sizes = [(1000, 1000), (640, 480), (480, 640), (4000, 1000), (1030, 1000), (1920, 1080)]
    assert assign_buckets(sizes, shapes) == [(512, 512), (448, 576), (576, 448), (384, 704), (512, 512), (384, 704)]
    assert assign_buckets([(1, 1)] * 3, shapes) == [(512, 512)] * 3


def test_cover_and_centre_crop(tmp_path: Path) -> None:
    """A 60 x 30 picture at 16 x 16 is cut to its middle 30 x 30; at 24 high and 48 wide it is whole."""
    pixels = np.zeros((30, 60, 3), np.uint8)
    pixels[:, 15:45] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    record = Record("a", ("x",), tmp_path / "a.png")
    assert decode(record, (16, 16))[:, 3:-3].min() == 255
    wide = decode(record, (24, 48))
    assert wide.shape == (24, 48, 3)
    assert wide[:, :8].max() == 0
    assert wide[:, 16:32].min() == 255


# Caches and streams give the same pictures


SIZES = ((32, 32), (32, 16), (16, 32))
SHAPES = ((16, 16), (8, 16), (16, 8))


@pytest.mark.parametrize("kind", ["cache", "stream"])
def test_pictures_of_several_shapes(kind: str, tmp_path: Path) -> None:
    records = write_set(tmp_path / "data", 30, SIZES)
    shapes = [SHAPES[i % 3] for i in range(30)]
    pictures: Pictures = (
        PixelCache(records, shapes, tmp_path / "cache", lambda text: None)
        if kind == "cache"
        else PixelStream(records, shapes)
    )
    assert (len(pictures), pictures.shapes) == (30, shapes)
    for group in ([0, 3, 27], [28, 1], [5]):
        batch = pictures.batch(group)
        assert batch.shape == (len(group), *shapes[group[0]], 3)
        assert batch[:, 0, 0, 0].tolist() == group
    groups = [[0, 3], [1, 4, 7], [29]]
    assert [batch[:, 0, 0, 0].tolist() for batch in pictures.batches(groups)] == groups
    crop = pictures.crop(4, 2, 3, 6)
    assert crop.shape == (6, 6, 3)
    assert int(crop[0, 0, 0]) == 4


def test_cache_files_by_shape(tmp_path: Path) -> None:
    records = write_set(tmp_path / "data", 6, SIZES)
    said: list[str] = []
    buckets = PixelCache(records, [SHAPES[i % 3] for i in range(6)], tmp_path / "cache", said.append)
    squares = PixelCache(records, 16, tmp_path / "cache", said.append)
    assert said == ["decoding 6 pictures at 3 shapes", "decoding 6 pictures at 16 px"]
    assert [path.name.rsplit("-", 1)[1] for path in buckets.paths] == ["8x16.npy", "16x8.npy", "16x16.npy"]
    assert not set(buckets.paths) & set(squares.paths), "a bucket of squares is not the set as squares"
    assert buckets.identity != squares.identity
    assert PixelStream(records, 16).identity == squares.identity
    squares.batch(list(range(6)))


class Counted:
    """An order that writes down what it was asked for."""

    def __init__(self, items: int) -> None:
        self.order, self.asked = SampleOrder(items, 0), list[int]()

    def draw(self, index: int) -> Draw:
        self.asked.append(index)
        return self.order.draw(index)


@pytest.mark.parametrize(("processes", "mine"), [(1, 0), (2, 1)])
def test_a_followed_order_is_the_order_and_is_read_ahead(processes: int, mine: int, tmp_path: Path) -> None:
    """Batches drawn by one process of several: the same draws, each asked for once, a bounded way ahead."""
    records = write_set(tmp_path / "data", 20)
    stream, counted, plain = PixelStream(records, 8), Counted(20), SampleOrder(20, 0)
    followed = stream.follow(counted)
    drawn: list[int] = []
    for step in range(8):
        indices = [i for i in range(6 * processes * step, 6 * processes * (step + 1)) if i % processes == mine]
        draws = [followed.draw(i) for i in indices]
        assert draws == [plain.draw(i) for i in indices]
        assert stream.batch([draw.item for draw in draws])[:, 0, 0, 0].tolist() == [draw.item for draw in draws]
        drawn += indices
    assert counted.asked[: len(drawn)] == drawn
    assert len(counted.asked) == len(set(counted.asked)) == len(drawn) + AHEAD, "nothing is decoded twice"
    assert followed.draw(mine) == plain.draw(mine), "a jump back, too"
    assert PixelCache(records, 8, tmp_path / "cache", lambda text: None).follow(counted) is counted


def test_a_picture_that_vanishes_is_an_error_where_it_is_asked_for(tmp_path: Path) -> None:
    records = write_set(tmp_path / "data", 5)
    stream = PixelStream(records, 8)
    records[3].path.unlink()
    stream.batch([0, 1, 2, 4])
    for ask in (lambda: stream.batch([3]), lambda: stream.crop(3, 0, 0, 4), lambda: list(stream.batches([[3]]))):
        with pytest.raises(InputError, match=r"picture 003\.png cannot be used: No such file"):
            ask()


def test_ordered_map_keeps_order_and_stays_near() -> None:
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        return item * item

    results = ordered_map(work, range(1000), 2)
    assert [next(results) for _ in range(10)] == [k * k for k in range(10)]
    results.close()
    assert len(started) <= 2 * 32 + 10
    with pytest.raises(ZeroDivisionError):
        list(ordered_map(lambda item: 1 // item, [1, 0, 1], 2))


# Memory, and what may be killed

MEMORY = """
import json, resource, sys
from pathlib import Path
from latentgen.data.scan import scan
from latentgen.data.stream import PixelStream
from latentgen.training.rng import SampleOrder

forks = []
sys.addaudithook(lambda event, arguments: forks.append(event) if event in ("os.fork", "subprocess.Popen") else None)

def of_this_process(name):
    path = Path("/proc/self") / name
    return path.read_text().splitlines() if path.exists() else []  # macOS has no /proc

def peak_kib():
    peaks = [int(line.split()[1]) for line in of_this_process("status") if "VmHWM" in line]
    return peaks[0] if peaks else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

def train(samples):
    stream = PixelStream(scanned.used, 256, threads=2)
    order = stream.follow(SampleOrder(len(scanned.used), 0))
    for start in range(0, samples, 8):
        stream.batch([order.draw(i).item for i in range(start, start + 8)])
    for _ in stream.batches([[i % len(scanned.used)] * 4 for i in range(samples // 4)]):
        pass

scanned = scan(Path(sys.argv[1]), threads=2)
train(100)
before = peak_kib()
train(600)
print(json.dumps([peak_kib() - before, forks, [line for line in of_this_process("maps") if "/dev/shm" in line]]))
"""


def test_memory_does_not_grow_with_the_set_and_nothing_can_be_killed(tmp_path: Path) -> None:
    """600 pictures of 256 px are 118 MB, decoded twice; a sixth of them set the peak. No process, no shared memory.

    So neither a killed worker nor a full /dev/shm can stop a run: there is neither.
    """
    write_set(tmp_path / "data", 40, ((256, 256),))
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "data")], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    grown_kib, forks, shared = json.loads(done.stdout)
    assert (forks, shared) == ([], [])
    assert grown_kib < 40 * 2**10, f"{grown_kib / 2**10:.0f} MiB more for six times the pictures"


# Latents


def test_latents_from_a_stream_equal_those_from_a_cache(tmp_path: Path) -> None:
    """The VAE's answer for each picture at its own shape, whichever way the pixels came; no pixel file is written."""
    from latentgen.data.pixels import to_float
    from latentgen.training.caches import LatentCache
    from tests.tiny import tiny_vae
    from tests.training.tiny_runs import VAE

    records = write_set(tmp_path / "data", 12, SIZES)
    shapes = [SHAPES[i % 3] for i in range(12)]
    vae = tiny_vae(VAE)
    stream = PixelStream(records, shapes)
    streamed = LatentCache(records, stream, vae, tmp_path / "streamed", lambda text: None)
    cached = LatentCache(
        records,
        PixelCache(records, shapes, tmp_path / "cached", lambda text: None),
        vae,
        tmp_path / "cached",
        lambda text: None,
    )
    assert {path.name.split("-")[0] for path in (tmp_path / "streamed").iterdir()} == {"latents"}
    assert streamed.shapes == cached.shapes == [(h // 2, w // 2) for h, w in shapes]
    for item in range(12):
        with torch.inference_mode():
            mean, _ = vae.encode(to_float(stream.batch([item])))
        torch.testing.assert_close(streamed.mean(item), mean[0], rtol=2e-3, atol=2e-3)  # float16
        assert torch.equal(streamed.mean(item), cached.mean(item))


def test_in_bfloat16_latents_are_those_of_float32_but_for_rounding(tmp_path: Path) -> None:
    """By the fast form where there is one, whose files have another name; the autoencoder stays as it is."""
    from latentgen.kernels.library import why_unavailable
    from latentgen.training.caches import LatentCache
    from tests.tiny import tiny_vae
    from tests.training.tiny_runs import VAE

    records = write_set(tmp_path / "data", 6)
    vae = tiny_vae(replace(VAE, block_out_channels=(16, 32)))
    exact, rounded = (
        LatentCache(records, PixelStream(records, 32), vae, tmp_path / "latents", lambda text: None, autocast=autocast)
        for autocast in (None, torch.bfloat16)
    )
    names = sorted(path.name.split("-", 4)[4] for path in (tmp_path / "latents").iterdir())
    fast = "" if why_unavailable() else "fast-"
    assert names == [f"bfloat16-{fast}32x32.npy", "float32-32x32.npy"]
    for item in range(6):
        error = (rounded.mean(item) - exact.mean(item)).norm() / exact.mean(item).norm()
        assert 1e-4 < error < 0.03
    assert {weight.dtype for weight in vae.parameters()} == {torch.float32}
    assert {weight.dtype for weight in vae.parameters()} == {torch.float32}


def test_caches_are_named_after_all_they_come_from(tmp_path: Path) -> None:
    """Pictures, shapes, weights, precision; captions, token ids, weights, precision."""
    from latentgen.models.clip_text import CLIPTextModel
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.training.caches import ContextCache, LatentCache
    from tests.tiny import randomize, tiny_vae
    from tests.training.tiny_runs import TEXT, VAE

    records = write_set(tmp_path / "data", 2)
    vae, encoder, tokenizer = tiny_vae(VAE), CLIPTextModel(TEXT).eval(), Tokenizer.published(TEXT.vocab_size - 514)
    latents, contexts = tmp_path / "latents", tmp_path / "contexts"
    said: list[str] = []

    def encode(side_px: int = 8, autocast: torch.dtype | None = None) -> None:
        LatentCache(records, PixelStream(records, side_px), vae, latents, said.append, autocast=autocast)

    def read(captions: tuple[str, ...], tokenizer: Tokenizer = tokenizer, autocast: torch.dtype | None = None) -> None:
        captioned = [Record("a", captions, records[0].path)]
        ContextCache(captioned, tokenizer, encoder, contexts, said.append, autocast=autocast)

    encode()
    encode(16)
    encode(8, torch.bfloat16)
    randomize(vae)
    encode()
    assert len(list(latents.iterdir())) == 4
    fewer = Tokenizer.published(10)
    read(("a dog", "a cat"))
    read(("a cat", "a dog"))
    read(("a cat\na dog",))
    read(("a dog", "a cat"), autocast=torch.bfloat16)
    assert len(list(contexts.iterdir())) == 3
    first = fewer.encode(["a dog"]) % TEXT.vocab_size
    assert not torch.equal(first, tokenizer.encode(["a dog"]))
    read(("a dog", "a cat"), tokenizer=fewer)
    assert len(list(contexts.iterdir())) == 4

"""What a scan counts, what a run keeps of its data, how a change is named, and the figures of `data stats`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentgen.data import scan as scan_module
from latentgen.data.manifest import data_manifest, describe_change, pictures_seen, read_manifest, write_manifest
from latentgen.data.records import fingerprint, list_records
from latentgen.data.scan import Scan, scan
from latentgen.data.stats import data_stats
from latentgen.errors import InputError, RuntimeFailure
from tests.limits import file_size_limit
from tests.unit.test_records import sample, write_tar


def write_picture(folder: Path, name: str, colour: int, caption: str | None = None, size: int = 16) -> Path:
    path = folder / f"{name}.bmp"
    Image.new("RGB", (size, size), (colour, 0, 0)).save(path, "PNG", compress_level=0)
    path = path.rename(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(caption if caption is not None else f"picture {name}")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for k, name in enumerate("abcdef"):
        write_picture(folder, name, k)
    return folder


def manifest_of(folder: Path) -> dict[str, object]:
    return data_manifest(scan(folder).used)


# The fingerprint, and what is said of a change


def test_an_edit_that_keeps_the_size_is_noticed_and_a_touch_is_not(folder: Path) -> None:
    before, picture = manifest_of(folder), folder / "c.png"
    size = picture.stat().st_size
    os.utime(picture, (0, 0))
    assert describe_change(before, manifest_of(folder)) == ""
    write_picture(folder, "c", 200)
    assert picture.stat().st_size == size
    assert describe_change(before, manifest_of(folder)) == "1 picture changed (c.png)"


def test_every_kind_of_change_is_named(folder: Path) -> None:
    before = manifest_of(folder)
    for name in ("a", "b", "c", "d"):
        write_picture(folder, f"new-{name}", 9)
    (folder / "e.png").unlink()
    write_picture(folder, "a", 77)
    (folder / "b.txt").write_text("another")
    assert describe_change(before, manifest_of(folder)) == (
        "4 pictures added (new-a.png, new-b.png, new-c.png, …), 1 removed (e.png), 1 changed (a.png), "
        "1 captioned differently (b.png)"
    )


def test_order_and_shards(tmp_path: Path) -> None:
    """Pictures in shards go by shard and key; the same samples in shards of other names are the same data."""
    members = [*sample("a"), *sample("b")]
    write_tar(tmp_path / "0.tar", members)
    before = data_manifest(list_records(tmp_path))
    assert list(before["pictures"]) == ["0.tar/a", "0.tar/b"]
    (tmp_path / "0.tar").rename(tmp_path / "7.tar")
    assert describe_change(before, data_manifest(list_records(tmp_path))) == ""
    write_tar(tmp_path / "7.tar", [*sample("b"), *sample("a")]).rename(tmp_path / "0.tar")
    assert describe_change(before, data_manifest(list_records(tmp_path))) == "their order changed"


def test_fingerprint_of_a_look_and_of_a_list_agree(folder: Path) -> None:
    assert fingerprint(scan(folder).used) == fingerprint(list_records(folder))


# Kept, and taken up again


def test_untouched_files_are_not_read_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(tmp_path / "pictures.json", manifest_of(folder))
    kept = read_manifest(tmp_path / "pictures.json")
    assert kept is not None
    write_picture(folder, "b", 99)
    os.utime(folder / "b.png", ns=(0, kept["pictures"]["b.png"]["stamp"][1]))  # mtime put back, the size is the same
    os.utime(folder / "d.png", (0, 0))
    read: list[str] = []
    inspect = scan_module.inspect
    monkeypatch.setattr(scan_module, "inspect", lambda each, whole: (read.append(each.name), inspect(each))[1])
    again = scan(folder, seen=pictures_seen(kept), threads=1)
    assert read == ["b.png", "d.png"]
    assert describe_change(kept, data_manifest(again.used)) == "1 picture changed (b.png)"
    assert all(record.size_px == (16, 16) for record in again.used)


def test_names_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_picture(folder, "ok", 1)
    os.rename(os.fsencode(folder / "ok.png"), os.fsencode(folder) + b"/\xff\n.png")
    os.rename(os.fsencode(folder / "ok.txt"), os.fsencode(folder) + b"/\xff\n.txt")
    manifest = manifest_of(folder)
    write_manifest(tmp_path / "pictures.json", manifest)
    assert read_manifest(tmp_path / "pictures.json") == manifest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"fingerprint": "x", "pictures": {"a": 1}}', "\x00"])
def test_a_damaged_manifest_is_one_line(text: str, tmp_path: Path) -> None:
    (tmp_path / "pictures.json").write_text(text)
    with pytest.raises(RuntimeFailure, match=r"pictures\.json cannot be read"):
        read_manifest(tmp_path / "pictures.json")


def test_a_full_disk(folder: Path, tmp_path: Path) -> None:
    manifest = manifest_of(folder)
    with file_size_limit(100), pytest.raises(RuntimeFailure, match=r"cannot write .*: File too large"):
        write_manifest(tmp_path / "run" / "pictures.json", manifest)
    assert list((tmp_path / "run").iterdir()) == []
    assert read_manifest(tmp_path / "run" / "pictures.json") is None


# Scan


def test_held_out_pictures_are_counted_apart(tmp_path: Path) -> None:
    picture = write_picture(tmp_path, "p", 1).read_bytes()
    members = [*sample("a", held_out=["x"]), *sample("b", held_out=[]), *sample("c", held_out=[])]
    shards = tmp_path / "shards"
    shards.mkdir()
    write_tar(shards / "0.tar", [(name, picture if name.endswith("png") else data) for name, data in members])
    scanned = scan(shards, held_out=False)
    assert (scanned.found, len(scanned.used), scanned.held_out, scanned.identical) == (3, 2, 1, 1)
    assert [record.key for record in scan(shards, held_out=True).used] == ["a"]


def test_the_first_five_are_named_and_all_are_written(folder: Path, tmp_path: Path) -> None:
    for name in "abcdef":
        (folder / f"{name}.txt").unlink()
    scanned = scan(folder)
    with pytest.raises(InputError) as error:
        scanned.require(skip_bad=False)
    assert error.value.message.startswith(f"6 of 6 pictures in {folder} cannot be used: a.png: no caption")
    assert error.value.message.count(".png") == 5
    assert error.value.message.endswith("; …")
    scanned.write_skipped(tmp_path / "skipped.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert lines == [{"file": f"{n}.png", "reason": f"no caption: write one to {n}.txt"} for n in "abcdef"]
    with file_size_limit(10), pytest.raises(RuntimeFailure, match="cannot write"):
        scanned.write_skipped(tmp_path / "skipped.jsonl")


# Figures


def test_figures(tmp_path: Path) -> None:
    shapes = [(64, 64), (64, 64), (128, 64), (64, 192)]
    captions = ["a red house", "a red Barn, a red roof", "night", "x " * 80]
    lines = []
    for k, (width, height) in enumerate(shapes):
        pixels = np.full((height, width, 3), 7 * (k > 1), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        caption = {"captions": [captions[k], "more"]} if k == 0 else {"text": captions[k]}
        lines.append({"file_name": f"{k}.png", "kind": "ab"[k % 2], "seed": k, "tags": ["t", f"u{k}"], **caption})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    scanned = scan(tmp_path, whole=False)
    figures = data_stats(scanned, lambda caption: len(caption.split()))
    assert json.loads(json.dumps(figures)) == figures
    assert (figures["found"], figures["pictures"], figures["identical pictures"]) == (4, 4, 1)
    assert figures["width"] == {"min": 64, "median": 64, "mean": 80, "max": 128}
    assert figures["sizes"] == {"64x64": 2, "128x64": 1, "64x192": 1}
    aspects = {name: count for name, count in figures["aspect ratios"].items() if count}
    assert aspects == {"below 0.5": 1, "0.95-1.05": 2, "above 2.0": 1}
    assert (figures["captions"], figures["distinct captions"]) == (5, 5)
    assert figures["captions per picture"] == {"min": 1, "median": 1, "mean": 1.25, "max": 2}
    assert figures["tokens per caption"]["max"] == 80
    assert figures["captions above 75 tokens"] == 1
    assert figures["words"] == {"red": 2, "house": 1, "barn": 1, "roof": 1, "more": 1, "night": 1, "x": 1}
    assert figures["labels"] == {"kind": {"a": 2, "b": 2}, "tags": {"t": 4, "u0": 1, "u1": 1, "u2": 1, "u3": 1}}
    assert figures["disk MB"] == pytest.approx(sum(p.stat().st_size for p in tmp_path.glob("*.png")) / 1e6, abs=0.05)


def test_an_empty_scan_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"none of 2 pictures in .* can be used: held out"):
        Scan(folder, [], [], 2).require(skip_bad=True)

"""`data check`, `data stats`, and what the training commands do with the data they are given."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Cli, Outcome, snapshot
from tests.tiny import TINY_MODEL
from tests.training.tiny_runs import write_pictures

TRAIN = ("train-vae", "--data", "data", "--out", "run", "--resolution", "16", "--crop", "16", "--batch-size", "2",
         "--max-steps", "1", "--warmup", "1", "--threads", "1", "--perceptual", "none")  # fmt: skip

TRAIN_UNET = ("train-unet", "--data", "data", "--out", "run", "--resolution", "16", "--batch-size", "2",
              "--max-steps", "1", "--warmup", "0", "--threads", "1")  # fmt: skip


@pytest.fixture(autouse=True)
def tiny_vae_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentgen.cli.train_vae.EMBEDDED", TINY_MODEL)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve sound pictures."""
    return write_pictures(tmp_path / "data", 12)


@pytest.fixture
def spoiled(data: Path) -> Path:
    """Of the twelve, three that cannot be used; the name of one would draw on a terminal."""
    (data / "003.txt").unlink()
    (data / "005.png").write_bytes(b"<html>")
    (data / "007.png").rename(data / "\x1b[31m.png")
    return data


REASONS = (
    r"3 of 12 pictures in data cannot be used: \x1b[31m.png: no caption: write one to \x1b[31m.txt; "
    r"003.png: no caption: write one to 003.txt; 005.png: no PNG, JPEG or WebP picture "
    r"(mend them, or leave them out with --skip-bad)"
)


def assert_refused(outcome: Outcome, says: str, code: int = 2) -> None:
    assert (outcome.code, outcome.out) == (code, ""), outcome.err
    assert outcome.err == f"error: {says}\n"


def test_check_of_a_sound_set(cli: Cli, data: Path) -> None:
    (data / "copy.png").write_bytes((data / "001.png").read_bytes())
    (data / "copy.txt").write_text("again")
    before = snapshot(data.parent)
    outcome = cli("data", "check", "data")
    assert (outcome.code, outcome.err) == (0, "")
    assert [line.split() for line in outcome.out.splitlines()] == [
        ["found", "13"],
        ["used", "13"],
        ["skipped", "0"],
        ["identical", "1"],
    ]
    assert snapshot(data.parent) == before, "nothing is written"


def test_check_is_strict_and_trains_as_it_says(cli: Cli, spoiled: Path, tiny_model: Path) -> None:
    before = snapshot(spoiled.parent)
    checked = cli("data", "check", "data")
    assert (checked.code, checked.err) == (2, f"error: {REASONS}\n")
    assert [line.split() for line in checked.out.splitlines()] == [
        ["found", "12"],
        ["used", "9"],
        ["skipped", "3"],
        ["reasons"],
        ["no", "caption", "2"],
        ["no", "PNG,", "JPEG", "or", "WebP", "picture", "1"],
        ["identical", "0"],
    ]
    assert_refused(cli(*TRAIN_UNET, "--init", tiny_model, "--quiet"), REASONS)
    assert snapshot(spoiled.parent) == before, "no run folder, no list"


def test_check_as_json(cli: Cli, spoiled: Path) -> None:
    outcome = cli("data", "check", "data", "--json")
    assert outcome.code == 2
    assert outcome.err == f"error: {REASONS}\n"
    found = json.loads(outcome.out)
    assert {key: found[key] for key in ("found", "used", "skipped", "identical")} == {
        "found": 12, "used": 9, "skipped": 3, "identical": 0,
    }  # fmt: skip
    assert found["reasons"] == {"no caption": 2, "no PNG, JPEG or WebP picture": 1}
    assert [each["file"] for each in found["files"]] == ["\x1b[31m.png", "003.png", "005.png"]


def test_check_with_skip_bad_writes_what_is_left_out(cli: Cli, spoiled: Path) -> None:
    outcome = cli("data", "check", "data", "--skip-bad")
    assert (outcome.code, outcome.err) == (0, "the skipped ones and why: skipped.jsonl\n")
    lines = [json.loads(line) for line in Path("skipped.jsonl").read_text().splitlines()]
    assert lines[2] == {"file": "005.png", "reason": "no PNG, JPEG or WebP picture"}
    assert len(lines) == 3
    assert cli("data", "check", "data", "--skip-bad", "--out", "list.jsonl", "--json").code == 0
    assert Path("list.jsonl").read_bytes() == Path("skipped.jsonl").read_bytes()
    refused = cli("data", "check", "data", "--skip-bad", "--out", "no/where.jsonl")
    assert (refused.code, refused.err) == (1, "error: cannot write no/where.jsonl: No such file or directory\n")


def test_pictures_that_are_no_part_of_the_set_are_told_of(cli: Cli, data: Path) -> None:
    """In folders inside, beside a list that does not name them, beside shards: training would pass over them."""
    inside = data / "10_cat"
    inside.mkdir()
    for name in ("a.png", "a.txt", "b.png", "b.txt"):
        shutil.copy(data / f"001{Path(name).suffix}", inside / name)
    told = "2 pictures are not read, such as 10_cat/a.png: folders inside are not looked into; "
    told += "name one of them, or list the pictures in a metadata.jsonl"
    for command in ("check", "stats"):
        outcome = cli("data", command, "data", "--json")
        assert (outcome.code, outcome.err) == (0, f"warning: data: {told}\n")
    assert json.loads(cli("data", "check", "data", "--json").out)["not read"] == 2
    assert f"warning: data: {told}\n" in cli(*TRAIN, "--quiet").err
    (data / "outer").mkdir()
    inside.rename(data / "outer" / "10_cat")
    empty = f"outer holds no pictures with captions to train on ({told})"
    assert_refused(cli("data", "check", "data/outer"), f"data/{empty}")
    (data / "metadata.jsonl").write_text('{"file_name": "001.png", "text": "one"}\n')
    unnamed = "13 pictures are not read, such as 000.png: metadata.jsonl does not name them"
    assert cli("data", "check", "data").err == f"warning: data: {unnamed}\n"
    with tarfile.open(data / "0.tar", "w") as shard:
        for suffix in (".png", ".txt"):
            shard.add(data / f"001{suffix}", f"001{suffix}")
    beside = "14 pictures are not read, such as 000.png: where there are tar shards they alone are"
    assert cli("data", "check", "data").err == f"warning: data: {beside}\n"


@pytest.mark.parametrize("command", ["check", "stats"])
def test_no_data(command: str, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("data", command, "nowhere"), "no data folder at nowhere", code=3)
    (tmp_path / "shard.tar").write_bytes(b"")
    file = "no data folder at shard.tar (it is a file: name the folder that holds it)"
    assert_refused(cli("data", command, "shard.tar"), file, code=3)
    (tmp_path / "empty").mkdir()
    hint = "tar shards, or pictures with a .txt beside each or a metadata.jsonl"
    assert_refused(cli("data", command, "empty"), f"empty holds no pictures with captions to train on ({hint})")


def test_stats(cli: Cli, data: Path) -> None:
    (data / "long.txt").write_text("house " * 80)
    Image.new("RGB", (64, 16)).save(data / "long.png")
    outcome = cli("data", "stats", "data")
    assert (outcome.code, outcome.err) == (0, "")
    rows = [line.split() for line in outcome.out.splitlines()]
    for row in (["pictures", "13"], ["captions", "above", "75", "tokens", "1"], ["16x16", "12"], ["above", "2.0", "1"]):
        assert row in rows, outcome.out
    figures = json.loads(cli("data", "stats", "data", "--json").out)
    assert figures["tokens per caption"]["max"] == 80
    assert figures["words"]["picture"] == 12


def test_training_without_the_bad_ones(cli: Cli, spoiled: Path, tiny_model: Path) -> None:
    outcome = cli(*TRAIN_UNET, "--init", tiny_model, "--skip-bad")
    assert outcome.code == 0, outcome.err
    assert "3 of 12 pictures are left out: see run/skipped.jsonl" in outcome.err
    assert len(Path("run/skipped.jsonl").read_text().splitlines()) == 3
    summary = json.loads(Path("run/data.json").read_text())
    assert (summary["found"], summary["used"], summary["shapes"]) == (12, 9, {"16x16": 9})
    assert len(json.loads(Path("run/pictures.json").read_text())["pictures"]) == 9
    assert str(spoiled.parent) not in Path("run/pictures.json").read_text(), "names are relative"


def test_an_autoencoder_needs_no_captions(cli: Cli, spoiled: Path) -> None:
    """Two of the pictures have none; nor is a caption that is corrected another set of pictures."""
    outcome = cli(*TRAIN, "--quiet")
    says = "1 of 12 pictures in data cannot be used: 005.png: no PNG, JPEG or WebP picture"
    assert_refused(outcome, f"{says} (mend them, or leave them out with --skip-bad)")
    (spoiled / "005.png").unlink()
    assert cli(*TRAIN).code == 0
    (spoiled / "002.txt").write_text("other words")
    (spoiled / "001.txt").write_bytes(b"")
    outcome = cli(*TRAIN, "--max-steps", "2", "--resume", "latest")
    assert outcome.code == 0, outcome.err
    (spoiled / "metadata.jsonl").write_text('{"file_name": "001.png"}\n{"file_name": "002.png", "caption": "two"}\n')
    outcome = cli(*TRAIN, "--out", "listed")
    assert outcome.code == 0, outcome.err
    Path("shards").mkdir()
    with tarfile.open("shards/0.tar", "w") as shard:
        shard.add(spoiled / "001.png", "001.png")
        shard.add(spoiled / "002.png", "002.png")
    assert cli("train-vae", "--data", "shards", *TRAIN[3:], "--out", "tarred").code == 0
    wrong = "no caption: its line has neither text nor captions beside the name: caption"
    assert f"002.png: {wrong}" in cli("data", "check", "data").err


def test_pictures_that_are_enlarged_are_told_of(cli: Cli, data: Path) -> None:
    Image.new("RGB", (64, 48)).save(data / "001.png")
    outcome = cli(*TRAIN, "--resolution", "32")
    assert "11 of 12 pictures are smaller than their training size and will be enlarged" in outcome.err
    assert "enlarged" not in cli(*TRAIN, "--out", "other").err


def test_a_resume_names_what_has_changed(cli: Cli, data: Path, tiny_model: Path) -> None:
    train = (*TRAIN_UNET, "--init", tiny_model)
    assert cli(*train).code == 0
    again = (*train, "--max-steps", "2", "--resume", "latest")
    kept = snapshot(data.parent / "run")
    (data / "002.txt").write_text("other words")
    (data / "004.png").write_bytes((data / "005.png").read_bytes())
    (data / "new.png").write_bytes((data / "005.png").read_bytes())
    (data / "new.txt").write_text("new")
    change = "1 picture added (new.png), 1 changed (004.png), 1 captioned differently (002.png)"
    hint = "restore it, choose another --out, or --override data"
    assert_refused(cli(*again, "--quiet"), f"cannot resume run: its data has changed: {change} ({hint})")
    assert snapshot(data.parent / "run") == kept
    shapes = "the shapes of --resolution and --aspect-buckets are others"
    write_pictures(data, 12)
    (data / "new.png").unlink()
    assert f"its data has changed: {shapes}" in cli(*again, "--resolution", "32").err
    for path in data.iterdir():
        path.touch()
    assert cli(*again).code == 0


def test_a_refused_resume_leaves_what_the_run_knows_of_its_data(cli: Cli, data: Path) -> None:
    assert cli(*TRAIN).code == 0
    kept = snapshot(data.parent / "run")
    picture = (data / "004.png").read_bytes()
    (data / "004.png").write_bytes((data / "005.png").read_bytes())
    again = (*TRAIN, "--max-steps", "2", "--resume", "latest")
    assert "settings differ: lr" in cli(*again, "--override", "data", "--override", "pixels", "--lr", "0.5").err
    changed = snapshot(data.parent / "run")
    assert {name: changed[name] for name in kept if "report" not in str(name)} == {
        name: each for name, each in kept.items() if "report" not in str(name)
    }
    (data / "004.png").write_bytes(picture)
    assert cli(*again).code == 0, "the data is what it was"


def test_aspect_buckets_keep_the_shape(cli: Cli, data: Path) -> None:
    for k in range(6):
        Image.new("RGB", (60, 30), (k, 0, 0)).save(data / f"{k:03d}.png")
    outcome = cli(*TRAIN, "--resolution", "128", "--aspect-buckets")
    assert outcome.code == 0, outcome.err
    assert json.loads(Path("run/data.json").read_text())["shapes"] == {"128x128": 6, "176x96": 6}
    assert "shapes of the pictures: 128x128, 176x96\n" in outcome.err


def test_large_sets_are_decoded_as_they_are_needed(cli: Cli, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, whether the pixels are kept or not."""
    assert cli(*TRAIN).code == 0
    monkeypatch.setattr("latentgen.cli.train_data.PIXEL_CACHE_LIMIT_BYTES", 1000)
    outcome = cli(*TRAIN, "--out", "streamed")
    assert outcome.code == 0, outcome.err
    assert "each is decoded when it is needed" in outcome.err
    assert not list(Path("streamed").glob("cache/pixels-*"))
    weights = [Path(run, "model/vae/diffusion_pytorch_model.safetensors").read_bytes() for run in ("run", "streamed")]
    assert weights[0] == weights[1]


def test_contact_sheets_are_drawn_or_refused(cli: Cli, tmp_path: Path) -> None:
    drawn = cli("data", "sheet", "styles", "--out", "sheets")
    assert (drawn.code, drawn.out) == (0, "sheets/corpus-styles.jpg\n"), drawn.err
    with Image.open(tmp_path / "sheets" / "corpus-styles.jpg") as page:
        assert page.format == "JPEG"
    refused = cli("data", "sheet", "all", "--out", "other")
    assert_refused(refused, "no contact sheet 'all'; there are nouns, weathers, styles, counts, records")
    assert not (tmp_path / "other").exists()

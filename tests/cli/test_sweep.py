"""`--sweep` and `--grid`: tables of pictures, their sheets, and a sweep that goes on where it ended."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgen.checkpoints.folder import save_vae
from latentgen.cli.plan import Entry, Flags
from latentgen.cli.sweep import parse_axes, spread
from latentgen.errors import InputError
from latentgen.images.files import read_picture
from tests.cli.conftest import Cli, snapshot
from tests.tiny import tiny_vae

REPOSITORY = Path(__file__).parents[2]


def values(text: str) -> list[Any]:
    (axis,), _ = parse_axes([text])
    return [next(iter(value.changes.values())) for value in axis.values]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("guidance=3:12:3", [3.0, 6.0, 9.0, 12.0]),
        ("cfg_scale=1:2:0.25", [1.0, 1.25, 1.5, 1.75, 2.0]),
        ("eta=0:1:0.1", [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]),
        ("guidance=0:1:0.3", [0.0, 0.3, 0.6, 0.9]),
        ("steps=20:10:-5", [20, 15, 10]),
        ("steps=10,20,30:40:5,10", [10, 20, 30, 35, 40]),
        ("seed=1:4", [1, 2, 3, 4]),
        ("sampler=euler, DPM++ 2M Karras", ["euler", "DPM++ 2M Karras"]),
        ("negative-prompt=fog, rain", ["fog, rain"]),
        ("guidance_interval=0.1,0.8", [(0.1, 0.8)]),
        ("invert-mask=true,false", [True, False]),
    ],
)
def test_values_are_lists_and_ranges_with_both_ends(text: str, expected: list[Any]) -> None:
    assert values(text) == expected


def test_a_flag_that_is_given_again_adds_values() -> None:
    axes, prompts = parse_axes(
        ["negative=a, b", "prompt=x, y", "steps=1,2", "negative_prompt=c", "prompt=z", "steps=2:3"]
    )
    assert prompts == ["x, y", "z"]
    assert [(axis.name, len(axis.values)) for axis in axes] == [("negative-prompt", 2), ("prompt", 0), ("steps", 3)]


def test_the_order_is_that_of_a_table() -> None:
    axes, _ = parse_axes(["guidance=1,2", "size=64x64,64x128"])
    sweep = spread(axes, [Entry("a", Flags(seed=7, count=2)), Entry("b", Flags(seed=7, count=2))])
    assert [axis.name for axis in sweep.axes] == ["guidance", "size", "prompt", "count"]
    order = [(e.flags.guidance, e.flags.height_px, e.prompt, e.flags.seed, e.flags.count) for e in sweep.entries]
    assert order == [(g, h, p, s, 1) for g in (1, 2) for h in (64, 128) for p in "ab" for s in (7, 8)]


def test_one_random_seed_is_all_pictures() -> None:
    axes, _ = parse_axes(["guidance=1:9"])
    assert len({entry.flags.seed for entry in spread(axes, [Entry("a", Flags())]).entries}) == 1
    assert {entry.flags.seed for entry in spread(axes, [Entry("a", Flags(seed=-1))], 42).entries} == {42}


@pytest.mark.parametrize(
    ("texts", "line"),
    [
        (["gidance=1:3"], r"--sweep gidance=1:3: there is no flag gidance \(did you mean guidance"),
        (["model=a,b"], "model holds for the whole run"),
        (["guidance"], "names no values"),
        (["guidance="], "names no values"),
        (["guidance=a"], "a is neither a number nor a range"),
        (["guidance=1,,2"], "a value is missing"),
        (["guidance=3:1"], "3:1 holds no values"),
        (["guidance=1:3:0"], "1:3:0 holds no values"),
        (["guidance=nan"], "nan is neither"),
        (["steps=1.5"], "1.5 is not a whole number"),
        (["steps=1:2:0.5"], "1.5 is not a whole number"),
        (["seed=1:999999999"], "999999999 values; the limit is 10000"),
        (["seed=１"], "neither a number"),
        (["count=1:4"], "count is not swept"),
        (["size=64x64", "width=32,64"], "--sweep width and --sweep size contradict"),
        (["size=64"], "64 is not a size"),
        (["invert-mask=yes"], "yes is not true or false"),
        (["guidance-interval=0.1"], "is not two numbers"),
    ],
)
def test_bad_values_are_named(texts: list[str], line: str) -> None:
    with pytest.raises(InputError, match=line):
        parse_axes(texts)


@pytest.mark.parametrize(
    ("texts", "entries", "line"),
    [
        (["seed=1:3"], [Flags(count=2)], "--count 2 and --sweep seed contradict"),
        (["steps=1,2"], [Flags(count=2), Flags(count=3)], "every prompt has the same count"),
        (["steps=1:200", "seed=1:100"], [Flags()], "20000 combinations; the limit is 10000"),
        (["steps=1"], [Flags(count=0)], "--count 0 is out of range"),
    ],
)
def test_what_contradicts_a_sweep_is_named(texts: list[str], entries: list[Flags], line: str) -> None:
    with pytest.raises(InputError, match=line):
        spread(parse_axes(texts)[0], [Entry("a", flags) for flags in entries])


# The command


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text(encoding="utf-8").splitlines()]


SWEEP = ("generate", "a cat", "-s", "5", "--sweep", "guidance=1:5:2", "--sweep", "sampler=euler,dpmpp_2m", "-o", "s/")


def test_a_sweep_is_a_table_with_a_manifest(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli(*SWEEP, "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, "")
    *pictures, sheet = outcome.out.split()
    assert sheet == "s/sheet.png"
    records = lines(tmp_path / "s")
    assert [f"s/{record['file']}" for record in records] == pictures
    drawn = [(record["request"]["guidance"], record["request"]["sampler"]) for record in records]
    assert drawn == [(g, s) for g in (1.0, 3.0, 5.0) for s in ("euler", "dpmpp_2m")]
    for record in records:
        document = read_picture(tmp_path / "s" / record["file"])[1].document
        assert document is not None
        assert document["request"] == record["request"]
        assert document["fingerprint"] == record["fingerprint"]
        assert document["pixels_sha256"] == record["pixels_sha256"]
        assert record["seconds"] > 0
    # The sheet: three rows of two pictures, each found there pixel by pixel.
    page = read_picture(tmp_path / "s" / "sheet.png")[0]
    corners = [find(page, read_picture(tmp_path / path)[0]) for path in pictures]
    assert len({y for y, _ in corners}) == 3
    assert len({x for _, x in corners}) == 2
    assert corners == sorted(corners)


def find(page: np.ndarray, picture: np.ndarray) -> tuple[int, int]:
    """Where a picture lies on a page."""
    height, width = picture.shape[:2]
    for y, x in zip(*np.nonzero((page == picture[0, 0]).all(axis=-1)), strict=True):
        if np.array_equal(page[y : y + height, x : x + width], picture):
            return int(y), int(x)
    raise AssertionError("the picture is not on the page")


def test_a_sweep_goes_on_where_it_ended(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    assert cli(*SWEEP, "-m", tiny_model).code == 0
    whole = snapshot(tmp_path)
    again = cli(*SWEEP, "-m", tiny_model)
    assert (again.code, again.out) == (0, "s/sheet.png\n"), "nothing was missing"
    assert snapshot(tmp_path) == whole
    # A picture that is gone, a torn line, and a new value: these are drawn, and nothing else.
    records = lines(tmp_path / "s")
    (tmp_path / "s" / records[1]["file"]).unlink()
    manifest = tmp_path / "s" / "manifest.jsonl"
    manifest.write_bytes(manifest.read_bytes()[:-30])
    more = cli(*SWEEP, "-m", tiny_model, "--sweep", "guidance=7")
    assert more.code == 0
    drawn = [json.loads(line)["request"] for line in manifest.read_text().splitlines()[6:]]
    assert [(request["guidance"], request["sampler"]) for request in drawn] == [
        (1.0, "dpmpp_2m"), (5.0, "dpmpp_2m"), (7.0, "euler"), (7.0, "dpmpp_2m"),
    ]  # fmt: skip
    redrawn = json.loads(manifest.read_text().splitlines()[6])
    assert redrawn["pixels_sha256"] == records[1]["pixels_sha256"]
    assert cli(*SWEEP, "-m", tiny_model).out == "s/sheet.png\n"


def test_another_model_draws_everything_anew(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    other = shutil.copytree(tiny_model, tmp_path / "other")
    weights = other / "vae" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x3e")
    assert len(cli(*SWEEP, "-m", tiny_model).out.split()) == 7
    assert len(cli(*SWEEP, "-m", other).out.split()) == 7


def test_another_vae_draws_everything_anew(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    save_vae(tiny_vae(seed=7), tmp_path / "other-vae")
    command = ("generate", "a cat", "-m", tiny_model, "-s", "5", "--sweep", "steps=1,2", "-o", "s/")
    assert len(cli(*command).out.split()) == 3
    plain = (tmp_path / "s" / "sheet.png").read_bytes()
    other = cli(*command, "--vae", tmp_path / "other-vae")
    assert len(other.out.split()) == 3
    assert "already" not in other.err
    assert (tmp_path / "s" / "sheet.png").read_bytes() != plain
    again = cli(*command)
    assert again.out == "s/sheet.png\n"
    assert "2 of 2 pictures are in s already" in again.err
    assert (tmp_path / "s" / "sheet.png").read_bytes() == plain


def test_what_is_kept_of_a_sweeps_steps_goes_on_too(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    command = ("generate", "a cat", "-m", tiny_model, "-s", "5", "--sweep", "steps=1,2,3", "-o", "s/", "--gif", "d.gif")
    assert cli(*command).code == 0
    whole = snapshot(tmp_path)
    again = cli(*command)
    assert (again.code, again.out) == (0, "s/sheet.png\n"), again.err
    records = lines(tmp_path / "s")
    (tmp_path / "s" / records[1]["file"]).unlink()
    refused = cli(*command)
    assert (refused.code, "d-002.gif exists" in refused.err) == (2, True)
    Path("d-002.gif").unlink()
    assert cli(*command).code == 0
    assert {name: whole[name] for name in whole if name.endswith(".gif")} == {
        name: data for name, data in snapshot(tmp_path).items() if name.endswith(".gif")
    }


def test_a_random_seed_is_kept_when_a_sweep_goes_on(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    command = ("generate", "a cat", "-m", tiny_model, "--sweep", "steps=1,2")
    assert len(cli(*command).out.split()) == 3
    assert cli(*command).out == "outputs/sweep/sheet.png\n"
    assert len(cli(*command, "--sweep", "guidance=1,2").out.split()) == 5
    assert len({record["request"]["seed"] for record in lines(tmp_path / "outputs" / "sweep")}) == 1


def test_further_flags_are_further_sheets(cli: Cli, tiny_model: Path) -> None:
    flags = ("--sweep", "steps=1,2", "--sweep", "prompt=a, b", "--sweep", "prompt=c", "--sweep", "eta=0,1", "-n", "2")
    outcome = cli("generate", "-m", tiny_model, "--sampler", "ddim", *flags, "-o", "s", "--json", "-s", "1")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["path"] for event in events if event["event"] == "sheet"] == [
        f"s/sheet-00{k}.png" for k in (1, 2, 3, 4)
    ]
    assert sum(event["event"] == "picture" for event in events) == 16


def test_a_dry_run_shows_what_is_missing(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    assert len(cli(*SWEEP, "-m", tiny_model, "--dry-run").out.splitlines()) == 6
    assert os.listdir(tmp_path) == []
    assert cli(*SWEEP, "-m", tiny_model).code == 0
    outcome = cli(*SWEEP, "--sweep", "guidance=9", "-m", tiny_model, "--dry-run")
    assert len(outcome.out.splitlines()) == 2
    assert "6 of 8 pictures are in s already" in outcome.err


def test_a_picture_that_fails_is_an_empty_place(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentgen.pipeline import text_to_image

    draw = text_to_image.decode
    calls = iter(range(99))

    def fail_once(*arguments: Any, **named: Any) -> Any:
        if next(calls) == 2:
            arguments = (*arguments[:2], arguments[2] * float("nan"), *arguments[3:])
        return draw(*arguments, **named)

    monkeypatch.setattr(text_to_image, "decode", fail_once)
    outcome = cli(*SWEEP, "-m", tiny_model)
    assert outcome.code == 5
    assert len(lines(tmp_path / "s")) == 5
    assert outcome.out.split()[-1] == "s/sheet.png"
    monkeypatch.setattr(text_to_image, "decode", draw)
    assert len(cli(*SWEEP, "-m", tiny_model).out.split()) == 2, "the one that failed, and the sheet"


def test_a_sheet_that_no_sweep_wrote_is_kept(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "sheet.png").write_bytes(b"mine")
    outcome = cli(*SWEEP, "-m", tiny_model)
    assert (outcome.code, outcome.err) == (2, "error: --output s/sheet.png exists (--overwrite replaces it)\n")
    assert cli(*SWEEP, "-m", tiny_model, "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--sweep", "guidance=1:2000:999"), "--guidance 1999.0 is out of range (0 to 1000)"),
        (("--sweep", "sampler=euler,eulr"), "no such sampler: 'eulr' (did you mean euler"),
        (("--sweep", "steps=1,2", "--no-metadata"), "manifest.jsonl holds the prompts"),
        (("--sweep", "steps=1,2", "--grid"), "a sweep has a sheet of its own"),
        (("--sweep", "steps=1,2", "--combinatorial"), "contradict each other"),
        (("--sweep", "steps=1,2", "-o", "a.png"), "names one file for 2 pictures"),
    ],
)
def test_what_cannot_be_swept_is_one_line_before_torch(
    arguments: tuple[str, ...], line: str, cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentgen.cli.loading.load_model", None)
    outcome = cli("generate", "a cat", "-m", tiny_model, *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert line in outcome.err
    assert outcome.err.count("\n") == 1
    assert os.listdir(tmp_path) == []


def test_a_sweep_that_was_stopped_is_finished_by_the_same_command(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    """Killed, then interrupted, then let run: every picture once, the first ones untouched."""
    command = ["generate", "a cat", "-m", str(tiny_model), "--sweep", "seed=1:9", "--steps", "12", "-o", "s/"]
    before: dict[Path, bytes] = {}
    for number in (signal.SIGKILL, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "-m", "latentgen", *command], cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        for _ in range(2):
            assert process.stdout.readline().startswith(b"s/")
        process.send_signal(number)
        process.communicate(timeout=100)
        assert all(path.read_bytes() == data for path, data in before.items()), "what is finished stays as it is"
        before = {tmp_path / "s" / record["file"]: b"" for record in lines(tmp_path / "s")}
        before = {path: path.read_bytes() for path in before}
    assert 4 <= len(before) < 9
    assert len(cli(*command).out.split()) == 9 - len(before) + 1
    assert [record["request"]["seed"] for record in lines(tmp_path / "s")] == list(range(1, 10))
    assert all(path.read_bytes() == data for path, data in before.items())


# --grid


def test_a_grid_shows_all_pictures_of_a_run(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    for number in (1, 2):
        outcome = cli("generate", "a cat", "a dog", "-m", tiny_model, "-s", "1", "-n", "2", "--grid", "-o", "g/")
        assert outcome.code == 0
        *pictures, grid = outcome.out.split()
        assert grid == f"g/grid-0000{number}.png"
        page = read_picture(tmp_path / grid)[0]
        corners = [find(page, read_picture(tmp_path / path)[0]) for path in pictures]
        assert corners == sorted(corners)
        assert len({y for y, _ in corners}) == 2, "a prompt a row"


def test_a_grid_without_metadata_says_no_prompt(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    from latentgen.images import grid

    said: list[Any] = []
    draw = grid.draw_sheet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grid, "draw_sheet", lambda pictures, layout: (said.append(layout), draw(pictures, layout))[1])
        command = ("generate", "zanzibar", "-m", tiny_model, "-s", "1", "-n", "3", "--grid", "-o", "g/")
        assert cli(*command, "--no-metadata").code == 0
    assert "zanzibar" not in repr(said)
    assert said[0].captions == ("seed 1", "seed 2", "seed 3")
    assert said[0].cells == ((0, 1), (2, None))

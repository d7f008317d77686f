"""Several processes that draw one run: the pictures, names, sheets and words of one process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from latentgen.cli.ranks import Launched
from latentgen.images.files import read_picture
from latentgen.pipeline import devices
from tests.cli.conftest import Cli, snapshot
from tests.cli.ranks import PROMPTS
from tests.training.ranks import run_module

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which all runs of `ranks.py` have left their files."""
    folder = tmp_path_factory.mktemp("runs")
    run_module("tests.cli.ranks", str(folder), timeout_s=240)
    return folder


def log(runs: Path, name: str, kind: str, rank: int) -> str:
    return (runs / f"{name}-logs" / f"{kind}-{rank}").read_text()


def codes(runs: Path, name: str) -> list[int]:
    return [int(path.read_text()) for path in sorted((runs / f"{name}-logs").glob("code-*"))]


def events(runs: Path, name: str, rank: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in log(runs, name, "stdout", rank).splitlines()]


# The same as one process


def test_files_are_those_of_one_process_byte_for_byte(runs: Path) -> None:
    assert codes(runs, "two") == codes(runs, "two-again") == [0, 0]
    one = snapshot(runs / "one")
    assert len(one) == len(PROMPTS) + 2 + 1, "the pictures of both runs, and a sheet"
    assert snapshot(runs / "two") == one


def test_each_process_draws_every_second_picture_and_the_first_sums_up(runs: Path) -> None:
    first, second = events(runs, "two", 0), events(runs, "two", 1)
    drawn = [[event["path"] for event in each if event["event"] == "picture"] for each in (first, second)]
    numbers = [[int(str(path).split("-")[-2]) for path in each] for each in drawn]
    assert numbers == [[1, 3, 5], [2, 4]]
    assert [event["event"] for event in first][-2:] == ["sheet", "done"]
    assert (first[-1]["pictures"], first[-1]["failed"]) == (5, 0)
    assert {str(event["event"]) for event in second} == {"step", "picture"}
    steps = sorted(int(str(event["done"])) for event in first + second if event["event"] == "step")
    assert steps == list(range(1, 4 * len(PROMPTS) + 1)), "a step counts those of all processes"


def test_a_sweep_has_one_manifest_and_is_not_drawn_twice(runs: Path) -> None:
    assert codes(runs, "two-sweep") == codes(runs, "two-sweep-again") == [0, 0]
    one, two = ((runs / f"{name}-sweep" / "manifest.jsonl").read_text().splitlines() for name in ("one", "two"))
    without_seconds = [sorted(json.dumps({**json.loads(line), "seconds": 0}) for line in lines) for lines in (one, two)]
    assert without_seconds[0] == without_seconds[1]
    assert len(one) == 3
    for name in ("sheet.png", *(json.loads(line)["file"] for line in one)):
        assert (runs / "two-sweep" / name).read_bytes() == (runs / "one-sweep" / name).read_bytes(), name


def test_a_sweep_of_which_another_model_drew_some_is_drawn_whole(runs: Path) -> None:
    """Before the model is known one picture seems to be missing, which one process would draw; then there are two."""
    assert (codes(runs, "one-other"), codes(runs, "two-other")) == ([0], [0, 0])
    for name in ("one", "two"):
        drawn = [
            each
            for rank in range(len(codes(runs, f"{name}-other")))
            for each in log(runs, f"{name}-other", "stdout", rank).split()
        ]
        assert len([path for path in drawn if not path.endswith("sheet.png")]) == 2, drawn


def test_a_picture_that_fails_leaves_its_name_free_and_is_said_once(runs: Path) -> None:
    assert (codes(runs, "one-spoiled"), codes(runs, "two-spoiled")) == ([5], [5, 0])
    one = snapshot(runs / "one-spoiled")
    assert snapshot(runs / "two-spoiled") == one
    assert [name.split("-", 3)[3] for name in one] == ["00001-5.png", "00002-6.png", "00004-8.png"]
    assert log(runs, "two-spoiled", "stderr", 0) == log(runs, "one-spoiled", "stderr", 0)
    assert "1 of 4 pictures failed: the latents are not finite" in log(runs, "two-spoiled", "stderr", 0)


def test_random_seeds_are_the_first_processs(runs: Path) -> None:
    assert codes(runs, "random") == [0, 0]
    pictures = sorted((runs / "random").iterdir())
    requests = [document["request"] for path in pictures if (document := read_picture(path)[1].document)]
    assert tuple(request["prompt"] for request in requests) == PROMPTS
    assert len({request["seed"] for request in requests}) == len(PROMPTS)
    assert log(runs, "random", "stderr", 0) == f"seed {', '.join(str(request['seed']) for request in requests)}\n"
    assert log(runs, "random", "stderr", 1) == ""


def test_a_process_without_a_picture_leaves(runs: Path) -> None:
    assert codes(runs, "single") == [0, 0]
    assert (log(runs, "single", "stdout", 0), log(runs, "single", "stdout", 1)) == ("single.png\n", "")


def test_a_dry_run_is_said_once_and_writes_nothing(runs: Path) -> None:
    assert codes(runs, "dry") == [0, 0]
    assert len(log(runs, "dry", "stdout", 0).splitlines()) == len(PROMPTS)
    assert (log(runs, "dry", "stdout", 1), (runs / "dry").exists()) == ("", False)


# Processes of our own


def test_the_first_process_starts_the_others(runs: Path) -> None:
    command = ("generate", "-m", "model", "--prompts", "p.txt", "-s", "5", "--grid", "-o", "led/", "--processes", "2")
    done = subprocess.run(
        [sys.executable, "-m", "latentgen", *command],
        cwd=runs,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    names = [f"led/{path.name}" for path in (runs / "led").iterdir()]
    assert sorted(done.stdout.split()) == sorted(names)
    one = snapshot(runs / "one")
    assert snapshot(runs / "led") == {name: one[name] for name in snapshot(runs / "led")}
    assert len(names) == len(PROMPTS) + 1


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("killed", 1, "error: process 1 was ended by SIGKILL (fewer --processes need less memory)\n"),
        ("failed", 4, ""),
        ("missing", 1, "error: process 1 found nothing to draw (the files must stay as they are)\n"),
    ],
)
def test_a_process_that_is_lost_ends_the_run(name: str, code: int, said: str, runs: Path) -> None:
    assert codes(runs, name) == [code]
    assert log(runs, name, "stderr", 0) == said


# What is refused


@pytest.mark.parametrize(
    ("arguments", "environment", "cause"),
    [
        (("--processes", "0"), {}, "--processes 0 is out of range"),
        (("--processes", "2", "-p", "-"), {}, "several processes cannot read one standard input"),
        (("--processes", "2", "--gif", "a.gif"), {}, "--preview, --gif and --save-steps are for one process"),
        (("--processes", "3"), {"WORLD_SIZE": "2", "RANK": "0"}, "--processes 3 and the launcher's 2 processes"),
        ((), {"WORLD_SIZE": "2"}, "RANK= in the environment is no number"),
        ((), {"WORLD_SIZE": "two"}, "WORLD_SIZE=two in the environment is no number"),
        ((), {"WORLD_SIZE": "2", "RANK": "1"}, "WORLD_SIZE is 2, but this is no process of torchrun"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(
    arguments: tuple[str, ...],
    environment: dict[str, str],
    cause: str,
    cli: Cli,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-o", "out/", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert re.fullmatch(rf"error: {re.escape(cause)}.*\n", outcome.err), outcome.err


@pytest.mark.parametrize(
    ("present", "asked", "chosen"),
    [
        (("cuda:0", "cuda:1", "cpu"), "auto", "cuda:1"),
        (("cuda:0", "cuda:1", "cpu"), "cuda", "cuda:1"),
        (("cuda:0", "cuda:1", "cpu"), "cuda:0", "cuda:0"),
        (("cuda:0", "cpu"), "auto", "cuda:0"),
        (("cuda:0", "cpu"), "cpu", "cpu"),
        (("cpu",), "auto", "auto"),
    ],
)
def test_each_process_takes_a_gpu_of_its_own(
    present: tuple[str, ...], asked: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "present_devices", lambda: list(present))
    assert Launched(5, 8, 1).device(asked) == chosen

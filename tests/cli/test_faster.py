"""`--deep-cache` and `--int8`: said, drawn, recorded, drawn again from the file, or refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from latentgen.images.files import read_picture_text
from latentgen.kernels.int8 import why_not_int8
from tests.cli.conftest import Cli

runs_here = pytest.mark.skipif(why_not_int8() is not None, reason=f"no 8-bit layers here: {why_not_int8()}")


def draw(cli: Cli, model: Path, name: str, *flags: str) -> bytes:
    outcome = cli("generate", "a cat", "-m", model, "-s", "5", "--steps", "5", "-o", name, "--no-metadata", *flags)
    assert outcome.code == 0, outcome.err
    return Path(name).read_bytes()


def recorded(path: str) -> dict[str, dict[str, object]]:
    document = read_picture_text(Path(path))[2].document
    assert document is not None
    return json.loads(json.dumps(document))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_deep_cache_is_recorded_and_replayed(dtype: str, cli: Cli, tiny_model: Path) -> None:
    flags = ("-m", str(tiny_model), "-s", "5", "--dtype", dtype, "--sampler", "heun", "--deep-cache", "2")
    assert cli("generate", "a cat", *flags, "-o", "a.png").code == 0
    assert recorded("a.png")["request"]["deep_cache"] == 2
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")


def test_one_draws_what_nothing_draws(cli: Cli, tiny_model: Path) -> None:
    nothing = draw(cli, tiny_model, "a.png")
    assert draw(cli, tiny_model, "b.png", "--deep-cache", "1") == nothing
    assert draw(cli, tiny_model, "c.png", "--deep-cache", "2") != nothing


def test_deep_cache_in_a_prompt_file(cli: Cli, tiny_model: Path) -> None:
    Path("p.jsonl").write_text('{"prompt": "a cat", "deep_cache": 3}\n{"prompt": "a dog", "deep-cache": 2}\n')
    assert cli("generate", "--prompts", "p.jsonl", "-m", tiny_model, "-s", "5", "-o", "{n}.png").code == 0
    assert [recorded(f"{n}.png")["request"]["deep_cache"] for n in (1, 2)] == [3, 2]


@pytest.mark.parametrize("value", ["0", "-1", "1001"])
def test_an_impossible_interval_is_one_line(value: str, cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "--deep-cache", value)
    assert outcome.code == 2
    assert f"--deep-cache {value} is out of range (1 to 1000)" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(Path().iterdir())


@runs_here
def test_int8_is_recorded_and_replayed(cli: Cli, tiny_model: Path) -> None:
    flags = ("-m", str(tiny_model), "-s", "5", "--dtype", "bfloat16", "--int8", "--deep-cache", "2")
    assert cli("generate", "a cat", *flags, "-o", "a.png").code == 0
    assert str(recorded("a.png")["computation"]["kernels"]).endswith(" int8")
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")


@runs_here
def test_int8_is_replayed_without_where_there_is_none(cli: Cli, tiny_model: Path) -> None:
    """As a picture of another device is: what differs is said."""
    assert cli("generate", "a cat", "-m", tiny_model, "--dtype", "bfloat16", "--int8", "-o", "a.png").code == 0
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model, "--dtype", "float32")
    assert outcome.code == 1
    assert "the redrawn picture differs" in outcome.err
    assert "dtype bfloat16 then, float32 now" in outcome.err


def test_int8_where_it_is_not_possible_is_one_line(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "--int8", "--dtype", "float32")
    assert outcome.code == 2
    assert "--int8 is not possible: it is for bfloat16 on a CPU (leave it out)" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not list(Path().iterdir())

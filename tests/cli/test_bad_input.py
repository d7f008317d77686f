"""Mistakes of every command: exit code, one line, nothing written. `test_generate_inputs.py` has more of `generate`."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, snapshot

MODEL = "{model}"
"""Stands for the tiny model's folder in a row."""


@dataclass(frozen=True)
class Row:
    name: str
    arguments: tuple[str, ...]
    code: int
    line: str
    """What the error line must say."""
    files: dict[str, bytes] | None = None
    """Files to put into the current folder first."""


def generate(name: str, *arguments: str, code: int = 2, line: str, files: dict[str, bytes] | None = None) -> Row:
    """A row with a prompt and the tiny model."""
    return Row(name, ("generate", "a cat", "-m", MODEL, *arguments), code, line, files)


ARGUMENT_ROWS = [
    Row("escape in prompt", ("generate", "a\x1b[2J", "-m", MODEL), 2, "control character U+001B at character 1"),
    Row("unknown command", ("generat",), 2, "there is no command generat (did you mean generate?)"),
    Row("unknown global option", ("--verison",), 2, "there is no option --verison"),
    generate("option without its value", "--steps", line="--steps"),
    generate("size that is none", "--size", "64", line="--size 64 is not a size (for instance 512x768"),
    generate("interval of one number", "--guidance-interval", "0.5", line="--guidance-interval 0.5 is not two numbers"),
    generate("unknown schedule", "--schedule", "caras", line="no such schedule: 'caras' (did you mean karras"),
    generate(
        "eta without effect",
        "--sampler",
        "euler",
        "--eta",
        "0.5",
        line="--eta 0.5 changes nothing with euler (it is for ddim",
    ),
    generate(
        "one seed for two", "other", "-s", "1", "-o", "{seed}.png", line="names one file for 2 pictures (put {n} in"
    ),
    generate(
        "some of one name", "b", "-n", "2", "-s", "1", "-o", "{seed}.png", line="one file for several of 4 pictures"
    ),
    generate("field in a folder", "-o", "{date}/{n}.png", line="{date} is a folder (fields such as {date} are for the"),
    generate("unknown device", "--device", "gpu", line="--device gpu is not known (auto, cpu, cuda, cuda:N or mps)"),
    generate("threads 1025", "--threads", "1025", line="--threads 1025 is out of range (1 to 1024)"),
    generate("batch size 0", "--batch-size", "0", line="--batch-size 0 is out of range"),
    generate("batch size 1025", "--batch-size", "1025", line="--batch-size 1025 is out of range (1 to 1024)"),
    Row("model path with NUL", ("generate", "a", "-m", "a\0b"), 3, "there is no model folder a\\x00b"),
    generate("unknown format", "--format", "bmp", line="--format bmp is not known"),
    generate("template with a wide field", "-o", "{seed:9999}.png", line="{seed:9999} is not a valid field"),
    generate("template that is torn", "-o", "{seed.png", line="a literal brace is written twice"),
    generate("wildcards missing", "--wildcards", "no", code=3, line="--wildcards no: there is no such folder"),
    generate("config missing", "--config", "no.toml", code=3, line="there is no file no.toml"),
    generate("config that is a folder", "--config", ".", line="--config . cannot be read"),
]

FILE_ROWS = [
    Row(name, ("generate", "--prompts", "p.jsonl", "-m", MODEL), 2, line, {"p.jsonl": data})
    for name, data, line in [
        ("torn JSON", b'{"prompt": "a"}\n{"prompt"\n', "p.jsonl line 2: not JSON"),
        ("JSON that is a list", b"[]\n", "p.jsonl line 1: expected an object"),
        ("prompt that is a number", b'{"prompt": 3}\n', "p.jsonl line 1: expected an object"),
        ("number of 5000 digits", b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}\n", "p.jsonl line 1: "),
        ("key of the whole run", b'{"prompt": "a", "model": "x"}\n', "model holds for the whole run (say it on the"),
        ("true for a number", b'{"prompt": "a", "cfg": true}\n', "line 1: guidance must be a number, not True"),
        ("null for the count", b'{"prompt": "a", "count": null}\n', "line 1: count must be a whole number, not None"),
        ("number for a size", b'{"prompt": "a", "size": 64}\n', "line 1: size must be text, not 64"),
        ("size and width", b'{"prompt": "a", "size": "64x64", "width": 64}\n', "line 1: width is given twice"),
        (
            "three for two",
            b'{"prompt": "a", "guidance_interval": [0, 0.5, 1]}\n',
            "a list of 2 values, not [0,",
        ),
        ("value out of range", b'{"prompt": "a", "steps": 0}\n', "p.jsonl line 1: steps 0 is out of range"),
        ("unknown sampler", b'{"prompt": "a", "sampler": "x9"}\n', "p.jsonl line 1: no such sampler: 'x9'"),
    ]
]

OTHER_ROWS = [
    Row("info of nothing", ("info", "none.png"), 3, "none.png cannot be read: No such file"),
    Row("info of an empty file", ("info", "a"), 3, "a is empty", {"a": b""}),
    Row("info of a web page", ("info", "a.safetensors"), 3, "is a web page", {"a.safetensors": b"<!doctype html>"}),
    Row(
        "info of an LFS pointer",
        ("info", "a"),
        3,
        "Git LFS pointer",
        {"a": b"version https://git-lfs.github.com/spec/v1\n"},
    ),
    Row("info of a pickle", ("info", "a.safetensors"), 3, "is a pickle", {"a.safetensors": b"PK\x03\x04rest of it"}),
    Row("info of a torn picture", ("info", "a.png"), 2, "a.png is not a whole", {"a.png": b"\x89PNG\r\n\x1a\nrest"}),
    Row("replay of nothing", ("replay", "none.png"), 3, "there is no file none.png"),
    Row("replay of text", ("replay", "a.png"), 2, "a.png is not a whole PNG, JPEG or WebP", {"a.png": b"hello"}),
    Row("models show of nothing", ("models", "show", "none"), 3, "there is no model folder none"),
    Row("models with an unknown part", ("models", "shov"), 2, "shov"),
    Row("info without a path", ("info",), 2, "missing argument 'PATH'"),
]

ROWS = [*ARGUMENT_ROWS, *FILE_ROWS, *OTHER_ROWS]


def prepare(row: Row, folder: Path, model: Path) -> list[str]:
    for name, data in (row.files or {}).items():
        path = folder / name
        if name.endswith("/"):
            path.mkdir()
        else:
            path.write_bytes(data)
    return [argument.replace(MODEL, str(model)) for argument in row.arguments]


def check_error(code: int, out: str, err: str, row: Row) -> None:
    """The oracle of every row."""
    assert code == row.code, err
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert len(err) <= 308, err
    assert err[:-1].isprintable()
    assert "Traceback" not in err
    assert row.line in err


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_each_mistake_is_one_line(row: Row, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    arguments = prepare(row, tmp_path, tiny_model)
    before = snapshot(tmp_path), snapshot(tiny_model)
    outcome = cli(*arguments)
    check_error(outcome.code, outcome.out, outcome.err, row)
    assert (snapshot(tmp_path), snapshot(tiny_model)) == before, "a mistake must leave no file"


def test_no_mistake_costs_an_import_of_torch(tiny_model: Path, tmp_path: Path) -> None:
    """All rows in one fresh interpreter, which must not know torch at the end."""
    commands: list[list[str]] = []
    for i, row in enumerate(ROWS):
        folder = tmp_path / str(i)
        folder.mkdir()
        commands.append([str(folder), *prepare(row, folder, tiny_model)])
    code = """
import contextlib, io, json, os, sys
from latentgen.cli.app import main
for folder, *arguments in json.load(sys.stdin):
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments) != 0, arguments
    assert "torch" not in sys.modules, arguments
"""
    package = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=json.dumps(commands),
        env={**os.environ, "PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _cut(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _pointer(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )


def _without_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_cut, "diffusion_pytorch_model.safetensors is cut short"),
        (_pointer, "git lfs pull"),
        (_without_text_encoder, "text_encoder"),
    ],
)
def test_a_damaged_model_is_named(
    damage: Callable[[Path], None], line: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_model, tmp_path / "m")
    damage(tmp_path / "m")
    outcome = cli("generate", "a cat", "-m", "m", "-o", "a.png")
    check_error(outcome.code, outcome.out, outcome.err, Row("", (), 3, line))
    assert not (tmp_path / "a.png").exists()


def test_closed_standard_input_is_said_so(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)  # as Python has it after `<&-`
    outcome = cli("generate", "-p", "-", "-m", tiny_model)
    check_error(outcome.code, outcome.out, outcome.err, Row("", (), 2, "standard input is closed"))


def test_a_bad_line_on_standard_input_is_named(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\xff\n")))
    outcome = cli("generate", "-p", "-", "-m", tiny_model)
    check_error(outcome.code, outcome.out, outcome.err, Row("", (), 2, "standard input is not UTF-8 text: byte 6"))

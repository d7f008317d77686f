"""Every mistake a user can make: its exit code, one line that names it, and nothing written."""

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
    Row("no prompt", ("generate", "-m", MODEL), 2, "there is no prompt"),
    Row("blank prompt", ("generate", "  ", "-m", MODEL), 2, "the prompt is empty"),
    Row("invalid UTF-8", ("generate", "caf\udce9", "-m", MODEL), 2, "byte 0xe9 at character 3"),
    Row("escape in prompt", ("generate", "a\x1b[2J", "-m", MODEL), 2, "control character U+001B at character 1"),
    Row("prompt of 200 kB", ("generate", "x" * 200_000, "-m", MODEL), 2, "holds 200000 bytes; the limit is 100000"),
    Row("prompt that begins with a dash", ("generate", "-cat", "-m", MODEL), 2, "is written --prompt=…"),
    Row("unknown command", ("generat",), 2, "there is no command generat (did you mean generate?)"),
    Row("unknown global option", ("--verison",), 2, "there is no option --verison"),
    generate("unknown option", "--stepz", "3", line="there is no option --stepz (did you mean --steps?)"),
    generate("option without its value", "--steps", line="--steps"),
    generate("width 0", "-W", "0", line="--width 0 is out of range"),
    generate("height -64", "--height=-64", line="--height -64 is out of range"),
    generate("height off the grid", "--height", "500", line="multiples of 16 (nearest: 496, 512)"),
    generate("height of half pixels", "--height", "512.5", line="'--height'"),
    generate("height with a unit", "--height", "512px", line="'--height'"),
    generate("width of 100000", "--width", "100000", line="--width 100000 is out of range (1 to 8192)"),
    generate("width of 10^30", "--width", "1" + "0" * 30, line="--width 100000000000… (31 characters) is out of range"),
    generate("size that is none", "--size", "64", line="--size 64 is not a size (for instance 512x768"),
    generate("size and width", "--size", "64x64", "--width", "64", line="contradict each other"),
    generate("steps 0", "--steps", "0", line="--steps 0 is out of range (1 to 1000)"),
    generate("steps beyond the schedule", "--steps", "1001", line="--steps 1001 is out of range"),
    generate("guidance nan", "-g", "nan", line="--guidance nan is out of range"),
    generate("guidance inf", "--cfg", "inf", line="--guidance inf is out of range"),
    generate("guidance negative", "--guidance=-1", line="--guidance -1.0 is out of range (0 to 1000)"),
    generate("unknown sampler", "--sampler", "dpmpp2", line="no such sampler: 'dpmpp2' (did you mean dpmpp_2m"),
    generate("unknown schedule", "--schedule", "caras", line="no such schedule: 'caras' (did you mean karras"),
    generate("sampler against schedule", "--sampler", "DPM++ 2M Karras", "--schedule", "leading", line="contradict"),
    generate("count 0", "-n", "0", line="--count 0 is out of range (1 to 10000)"),
    generate("count 10^6", "-n", "1000000", line="--count 1000000 is out of range"),
    generate("eta 2", "--sampler", "ddim", "--eta", "2", line="--eta 2.0 is out of range (0 to 1)"),
    generate(
        "eta without effect",
        "--sampler",
        "euler",
        "--eta",
        "0.5",
        line="--eta 0.5 changes nothing with euler (it is for ddim",
    ),
    generate("seed -2", "--seed=-2", line="--seed -2 is not a seed"),
    generate("seed 2^32", "--seed", "4294967296", line="--seed 4294967296 is out of range"),
    generate("seed 1.5", "--seed", "1.5", line="--seed 1.5 is not a seed (a whole number from 0 to 4294967295"),
    generate("seed in hexadecimal", "--seed", "0x7", line="--seed 0x7 is not a seed"),
    generate("seed in full-width digits", "--seed", "７", line="--seed ７ is not a seed"),
    generate(
        "last seed beyond the range",
        "--seed",
        "4294967295",
        "-n",
        "2",
        line="4294967295 with --count 2 is out of range",
    ),
    generate("unknown device", "--device", "gpu", line="--device gpu is not known (auto, cpu, cuda, cuda:N or mps)"),
    generate("unknown dtype", "--dtype", "int8", line="--dtype int8 is not known"),
    generate("threads 0", "--threads", "0", line="--threads 0 is out of range"),
    generate("threads 1025", "--threads", "1025", line="--threads 1025 is out of range (1 to 1024)"),
    generate("batch size 0", "--batch-size", "0", line="--batch-size 0 is out of range"),
    generate("batch size 1025", "--batch-size", "1025", line="--batch-size 1025 is out of range (1 to 1024)"),
    Row("mistyped model", ("generate", "a", "-m", "runwayml/sd"), 3, "there is no model folder runwayml/sd"),
    Row("model path with NUL", ("generate", "a", "-m", "a\0b"), 3, "there is no model folder a\\x00b"),
    Row("empty model folder", ("generate", "a", "-m", "empty"), 3, "empty", {"empty/": b""}),
    Row(
        "model is a file",
        ("generate", "a", "-m", "a.ckpt"),
        3,
        "--model a.ckpt is a file; a model is",
        {"a.ckpt": b"PK"},
    ),
    generate("parent missing", "-o", "no/where.png", line="there is no folder no (mkdir -p no)"),
    generate("output exists", "-o", "a.png", line="--output a.png exists (--overwrite", files={"a.png": b"mine"}),
    generate("output below a file", "-o", "file/a.png", line="file", files={"file": b""}),
    generate("unknown ending", "-o", "a.tiff", line=".tiff is not a picture format (.png, .jpg or .webp)"),
    generate("output is a weights file", "-o", "{model}/unet/x.safetensors", line=".safetensors is not a picture"),
    generate("unknown format", "--format", "bmp", line="--format bmp is not known"),
    generate("format against ending", "-o", "a.png", "--format", "jpg", line="contradict each other"),
    generate(
        "one name for two pictures", "-n", "2", "-o", "a.png", line="names one file for 2 pictures (put {n} or {seed}"
    ),
    generate("template reaching into objects", "-o", "{seed.__class__}.png", line="there is no field {seed.__class__}"),
    generate("template with an unknown field", "-o", "{host}.png", line="there is no field {host} ({date}, {n}"),
    generate("template with a wide field", "-o", "{seed:9999}.png", line="{seed:9999} is not a valid field"),
    generate("template that is torn", "-o", "{seed.png", line="a literal brace is written twice"),
    generate("name of 300 bytes", "-o", "x" * 300 + ".png", line="File name too long"),
]

FILE_ROWS = [
    Row(
        "prompt file missing",
        ("generate", "--prompts", "p.txt", "-m", MODEL),
        3,
        "--prompts p.txt: there is no such file",
    ),
    Row("prompt file is a folder", ("generate", "--prompts", ".", "-m", MODEL), 2, ". is not a regular file"),
    *(
        Row(name, ("generate", "--prompts", file, "-m", MODEL), 2, line, {file: data})
        for name, file, data, line in [
            ("empty prompt file", "p.txt", b"\n# only a comment\n", "p.txt holds no prompt"),
            ("UTF-16 prompt file", "p.txt", "a cat".encode("utf-16"), "p.txt is UTF-16 text (byte 0)"),
            ("Latin-1 prompt file", "p.txt", b"caf\xe9", "p.txt is not UTF-8 text: byte 3"),
            (
                "NUL in a prompt file",
                "p.txt",
                b"a cat\na\x00dog\n",
                "p.txt line 2: prompt holds the control character U+0000",
            ),
            (
                "escape in a prompt file",
                "p.txt",
                b"a\x1b[2Jb\n",
                "p.txt line 1: prompt holds the control character U+001B",
            ),
            ("too many prompts", "p.txt", b"x\n" * 10_001, "p.txt holds 10001 prompts; the limit is 10000"),
            ("torn JSON", "p.jsonl", b'{"prompt": "a"}\n{"prompt"\n', "p.jsonl line 2: not JSON"),
            ("JSON that is a list", "p.jsonl", b"[]\n", "p.jsonl line 1: expected an object"),
            ("deep JSON", "p.jsonl", b"[" * 100_000, "p.jsonl line 1"),
            ("unknown key", "p.jsonl", b'{"prompt": "a", "step": 3}\n', "there is no flag step (did you mean steps?)"),
            ("key given twice", "p.jsonl", b'{"prompt": "a", "seed": 1, "seed": 2}\n', "line 1: seed is given twice"),
            (
                "value of the wrong kind",
                "p.jsonl",
                b'{"prompt": "a", "steps": "3"}\n',
                "line 1: steps must be int, not '3'",
            ),
            (
                "value out of range",
                "p.jsonl",
                b'{"prompt": "a", "steps": 0}\n',
                "p.jsonl line 1: steps 0 is out of range",
            ),
            (
                "unknown sampler",
                "p.jsonl",
                b'{"prompt": "a", "sampler": "x9"}\n',
                "p.jsonl line 1: no such sampler: 'x9'",
            ),
        ]
    ),
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


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--device", "cuda:99"), "there is no device cuda:99 here (present: "),
        (("--dtype", "fp16", "--device", "cpu"), "float16"),
    ],
)
def test_a_device_that_is_not_here_is_named(arguments: tuple[str, ...], line: str, cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, *arguments)
    check_error(outcome.code, outcome.out, outcome.err, Row("", (), 2, line))


def _cut(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def _pointer(folder: Path) -> None:
    (folder / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(
        b"version https://git-lfs.github.com/spec/v1\n"
    )


def _torn_config(folder: Path) -> None:
    (folder / "unet" / "config.json").write_text('{\n"sample_size": }')


def _without_text_encoder(folder: Path) -> None:
    shutil.rmtree(folder / "text_encoder")


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_cut, "diffusion_pytorch_model.safetensors is cut short"),
        (_pointer, "git lfs pull"),
        (_torn_config, "config.json, line 2"),
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


def test_a_bad_line_on_standard_input_is_named(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a cat\n\xff\n")))
    outcome = cli("generate", "-p", "-", "-m", tiny_model)
    check_error(outcome.code, outcome.out, outcome.err, Row("", (), 2, "standard input is not UTF-8 text: byte 6"))


def test_a_folder_that_is_not_writable_is_named(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may write anywhere, so the answer of the system is replaced, not its permissions.
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    outcome = cli("generate", "a cat", "-m", tiny_model)
    check_error(outcome.code, outcome.out, outcome.err, Row("", (), 2, "is not writable"))

"""The 72 inputs of `generate` that go wrong elsewhere, each with its outcome.

A refused one is one line that names the cause, nothing on stdout, no file changed, no process left, and torch not
imported where only the arguments are wrong. The last test holds the list complete.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import pickle
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from latentgen.cli import memory
from latentgen.images.files import read_picture
from latentgen.models.tokenizer import Tokenizer
from tests.cli.conftest import Cli
from tests.limits import file_size_limit

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENT: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
MODEL = "{model}"
"""Stands for the tiny model's folder in arguments."""
EMPTY_HEADER = struct.pack("<Q", 2) + b"{}"


@dataclass(frozen=True)
class Refused:
    number: int
    name: str
    arguments: tuple[str, ...]
    line: str
    """What the error line must say."""
    code: int = 2
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    """Files to put into the current folder first; a name that ends with / is a folder."""
    before: Callable[[Path, Path], None] | None = None
    """Further preparation: of the current folder, with the tiny model's."""
    needs_torch: bool = False
    as_process: bool = False
    """Whether it is also run as a program of its own."""


def refused(number: int, name: str, *arguments: str, line: str, **more: Any) -> Refused:
    """A case with a prompt and the tiny model."""
    return Refused(number, name, ("generate", "a cat", "-m", MODEL, *arguments), line, **more)


def prompts(number: int, name: str, file: str, data: bytes, *, line: str, **more: Any) -> Refused:
    """A case whose prompts come from a file."""
    return Refused(number, name, ("generate", "--prompts", file, "-m", MODEL), line, files={file: data}, **more)


def model(number: int, name: str, file: str, data: bytes, *, line: str, **more: Any) -> Refused:
    """A case whose model is a file."""
    return Refused(number, name, ("generate", "a cat", "-m", file), line, code=3, files={file: data}, **more)


def config(number: int, name: str, text: str, *, line: str, **more: Any) -> Refused:
    return refused(number, name, "--config", "c.toml", line=line, files={"c.toml": text.encode()}, **more)


def tensors(*names: str) -> bytes:
    """A safetensors file of empty tensors' names, one float each."""
    entries = {
        name: {"dtype": "F32", "shape": [1], "data_offsets": [4 * k, 4 * k + 4]} for k, name in enumerate(sorted(names))
    }
    header = json.dumps(entries).encode()
    header += b" " * (-len(header) % 8)
    return struct.pack("<Q", len(header)) + header + bytes(4 * len(names))


LORA = tensors(
    *(f"lora_unet_down_blocks_0_attentions_0_{end}" for end in ("proj_in.lora_down.weight", "proj_in.alpha"))
)
SDXL = tensors(
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.weight", "model.diffusion_model.out.0.bias"
)
FLUX = tensors("double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight")
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"


def fifo(folder: Path, _: Path) -> None:
    os.mkfifo(folder / "p.txt")


def torn_config(folder: Path, tiny: Path) -> None:
    shutil.copytree(tiny, folder / "m")
    (folder / "m" / "unet" / "config.json").write_text('{\n"sample_size": }')


def only_the_vae(folder: Path, tiny: Path) -> None:
    shutil.copy(tiny / "vae" / "diffusion_pytorch_model.safetensors", folder / "vae.safetensors")


CASES = [
    Refused(1, "no prompt", ("generate", "-m", MODEL), "there is no prompt", as_process=True),
    Refused(2, "blank prompt", ("generate", "  ", "-m", MODEL), "the prompt is empty"),
    Refused(3, "invalid UTF-8", ("generate", "caf\udce9", "-m", MODEL), "byte 0xe9 at character 3", as_process=True),
    prompts(4, "NUL", "p.txt", b"a cat\na\x00dog\n", line="p.txt line 2: prompt holds the control character U+0000"),
    prompts(4, "ESC", "p.txt", b"a\x1b[2Jb\n", line="p.txt line 1: prompt holds the control character U+001B"),
    prompts(4, "C1", "p.txt", "a\x9bb\n".encode(), line="p.txt line 1: prompt holds the control character U+009B"),
    refused(5, "long and strict", "--strict-prompt", "-p", "cat " * 80, line="75"),
    Refused(6, "200 kB", ("generate", "x" * 200_000, "-m", MODEL), "holds 200000 bytes; the limit is 100000"),
    refused(7, "missing", "--prompts", "p.txt", line="--prompts p.txt: there is no such file", code=3, as_process=True),
    refused(8, "folder", "--prompts", ".", line="--prompts . is not a regular file"),
    refused(8, "FIFO", "--prompts", "p.txt", line="p.txt is not a regular file", before=fifo, as_process=True),
    prompts(9, "UTF-16", "p.txt", "a cat".encode("utf-16"), line="p.txt is UTF-16 text (byte 0)"),
    prompts(9, "Latin-1", "p.txt", b"caf\xe9", line="p.txt is not UTF-8 text: byte 3"),
    prompts(10, "empty", "p.txt", b"", line="p.txt holds no prompt"),
    prompts(10, "only a comment", "p.txt", b"\n# none\n", line="p.txt holds no prompt"),
    prompts(11, "100001 lines", "p.txt", b"x\n" * 100_001, line="p.txt holds 100001 prompts; the limit is 10000"),
    Refused(13, "begins with -", ("generate", "-cat", "-m", MODEL), "is written --prompt=…", as_process=True),
    refused(14, "width 0", "-W", "0", line="--width 0 is out of range (1 to 8192)"),
    refused(15, "height -64", "--height=-64", line="--height -64 is out of range"),
    refused(16, "width 513", "-W", "513", line="multiples of 16 (nearest: 512, 528)", as_process=True),
    refused(17, "height 512.5", "--height", "512.5", line="'--height'"),
    refused(18, "height 512px", "--height", "512px", line="'--height'"),
    refused(19, "width 100000", "--width", "100000", line="--width 100000 is out of range (1 to 8192)"),
    refused(20, "width 10^30", "-W", "1" + "0" * 30, line="--width 100000000000… (31 characters) is out of range"),
    refused(21, "steps 0", "--steps", "0", line="--steps 0 is out of range (1 to 1000)"),
    refused(22, "steps 1001", "--steps", "1001", line="--steps 1001 is out of range"),
    refused(23, "guidance nan", "-g", "nan", line="--guidance nan is out of range"),
    refused(24, "guidance inf", "--cfg", "inf", line="--guidance inf is out of range"),
    refused(24, "guidance -1", "--guidance=-1", line="--guidance -1.0 is out of range (0 to 1000)"),
    refused(25, "sampler", "--sampler", "dpmpp2", line="(did you mean dpmpp_2m", as_process=True),
    refused(26, "count 0", "-n", "0", line="--count 0 is out of range (1 to 10000)"),
    refused(27, "count 10^6", "-n", "1000000", line="is out of range (1 to 10000; so many would take about 6 GB)"),
    refused(28, "eta 2", "--sampler", "ddim", "--eta", "2", line="--eta 2.0 is out of range (0 to 1)"),
    refused(28, "eta -0.1", "--sampler", "ddim", "--eta=-0.1", line="--eta -0.1 is out of range (0 to 1)"),
    refused(29, "seed -2", "--seed=-2", line="--seed -2 is not a seed"),
    refused(30, "seed 2^64", "--seed", str(2**64), line="is out of range (0 to 18446744073709551615)"),
    refused(31, "seed 1.5", "--seed", "1.5", line="--seed 1.5 is not a seed (a whole number from 0 to 184467440737"),
    refused(31, "seed 0x7", "--seed", "0x7", line="--seed 0x7 is not a seed"),
    refused(31, "full-width seed", "--seed", "７", line="--seed ７ is not a seed"),
    refused(32, "list of seeds", "--seed", "1,2", "-n", "3", line="--seed 1,2 is not a seed"),
    refused(33, "last seed", "--seed", "4294967295", "-n", "2", line="4294967295 with --count 2 is out of range"),
    refused(35, "cuda:9", "--device", "cuda:9", line="there is no device cuda:9 here (present: ", needs_torch=True),
    refused(36, "fp16 on a CPU", "--dtype", "fp16", "--device", "cpu", line="use bfloat16", needs_torch=True),
    refused(37, "dtype", "--dtype", "int8", line="--dtype int8 is not known (auto, float32, bfloat16 or float16)"),
    refused(38, "threads 0", "--threads", "0", line="--threads 0 is out of range (1 to 1024)"),
    Refused(39, "a path", ("generate", "a", "-m", "no/such/model"), "there is no model folder no/such/model", code=3),
    Refused(
        39, "a hub's name", ("generate", "a", "-m", "runwayml/sd"), "to fetch it: latentgen models pull", code=3,
        as_process=True,
    ),
    Refused(40, "empty folder", ("generate", "a", "-m", "m"), "m is an empty folder", code=3, files={"m/": b""}),
    Refused(
        41, "another folder", ("generate", "a", "-m", "m"), "m is not a model folder: it has no model_index.json",
        code=3, files={"m/": b"", "m/a.txt": b"x"},
    ),
    model(41, "a text file", "m", b"hello, this is a text", line="m "),
    model(43, "LFS pointer", "a.safetensors", LFS, line="git lfs pull", as_process=True),
    model(44, "web page", "a.safetensors", b"<!doctype html><html>", line="is a web page"),
    model(45, "0 bytes", "a.safetensors", b"", line="a.safetensors is empty"),
    model(46, "pickle", "a.ckpt", b"PK\x03\x04rest", line="latentgen convert a.ckpt", as_process=True),
    model(46, "pickle under another name", "a.safetensors", pickle.dumps({"a": 1}, protocol=2), line="pickle"),
    model(47, "LoRA", "a.safetensors", LORA, line="LoRA"),
    model(47, "SDXL", "a.safetensors", SDXL, line="SDXL"),
    model(47, "Flux", "a.safetensors", FLUX, line="Flux"),
    Refused(
        48, "only a VAE", ("generate", "a", "-m", "vae.safetensors"), "VAE", code=3, before=only_the_vae
    ),
    model(49, "not safetensors", "a.SafeTensors", b"<html>", line="is a web page"),
    Refused(50, "torn config", ("generate", "a", "-m", "m"), "unet/config.json, line 2", code=3, before=torn_config),
    refused(51, "no such folder", "-o", "no/where.png", line="there is no folder no (mkdir -p no)"),
    refused(51, "no such folder with a space", "-o", "q r/s.png", line="there is no folder q r (mkdir -p 'q r')"),
    refused(51, "below a file", "-o", "file/a.png", line="file", files={"file": b""}),
    refused(52, "a folder named like a picture", "-o", "a.png/b.png", line="a.png", files={"a.png": b""}),
    refused(53, "exists", "-o", "a.png", line="a.png exists (--overwrite", files={"a.png": b"x"}, as_process=True),
    refused(56, "ending", "-o", "a.tiff", line=".tiff is not a picture format (.png, .jpg or .webp)"),
    refused(57, "one name for two", "-n", "2", "-o", "a.png", line="names one file for 2 pictures (put {n} or {seed}"),
    refused(58, "attribute", "-o", "{seed.__class__}.png", line="there is no field {seed.__class__}", as_process=True),
    refused(58, "unknown field", "-o", "{host}.png", line="there is no field {host} ({date}, {n}"),
    refused(59, "300 bytes", "-o", "x" * 300 + ".png", line="File name too long"),
    refused(60, "the model's file", "-o", MODEL + "/unet/x.safetensors", line=".safetensors is not a picture format"),
    refused(60, "its index", "-o", MODEL + "/model_index.json", "--overwrite", line=".json is not a picture format"),
    refused(62, "- for two", "-o", "-", "-n", "2", line="--output - is for one picture, not 2"),
    refused(62, "- and --json", "-o", "-", "--json", line="both write to stdout"),
    refused(63, "flag", "--stepz", "3", line="there is no option --stepz (did you mean --steps?)", as_process=True),
    config(64, "unknown key", "step = 3\n", line="c.toml: there is no option step (did you mean steps?)"),
    prompts(
        64, "unknown key of a line", "p.jsonl", b'{"prompt": "a", "cfg_scal": 3}\n',
        line="p.jsonl line 1: there is no flag cfg_scal (did you mean cfg-scale?)",
    ),
    config(65, "a number among strings", 'lora = ["a", 3]\n', line="c.toml: lora takes a list of strings, not a list"),
    config(65, "text for a number", 'steps = "3"\n', line="c.toml: steps takes a whole number, not a string"),
    config(65, "true for a seed", "seed = true\n", line="c.toml: seed takes a number or a string, not true or false"),
    config(65, "a seed that is none", 'seed = "0x7"\n', line="c.toml: --seed 0x7 is not a seed"),
    prompts(
        65, "text in a line", "p.jsonl", b'{"prompt": "a", "steps": "3"}\n',
        line="p.jsonl line 1: steps must be a whole number, not '3'",
    ),
    config(66, "twice", "steps = 3\nsteps = 4\n", line="c.toml is not TOML"),
    config(66, "under two names", "cfg = 3\nguidance = 4\n", line="guidance is given twice, under two of its names"),
    prompts(
        65, "a number beyond all", "p.jsonl", b'{"prompt": "a", "cfg": ' + b"9" * 400 + b"}\n",
        line="is out of range",
    ),
    prompts(
        65, "a scale beyond all", "p.jsonl", b'{"prompt": "a", "hires": ' + b"9" * 400 + b"}\n",
        line="--hires 999",
    ),
    refused(65, "a count beyond all", "-n", "9" * 400, line="is out of range"),
    prompts(
        66, "twice in a line", "p.jsonl", b'{"prompt": "a", "cfg": 1, "guidance": 2}\n',
        line="p.jsonl line 1: guidance is given twice",
    ),
    config(67, "over 1 MB", "# " + "x" * 2**20, line="c.toml is over 64 KiB, too much for a list of options"),
    config(67, "deep", "steps = " + "[" * 20_000, line="c.toml is not TOML", as_process=True),
    prompts(67, "deep JSON", "p.jsonl", b"[" * 100_000, line="p.jsonl line 1"),
    refused(68, "size and width", "--size", "64x64", "-W", "64", line="contradict each other"),
    refused(68, "format and ending", "-o", "a.png", "--format", "jpg", line="contradict each other"),
    refused(68, "sampler and schedule", "--sampler", "DPM++ 2M Karras", "--schedule", "leading", line="contradict"),
]  # fmt: skip


def prepare(case: Refused, folder: Path, tiny: Path) -> list[str]:
    for name, data in case.files.items():
        if name.endswith("/"):
            (folder / name).mkdir()
        else:
            (folder / name).write_bytes(data)
    if case.before is not None:
        case.before(folder, tiny)
    return [argument.replace(MODEL, str(tiny)) for argument in case.arguments]


def contents(folder: Path) -> dict[str, str]:
    """Every path below a folder and the hash of its bytes; a FIFO has none."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "other"
        for path in sorted(folder.rglob("*"))
    }


def check(case: Refused, code: int, out: str, err: str) -> None:
    """The oracle of every refused input."""
    assert code == case.code, err
    assert out == ""
    assert re.fullmatch(r"error: [^\n]{1,300}\n", err), err
    assert err[:-1].isprintable()
    assert "Traceback" not in err
    assert case.line in err


def names(cases: list[Refused]) -> list[str]:
    return [f"{case.number:02} {case.name}" for case in cases]


@pytest.mark.parametrize("case", CASES, ids=names(CASES))
def test_a_refused_input_is_one_line(case: Refused, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    arguments = prepare(case, tmp_path, tiny_model)
    before = contents(tmp_path), contents(tiny_model)
    children = psutil.Process().children(recursive=True)
    outcome = cli(*arguments)
    check(case, outcome.code, outcome.out, outcome.err)
    assert (contents(tmp_path), contents(tiny_model)) == before, "a mistake must leave no file"
    assert psutil.Process().children(recursive=True) == children, "nor a process"


PROCESSES = [case for case in CASES if case.as_process]


@pytest.mark.parametrize("case", PROCESSES, ids=names(PROCESSES))
def test_a_refused_input_ends_the_program(case: Refused, tiny_model: Path, tmp_path: Path) -> None:
    arguments = [os.fsencode(each) for each in prepare(case, tmp_path, tiny_model)]
    before = contents(tmp_path)
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "latentgen", *arguments],
        cwd=tmp_path, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60,
    )  # fmt: skip
    lines = done.stderr.decode().splitlines(keepends=True)
    imports = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = "".join(line for line in lines if not line.startswith("import time:"))
    check(case, done.returncode, done.stdout.decode(), said)
    assert "latentgen.cli.app" in imports
    assert not imports & {"torch", "numpy", "safetensors", "tokenizers", "huggingface_hub"}
    assert contents(tmp_path) == before


def test_no_refused_argument_costs_an_import_of_torch(tiny_model: Path, tmp_path: Path) -> None:
    """All of them in one fresh interpreter, which must not know torch at the end."""
    commands: list[tuple[str, list[str]]] = []
    for number, case in enumerate(case for case in CASES if not case.needs_torch):
        folder = tmp_path / str(number)
        folder.mkdir()
        commands.append((str(folder), prepare(case, folder, tiny_model)))
    code = """
import contextlib, io, json, os, sys
from latentgen.cli.app import main
for folder, arguments in json.load(sys.stdin):
    os.chdir(folder)
    with contextlib.redirect_stderr(io.StringIO()):
        assert main(arguments) != 0, arguments
    assert "torch" not in sys.modules, arguments
"""
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(commands), env=ENVIRONMENT, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Inputs that are drawn, and those that need more than a row


def test_05_a_long_prompt_is_read_to_its_end(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    words = "a cat " + "1 " * 75
    for name, prompt in (("a.png", words + "and a zebra"), ("b.png", words + "and a whale")):
        outcome = cli("generate", prompt, "-m", tiny_model, "-s", "1", "-o", name)
        assert (outcome.code, outcome.out) == (0, f"{name}\n")
        assert "tokens" in outcome.err, "more than one chunk is told"
        assert outcome.err.count("\n") == 1
    assert (tmp_path / "a.png").read_bytes() != (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("sign", ["<|startoftext|>", "<|endoftext|>", "<start_of_text>", "<end_of_text>"])
def test_12_a_control_token_in_a_prompt_is_plain_text(sign: str, cli: Cli, tiny_model: Path) -> None:
    tokenizer = Tokenizer.from_folder(tiny_model / "tokenizer")
    (plain,), (with_sign,) = tokenizer.encode([""]).tolist(), tokenizer.encode([f"a {sign} cat"]).tolist()
    start, end = plain[0], plain[1]
    assert with_sign.index(end) > 4, "the sign is letters, which do not end the text"
    assert with_sign.count(start) == 1
    assert cli("generate", f"a {sign} cat", "-m", tiny_model, "-o", "a.png").code == 0


def test_29_seed_minus_1_is_a_random_one_that_is_told(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "--seed=-1", "-o", "a.png")
    document = read_picture(tmp_path / "a.png")[1].document
    assert document is not None
    assert (outcome.code, outcome.err) == (0, f"seed {document['request']['seed']}\n")
    assert 0 <= document["request"]["seed"] < 2**32


def test_34_cuda_where_there_is_none(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    outcome = cli("generate", "a cat", "-m", tiny_model, "--device", "cuda")
    check(refused(34, "", line="there is no device cuda here (present: "), outcome.code, outcome.out, outcome.err)
    assert os.listdir() == []


AS_ANOTHER_USER = """
import contextlib, io, json, os, sys
from pathlib import Path
from latentgen.cli.app import main

def run(arguments):
    out, err = io.TextIOWrapper(io.BytesIO()), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["generate", "a cat", "-s", "1", "--steps", "1", *arguments])
    out.seek(0)
    return code, out.read(), err.getvalue()

code, _, said = run(["-m", "open/m", "-o", "open/a.png"])  # imports all that the other user may not be able to
assert code == 0, said
if os.getuid() == 0:
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
print(json.dumps([run(arguments) for arguments in json.load(sys.stdin)]))
"""
"""Root may read and write everything, so where the tests run as root another user asks."""

UNREADABLE = [
    Refused(42, "one part", ("-m", "part", "-o", "open/b.png"), "part/unet", code=3),
    Refused(42, "all of it", ("-m", "closed", "-o", "open/b.png"), "closed cannot be read: Permission denied", code=3),
    Refused(54, "a file", ("-m", "open/m", "-o", "fixed/b.png"), "the folder fixed is not writable"),
    Refused(54, "a folder", ("-m", "open/m", "-o", "fixed/new/"), "fixed is not writable"),
]


def test_42_54_what_may_not_be_read_or_written(tiny_model: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for name in ("open/m", "part", "closed"):
            shutil.copytree(tiny_model, folder / name)
        (folder / "fixed").mkdir()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        modes = {"open": 0o777, "fixed": 0o555, "closed": 0, "part/unet": 0}
        for name, mode in modes.items():
            (folder / name).chmod(mode)
        done = subprocess.run(
            [sys.executable, "-c", AS_ANOTHER_USER], cwd=folder, env=ENVIRONMENT,
            input=json.dumps([case.arguments for case in UNREADABLE]), capture_output=True, text=True, check=False,
        )  # fmt: skip
        for name in modes:
            (folder / name).chmod(0o755)
        assert sorted(os.listdir(folder / "open")) == ["a.png", "m"]
        assert os.listdir(folder / "fixed") == []
    assert done.returncode == 0, done.stderr
    for case, (code, out, err) in zip(UNREADABLE, json.loads(done.stdout), strict=True):
        check(case, code, out, err)


def test_49_content_decides_what_a_file_is(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    assert cli("convert", tiny_model, "whole.safetensors").code == 0
    for name in ("a.SafeTensors", "b.bin.txt"):
        shutil.copy(tmp_path / "whole.safetensors", tmp_path / name)
        outcome = cli(
            "generate", "a cat", "-m", name, "-s", "1", "--steps", "1", "--size", "64x64", "-o", f"{name}.png"
        )
        assert outcome.code == 0, outcome.err


def test_52_a_folder_takes_a_picture_under_the_usual_name(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "pictures.png").mkdir()
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-o", "pictures.png")
    assert outcome.code == 0
    assert re.fullmatch(r"pictures\.png/.*-00001-5\.png\n", outcome.out)


def test_55_a_full_disk_leaves_nothing(cli: Cli, tiny_model: Path) -> None:
    with file_size_limit(100):
        outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "a.png")
    check(
        refused(55, "", line="a.png could not be written: File too large", code=1),
        outcome.code,
        outcome.out,
        outcome.err,
    )
    assert os.listdir() == []


def test_58_a_prompt_cannot_leave_the_folder(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    outcome = cli("generate", "../../x", "-m", tiny_model, "-o", "in/{prompt_slug}.png")
    assert (outcome.code, outcome.out) == (0, "in/x.png\n")


def test_61_a_closed_stdout_is_survived(tiny_model: Path, tmp_path: Path) -> None:
    command = f"exec {sys.executable} -m latentgen generate 'a cat' -m {tiny_model} -s 1 -o a.png >&-"
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert read_picture(tmp_path / "a.png")[0].shape == (64, 64, 3)


def test_62_a_dash_is_stdout_but_no_terminal(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "a.png").code == 0
    stream = io.TextIOWrapper(io.BytesIO())
    with contextlib.redirect_stdout(stream):
        assert cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "-").code == 0
    assert stream.buffer.getvalue() == (tmp_path / "a.png").read_bytes()  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-o", "-")
    check(refused(62, "", line="to a terminal (send them on: -o - > a.png)"), outcome.code, outcome.out, outcome.err)


@pytest.mark.parametrize("where", ["latents", "autoencoder"])
def test_69_numbers_that_are_not_finite_are_no_picture(
    where: str, cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(where, monkeypatch)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "a.png")
    line = "the latents are not finite from step 1 of 4" if where == "latents" else "the decoded picture is not finite"
    check(refused(69, "", line=line, code=1), outcome.code, outcome.out, outcome.err)
    assert os.listdir() == []
    bfloat16 = cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "a.png", "--dtype", "bfloat16")
    assert "--dtype float32 computes with a larger range" in bfloat16.err
    assert os.listdir() == []


def poison(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentgen.diffusion.noise import NoiseSource
    from latentgen.models.vae import AutoencoderKL

    kind, method = (NoiseSource, "draw") if where == "latents" else (AutoencoderKL, "decode")
    sound = getattr(kind, method)
    monkeypatch.setattr(kind, method, lambda self, value: sound(self, value) * float("nan"))


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_70_71_a_signal_leaves_whole_pictures(
    number: int, code: int, word: str, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ["generate", "a cat", "-m", str(tiny_model), "-s", "1", "-n", "9999", "-o", "{seed}.png"]
    process = subprocess.Popen(
        [sys.executable, "-m", "latentgen", *arguments],
        cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "1.png\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert (process.returncode, err) == (code, f"{word}\n")
    files = sorted(tmp_path.iterdir())
    assert files
    for path in files:
        assert read_picture(path)[0].shape == (64, 64, 3)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")]
)
def test_72_no_memory_while_drawing(
    error: Exception, cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentgen.models.unet import UNet

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(UNet, "forward", fail)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "a.png")
    check(refused(72, "", line="a smaller --size", code=4), outcome.code, outcome.out, outcome.err)
    assert "not enough memory" in outcome.err
    assert os.listdir() == []


def test_72_too_little_memory_is_said_before_torch_is_imported(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "GPUS", ())
    monkeypatch.setattr(memory, "machine_bytes", lambda: 5 * 10**8)
    monkeypatch.setattr("latentgen.cli.loading.load_model", None)
    outcome = cli("generate", "a cat", "-m", tiny_model, "--size", "8192x8192")
    line = "8192x8192 needs at least 0.7 GB of memory with this model, this machine has 0.5 GB (a smaller --size)"
    check(refused(72, "", line=line, code=4), outcome.code, outcome.out, outcome.err)
    assert cli("generate", "a cat", "-m", tiny_model, "--size", "512x512", "--dry-run").code == 0
    assert cli("generate", "a cat", "-m", tiny_model, "--size", "8192x8192", "-g", "1", "--dry-run").code == 0


def test_the_list_is_complete() -> None:
    functions = [re.findall(r"\d\d", name) for name in globals() if re.match(r"test_\d\d_", name)]
    numbers = {case.number for case in CASES} | {int(number) for found in functions for number in found}
    assert numbers == set(range(1, 73))

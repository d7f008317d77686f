"""`latentgen tokens`, and what `generate` says of prompts: their length, their syntax, their embeddings."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from latentgen.images.files import read_picture
from tests.cli.conftest import Cli
from tests.tiny import TINY_TEXT
from tests.tiny_bundle import tiny_bundle

LONG = "a red cat, " + "1 " * 75 + "and a zebra"


def tokens(cli: Cli, *arguments: str | Path) -> dict[str, Any]:
    outcome = cli("tokens", *arguments, "--json")
    assert (outcome.code, outcome.err) == (0, "")
    return json.loads(outcome.out)


def drawn(path: str) -> dict[str, Any]:
    document = read_picture(Path(path))[1].document
    assert document is not None
    return document


@pytest.fixture
def embedding(tmp_path: Path) -> Path:
    path = tmp_path / "toy.safetensors"
    save_file({"emb_params": torch.randn(3, TINY_TEXT.hidden_size)}, path)
    return path


def test_the_table(cli: Cli, tiny_model: Path, embedding: Path) -> None:
    prompt = "a (toy:1.3) BREAK [b] <lora:ink:0.8> [c:d:3]"
    outcome = cli("tokens", prompt, "-m", tiny_model, "--embedding", embedding)
    assert (outcome.code, outcome.err) == (0, "")
    number = tiny_bundle().tokenizer.tokenize
    rows = [line.split() for line in outcome.out.splitlines()]
    assert rows[:7] == [
        ["chunk", "place", "token", "id", "weight"],
        ["1", "1", "a", str(number("a")[0]), "1"],
        ["1", "2", "toy", "[1]", "1.3"],
        ["1", "3", "toy", "[2]", "1.3"],
        ["1", "4", "toy", "[3]", "1.3"],
        ["2", "1", "b", str(number("b")[0]), "0.9091"],
        ["2", "2", "c", str(number("c")[0]), "0.9091"],
    ]
    assert outcome.out.splitlines()[-5:] == [
        "chunk 1: 4 of 75 tokens",
        "chunk 2: 6 of 75 tokens",
        "LoRA ink: scale 0.8",
        "embedding toy: 3 vectors",
        "not supported, read as words: [c:d:3]",
    ]


def test_as_json(cli: Cli, tiny_model: Path, embedding: Path) -> None:
    found = tokens(cli, "(toy) zq <lora:ink> a AND b", "-m", tiny_model, "--embedding", embedding)
    number = tiny_bundle().tokenizer.tokenize
    (chunk,) = found["chunks"]
    assert chunk[:3] == [{"embedding": "toy", "vector": i, "weight": 1.1} for i in range(3)]
    assert chunk[3:5] == [
        {"token": "z", "id": number("zq")[0], "weight": 1.0},
        {"token": "q ", "id": number("zq")[1], "weight": 1.0},
    ]
    assert found["tokens"] == len(chunk)
    assert found["loras"] == [{"name": "ink", "scale": 1.0}]
    assert found["embeddings"] == [{"name": "toy", "vectors": 3}]
    assert found["unsupported"] == ["AND"]


def test_long_prompts_have_chunks(cli: Cli, tiny_model: Path) -> None:
    found = tokens(cli, LONG, "-m", tiny_model)
    assert [len(chunk) for chunk in found["chunks"]] == [75, found["tokens"] - 75]


def test_a_single_file_is_read_with_clips_own_merges_as_far_as_its_vocabulary_goes(cli: Cli, tiny_model: Path) -> None:
    assert cli("convert", tiny_model, "one.safetensors").code == 0
    in_file, in_folder = (
        tokens(cli, "a photo of a lighthouse", "-m", each) for each in ("one.safetensors", tiny_model)
    )
    assert in_file["chunks"] == in_folder["chunks"]
    assert in_file["tokens"] > 5, "the whole vocabulary has a token a word"


def test_plain_prompts(cli: Cli, tiny_model: Path) -> None:
    found = tokens(cli, "(a) BREAK", "-m", tiny_model, "--plain-prompt")
    (chunk,) = found["chunks"]
    assert "".join(token["token"] for token in chunk).replace(" ", "") == "(a)break"
    assert {token["weight"] for token in chunk} == {1.0}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a <lora:x:y>"], 2, "'y' is not a scale"),
        (["a\x1b"], 2, "control character U+001B"),
        (["a", "-m", "nowhere"], 3, "nowhere"),
        (["a", "--embedding", "nowhere.safetensors"], 3, "there is no embedding file nowhere.safetensors"),
    ],
)
def test_mistakes_are_answered_in_one_line(
    arguments: list[str], code: int, message: str, cli: Cli, tiny_model: Path
) -> None:
    outcome = cli("tokens", *arguments, *([] if "-m" in arguments else ["-m", tiny_model]))
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1)
    assert message in outcome.err


def test_no_torch_is_needed(tiny_model: Path, embedding: Path) -> None:
    code = """
import sys
from latentgen.cli.app import main
assert main(["tokens", "a (toy)", "-m", sys.argv[1], "--embedding", sys.argv[2]]) == 0
assert "torch" not in sys.modules and "rich" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code, str(tiny_model), str(embedding)], check=True, capture_output=True)


# In generate


def test_a_long_prompt_is_noted_and_drawn(cli: Cli, tiny_model: Path) -> None:
    count = len(tiny_bundle().tokenizer.tokenize(LONG))
    outcome = cli("generate", LONG, "-m", tiny_model, "--seed", "1", "-o", "a.png", "--negative", "fog " * 80)
    assert (outcome.code, outcome.out) == (0, "a.png\n")
    negative = len(tiny_bundle().tokenizer.tokenize("fog " * 80))
    chunks = -(-negative // 75)
    assert outcome.err == f"prompt of {count} tokens: 2 chunks\nnegative prompt of {negative} tokens: {chunks} chunks\n"


def test_a_strict_prompt_is_refused_before_anything_is_drawn(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", LONG, "-m", tiny_model, "--strict-prompt", "-o", "a.png")
    assert (outcome.code, outcome.out) == (2, "")
    assert "beyond it: " in outcome.err
    assert "and a zebra (without --strict-prompt it is read in 2 chunks)\n" in outcome.err
    assert not Path("a.png").exists()
    short = ("generate", "a BREAK b", "-m", tiny_model, "--strict-prompt", "--dry-run")
    assert (cli(*short).code, cli(*short).err) == (0, ""), "chunks that were asked for are not too many"


def test_many_long_prompts_are_counted(cli: Cli, tiny_model: Path) -> None:
    Path("prompts.txt").write_text("".join(f"{LONG} {i}\n" for i in range(5)))
    outcome = cli("generate", "--prompts", "prompts.txt", "-m", tiny_model, "--dry-run")
    assert outcome.code == 0
    assert outcome.err.count(": 2 chunks\n") == 3
    assert outcome.err.endswith("and 2 more prompts of several chunks\n")


def test_syntax_that_is_not_supported_is_a_warning(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a [cat:dog:0.5]", "[x|y]", "-m", tiny_model, "--dry-run", "--quiet")
    assert outcome.code == 0
    assert outcome.err.startswith("warning: [cat:dog:0.5], [x|y]: ")
    assert "are read as words" in outcome.err


def test_a_plain_prompt_is_stored_so_that_it_stays_plain(cli: Cli, tiny_model: Path) -> None:
    common = ("-m", tiny_model, "--seed", "1")
    prompt = "a (cat) [dog], {x}"
    assert cli("generate", prompt, *common, "--plain-prompt", "--negative", "(b)", "-o", "plain.png").code == 0
    assert cli("generate", prompt, *common, "--negative", "(b)", "-o", "loud.png").code == 0
    stored = drawn("plain.png")["request"]
    assert (stored["prompt"], stored["negative_prompt"]) == (r"a \(cat\) \[dog\], {x}", r"\(b\)")
    assert drawn("plain.png")["pixels_sha256"] != drawn("loud.png")["pixels_sha256"]
    assert cli("replay", "plain.png", "--verify", "-m", tiny_model).code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [('{"prompt": "a <lora:x:y>"}', "prompts.jsonl line 2: "), ('{"prompt": "a", "clip-skip": 3}', "(1 to 2)")],
)
def test_a_bad_line_of_a_prompt_file_is_named(line: str, message: str, cli: Cli, tiny_model: Path) -> None:
    Path("prompts.jsonl").write_text('{"prompt": "fine"}\n' + line + "\n")
    outcome = cli("generate", "--prompts", "prompts.jsonl", "-m", tiny_model)
    assert outcome.code == 2
    assert "prompts.jsonl line 2: " in outcome.err
    assert message in outcome.err


def test_an_embedding_is_used_where_its_name_stands(cli: Cli, tiny_model: Path, embedding: Path) -> None:
    common = ("-m", tiny_model, "--seed", "1", "-o", "{n}.png")
    outcome = cli("generate", "a (Toy:1.2)", "a boat", *common, "--embedding", embedding, "-v")
    assert outcome.code == 0
    named, other = (drawn(f"{n}.png") for n in (1, 2))
    (use,) = named["request"]["embeddings"]
    assert use["name"] == "toy"
    assert f"embedding toy ({use['fingerprint']}): 3 vectors of {TINY_TEXT.hidden_size}\n" in outcome.err
    assert "embeddings" not in other["request"]
    assert cli("generate", "a (Toy:1.2)", *common).code == 0
    assert drawn("3.png")["pixels_sha256"] != named["pixels_sha256"]


def test_an_embedding_that_no_prompt_names_is_a_warning(cli: Cli, tiny_model: Path, embedding: Path) -> None:
    outcome = cli("generate", "a boat", "-m", tiny_model, "--embedding", embedding, "--dry-run", "-q")
    assert outcome.code == 0
    assert outcome.err == f"warning: --embedding {embedding} is not used: no prompt has its name in it, toy\n"


def test_embeddings_that_cannot_be_used_are_refused(cli: Cli, tiny_model: Path, embedding: Path) -> None:
    save_file({"emb_params": torch.ones(2, 768)}, Path("wide.safetensors"))
    outcome = cli("generate", "wide", "-m", tiny_model, "--embedding", "wide.safetensors")
    assert outcome.code == 3
    assert f"768 wide, the text encoder's {TINY_TEXT.hidden_size}" in outcome.err
    Path("other").mkdir()
    save_file({"emb_params": torch.ones(2, TINY_TEXT.hidden_size)}, Path("other/TOY.safetensors"))
    both = ("--embedding", embedding, "--embedding", "other/TOY.safetensors")
    outcome = cli("generate", "toy", "-m", tiny_model, *both)
    assert outcome.code == 2
    assert "are both called TOY in prompts (rename a file)" in outcome.err

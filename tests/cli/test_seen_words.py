"""What a model has seen: written in training, kept by `export` and `convert`, told by `generate` and `models`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentgen import embedded_model_path
from latentgen.checkpoints.folder import load_model, save_model
from latentgen.checkpoints.lora import write_lora
from tests.cli.conftest import Cli, snapshot
from tests.cli.test_lora import some_lora
from tests.tiny_bundle import tiny_bundle
from tests.training.tiny_runs import write_pictures

Told = Callable[..., str]
VOCABULARY = "vocabulary.json"
SEEN = {"captions": 90, "words": {"lighthouse": 70, "sunset": 60, "tree": 20, "boat": 10, "sea": 9}}
QUICK = ["--batch-size", "2", "--max-steps", "1", "--warmup", "0", "--threads", "1", "--resolution", "32", "--quiet"]


@pytest.fixture(scope="module")
def knowing(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a list of words."""
    folder = tmp_path_factory.mktemp("models") / "knowing"
    save_model(tiny_bundle(), folder, vocabulary=SEEN)
    return folder


@pytest.fixture
def told(cli: Cli, knowing: Path) -> Told:
    def told(*prompts: str | Path, model: Path = knowing) -> str:
        outcome = cli("generate", *prompts, "--model", model, "--seed", "1", "--dry-run")
        assert outcome.code == 0, outcome.err
        return outcome.err

    return told


# generate


@pytest.mark.parametrize(
    ("prompt", "line"),
    [
        ("a lighthouse at sunset", ""),
        ("the (lighthouses:1.2) in the sea BREAK [boats] and trees", ""),
        ("a spacesuit", "spacesuit: never seen by knowing\n"),
        ("an oak by the sea", "oak: never seen by knowing; nearest: tree\n"),
        ("a lighthose", "lighthose: never seen by knowing; nearest: lighthouse\n"),
        ("a dog, an oak; the dog", "dog, oak (nearest: tree): never seen by knowing\n"),
        ("dog cat cow pig oak", "dog, cat, cow and 2 more: never seen by knowing\n"),
    ],
)
def test_new_words_are_told_in_one_line(prompt: str, line: str, told: Told) -> None:
    assert told(prompt) == line


def test_all_prompts_of_a_run_are_one_line(cli: Cli, knowing: Path) -> None:
    Path("prompts.txt").write_text("a dog at sea\na dog and a cat\na boat\n")
    asked = ("generate", "--prompts", "prompts.txt", "--model", knowing, "--seed", "1", "--count", "3", "--dry-run")
    assert cli(*asked).err == "dog, cat: never seen by knowing\n"
    assert cli(*asked, "--quiet").err == ""


def test_the_embedded_model_says_what_else_there_is(cli: Cli) -> None:
    outcome = cli("generate", "a ship and a spacesuit", "--seed", "1", "--dry-run")
    assert outcome.err == (
        "ship (nearest: boat), spacesuit: never seen by the embedded model. For anything else: -m your-model\n"
    )


def test_nothing_is_said_where_nothing_is_known(told: Told, tiny_model: Path, knowing: Path, cli: Cli) -> None:
    """Of a model without a list, of a LoRA's prompts, of an embedding's name."""
    assert told("a dog", model=tiny_model) == ""
    write_lora(Path("pets.safetensors"), some_lora(1), "kohya")
    assert told("a dog <lora:pets:1>", "--lora", "pets.safetensors") == ""
    save_file({"emb_params": torch.zeros(1, 24)}, "my-dog.safetensors")
    assert "never seen" not in told("my-dog at sea", "--embedding", "my-dog.safetensors")


def test_a_damaged_list_is_named(cli: Cli, tmp_path: Path) -> None:
    save_model(tiny_bundle(), tmp_path / "model", vocabulary={"captions": 1, "words": ["sea"]})
    outcome = cli("generate", "a dog", "--model", "model", "--dry-run")
    assert (outcome.code, outcome.out) == (3, "")
    assert "vocabulary.json is no list of words" in outcome.err
    assert outcome.err.count("\n") == 1


def test_it_needs_no_torch() -> None:
    code = """
import sys
from latentgen.cli.app import main
assert main(["generate", "a spaniel, an oak", "--seed", "1", "--dry-run"]) == 0
assert main(["models", "show", "embedded"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "spaniel, oak (nearest: tree): never seen" in done.stderr


# models show


def test_models_show_what_they_know(cli: Cli, knowing: Path, tiny_model: Path) -> None:
    shown = cli("models", "show", knowing)
    assert "90, of 5 words (vocabulary.json)" in shown.out
    assert "lighthouse, sunset, tree, boat, sea" in shown.out
    assert json.loads(cli("models", "show", knowing, "--json").out)["knows"] == "lighthouse, sunset, tree, boat, sea"
    assert not any(key.startswith("knows") for key in json.loads(cli("models", "show", tiny_model, "--json").out))


def test_the_embedded_model_knows_what_its_card_says(cli: Cli) -> None:
    known = json.loads(cli("models", "show", "embedded", "--json").out)
    card = " ".join((embedded_model_path().parent / "README.md").read_text(encoding="utf-8").split())
    for kind in ("nouns", "settings", "times", "weathers"):
        names = known[f"knows {kind}"].split(", ")
        assert len(names) >= 5
        missing = [name for name in names if name not in card]
        assert not missing


# training, export, convert


def test_training_writes_what_it_saw_and_export_takes_it_along(cli: Cli, knowing: Path, tiny_model: Path) -> None:
    pictures = write_pictures(Path("data"), 4, side_px=32)
    captions = ("a red fox", "the foxes", "a fox, a fox", "a fox by the red sea")
    for path, caption in zip(sorted(pictures.glob("*.txt")), captions, strict=True):
        path.write_text(caption)
    parts = ("--vae", tiny_model, "--text-encoder", tiny_model)
    outcome = cli("train-unet", "--data", pictures, *parts, "--out", "run", "--validation-pictures", "0", *QUICK)
    assert outcome.code == 0, outcome.err
    written = json.loads(Path("run/model", VOCABULARY).read_text())
    assert written == {"captions": 4, "words": {"fox": 3, "red": 2, "foxes": 1, "sea": 1}}
    assert cli("export", "--unet", "run/model", *parts, "--out", "model").code == 0
    assert json.loads(Path("model", VOCABULARY).read_text()) == written
    assert cli("export", "--unet", "run/model", *parts, "--out", "model", "--overwrite").code == 0


def test_what_is_cut_off_a_long_caption_is_told_and_was_not_seen(cli: Cli, tiny_model: Path) -> None:
    pictures = write_pictures(Path("data"), 4, side_px=32)
    texts = sorted(pictures.glob("*.txt"))
    for path in texts:
        path.write_text("a red fox")
    texts[0].write_text(f"{'red ' * 80} zeppelin")
    parts = ("--vae", tiny_model, "--text-encoder", tiny_model)
    loud = [option for option in QUICK if option != "--quiet"]
    outcome = cli("train-unet", "--data", pictures, *parts, "--out", "run", "--validation-pictures", "0", *loud)
    assert "1 of 2 distinct captions are longer than 75 tokens: what comes after them is not learnt" in outcome.err
    assert json.loads(Path("run/model", VOCABULARY).read_text())["words"] == {"red": 4, "fox": 3}


def test_what_was_seen_before_counts_too_if_it_is_known(cli: Cli, knowing: Path, tiny_model: Path) -> None:
    pictures = write_pictures(Path("data"), 4, side_px=32)
    for init, out in ((knowing, "more"), (tiny_model, "unknown")):
        outcome = cli("train-unet", "--data", pictures, "--init", init, "--out", out, *QUICK)
        assert outcome.code == 0, outcome.err
    words = json.loads(Path("more/model", VOCABULARY).read_text())["words"]
    assert words["lighthouse"] == 70
    assert len(words) > len(SEEN["words"])
    assert not Path("unknown/model", VOCABULARY).exists(), "nobody knows what else it has seen"


def test_convert_carries_it_to_a_folder_and_says_that_a_file_cannot_hold_it(cli: Cli, knowing: Path) -> None:
    assert cli("convert", knowing, "copy").err == ""
    assert snapshot(Path("copy")) == snapshot(knowing)
    outcome = cli("convert", knowing, "file.safetensors")
    assert (outcome.code, outcome.out) == (0, "file.safetensors\n")
    assert outcome.err.startswith("left out, as a file cannot hold it: vocabulary.json")
    assert cli("generate", "a dog", "--model", "file.safetensors", "--dry-run").err == ""


def test_it_is_no_part_of_what_is_drawn(knowing: Path, tiny_model: Path, cli: Cli) -> None:
    assert load_model(knowing).fingerprint() == load_model(tiny_model).fingerprint()
    found = json.loads(cli("models", "inspect", knowing, "--json").out)
    assert found["missing tensors"] == found["unexpected tensors"] == []

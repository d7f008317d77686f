"""`replay` of pictures that were drawn with LoRAs, textual inversions or another VAE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from latentgen.checkpoints.folder import save_model, save_vae
from latentgen.checkpoints.lora import write_lora
from latentgen.images.a1111 import parse_parameters
from latentgen.images.files import PictureText, encode_picture, read_picture_text
from tests.cli.conftest import Cli
from tests.cli.test_lora import some_lora
from tests.tiny import tiny_vae
from tests.tiny_bundle import tiny_bundle


@pytest.fixture
def picture(cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Drawn with two LoRAs, one of them from the folder of LoRAs, an embedding and a VAE."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "data" / "latentgen" / "loras"
    folder.mkdir(parents=True)
    write_lora(folder / "ink.safetensors", some_lora(1), "kohya")
    write_lora(tmp_path / "pen.safetensors", some_lora(2), "diffusers")
    save_file({"emb_params": torch.randn(2, 24, generator=torch.Generator().manual_seed(0))}, "toy.safetensors")
    save_vae(tiny_vae(seed=5), tmp_path / "other-vae")
    arguments = ["--lora", "pen.safetensors:0.5", "--embedding", "toy.safetensors", "--vae", "other-vae"]
    words = ["a toy <lora:ink:0.7>", "-m", tiny_model, "-s", "1", "--steps", "2", "-o", "a.png"]
    assert cli("generate", *words, *arguments).code == 0
    return Path("a.png")


ALL = ("--lora", "pen.safetensors", "--embedding", "toy.safetensors", "--vae", "other-vae")


def test_it_is_redrawn_to_the_bit(cli: Cli, tiny_model: Path, picture: Path) -> None:
    outcome = cli("replay", picture, "--verify", "-m", tiny_model, *ALL)
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")


def test_a_lora_is_itself_under_any_name(cli: Cli, tiny_model: Path, picture: Path) -> None:
    Path("pen.safetensors").rename("quill.safetensors")
    outcome = cli("replay", picture, "--verify", "-m", tiny_model, "--lora", "quill.safetensors", *ALL[2:])
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")


def test_a1111_is_told_of_it(picture: Path) -> None:
    parameters = read_picture_text(picture)[2].parameters
    assert parameters is not None
    read = parse_parameters(parameters)
    assert read.prompt == "a toy <lora:ink:0.7> <lora:pen:0.5>"
    assert read.fields["VAE"] == "other-vae"
    assert {"VAE hash", "Lora hashes", "TI hashes"} <= set(read.fields)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ALL[2:], "<lora:pen>: there is no such LoRA"),
        (ALL[:2] + ALL[4:], "drawn with the embedding toy (give its file with --embedding)"),
        (ALL[:4], "drawn with the VAE other-vae (give its file with --vae)"),
    ],
)
def test_what_is_missing_is_named(
    given: tuple[str, ...], words: str, cli: Cli, tiny_model: Path, picture: Path
) -> None:
    outcome = cli("replay", picture, "--verify", "-m", tiny_model, *given)
    assert outcome.code in (2, 3)
    assert words in outcome.err


def test_other_contents_under_the_same_name_are_refused(cli: Cli, tiny_model: Path, picture: Path) -> None:
    write_lora(Path("pen.safetensors"), some_lora(3), "diffusers")
    outcome = cli("replay", picture, "--verify", "-m", tiny_model, *ALL)
    assert (outcome.code, outcome.err.startswith("error: --lora pen is not what it was drawn with")) == (2, True)
    write_lora(Path("pen.safetensors"), some_lora(2), "diffusers")
    save_vae(tiny_vae(seed=6), Path("other-vae"))
    outcome = cli("replay", picture, "--verify", "-m", tiny_model, *ALL)
    assert (outcome.code, outcome.err.startswith("error: --vae other-vae is not what")) == (2, True)


def test_what_it_was_drawn_without_is_refused(cli: Cli, tiny_model: Path, picture: Path) -> None:
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "1", "--steps", "1", "-o", "plain.png").code == 0
    for flag, value in (ALL[:2], ALL[2:4], ALL[4:]):
        outcome = cli("replay", "plain.png", "--verify", "-m", tiny_model, flag, value)
        assert (outcome.code, outcome.err.startswith(f"error: {flag}")) == (2, True), flag


# Of other tools


TOTAL = len(some_lora(1).modules)
FIELDS = "Steps: 2, Sampler: Euler, CFG scale: 4, Seed: 1, Size: 64x64, RNG: CPU"
DIRECT = ("--steps", "2", "--sampler", "euler", "--schedule", "uniform", "-g", "4", "-s", "1", "--size", "64x64")
"""The same for `generate`."""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two LoRAs, an embedding and a VAE, and no folder of LoRAs."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    write_lora(Path("ink.safetensors"), some_lora(1), "kohya")
    write_lora(Path("pen.safetensors"), some_lora(2), "diffusers")
    save_file({"emb_params": torch.randn(2, 24, generator=torch.Generator().manual_seed(0))}, "toy.safetensors")
    save_vae(tiny_vae(seed=5), Path("mse"))


def write_foreign(prompt: str, more: str = "") -> None:
    text = PictureText(f"{prompt}\n{FIELDS}{more}", None)
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", text))


@pytest.mark.usefixtures("files")
def test_another_tools_add_ons_are_used_as_there(cli: Cli, tiny_model: Path) -> None:
    write_foreign("a toy <lora:ink:0.8>", ', VAE: mse, TI hashes: "toy: 0123"')
    given = ("--embedding", "toy.safetensors", "--vae", "mse")
    outcome = cli("replay", "a.png", "-m", tiny_model, "--lora", "ink.safetensors", *given, "-o", "again.png")
    assert outcome.code == 0, outcome.err
    assert "a.png: drawn by a tool that writes A1111 parameters; all of it is honoured\n" in outcome.err
    assert f"lora ink: {TOTAL}/{TOTAL} modules applied\n" in outcome.err
    direct = cli(
        "generate", "a toy", "-m", tiny_model, *DIRECT, "--lora", "ink.safetensors:0.8", *given, "-o", "direct.png"
    )
    assert direct.code == 0, direct.err
    assert Path("again.png").read_bytes() == Path("direct.png").read_bytes()


@pytest.mark.usefixtures("files")
def test_what_is_not_given_is_listed_and_what_is_is_not(cli: Cli, tiny_model: Path) -> None:
    write_foreign("a toy <lora:ink:0.8> <lora:pen:-1>", ', VAE: mse, TI hashes: "toy: 0123"')
    heads = ["LoRA ink (0.8)", "LoRA pen (-1)", "embedding toy", "VAE mse"]
    for given, left in (
        ((), heads),
        (("--lora", "pen.safetensors"), [heads[0], *heads[2:]]),
        (("--embedding", "toy.safetensors"), [*heads[:2], heads[3]]),
        (("--vae", "mse"), heads[:3]),
    ):
        lines = cli("replay", "a.png", "-m", tiny_model, *given, "-o", "b.png", "--overwrite").err.splitlines()
        assert [line.strip().partition(":")[0] for line in lines if line.startswith("  ")] == left


@pytest.mark.usefixtures("files")
def test_a_lora_in_the_folder_of_loras_is_given_by_its_name(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data" / "latentgen" / "loras"
    folder.mkdir(parents=True)
    Path("ink.safetensors").rename(folder / "ink.safetensors")
    write_foreign("a toy <lora:styles/ink.safetensors:0.5>")
    assert "  LoRA styles/ink.safetensors (0.5): " in cli("replay", "a.png", "-m", tiny_model, "-o", "b.png").err
    outcome = cli("replay", "a.png", "-m", tiny_model, "--lora", "ink", "-o", "again.png")
    assert "all of it is honoured" in outcome.err
    assert cli("generate", "a toy", "-m", tiny_model, *DIRECT, "--lora", "ink:0.5", "-o", "direct.png").code == 0
    assert Path("again.png").read_bytes() == Path("direct.png").read_bytes()


@pytest.mark.usefixtures("files")
def test_an_embedding_of_comfyuis_is_found_behind_its_prefix(cli: Cli, tiny_model: Path) -> None:
    write_foreign("a (embedding:toy.pt:1.2) cat")
    assert "  embedding toy: only its name" in cli("replay", "a.png", "-m", tiny_model, "-o", "b.png").err
    given = ("--embedding", "toy.safetensors")
    outcome = cli("replay", "a.png", "-m", tiny_model, *given, "-o", "again.png")
    assert "all of it is honoured" in outcome.err
    assert cli("generate", "a (toy:1.2) cat", "-m", tiny_model, *DIRECT, *given, "-o", "direct.png").code == 0
    assert Path("again.png").read_bytes() == Path("direct.png").read_bytes()


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("--lora", "ink.safetensors", "--lora ink: this picture was drawn without it"),
        ("--embedding", "toy.safetensors", "--embedding toy: this picture was drawn without it"),
        ("--vae", "mse", "--vae mse: this picture was drawn with the model's own"),
    ],
)
def test_what_another_tools_picture_was_drawn_without_is_refused(
    flag: str, value: str, words: str, cli: Cli, tiny_model: Path
) -> None:
    write_foreign("a cat <lora:pen:1>")
    outcome = cli("replay", "a.png", "-m", tiny_model, flag, value)
    assert (outcome.code, outcome.err) == (2, f"error: {words}\n")
    missing = cli("replay", "a.png", "-m", tiny_model, flag, "no-such-file.safetensors")
    assert (missing.code in (2, 3), missing.err.count("\n")) == (True, 1)


def test_words_that_the_model_never_saw_are_told(cli: Cli, tmp_path: Path) -> None:
    seen = {"captions": 9, "words": {"cat": 9}}
    save_model(tiny_bundle(), tmp_path / "knowing", vocabulary=seen)
    write_foreign("a cat and a zebra")
    outcome = cli("replay", "a.png", "-m", "knowing", "-o", "again.png")
    assert outcome.err.splitlines()[1:] == ["zebra: never seen by knowing"]

"""`replay` of pictures that were drawn with LoRAs, textual inversions or another VAE."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentgen.checkpoints.folder import save_vae
from latentgen.checkpoints.lora import write_lora
from latentgen.images.a1111 import parse_parameters
from latentgen.images.files import read_picture_text
from tests.cli.conftest import Cli
from tests.cli.test_lora import some_lora
from tests.tiny import tiny_vae


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

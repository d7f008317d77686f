"""`generate --lora` and `--vae`: files, names, tags in prompts, and what is said of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from latentgen.checkpoints.folder import save_vae
from latentgen.checkpoints.lora import LoRAWeights, write_lora
from latentgen.checkpoints.lora_names import kohya_name
from latentgen.cli.add_ons import parse_lora
from latentgen.images.files import read_picture
from latentgen.images.pixels import pixels_sha256
from tests.cli.conftest import Cli
from tests.tiny import TINY_VAE, tiny_vae
from tests.tiny_bundle import some_lora

TO_K = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of LoRAs, with one in a folder below; another lies where the command is run."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    folder = tmp_path / "data" / "latentgen" / "loras"
    (folder / "styles").mkdir(parents=True)
    write_lora(folder / "styles" / "ink.safetensors", some_lora(1), "kohya")
    write_lora(tmp_path / "pen.safetensors", some_lora(2), "diffusers")
    return folder


def drawn(path: Path) -> str:
    return pixels_sha256(read_picture(path)[0])


def loras_in(path: Path) -> list[dict[str, object]]:
    document = read_picture(path)[1].document
    assert document is not None
    return document["request"].get("loras", [])


def test_a_file_its_name_and_a_tag_are_one(cli: Cli, tiny_model: Path, home: Path, tmp_path: Path) -> None:
    shared = ("-m", tiny_model, "-s", "1", "--steps", "2")
    total = len(some_lora(1).modules)
    by_file = cli("generate", "a cat", *shared, "--lora", home / "styles" / "ink.safetensors:0.5", "-o", "a.png")
    assert (by_file.code, by_file.err) == (0, f"lora ink: {total}/{total} modules applied\n")
    assert cli("generate", "a cat", *shared, "--lora", "ink:0.5", "-o", "b.png").code == 0
    assert cli("generate", "a cat<lora:ink:0.5>", *shared, "-o", "c.png").code == 0
    assert cli("generate", "a cat", *shared, "-o", "plain.png").code == 0
    pictures = {name: drawn(tmp_path / f"{name}.png") for name in ("a", "b", "c", "plain")}
    assert pictures["a"] == pictures["b"] == pictures["c"] != pictures["plain"]
    (use,) = loras_in(tmp_path / "a.png")
    assert (use["name"], use["scale"]) == ("ink", 0.5)
    assert loras_in(tmp_path / "c.png") == [use]
    assert loras_in(tmp_path / "plain.png") == []


def test_tags_are_for_their_prompt_alone(cli: Cli, tiny_model: Path, home: Path, tmp_path: Path) -> None:
    shared = ("-m", tiny_model, "-s", "1", "--steps", "2")
    prompts = ("a cat", "a cat<lora:ink:0.5>", "a cat<lora:pen:-1>", "a cat")
    assert cli("generate", *prompts, *shared, "--lora", "pen.safetensors", "-o", "{n}.png").code == 0
    assert cli("generate", "a cat", *shared, "--lora", "pen.safetensors", "-o", "alone.png").code == 0
    names = [[(use["name"], use["scale"]) for use in loras_in(tmp_path / f"{n}.png")] for n in (1, 2, 3, 4)]
    assert names == [[("pen", 1.0)], [("pen", 1.0), ("ink", 0.5)], [("pen", -1.0)], [("pen", 1.0)]]
    pictures = [drawn(tmp_path / f"{n}.png") for n in (1, 2, 3, 4)]
    assert pictures[0] == pictures[3] == drawn(tmp_path / "alone.png")
    assert len(set(pictures)) == 3


def test_events(cli: Cli, tiny_model: Path, home: Path) -> None:
    outcome = cli("generate", "a", "-m", tiny_model, "--steps", "1", "--lora", "ink", "--json", "-o", "a.png")
    total = len(some_lora(1).modules)
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert {"event": "lora", "lora": "ink", "applied": total, "modules": total} in events


def test_a_part_that_is_missing_is_warned_of(cli: Cli, tiny_model: Path, home: Path, tmp_path: Path) -> None:
    lora = some_lora(1)
    absent = TO_K.replace("down_blocks.0", "down_blocks.3")
    more = LoRAWeights({**lora.modules, absent: lora.modules[TO_K]}, "kohya")
    write_lora(tmp_path / "more.safetensors", more, "kohya")
    outcome = cli(
        "generate", "a", "-m", tiny_model, "--steps", "1", "-s", "1", "--lora", "more.safetensors", "-o", "a.png"
    )
    total = len(lora.modules)
    assert outcome.code == 0
    assert outcome.err == f"warning: lora more: {total}/{total + 1} modules applied; not in this model: {absent}\n"


def write_foreign(folder: Path) -> None:
    """A LoRA of SD 2.x's width, a VAE as a file, and a VAE of another form."""
    wide = {
        f"{kohya_name(TO_K)}.lora_down.weight": torch.zeros(2, 1024),
        f"{kohya_name(TO_K)}.lora_up.weight": torch.zeros(16, 2),
    }
    save_file(wide, folder / "sd2.safetensors")
    save_vae(tiny_vae(), folder / "tiny-vae")
    shutil.copy(folder / "tiny-vae" / "diffusion_pytorch_model.safetensors", folder / "vae.safetensors")
    save_vae(tiny_vae(replace(TINY_VAE, latent_channels=8)), folder / "wide-vae")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["a", "--lora", "nothing.safetensors:0.5"], 3, "--lora nothing.safetensors: there is no such LoRA"),
        (["a", "--lora", "inc"], 3, "--lora inc: there is no such LoRA (did you mean ink?)"),
        (["a <lora:in:1>"], 3, "<lora:in>: there is no such LoRA (did you mean ink?)"),
        (["a <lora:other:1>", "--lora", "pen.safetensors"], 3, "<lora:other>: there is no such LoRA (known: ink, pen)"),
        (["a", "--negative", "<lora:ink:1>"], 2, "--negative-prompt holds <lora:ink>, but a LoRA acts on the whole"),
        (["a", "--lora", "ink", "--lora", "ink:0.5"], 2, "--lora ink is given twice"),
        (["a", "--lora", "ink:1000"], 2, "lora 1000.0 is out of range (-100 to 100)"),
        (["a", "--lora", "."], 2, "--lora . is a folder"),
        (["a", "--lora", "vae.safetensors"], 3, "vae.safetensors is a VAE, not a LoRA"),
        (["a", "--vae", "none.safetensors"], 3, "there is no VAE none.safetensors"),
        (["a", "--vae", "wide-vae"], 3, "the VAE wide-vae does not fit this model: its latents have 8 channels"),
    ],
)
def test_bad_add_ons(
    arguments: list[str], code: int, message: str, cli: Cli, tiny_model: Path, home: Path, tmp_path: Path
) -> None:
    write_foreign(tmp_path)
    outcome = cli("generate", *arguments, "-m", tiny_model, "--steps", "1", "-o", "a.png")
    assert (outcome.code, outcome.out) == (code, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "a.png").exists()


def test_a_lora_for_another_family(cli: Cli, tiny_model: Path, home: Path, tmp_path: Path) -> None:
    write_foreign(tmp_path)
    outcome = cli("generate", "a", "-m", tiny_model, "-s", "1", "--lora", "sd2.safetensors", "-o", "a.png")
    assert outcome.code == 3
    assert outcome.err.endswith("(it seems to be made for Stable Diffusion 2.x)\n")


def test_add_ons_are_looked_at_before_torch(tiny_model: Path, tmp_path: Path) -> None:
    script = (
        "import sys\nfrom latentgen.cli.app import main\n"
        f"code = main(['generate', 'a', '-m', {str(tiny_model)!r}, '--lora', 'none', '-o', 'a.png'])\n"
        "sys.exit(code if 'torch' not in sys.modules else 99)"
    )
    run = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 3, run.stderr


@pytest.mark.parametrize("source", ["tiny-vae", "whole"])
def test_another_vae(source: str, cli: Cli, tiny_model: Path, home: Path, tmp_path: Path) -> None:
    """From a folder of its own, and from a model's; the model's own changes nothing."""
    save_vae(tiny_vae(seed=9), tmp_path / "tiny-vae")
    shutil.copytree(tiny_model, tmp_path / "whole")
    shared = ("-m", tiny_model, "-s", "1", "--steps", "2")
    assert cli("generate", "a", *shared, "--vae", source, "-o", "a.png").code == 0
    assert cli("generate", "a", *shared, "-o", "own.png").code == 0
    assert (drawn(tmp_path / "a.png") == drawn(tmp_path / "own.png")) == (source == "whole")


@pytest.mark.parametrize(
    ("text", "file", "scale"),
    [
        ("ink.safetensors", "ink.safetensors", 1.0),
        ("ink.safetensors:0.8", "ink.safetensors", 0.8),
        ("C:/loras/ink.safetensors", "C:/loras/ink.safetensors", 1.0),
        (r"C:\loras\ink.safetensors:-.5", r"C:\loras\ink.safetensors", -0.5),
        ("a:1:2", "a:1", 2.0),
        ("ink:", "ink:", 1.0),
        ("ink:half", "ink:half", 1.0),
    ],
)
def test_what_is_file_and_what_is_scale(text: str, file: str, scale: float) -> None:
    assert parse_lora(text) == (file, scale)

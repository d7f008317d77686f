"""`latentgen convert`: every pair of formats, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from latentgen.checkpoints.folder import load_model
from latentgen.checkpoints.header import open_header
from latentgen.checkpoints.identify import identify
from latentgen.checkpoints.layout import read_config
from latentgen.models.tokenizer import Tokenizer
from tests.cli.conftest import Cli, snapshot
from tests.tiny import TINY_MODEL

PARTS = ("unet", "vae", "text_encoder")


def assert_same_model(one: Path, other: Path) -> None:
    a, b = load_model(one), load_model(other)
    assert a.config == b.config
    for part in PARTS:
        before, after = getattr(a, part).state_dict(), getattr(b, part).state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_folder_to_file_and_back(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("convert", tiny_model, "tiny.safetensors")
    assert (outcome.code, outcome.out) == (0, "tiny.safetensors\n")
    assert_same_model(Path("tiny.safetensors"), tiny_model)
    assert cli("convert", "tiny.safetensors", "back").code == 0
    assert snapshot(Path("back")) == snapshot(tiny_model)
    assert sorted(path.name for path in Path().iterdir()) == ["back", "tiny.safetensors"]


def test_a_single_file_draws_what_its_folder_draws(cli: Cli, tiny_model: Path) -> None:
    assert cli("convert", tiny_model, "tiny.safetensors").code == 0
    for model, name in ((tiny_model, "a.png"), ("tiny.safetensors", "b.png")):
        outcome = cli("generate", "a cat", "-m", model, "-s", "3", "--no-metadata", "-o", name)
        assert outcome.code == 0, outcome.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_the_header_says_what_it_is(cli: Cli, tiny_model: Path) -> None:
    assert cli("convert", tiny_model, "my model.safetensors").code == 0
    metadata = open_header(Path("my model.safetensors")).metadata
    assert metadata["format"] == "pt"
    assert metadata["modelspec.sai_model_spec"] == "1.0.0"
    assert metadata["modelspec.title"] == "my model"
    assert metadata["modelspec.prediction_type"] == "epsilon"
    assert metadata["modelspec.resolution"] == "64x64"
    assert set(json.loads(metadata["latentgen.config"])) == {"unet", "vae", "text_encoder", "scheduler", "index"}
    assert read_config(Path("my model.safetensors")) == TINY_MODEL


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("target", ["out.safetensors", "out"])
def test_precision(dtype: str, target: str, cli: Cli, tiny_model: Path) -> None:
    assert cli("convert", tiny_model, target, "--dtype", dtype).code == 0
    short = {"float16": "F16", "bfloat16": "BF16", "float32": "F32"}[dtype]
    assert set(identify(Path(target)).dtypes) == {short}
    wanted = load_model(tiny_model).unet.conv_in.weight.to(getattr(torch, dtype)).float()
    assert torch.equal(load_model(Path(target)).unet.conv_in.weight, wanted)


def test_a_pickle_that_is_no_model_of_ours(cli: Cli) -> None:
    tensors = {"model.diffusion_model.x": torch.zeros(1), "first_stage_model.y": torch.zeros(1)}
    torch.save({"state_dict": tensors}, "a.ckpt")
    before = snapshot(Path())
    outcome = cli("convert", "a.ckpt", "out")
    assert (outcome.code, outcome.err.count("\n")) == (3, 1)
    assert outcome.err.startswith("error: a.ckpt is no single-file model of Stable Diffusion 1.x or 2.x")
    assert snapshot(Path()) == before


@pytest.mark.parametrize(("old_format", "dtype"), [(True, None), (False, "bfloat16")])
def test_a_pickle_of_something_else_keeps_its_names(old_format: bool, dtype: str | None, cli: Cli) -> None:
    tensors = {"decoder.conv_in.weight": torch.randn(4, 4), "decoder.conv_in.bias": torch.randn(4).half()}
    torch.save({"state_dict": tensors, "epoch": 3}, "vae.pt", _use_new_zipfile_serialization=not old_format)
    options = () if dtype is None else ("--dtype", dtype)
    assert cli("convert", "vae.pt", "vae.safetensors", *options).code == 0
    found = load_file("vae.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        wanted = tensor if dtype is None else tensor.to(getattr(torch, dtype))
        assert found[name].dtype == wanted.dtype
        assert torch.equal(found[name], wanted)


def test_a_pickle_of_something_else_makes_no_folder(cli: Cli) -> None:
    torch.save({"decoder.conv_in.weight": torch.randn(4, 4)}, "vae.pt")
    outcome = cli("convert", "vae.pt", "folder")
    assert (outcome.code, outcome.err) == (2, "error: vae.pt holds no whole model (vae), which makes no folder\n")
    assert [path.name for path in Path().iterdir()] == ["vae.pt"]


def test_an_embedding_of_a1111(cli: Cli) -> None:
    vectors = torch.randn(2, 768)
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": vectors}, "name": "cat"}, "cat.pt")
    assert cli("convert", "cat.pt", "cat.safetensors").code == 0
    assert torch.equal(load_file("cat.safetensors")["emb_params"], vectors)
    assert identify(Path("cat.safetensors")).title == "an SD 1.x textual inversion embedding"


def test_a_folder_of_pickles(cli: Cli, tiny_model: Path) -> None:
    """Model folders from before safetensors: `.bin` files beside the configs."""
    shutil.copytree(tiny_model, "old")
    for part, name in (("unet", "diffusion_pytorch_model.bin"), ("text_encoder", "pytorch_model.bin")):
        (weights,) = Path("old", part).glob("*.safetensors")
        torch.save(load_file(weights), weights.with_name(name))
        weights.unlink()
    refused = cli("generate", "a cat", "-m", "old")
    assert refused.code == 3
    assert "latentgen convert MODEL NEW-FOLDER" in refused.err
    assert cli("convert", "old", "new").code == 0
    assert_same_model(Path("new"), tiny_model)


def test_the_order_of_a_vocabulary_says_nothing(cli: Cli, tiny_model: Path) -> None:
    """Published ones are sorted by number, or by token."""
    shutil.copytree(tiny_model, "sorted")
    vocabulary = Path("sorted", "tokenizer", "vocab.json")
    words = json.loads(vocabulary.read_text(encoding="utf-8"))
    assert list(words) != sorted(words)
    vocabulary.write_text(json.dumps(words, sort_keys=True), encoding="utf-8")
    outcome = cli("convert", "sorted", "one.safetensors")
    assert outcome.code == 0, outcome.err


def test_a_model_with_its_own_tokenizer_makes_no_file(cli: Cli, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "own")
    added = {"added_tokens_decoder": {"0": {"content": "!"}}}
    for merges, changes in ((70, {}), (86, added)):
        Tokenizer.published(merges).save(Path("own", "tokenizer"))
        config = Path("own", "tokenizer", "tokenizer_config.json")
        config.write_text(json.dumps(json.loads(config.read_text()) | changes))
        outcome = cli("convert", "own", "own.safetensors")
        assert outcome.code == 2
        assert "tokenizer of its own, which a single file cannot hold" in outcome.err
        assert not Path("own.safetensors").exists()
    assert cli("convert", "own", "other").code == 0
    assert json.loads(Path("other", "tokenizer", "added_tokens.json").read_text()) == {"!": 0}


def write_sdxl(path: str) -> None:
    save_file({"conditioner.embedders.0.x": torch.zeros(1), "model.diffusion_model.y": torch.zeros(1)}, path)


def test_what_is_refused_and_how(cli: Cli, tiny_model: Path) -> None:
    assert cli("convert", tiny_model, "there.safetensors").code == 0
    Path("photos").mkdir()
    Path("photos", "cat.png").write_bytes(b"mine")
    write_sdxl("xl.safetensors")
    save_file({"lora_unet_x.lora_down.weight": torch.zeros(4, 768)}, "lora.safetensors")
    before = snapshot(Path())
    refusals = [
        (2, "exists (--overwrite replaces it)", (tiny_model, "there.safetensors")),
        (2, "is SOURCE, or inside it", ("there.safetensors", "there.safetensors", "--overwrite")),
        (2, "is SOURCE, or inside it", (tiny_model, tiny_model / "new")),
        (2, "exists (--overwrite replaces it)", ("there.safetensors", "photos")),
        (2, "holds cat.png and is no model", ("there.safetensors", "photos", "--overwrite")),
        (2, ".ckpt files are never written", (tiny_model, "x.ckpt")),
        (2, "--dtype float8 is not one of", (tiny_model, "x", "--dtype", "float8")),
        (3, "no such file: nothing", ("nothing", "x")),
        (3, "is an SDXL model", ("xl.safetensors", "x")),
        (3, "is an SD 1.x LoRA, not a whole model", ("lora.safetensors", "x")),
    ]
    for code, told, arguments in refusals:
        outcome = cli("convert", *arguments)
        assert (outcome.code, outcome.out, outcome.err.count("\n")) == (code, "", 1), outcome.err
        assert told in outcome.err
    assert snapshot(Path()) == before


def test_overwriting(cli: Cli, tiny_model: Path) -> None:
    for target in ("m.safetensors", "m"):
        assert cli("convert", tiny_model, target, "--dtype", "float16").code == 0
        assert cli("convert", tiny_model, target, "--overwrite").code == 0
        assert set(identify(Path(target)).dtypes) == {"F32"}


def test_a_full_disk_leaves_nothing(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    for target in ("m.safetensors", "m"):
        outcome = cli("convert", tiny_model, target)
        assert (outcome.code, outcome.err.count("\n")) == (1, 1)
        assert "No space left" in outcome.err
    assert list(Path().iterdir()) == []


def test_refusals_come_before_torch(tmp_path: Path) -> None:
    write_sdxl(str(tmp_path / "xl.safetensors"))
    code = (
        "import sys; from latentgen.cli.app import main;"
        "code = main(['convert', sys.argv[1], sys.argv[2]]); print(code, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "xl.safetensors"), str(tmp_path / "x")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "3 False\n"

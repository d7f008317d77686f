from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from latentgen.checkpoints.layout import read_config
from latentgen.images.files import PictureText, encode_picture
from tests.cli.conftest import Cli
from tests.tiny import TINY_MODEL, tiny_unet


def test_a_picture_of_ours(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat\non a mat", "-m", tiny_model, "-s", "5", "-o", "a.png").code == 0
    outcome = cli("info", "a.png")
    assert outcome.code == 0
    lines = {line.split("  ")[0]: line.rsplit("  ")[-1].strip() for line in outcome.out.splitlines()}
    assert lines["seed"] == "5"
    assert lines["size"] == "64x64"
    assert lines["made by"].startswith("latentgen ")
    assert "\n                 on a mat\n" in outcome.out
    summary = json.loads(cli("info", "a.png", "--json").out)
    assert (summary["prompt"], summary["kind"], summary["model"]) == ("a cat\non a mat", "PNG picture", "tiny")


def test_a_picture_of_a1111s(cli: Cli) -> None:
    text = (
        "a cat <lora:ink:0.8>\nNegative prompt: fog\n"
        "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x768, Model: dream, RNG: CPU, Version: v1.9.4"
    )
    Path("a.jpg").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "JPEG", PictureText(text, None)))
    summary = json.loads(cli("info", "a.jpg", "--json").out)
    assert summary == {
        "file": "a.jpg",
        "kind": "JPEG picture",
        "size": "8x8",
        "made by": "AUTOMATIC1111",
        "prompt": "a cat",
        "negative prompt": "fog",
        "seed": 1,
        "steps": 20,
        "guidance": 7.0,
        "sampler": "Euler a",
        "schedule": "uniform",
        "drawn at": "512x768",
        "model": "dream",
        "Version": "v1.9.4",
        "not repeatable": ["LoRA ink (0.8): only its name is in the file; give the LoRA itself with --lora"],
    }
    assert "not repeatable   LoRA ink (0.8): only its name" in cli("info", "a.jpg").out


def test_what_a1111_has_and_is_not_here_is_listed(cli: Cli) -> None:
    text = (
        "easy-neg, a [cat:dog:0.5] AND embedding:toy.pt\n"
        'Steps: 20, Sampler: Euler, Seed: 1, RNG: CPU, VAE: mse.pt, TI hashes: "easy-neg: 01"'
    )
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", PictureText(text, None)))
    listed = json.loads(cli("info", "a.png", "--json").out)["not repeatable"]
    assert [line.partition(":")[0] for line in listed[:3]] == ["embedding easy-neg", "embedding toy", "VAE mse.pt"]
    (syntax,) = listed[3:]
    assert syntax.startswith("[cat:dog:0.5], AND: prompt editing")


def test_a_picture_of_comfyuis(cli: Cli) -> None:
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("prompt", json.dumps({"1": {"class_type": "KSampler", "inputs": {"seed": 2**63, "steps": 20}}}))
    chunks.add_text("workflow", "{}")
    Image.new("RGB", (8, 8)).save("a.png", pnginfo=chunks)
    summary = json.loads(cli("info", "a.png", "--json").out)
    assert (summary["made by"], summary["seed"], summary["steps"]) == ("ComfyUI", 2**63, 20)
    assert summary["other text"] == "prompt, workflow"


def test_a_picture_without_words(cli: Cli) -> None:
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 16, 3), np.uint8), "PNG", None))
    outcome = cli("info", "a.png")
    assert outcome.code == 0
    assert "16x8" in outcome.out
    assert "there are no settings that latentgen reads" in outcome.out


def test_a_gif_is_a_picture_without_settings(cli: Cli) -> None:
    Image.new("RGB", (300, 8)).save("a.gif")
    summary = json.loads(cli("info", "a.gif", "--json").out)
    assert (summary["kind"], summary["size"]) == ("GIF animation", "300x8")


def test_words_that_are_no_settings_are_shown(cli: Cli) -> None:
    text = PictureText("drawn by hand", None)
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", text))
    assert json.loads(cli("info", "a.png", "--json").out)["text"] == "drawn by hand"


def test_a_picture_is_looked_at_without_torch(tmp_path: Path) -> None:
    text = PictureText("a cat\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1", None)
    (tmp_path / "a.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", text))
    code = (
        "import sys; from latentgen.cli.app import main; assert main(['info', sys.argv[1]]) == 0; "
        "assert not {'torch', 'safetensors', 'rich'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.png"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_in_a_picture_reaches_the_terminal_as_a_command(cli: Cli) -> None:
    text = PictureText("a \x1b[2Jcat\nSteps: 3", None)
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", text))
    assert "a \\x1b[2Jcat" in cli("info", "a.png").out


def test_a_model_folder(cli: Cli, tiny_model: Path) -> None:
    assert read_config(tiny_model) == TINY_MODEL
    summary = json.loads(cli("info", tiny_model, "--json").out)
    assert summary["sizes"] == "multiples of 16 px, 64x64 by default"
    parameters = sum(parameter.numel() for parameter in tiny_unet().parameters())
    assert summary["unet/diffusion_pytorch_model.safetensors"].startswith(f"{parameters:,} parameters, F32")
    assert cli("models", "show", tiny_model).out == cli("info", tiny_model).out


def test_an_embedded_model_that_is_not_there_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentgen.cli.model_names.embedded_model_path", lambda: Path.cwd() / "embedded")
    missing = cli("generate", "a cat")
    assert (missing.code, missing.err.count("\n")) == (3, 1)
    assert missing.err.startswith("error: the embedded model is not installed")


@pytest.mark.parametrize("says", ["no", "nothing"])
def test_doctor_of_a_cpu_without_bfloat16(says: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether torch answers no, or has no such question (other processors, older releases)."""
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(f"torch.cpu.{name}", (lambda: False) if says == "no" else None, raising=False)
    answer = cli("doctor").out
    assert "bfloat16 emulated: float32 is used" in answer
    assert "CPU kernels      not used: the CPU computes in float32" in answer


def test_doctor_reports_what_is_missing(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentgen.cli.doctor.embedded_model_path", lambda: tiny_model)
    outcome = cli("doctor")
    assert (outcome.code, outcome.err) == (0, "")
    assert torch.__version__.split("+")[0] in outcome.out
    assert f"{tiny_model}, 64x64" in outcome.out
    assert "bfloat16" in outcome.out
    monkeypatch.setattr("latentgen.cli.doctor.CORE", ("torch", "no-such-package"))
    monkeypatch.setattr("latentgen.cli.doctor.embedded_model_path", lambda: Path("nowhere"))
    outcome = cli("doctor", "--json")
    assert outcome.code == 1
    findings = {finding["name"]: finding for finding in map(json.loads, outcome.out.splitlines())}
    assert findings["no-such-package"]["problem"]
    assert findings["embedded model"]["problem"]
    assert outcome.err.startswith("error: not in order: no-such-package, embedded model")

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

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
    text = "a cat\nNegative prompt: fog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 8x8"
    Path("a.jpg").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "JPEG", PictureText(text, None)))
    summary = json.loads(cli("info", "a.jpg", "--json").out)
    assert summary["made by"] == "a tool that writes A1111 parameters"
    assert (summary["prompt"], summary["negative prompt"], summary["Sampler"]) == ("a cat", "fog", "Euler a")


def test_a_picture_without_words(cli: Cli) -> None:
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 16, 3), np.uint8), "PNG", None))
    outcome = cli("info", "a.png")
    assert outcome.code == 0
    assert "16x8" in outcome.out
    assert "there is no metadata" in outcome.out


def test_nothing_in_a_picture_reaches_the_terminal_as_a_command(cli: Cli) -> None:
    text = PictureText("a \x1b[2Jcat\nSteps: 3", None)
    Path("a.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", text))
    assert "a \\x1b[2Jcat" in cli("info", "a.png").out


@pytest.mark.parametrize(
    ("tensors", "expected"),
    [
        (
            {f"{name}": value for name, value in tiny_unet().state_dict().items()},
            {"kind": "U-Net", "context width": 24},
        ),
        ({"lora_unet_a.lora_down.weight": torch.zeros(4, 32)}, {"kind": "LoRA for a U-Net (kohya)", "LoRA rank": "4"}),
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3, dtype=torch.float16)},
            {"kind": "Stable Diffusion, one file", "input channels": 9, "dtypes": {"F16": 1}},
        ),
        ({"x": torch.zeros(3)}, {"kind": "unknown", "parameters": 3, "tensors": 1}),
        (
            {
                "lora_unet_a.lora_down.weight": torch.tensor(1.0),
                "conv_in.weight": torch.zeros(3),
                "attn2.to_k.weight": torch.tensor(1.0),
            },
            {"kind": "LoRA for a U-Net (kohya)", "parameters": 5},
        ),
    ],
    ids=["U-Net", "LoRA", "one file", "unknown", "scalars and vectors"],
)
def test_a_weights_file(tensors: dict[str, torch.Tensor], expected: dict[str, object], cli: Cli) -> None:
    save_file(tensors, "w.bin", metadata={"modelspec.title": "Test"})
    summary = json.loads(cli("info", "w.bin", "--json").out)
    assert expected.items() <= summary.items()
    assert summary["metadata modelspec.title"] == "Test"
    assert cli("info", "w.bin").code == 0


def test_a_model_folder(cli: Cli, tiny_model: Path) -> None:
    assert read_config(tiny_model) == TINY_MODEL
    summary = json.loads(cli("info", tiny_model, "--json").out)
    assert summary["sizes"] == "multiples of 16 px, 64x64 by default"
    parameters = sum(parameter.numel() for parameter in tiny_unet().parameters())
    assert summary["unet/diffusion_pytorch_model.safetensors"].startswith(f"{parameters:,} parameters, F32")
    assert cli("models", "show", tiny_model).out == cli("info", tiny_model).out


def test_models_are_listed(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = Path.cwd() / "embedded"
    monkeypatch.setattr("latentgen.cli.model_names.embedded_model_path", lambda: embedded)
    outcome = cli("models", "list")
    assert (outcome.code, outcome.out) == (0, "")
    assert "no model is installed" in outcome.err
    missing = cli("generate", "a cat")
    assert (missing.code, missing.err.count("\n")) == (3, 1)
    assert missing.err.startswith("error: the embedded model is not installed")
    shutil.copytree(tiny_model, embedded)
    assert cli("models", "list").out == f"embedded  {embedded}\n"
    assert cli("models", "show", "embedded").code == 0


@pytest.mark.parametrize("reason", ["no oneDNN", "no such op"])
def test_doctor_survives_a_torch_that_cannot_say(reason: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class NoOps:
        pass

    monkeypatch.setattr("torch.ops.mkldnn", NoOps())
    monkeypatch.setattr("torch.backends.mkldnn.is_available", lambda: reason == "no such op")
    assert "emulated: use float32" in cli("doctor").out


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

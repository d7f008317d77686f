"""`train-unet --train-text-encoder`: the text encoder that comes out, what `export` makes of it, and bad options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import CLIPTextModel

from latentgen.checkpoints.folder import load_model, load_text_encoder, load_unet
from latentgen.checkpoints.tokenizers import load_tokenizer
from latentgen.training.alignment import part_of
from latentgen.training.text_tuning import TEXT_ENCODER
from tests.cli.conftest import Cli
from tests.cli.test_train import assert_refused
from tests.training.tiny_runs import write_pictures

QUICK = ("--batch-size", "2", "--max-steps", "2", "--warmup", "0", "--threads", "1", "--resolution", "32")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", 12, side_px=32)


def test_both_parts_come_out_and_make_a_model(cli: Cli, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a red picture\n")
    command = ("train-unet", "--data", pictures, "--init", tiny_model, "--out", "run", *QUICK, "--train-text-encoder")
    done = cli(*command, "--sample-prompts", "prompts.txt", "--validation-pictures", "2", "--lr", "1e-2")
    assert (done.code, done.out) == (0, "run/model\n"), done.err
    assert not list(Path("run/cache").glob("contexts-*")), "there are no states to keep"
    before, after = load_text_encoder(tiny_model), load_text_encoder(Path("run/model"))
    changed = [name for name, value in after.state_dict().items() if not torch.equal(value, before.state_dict()[name])]
    assert any("q_proj" in name for name in changed)
    assert any("token_embedding" in name for name in changed)

    exported = cli("export", "--unet", "run/model", "--vae", tiny_model, "--out", "model", "--dtype", "float32")
    assert (exported.code, exported.err) == (0, ""), exported.err
    bundle = load_model(Path("model"))
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in bundle.text_encoder.state_dict().items())
    ids = load_tokenizer(Path("run/model")).encode(["a red picture"])
    assert torch.equal(ids, bundle.tokenizer.encode(["a red picture"]))
    theirs = CLIPTextModel.from_pretrained("model/text_encoder")
    with torch.inference_mode():
        torch.testing.assert_close(theirs(ids).last_hidden_state, bundle.text_encoder(ids), rtol=1e-5, atol=1e-5)

    explicit = cli("export", "--unet", "run/model", "--vae", tiny_model, "--text-encoder", tiny_model, "--out", "other")
    assert explicit.code == 0
    assert "run/model has a text encoder that was trained with its U-Net" in explicit.err
    frozen = ("train-unet", "--data", pictures, "--init", tiny_model, "--out", "frozen", *QUICK)
    assert cli(*frozen).code == 0
    assert_refused(
        cli("export", "--unet", "frozen/model", "--vae", tiny_model, "--out", "third"), "--text-encoder is not given"
    )


def test_its_rate(cli: Cli, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """The first step of AdamW is the rate itself, wherever there is a gradient."""
    moved: list[float] = []
    for rate in ("0.1", "0.5"):
        out = f"run-{rate}"
        command = ("train-unet", "--data", pictures, "--init", tiny_model, "--out", out, *QUICK, "--max-steps", "1")
        done = cli(*command, "--train-text-encoder", "--text-encoder-rate", rate, "--lr", "1e-3", "--ema-decay", "0.9")
        assert done.code == 0, done.err
        (checkpoint,) = Path(out).glob("step_*")
        tensors = part_of(read(checkpoint / "model.safetensors"), TEXT_ENCODER)
        start = load_text_encoder(tiny_model).state_dict()
        name = "text_model.final_layer_norm.bias"
        moved.append(float((tensors[name] - start[name]).abs().max()))
    assert moved == pytest.approx([1e-4, 5e-4], rel=1e-3)
    config = json.loads(Path("run-0.5/config.json").read_text())
    assert config["text_encoder_rate"] == 0.5


def read(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--text-encoder-rate", "0.3"), "--text-encoder-rate is of a text encoder that is trained"),
        (("--train-text-encoder", "--text-encoder-rate", "0"), "--text-encoder-rate 0.0 must be above 0"),
        (("--train-text-encoder", "--text-encoder-rate", "nan"), "--text-encoder-rate nan must be above 0"),
        (("--train-text-encoder", "--text-encoder-rate", "2"), "--text-encoder-rate 2.0 must be above 0"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], says: str, cli: Cli, tiny_model: Path) -> None:
    assert_refused(cli("train-unet", "--data", "data", "--init", tiny_model, "--out", "run", *QUICK, *arguments), says)


def test_a_dry_run_tells(cli: Cli, tiny_model: Path, pictures: Path) -> None:
    command = ("train-unet", "--data", pictures, "--init", tiny_model, "--out", "run", *QUICK, "--train-text-encoder")
    done = cli(*command, "--dry-run")
    assert done.code == 0, done.err
    assert "text_encoder_rate" in done.out


def test_a_resume_must_share_it(cli: Cli, tiny_model: Path, pictures: Path) -> None:
    command = ("train-unet", "--data", pictures, "--init", tiny_model, "--out", "run", *QUICK)
    assert cli(*command, "--train-text-encoder").code == 0
    resumed = cli(*command, "--train-text-encoder", "--text-encoder-rate", "0.5", "--resume", "latest")
    assert resumed.code == 2
    assert "text_encoder_rate" in resumed.err.splitlines()[-1]
    frozen = cli(*command, "--resume", "latest")
    assert frozen.code == 2
    unets = [load_unet(folder).state_dict() for folder in (tiny_model, Path("run/model"))]
    assert any(not torch.equal(unets[0][name], unets[1][name]) for name in unets[0])

"""`train-unet --align`: with a probe and with an image tower, and everything that is neither."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from latentgen.checkpoints.folder import load_unet
from latentgen.config import ImageTowerConfig
from latentgen.evaluation.labels import LabelSet
from latentgen.evaluation.probe import Probe, ProbeConfig, save_probe
from tests.cli.conftest import Cli
from tests.cli.test_train import assert_refused
from tests.tiny import TINY_MODEL
from tests.training.tiny_runs import write_pictures

QUICK = ("--batch-size", "2", "--max-steps", "2", "--warmup", "0", "--threads", "1", "--resolution", "32")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", 12, side_px=32)


@pytest.fixture
def probe(tmp_path: Path) -> Path:
    labels = LabelSet(("castle", "sailboat"), ("blue", "red"), ("sea",), ("day", "night"), ("clear",), ("flat",), 3)
    torch.manual_seed(0)
    path = tmp_path / "probe.safetensors"
    save_probe(path, Probe(ProbeConfig(labels, 32, (8, 8, 8), (1, 1, 1), 8)), {})
    return path


@pytest.fixture
def towers(tmp_path: Path) -> Path:
    """The model/ of a train-clip run."""
    from latentgen.checkpoints.clip_folder import save_towers
    from latentgen.training.clip import build_towers

    image = ImageTowerConfig(side_px=32, patch_px=8, width=64, layers=2)
    torch.manual_seed(0)
    network = build_towers(TINY_MODEL.text_encoder, image)
    save_towers(network.state_dict(), TINY_MODEL.text_encoder, image, tmp_path / "towers" / "clip")
    return tmp_path / "towers"


@pytest.mark.parametrize("kind", ["probe", "towers"])
def test_the_unet_comes_out_as_ever(
    kind: str, cli: Cli, pictures: Path, tiny_model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    seer: Path = request.getfixturevalue(kind)
    command = ("train-unet", "--data", pictures, "--init", tiny_model, "--out", "run", *QUICK, "--align", seer)
    done = cli(*command, "--log-every", "1", "--validation-pictures", "2")
    assert (done.code, done.out) == (0, "run/model\n"), done.err
    lines = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "alignment" in line]
    assert [line["step"] for line in steps] == [1, 2]
    assert steps[0]["loss"] == pytest.approx(steps[0]["denoising"] + 0.25 * (1 - steps[0]["alignment"]), abs=1e-5)
    before, after = load_unet(tiny_model).state_dict(), load_unet(Path("run/model")).state_dict()
    assert list(before) == list(after)
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert {path.name.split("-")[0] for path in Path("run/cache").iterdir()} == {
        "pixels", "latents", "contexts", "features",
    }  # fmt: skip
    resumed = cli(*command, "--validation-pictures", "2", "--resume", "latest", "--align-weight", "0.5")
    assert resumed.code == 2
    assert "align_weight" in resumed.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("--align", "nowhere"), "there is nothing at --align nowhere", 3),
        (("--align", "data"), "--align data holds no CLIP model with an image tower", 2),
        (("--align", "some.safetensors"), "--align some.safetensors is a LoRA", 2),
        (("--align", "probe.safetensors", "--align-weight", "0"), "--align-weight 0.0 must be positive and finite", 2),
        (("--align", "probe.safetensors", "--align-weight", "inf"), "--align-weight inf must be positive", 2),
        (("--align-weight", "0.5"), "--align-weight 0.5 weighs nothing (give --align too)", 2),
    ],
)
@pytest.mark.usefixtures("pictures", "probe")
def test_what_cannot_be_followed(
    arguments: tuple[str, ...], says: str, code: int, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    from latentgen.checkpoints.io import write_tensors

    write_tensors(tmp_path / "some.safetensors", {"x.lora_A.weight": torch.zeros(2, 2)}, {})
    assert_refused(
        cli("train-unet", "--data", "data", "--init", tiny_model, "--out", "run", *QUICK, *arguments), says, code
    )
    assert not (tmp_path / "run").exists()


def test_a_dry_run_tells(cli: Cli, pictures: Path, tiny_model: Path) -> None:
    done = cli(
        "train-unet", "--data", pictures, "--init", tiny_model, "--out", "run", *QUICK, "--align", "p", "--dry-run"
    )
    assert done.code == 0, done.err
    assert "align" in done.out

"""train-vae's own options: what is trained, what is left alone, what others open, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentgen.checkpoints.clip_folder import save_towers
from latentgen.checkpoints.folder import load_vae, save_vae
from latentgen.checkpoints.io import read_tensors
from latentgen.config import ImageTowerConfig
from latentgen.models.vae import AutoencoderKL
from latentgen.training.run_dir import RunDir
from tests.cli.conftest import Cli, Outcome
from tests.tiny import TINY_MODEL, TINY_VAE, tiny_vae
from tests.training.tiny_runs import TEXT, write_pictures

QUICK = ("--batch-size", "2", "--warmup", "1", "--threads", "1", "--resolution", "32", "--crop", "32")
MINIMAL = ("train-vae", "--data", "data", "--out", "run", "--max-steps", "2")


@pytest.fixture(autouse=True)
def _no_torch_hub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path_factory.getbasetemp() / "no-torch-home"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", 6, side_px=32)


def assert_refused(outcome: Outcome, says: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert says in outcome.err


@pytest.mark.usefixtures("pictures")
def test_the_decoder_of_a_published_vae(cli: Cli, tmp_path: Path) -> None:
    """Saved by diffusers, its decoder trained with a discriminator, opened by diffusers: the same latents."""
    from diffusers import AutoencoderKL as Published

    torch.manual_seed(3)
    published = Published(
        block_out_channels=(8, 16, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
        sample_size=32,
        scaling_factor=0.18215,
    )
    published.save_pretrained(tmp_path / "sd" / "vae")
    trained = cli(
        *MINIMAL, "--init", "sd", "--decoder-only", *QUICK, "--lr", "1e-3", "--disc-weight", "0.5", "--disc-start", "1",
        "--disc-width", "16", "--validation-pictures", "2",
    )  # fmt: skip
    assert (trained.code, trained.out) == (0, "run/model\n"), trained.err
    assert "pictures are set aside to measure the run on" in trained.err
    assert "perceptual loss: none: no LPIPS weights in" in trained.err

    back, report = Published.from_pretrained(tmp_path / "run/model/vae", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert back.config.scaling_factor == 0.18215
    before, after = published.state_dict(), back.state_dict()
    assert set(before) == set(after)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(published.encode(pixels).latent_dist.mean, back.encode(pixels).latent_dist.mean)
        ours = load_vae(Path("run/model"))
        torch.testing.assert_close(
            ours.decode(ours.encode(pixels)[0]), back.decode(back.encode(pixels).latent_dist.mean).sample
        )
    assert not any(
        name.startswith("discriminator") for name in read_tensors(next(Path("run/model/vae").glob("*.saf*")))
    )
    checkpoint = read_tensors(Path("run/step_00000002/model.safetensors"))
    assert checkpoint["discriminator.stages.0.weight"].shape == (16, 3, 4, 4)
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert {"psnr_db", "ssim"} <= set(log[-1])


@pytest.mark.usefixtures("pictures")
def test_averages_that_are_no_longer_wanted_are_not_the_model(cli: Cli, tmp_path: Path) -> None:
    """--no-ema from a checkpoint that holds averages, with no step left: what is measured is what is written."""
    save_vae(tiny_vae(), tmp_path / "full")
    common = (*MINIMAL, "--out", "run", "--init", "full", *QUICK, "--scaling", "measured")
    assert cli(*common).code == 0
    checkpoint = RunDir(Path("run")).latest()
    assert checkpoint is not None
    for options, weights in (((), checkpoint.ema), (("--no-ema", "--override", "ema_decay"), checkpoint.model)):
        outcome = cli(*common, "--resume", "latest", "--max-minutes", "0", *options)
        assert outcome.code == 0, outcome.err
        written = load_vae(Path("run/model")).state_dict()
        assert all(torch.equal(written[name], weights[f"vae.{name}"]) for name in written)
    assert any(not torch.equal(checkpoint.ema[name], checkpoint.model[name]) for name in checkpoint.ema)


@pytest.mark.usefixtures("pictures")
def test_one_scaling_factor_as_sd_has_it(cli: Cli, tmp_path: Path) -> None:
    """1 / std of all latents, also where there are no convolutions to fold into."""
    save_vae(tiny_vae(), tmp_path / "full")
    bare = replace(TINY_VAE, use_quant_conv=False, use_post_quant_conv=False)
    save_vae(tiny_vae(bare), tmp_path / "bare")
    for init in ("full", "bare"):
        outcome = cli(
            *(*MINIMAL, "--out", f"run-{init}", "--init", init, *QUICK),
            *("--scaling", "measured", "--no-ema", "--kl-weight", "0"),
        )
        assert outcome.code == 0, outcome.err
        vae = load_vae(Path(f"run-{init}/model"))
        latents = encode_all(vae)
        assert vae.config.scaling_factor == pytest.approx(1 / float(latents.std(correction=0)), rel=0.02)
    folded = cli(*MINIMAL, "--out", "run-folded", "--init", "full", *QUICK, "--scaling", "fold")
    assert "--scaling fold: the U-Net of full does not know the new latents (--scaling keep)" in folded.err
    assert folded.code == 0, folded.err
    vae = load_vae(Path("run-folded/model"))
    assert vae.config.scaling_factor == 1
    assert encode_all(vae).std(dim=(0, 2, 3), correction=0).tolist() == pytest.approx([1.0] * 4, rel=0.02)
    assert_refused(
        cli(*MINIMAL, "--out", "other", "--init", "bare", *QUICK, "--scaling", "fold"),
        "--scaling fold needs a VAE with quant_conv and post_quant_conv (--scaling measured)",
    )


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("options", [(), ("--scaling", "keep")])
def test_what_goes_on_from_a_model_keeps_the_latents_of_its_unet(
    options: tuple[str, ...], cli: Cli, tmp_path: Path
) -> None:
    save_vae(tiny_vae(replace(TINY_VAE, scaling_factor=0.18215)), tmp_path / "full")
    outcome = cli(*MINIMAL, "--out", "run", "--init", "full", *QUICK, *options)
    assert outcome.code == 0, outcome.err
    assert "does not know the new latents" not in outcome.err
    before, after = load_vae(Path("full")), load_vae(Path("run/model"))
    assert after.config == before.config
    drift = (encode_all(after) - encode_all(before)).std() / encode_all(before).std()
    assert 0 < drift < 0.05, "two steps"


def encode_all(vae: AutoencoderKL) -> torch.Tensor:
    from latentgen.data.pixels import PixelCache, to_float
    from latentgen.data.records import list_records

    pixels = PixelCache(list_records(Path("data")), 32, Path("looked-at"), lambda text: None)
    with torch.inference_mode():
        return vae.encode(to_float(pixels.batch(range(len(pixels)))))[0]


def test_through_the_image_tower_of_train_clip(
    cli: Cli, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--perceptual-model`; a resume through another one is refused. Held-out pictures are what is looked at."""
    from latentgen.training.clip import build_towers

    monkeypatch.setattr("latentgen.cli.train_vae.EMBEDDED", TINY_MODEL)
    image = ImageTowerConfig(side_px=16, patch_px=8, width=64, layers=1)
    for name, seed in (("clip", 0), ("other", 1)):
        torch.manual_seed(seed)
        save_towers(build_towers(TEXT, image).state_dict(), TEXT, image, tmp_path / name / "clip")
    lines = [json.dumps({"file_name": f"{i:03d}.png", "text": "a picture", "held_out": i >= 4}) for i in range(6)]
    (pictures / "metadata.jsonl").write_text("\n".join(lines))
    outcome = cli(*MINIMAL, *QUICK, "--perceptual-model", "clip", "--log-every", "1", "--validation-pictures", "2")
    assert outcome.code == 0, outcome.err
    assert "pictures labelled held_out measure the run: --validation-pictures sets none aside" in outcome.err
    assert "perceptual loss: features of the CLIP image tower in clip/clip" in outcome.err
    assert "held_out_psnr_db" in outcome.err
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert all(line["perceptual"] > 0 for line in log if "l1" in line)
    assert any("l1" in line for line in log)
    again = cli(*MINIMAL, *QUICK, "--perceptual-model", "other", "--resume", "latest")
    assert again.code == 2
    assert "perceptual: 'clip-" in again.err


def test_latents_of_eight_and_sixteen(cli: Cli) -> None:
    for channels, side in (("16,32,64,64", 8), ("16,32,64,64,64", 16)):
        outcome = cli(*MINIMAL, "--channels", channels, "--resolution", "128", "--dry-run")
        assert outcome.code == 0, outcome.err
        assert 2 ** (len(json.loads(outcome.out)["vae"]["block_out_channels"]) - 1) == side
        refused = cli(*MINIMAL, "--channels", channels, "--crop", "100")
        assert_refused(refused, f"--crop 100: sides are multiples of {side}")


def test_muon_is_for_fresh_ones(cli: Cli) -> None:
    def muon_lr(*arguments: str) -> float | None:
        return json.loads(cli(*MINIMAL, *arguments, "--dry-run").out)["muon_lr"]

    assert muon_lr() == 0.02
    assert muon_lr("--init", "sd15") is None
    assert muon_lr("--muon-lr", "0") is None
    assert muon_lr("--init", "sd15", "--muon-lr", "0.01") == 0.01


REFUSED = [
    (("--kl-weight", "nan"), "'--kl-weight'", 2),
    (("--kl-weight", "inf"), "--kl-weight inf must be a number, 0 or more", 2),
    (("--gradient-weight", "inf"), "--gradient-weight inf must be a number", 2),
    (("--logvar-weight", "nan"), "'--logvar-weight'", 2),
    (("--perceptual-weight", "nan"), "'--perceptual-weight'", 2),
    (("--disc-weight", "inf"), "--disc-weight inf must be a number", 2),
    (("--disc-start", "-1"), "'--disc-start'", 2),
    (("--disc-start", "10"), "--disc-start 10 starts nothing (give --disc-weight too)", 2),
    (("--disc-width", "32"), "--disc-width 32 makes nothing wide (give --disc-weight too)", 2),
    (("--disc-weight", "1", "--disc-width", "12"), "--disc-width 12 is not a multiple of 8", 2),
    (("--disc-weight", "1", "--compile"), "--compile and --disc-weight do not go together", 2),
    (("--disc-weight", "1", "--crop", "16"), "--crop 16 holds no patch for the discriminator", 2),
    (
        ("--disc-weight", "1", "--crop", "32", "--equivariance", "0.5"),
        "--crop 32, made smaller by --equivariance down to 16 px, holds no patch for the discriminator",
        2,
    ),
    (("--reconstruction", "huber"), "--reconstruction huber is not one of l1, l2", 2),
    (("--perceptual", "vgg"), "--perceptual vgg is not one of auto, lpips, clip, none", 2),
    (("--perceptual", "lpips"), "--perceptual lpips: its weights are not in", 2),
    (("--perceptual", "clip"), "--perceptual clip: there is no --perceptual-model", 2),
    (("--perceptual-model", "nowhere"), "no folder at --perceptual-model nowhere", 3),
    (("--scaling", "one"), "--scaling one is not one of fold, energy, measured, keep", 2),
    (("--scaling", "keep"), "--scaling keep has nothing to keep (leave it out, or go on from --init MODEL)", 2),
    (("--scaling", "fold", "--decoder-only", "--init", "m"), "--decoder-only keeps the latents as they are", 2),
    (("--latent-noise", "inf"), "--latent-noise inf must be a number, 0 or more", 2),
    (("--latent-noise", "0.1"), "--latent-noise 0.1 needs --decoder-only", 2),
    (("--cache-latents",), "--cache-latents needs an encoder that stays as it is", 2),
    (
        ("--cache-latents", "--decoder-only", "--init", "m", "--resolution", "64", "--crop", "32"),
        "square crops that are whole pictures (--decoder-only --crop 64, without --aspect-buckets)",
        2,
    ),
]


@pytest.mark.parametrize(("arguments", "says", "code"), REFUSED)
def test_refused(arguments: tuple[str, ...], says: str, code: int, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli(*MINIMAL, *arguments), says, code)
    assert list(tmp_path.iterdir()) == []


def test_refused_before_torch_is_imported(tmp_path: Path) -> None:
    """All of them in a fresh interpreter."""
    program = """
import json, sys
from latentgen.cli.app import main
for arguments, code in json.loads(sys.argv[1]):
    assert main(arguments) == code, arguments
    assert "torch" not in sys.modules, arguments
"""
    cases = json.dumps([([*map(str, MINIMAL), *arguments], code) for arguments, _, code in REFUSED])
    done = subprocess.run(
        [sys.executable, "-c", program, cases], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]

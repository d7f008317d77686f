"""`train-lora`: from a model and a folder of pictures to files that open in diffusers, and every way to ask wrongly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, safe_open

from latentgen.checkpoints.folder import load_model, save_unet
from latentgen.checkpoints.io import read_tensors
from latentgen.checkpoints.lora import read_lora
from tests.cli.conftest import Cli, Outcome
from tests.merged import apply_lora
from tests.tiny import TINY_UNET, tiny_unet
from tests.training.tiny_runs import write_pictures

QUICK = ("--batch-size", "2", "--max-steps", "2", "--threads", "1", "--resolution", "16", "--no-progress")
MINIMAL = ("train-lora", "--data", "data", "--out", "run", "--max-steps", "5")
KOHYA, DIFFUSERS = Path("run/model/lora.safetensors"), Path("run/model/pytorch_lora_weights.safetensors")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", 6)


def assert_refused(outcome: Outcome, says: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("error: ")
    assert says in outcome.err


def test_the_lora_of_any_checkpoint_that_was_kept(cli: Cli, pictures: Path, tiny_model: Path) -> None:
    """Written without a step more; and training that goes on from there is that of a run that stopped there."""
    command = ("train-lora", "--data", pictures, "--model", tiny_model, *QUICK, "--lr", "0.05", "--save-every", "1")
    command = (*command, "--keep", "3", "--max-steps", "3")
    assert cli(*command, "--out", "run").code == 0
    last = KOHYA.read_bytes()
    folders = sorted(path.name for path in Path("run").glob("step_*"))
    averages = {name: read_tensors(Path("run") / name / "ema.safetensors") for name in folders}
    assert len(averages) == 3
    chosen = cli(*command, "--out", "run", "--resume", "2", "--max-minutes", "0")
    assert (chosen.code, chosen.out) == (0, "run/model\n"), chosen.err
    assert sorted(path.name for path in Path("run").glob("step_*")) == folders, "none is lost by looking"
    kohya = load_file(KOHYA)
    name = "mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    written = kohya[f"lora_unet_{name}.lora_up.weight"]
    assert torch.equal(written, averages["step_00000002"][f"adapters.unet_{name}.up.weight"])
    assert not torch.equal(written, averages["step_00000003"][f"adapters.unet_{name}.up.weight"])
    assert cli(*command, "--out", "run", "--resume", "1").code == 0
    assert KOHYA.read_bytes() == last
    other = ("--resume", "1", "--override", "lr", "--lr", "0.01")
    assert cli(*command, "--out", "run", *other, "--max-minutes", "0").code == 0
    assert sorted(path.name for path in Path("run").glob("step_*")) == folders
    assert cli(*command, "--out", "run", *other).code == 0
    assert KOHYA.read_bytes() != last, "nothing of the later checkpoints is left"
    assert_refused(
        cli(*command, "--out", "run", "--resume", "7"),
        "run keeps no checkpoint of step 7 (it has 1, 2, 3; --keep keeps more)",
        3,
    )


def test_a_lora_that_diffusers_draws_with(cli: Cli, pictures: Path, tiny_model: Path, tmp_path: Path) -> None:
    """Train, resume, read back; and both files change diffusers' networks as they change ours."""
    (tmp_path / "prompts.txt").write_text("a red picture\n")
    command = ("train-lora", "--data", pictures, "--model", tiny_model, "--out", "run", *QUICK)
    command += ("--rank", "3", "--alpha", "6", "--targets", "all", "--train-text-encoder", "--lr", "0.05")
    command += ("--sample-prompts", "prompts.txt", "--sample-every", "1", "--save-every", "1")
    trained = cli(*command)
    assert (trained.code, trained.out) == (0, "run/model\n"), trained.err
    assert "2 steps, 4 samples, modules 91, parameters" in trained.err
    sheets = [Path(f"run/samples/step_0000000{step}.png").read_bytes() for step in (1, 2)]
    assert sheets[0] != sheets[1], "they are drawn with the adapters"
    assert {path.name.split("-")[0] for path in Path("run/cache").iterdir()} == {"pixels", "latents"}

    averaged = read_tensors(Path("run/step_00000002/ema.safetensors"))
    kohya = load_file(KOHYA)
    name = "mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    assert torch.equal(kohya[f"lora_unet_{name}.lora_up.weight"], averaged[f"adapters.unet_{name}.up.weight"])
    with safe_open(KOHYA, "pt") as file:
        metadata = file.metadata()
    assert metadata.pop("latentgen_base") == load_model(tiny_model).fingerprint()
    assert metadata == {"ss_network_module": "networks.lora", "ss_network_dim": "3", "ss_network_alpha": "6.0"}

    from diffusers import StableDiffusionPipeline

    merged = load_model(tiny_model)
    assert str(apply_lora(merged, read_lora(KOHYA))).endswith("modules applied")
    ids, x, t = merged.tokenizer.encode(["a red picture"]), torch.randn(1, 4, 8, 8), torch.tensor([500])
    with torch.inference_mode():
        context = merged.text_encoder(ids)
        ours, plain = merged.unet(x, t, context), load_model(tiny_model).unet(x, t, context)
        assert (ours - plain).abs().max() > 1e-2, "the training left its mark"
        for path in (KOHYA, DIFFUSERS):
            pipeline = StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None)
            pipeline.load_lora_weights(path.parent, weight_name=path.name)
            torch.testing.assert_close(pipeline.text_encoder(ids)[0], context, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(pipeline.unet(x, 500, context).sample, ours, rtol=1e-4, atol=1e-5)

    longer = cli(*command, "--max-steps", "3", "--resume", "latest", "--log-every", "1")
    assert longer.code == 0, longer.err
    assert_refused_last(cli(*command, "--max-steps", "4", "--resume", "latest", "--rank", "2"), "adapters: ")


def assert_refused_last(outcome: Outcome, says: str) -> None:
    """After notes of what was computed."""
    assert outcome.code == 2, outcome.err
    assert outcome.err.splitlines()[-1].startswith("error: ")
    assert says in outcome.err.splitlines()[-1]


def test_a_lora_trained_further(cli: Cli, pictures: Path, tiny_model: Path) -> None:
    """--init takes either file, with its rank and its alpha; contexts of the text encoder are cached."""
    common = ("train-lora", "--data", pictures, "--model", tiny_model, *QUICK, "--no-ema")
    first = cli(*common, "--out", "run", "--rank", "2", "--alpha", "1", "--targets", "attention")
    assert first.code == 0, first.err
    assert {path.name.split("-")[0] for path in Path("run/cache").iterdir()} == {"pixels", "latents", "contexts"}
    for path in (KOHYA, DIFFUSERS):
        # A rate at which nothing moves: what comes out is what went in.
        out = f"again-{path.stem}"
        again = cli(*common, "--out", out, "--init", path, "--lr", "1e-30", "--cache", "run/cache")
        assert again.code == 0, again.err
        before, after = load_file(KOHYA), load_file(f"{out}/model/lora.safetensors")
        assert before.keys() == after.keys()
        assert all(torch.equal(value, after[name]) for name, value in before.items())

    assert_refused(cli(*common, "--out", "x", "--init", KOHYA, "--rank", "4"), "--rank, --alpha, --targets and")
    assert_refused(cli(*common, "--out", "x", "--init", "no.safetensors"), "no LoRA file at no.safetensors", code=3)
    wider = replace(TINY_UNET, block_out_channels=(24, 32))
    save_other_base(tiny_model, Path("other"), wider)
    other = cli("train-lora", "--data", pictures, "--model", "other", "--out", "x", "--init", KOHYA, *QUICK)
    assert_refused(other, "the LoRA was made for another base model: ", code=3)
    save_other_base(tiny_model, Path("shallow"), replace(TINY_UNET, attention_levels=(False, False)))
    shallow = cli("train-lora", "--data", pictures, "--model", "shallow", "--out", "x", "--init", KOHYA, *QUICK)
    assert_refused(shallow, "modules applied; not in this model: unet.down_blocks.0.attentions.0", code=3)
    assert not Path("x").exists()


def save_other_base(model: Path, folder: Path, unet: object) -> None:
    import shutil

    shutil.copytree(model, folder)
    shutil.rmtree(folder / "unet")
    save_unet(tiny_unet(unet), folder / "unet")  # pyright: ignore[reportArgumentType]


# Nothing is computed for these


def test_dry_run_prints_what_would_be_done(cli: Cli, tmp_path: Path) -> None:
    outcome = cli(*MINIMAL, "--rank", "16", "--dry-run")
    assert outcome.code == 0, outcome.err
    settings = json.loads(outcome.out)
    assert (settings["lr"], settings["lr_scheduler"], settings["warmup_steps"]) == (1e-4, "constant", 0)
    assert (settings["rank"], settings["alpha"], settings["targets"]) == (16, 16.0, "attention+ff")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (("--rank", "0"), "'--rank'", 2),
        (("--alpha", "0"), "--alpha 0.0 must be positive and finite", 2),
        (("--alpha", "nan"), "--alpha nan must be positive and finite", 2),
        (("--targets", "conv"), "--targets conv is not one of attention, attention+ff, all", 2),
        (("--min-snr-gamma", "0"), "--min-snr-gamma 0.0 must be positive and finite", 2),
        (("--caption-dropout", "2"), "'--caption-dropout'", 2),
        (("--noise-offset", "inf"), "--noise-offset inf must be finite", 2),
        (("--noise-offset", "nan"), "'--noise-offset'", 2),
        (("--sample-prompts", "none.txt"), "--sample-prompts none.txt cannot be read: No such file", 2),
        (("--resume", "yes"), "--resume yes is not latest, auto, or the step of a checkpoint", 2),
        (("--model", "nowhere"), "there is no model folder nowhere", 3),
    ],
)
def test_bad_options(arguments: tuple[str, ...], says: str, code: int, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli(*MINIMAL, *arguments), says, code)
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_the_model(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    model = ("--model", tiny_model)
    assert_refused(cli(*MINIMAL, *model, "--resolution", "24"), "--resolution 24: sides are multiples of 16")
    narrow = "--rank 17 is larger than this model's narrowest layer, 16 wide"
    assert_refused(cli(*MINIMAL, *model, "--rank", "17"), narrow)
    assert_refused(cli(*MINIMAL, *model), "no data folder at data", code=3)
    save_other_base(tiny_model, Path("inpainting"), replace(TINY_UNET, in_channels=9))
    inpainting = cli(*MINIMAL, "--model", "inpainting")
    assert_refused(inpainting, "inpainting is not a text-to-image model: its U-Net takes 9 channels")
    assert [path.name for path in tmp_path.iterdir()] == ["inpainting"]


def test_bad_input_is_told_before_torch_is_imported(tiny_model: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = f"""
import sys
from latentgen.cli.app import main
model = ["--model", {str(tiny_model)!r}]
base = ["train-lora", "--data", "data", "--out", "run", "--max-steps", "1"]
assert main([*base, "--model", "nowhere"]) == 3
assert main([*base, *model]) == 3
assert main([*base, *model, "--rank", "17"]) == 2
assert main([*base, *model, "--resolution", "24"]) == 2
assert main([*base, *model, "--targets", "conv"]) == 2
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 5


def test_help_has_an_example_that_parses(cli: Cli) -> None:
    from latentgen.cli.train_lora import train_lora

    shown = " ".join(cli("train-lora", "--help").out.split())
    (example,) = [" ".join(p.split()) for p in (train_lora.__doc__ or "").split("\n\n") if p.strip()[:9] == "latentgen"]
    assert example.split(" --out")[0] in shown
    assert cli(*example.split()[1:], "--dry-run").code == 0

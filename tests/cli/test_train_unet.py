"""`train-unet` and `export`: from other people's models, with every objective, into folders that diffusers opens."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from latentgen.checkpoints.diffusers_config import write_scheduler
from latentgen.checkpoints.folder import ModelBundle, load_model, load_unet, save_model
from latentgen.checkpoints.layout import find_defaults
from latentgen.cli.train_noise import objective_settings, tell_of_weights
from latentgen.config import BetaSchedule, GenerationDefaults
from latentgen.diffusion.guidance import GuidedDenoiser
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.models.tokenizer import Tokenizer
from latentgen.samplers.registry import get_sampler
from latentgen.training.unet_plan import plan_model
from tests.cli.conftest import Cli
from tests.cli.test_train import assert_refused
from tests.tiny import TINY_MODEL, TINY_UNET, randomize, tiny_text_encoder, tiny_unet, tiny_vae
from tests.tiny_bundle import MERGES
from tests.training.tiny_runs import write_pictures

QUICK = (
    "--batch-size",
    "2",
    "--max-steps",
    "2",
    "--warmup",
    "0",
    "--threads",
    "1",
    "--resolution",
    "32",
    "--lr",
    "1e-2",
)
PROMPT = "a red picture"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", 12, side_px=32)


@pytest.fixture
def theirs(tiny_model: Path, tmp_path: Path) -> Path:
    """A tiny SD 1.x model as diffusers writes it: with its own scheduler file, without our drawing defaults."""
    folder = tmp_path / "theirs"
    StableDiffusionPipeline.from_pretrained(tiny_model, safety_checker=None).save_pretrained(folder)
    return folder


def generated(folder: Path, *, side: int = 4, steps: int = 3) -> tuple[Tensor, Tensor]:
    """Pixels of the same start through our parts and through diffusers' pipeline with its own scheduler file."""
    bundle = load_model(folder)
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    assert isinstance(pipeline.scheduler, DDIMScheduler)
    noise = torch.randn(1, 4, side, side, generator=torch.Generator().manual_seed(7))
    diffusion = bundle.config.diffusion
    schedule = NoiseSchedule.from_config(diffusion)
    with torch.inference_mode():
        cond, uncond = bundle.text_encoder(bundle.tokenizer.encode([PROMPT, ""])).split(1)
        denoise = GuidedDenoiser(bundle.unet, schedule, diffusion.prediction_type, cond, uncond, 3.0)
        sigmas = schedule.inference_sigmas(steps, diffusion.timestep_spacing)
        x = noise * (1 + sigmas[0] ** 2).sqrt()
        latents = get_sampler("ddim")(denoise, x, sigmas, noise=lambda: torch.zeros_like(x))
        ours = bundle.vae.decode(LatentSpace.from_config(bundle.config.vae).denormalize(latents))
        drawn = pipeline(PROMPT, latents=noise, num_inference_steps=steps, guidance_scale=3.0, output_type="pt").images
    return (ours / 2 + 0.5).clamp(0, 1), drawn


def test_from_a_folder_of_diffusers_and_back(cli: Cli, theirs: Path, pictures: Path) -> None:
    """--init alone: its VAE and text encoder too. The same pictures come out of diffusers as out of our own parts."""
    outcome = cli("train-unet", "--data", pictures, "--init", theirs, "--out", "run", *QUICK)
    assert (outcome.code, outcome.out) == (0, "run/model\n"), outcome.err
    before, after = load_unet(theirs).state_dict(), load_unet(Path("run/model")).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before), "something was learned"
    parts = ("--vae", theirs, "--text-encoder", theirs)
    exported = cli("export", "--unet", "run/model", *parts, "--out", "model", "--dtype", "float32")
    assert exported.code == 0, exported.err
    config = load_model(Path("model")).config
    assert config.unet.sample_size == 4, "32 px"
    assert config.diffusion == TINY_MODEL.diffusion, "eps and its schedule are kept"
    assert config.defaults == GenerationDefaults(32, 32), "theirs says nothing of drawing: our usual settings"
    ours, drawn = generated(Path("model"))
    torch.testing.assert_close(ours, drawn, rtol=1e-5, atol=1e-4)  # as in tests/oracle/test_folder.py


def test_drawing_defaults_come_from_init_and_go_on_to_the_model(cli: Cli, tiny_model: Path, pictures: Path) -> None:
    outcome = cli("train-unet", "--data", pictures, "--init", tiny_model, "--out", "run", *QUICK)
    assert outcome.code == 0, outcome.err
    parts = ("--unet", "run/model", "--vae", tiny_model, "--text-encoder", tiny_model)
    assert cli("export", *parts, "--out", "model", "--guidance", "2.5", "--sampler", "Euler a").code == 0
    wanted = replace(TINY_MODEL.defaults, width_px=32, height_px=32, guidance=2.5, sampler="euler_a")
    assert load_model(Path("model")).config.defaults == wanted
    index = json.loads(Path("model/model_index.json").read_text())
    assert "guidance_interval" not in index["_latentgen"], "versions that know none read the rest"
    interval = ("--guidance-interval", "0.2,1", "--overwrite")
    assert cli("export", *parts, "--out", "model", "--guidance", "2.5", "--sampler", "Euler a", *interval).code == 0
    assert load_model(Path("model")).config.defaults == replace(wanted, guidance_interval=(0.2, 1.0))
    again = cli("train-unet", "--data", pictures, "--init", "model", "--out", "again", *QUICK)
    assert again.code == 0, again.err
    assert json.loads(Path("again/model/defaults.json").read_text())["_latentgen"]["sampler"] == "euler_a"
    assert find_defaults(Path("again/model"), 32) == replace(wanted, guidance_interval=(0.2, 1.0))


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_in_diffusers(prediction: str, cli: Cli, theirs: Path, pictures: Path) -> None:
    common = ("train-unet", "--data", pictures, "--init", theirs, "--out", "run", *QUICK)
    objective = ("--zero-terminal-snr", "--min-snr-gamma", "5", "--noise-offset", "0.05")
    says = "with zero terminal SNR the last step is all noise, from which eps tells nothing of the picture"
    assert_refused(cli(*common, *objective), says)
    outcome = cli(*common, *objective, "--prediction-type", prediction)
    assert outcome.code == 0, outcome.err
    assert "--min-snr-gamma weighs the last timestep, all noise with zero terminal SNR, with 0" in outcome.err
    written = json.loads(Path("run/model/scheduler/scheduler_config.json").read_text())
    assert written["rescale_betas_zero_snr"] is True
    assert (written["timestep_spacing"], written["prediction_type"]) == ("trailing", prediction)
    parts = ("--unet", "run/model", "--vae", theirs, "--text-encoder", theirs)
    assert cli("export", *parts, "--out", "model", "--dtype", "float32").code == 0
    bundle = load_model(Path("model"))
    assert bundle.config.defaults.schedule == "trailing", "karras has no use for a sigma of 4096"
    scheduler = DDIMScheduler.from_pretrained("model", subfolder="scheduler")
    schedule = NoiseSchedule.from_config(bundle.config.diffusion)
    torch.testing.assert_close(schedule.alphas_cumprod.float(), scheduler.alphas_cumprod, rtol=0, atol=1e-6)
    assert float(schedule.alphas_cumprod[-1]) == 0
    ours, drawn = generated(Path("model"))
    # Ours begins at sigma 4096 where theirs begins at infinity: 2**-12 of the starting noise, through a random network.
    torch.testing.assert_close(ours, drawn, rtol=0, atol=5e-3)


@pytest.mark.parametrize(
    ("beta_schedule", "ends", "spacing"),
    [
        ("linear", (1e-4, 0.02), "leading"),
        ("scaled_linear", (0.00085, 0.012), "leading"),
        ("squaredcos_cap_v2", (0.00085, 0.012), "trailing"),
    ],
)
def test_beta_schedules(beta_schedule: BetaSchedule, ends: tuple[float, float], spacing: str, tiny_model: Path) -> None:
    """Each has its own paper's ends; the cosine one begins drawing where it ends training."""
    model = plan_model(
        TINY_MODEL,
        tiny_model,
        TINY_MODEL.vae,
        TINY_MODEL.text_encoder,
        resolution=32,
        prediction_type=None,
        beta_schedule=beta_schedule,
        zero_terminal_snr=False,
    )
    written = write_scheduler(model.diffusion)
    assert (written["beta_start"], written["beta_end"]) == ends
    assert (written["beta_schedule"], written["timestep_spacing"]) == (beta_schedule, spacing)
    assert written["prediction_type"] == "epsilon"
    assert model.defaults.schedule == ("trailing" if spacing == "trailing" else TINY_MODEL.defaults.schedule)


def test_a_text_encoder_of_transformers(
    cli: Cli, tiny_model: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bare CLIPTextModel folder, from scratch; the model that comes out holds it whole."""
    monkeypatch.setattr("latentgen.cli.train_unet.EMBEDDED", TINY_MODEL)
    config = CLIPTextConfig(
        **{"vocab_size": 600, "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2},
        **{"num_attention_heads": 3, "hidden_act": "gelu", "bos_token_id": 598, "eos_token_id": 599},
    )
    encoder = randomize(CLIPTextModel(config), 5).eval()
    encoder.save_pretrained(tmp_path / "clip")
    Tokenizer.published(MERGES).save(tmp_path / "clip")
    parts = ("--vae", tiny_model, "--text-encoder", "clip")
    outcome = cli("train-unet", "--data", pictures, *parts, "--out", "run", "--gradient-checkpointing", *QUICK)
    assert outcome.code == 0, outcome.err
    exported = cli("export", "--unet", "run/model", *parts, "--out", "model", "--dtype", "float32")
    assert exported.code == 0, exported.err
    pipeline = StableDiffusionPipeline.from_pretrained("model", safety_checker=None)
    ids = pipeline.tokenizer([PROMPT], padding="max_length", return_tensors="pt").input_ids
    with torch.inference_mode():
        torch.testing.assert_close(pipeline.text_encoder(ids)[0], encoder(ids)[0], rtol=1e-5, atol=1e-5)
    ours, drawn = generated(Path("model"))
    torch.testing.assert_close(ours, drawn, rtol=1e-5, atol=1e-4)


def test_validation_in_a_run(cli: Cli, tiny_model: Path, pictures: Path) -> None:
    common = ("train-unet", "--data", pictures, "--init", tiny_model, *QUICK, "--validate-every", "1")
    assert_refused_at_the_end(cli(*common, "--out", "none").err, "--validate-every 1 has no pictures to measure")
    assert_refused_at_the_end(
        cli(*common, "--out", "all", "--validation-pictures", "12").err,
        "--validation-pictures 12 leaves none of 12 pictures to train on",
    )
    outcome = cli(*common, "--out", "run", "--validation-pictures", "2")
    assert outcome.code == 0, outcome.err
    assert "2 of 12 pictures are set aside to measure the run on" in outcome.err
    events = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    validations = [event for event in events if event.get("validation")]
    assert [event["step"] for event in validations] == [1, 2]
    assert all(0 < event["val_loss"] < 100 for event in validations)
    assert validations[0]["val_loss"] != validations[1]["val_loss"]


def assert_refused_at_the_end(err: str, says: str) -> None:
    """After notes on what was done with the pictures."""
    assert err.splitlines()[-1].startswith(f"error: {says}"), err


# Refused before anything is computed

MINIMAL = ("train-unet", "--data", "data", "--out", "run", "--max-steps", "1", "--vae", "vae", "--text-encoder", "clip")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--caption-dropout", "nan"), "'--caption-dropout'"),
        (("--noise-offset", "nan"), "'--noise-offset'"),
        (("--noise-offset", "inf"), "--noise-offset inf must be finite"),
        (("--noise-offset", "-1"), "'--noise-offset'"),
        (("--min-snr-gamma", "inf"), "--min-snr-gamma inf must be positive"),
        (("--min-snr-gamma", "nan"), "--min-snr-gamma nan must be positive"),
        (("--beta-schedule", "sigmoid"), "--beta-schedule sigmoid is not one of linear, scaled_linear"),
        (("--validation-pictures", "-1"), "'--validation-pictures'"),
    ],
)
def test_bad_options(arguments: tuple[str, ...], says: str, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli(*MINIMAL, *arguments), says)
    assert list(tmp_path.iterdir()) == []


def test_parts_must_be_named(cli: Cli) -> None:
    assert_refused(cli(*MINIMAL[:-2]), "--text-encoder is not given (name one, or a whole model with --init)")
    assert_refused(cli(*MINIMAL[:-4]), "--vae is not given")


def test_attention_is_capped_where_it_is_asked_for(cli: Cli) -> None:
    def cap(*arguments: str) -> float | None:
        return json.loads(cli(*MINIMAL, *arguments, "--dry-run").out)["attention_cap"]

    assert cap() is None
    assert cap("--attention-cap", "3") == 3


def test_inpainting_networks(cli: Cli, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    unet = replace(TINY_UNET, in_channels=9)
    config = replace(TINY_MODEL, unet=unet)
    tokenizer = Tokenizer.published(MERGES)
    bundle = ModelBundle(tiny_unet(unet), tiny_vae(), tiny_text_encoder(), tokenizer, config)
    save_model(bundle, tmp_path / "inpainting")
    outcome = cli("train-unet", "--data", pictures, "--init", "inpainting", "--out", "run", *QUICK)
    assert_refused(outcome, "--init inpainting: its U-Net takes 9 channels and predicts 4, as those for inpainting do")


def test_parts_of_different_models(cli: Cli, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    CLIPTextModel(
        CLIPTextConfig(hidden_size=16, intermediate_size=8, num_hidden_layers=1, vocab_size=600)
    ).save_pretrained(tmp_path / "clip")
    Tokenizer.published(MERGES).save(tmp_path / "clip")
    common = ("--data", pictures, "--init", tiny_model, "--text-encoder", "clip", "--out", "run", *QUICK)
    says = "the U-Net attends to a context 24 wide, but the text encoder's is 16"
    assert_refused(cli("train-unet", *common), says)
    parts = ("--unet", tiny_model, "--vae", tiny_model, "--text-encoder", "clip", "--out", "model")
    assert_refused(cli("export", *parts), says)


@pytest.mark.parametrize(
    ("guidance", "says"), [("nan", "'--guidance'"), ("inf", "drawing defaults: guidance inf must be a number from 0")]
)
def test_export_numbers(guidance: str, says: str, cli: Cli, tiny_model: Path) -> None:
    parts = ("--unet", tiny_model, "--vae", tiny_model, "--text-encoder", tiny_model, "--out", "model")
    assert_refused(cli("export", *parts, "--guidance", guidance), says)
    assert not Path("model").exists()


def test_training_goes_on_at_the_size_of_init(cli: Cli, tiny_model: Path, pictures: Path) -> None:
    """And what it makes draws at that size, unless another is asked for."""
    quick = QUICK[: QUICK.index("--resolution")] + QUICK[QUICK.index("--resolution") + 2 :]
    common = ("train-unet", "--data", pictures, "--init", tiny_model, *quick)
    size = load_model(tiny_model).config.defaults.width_px
    for options, expected in (((), size), (("--resolution", "32"), 32)):
        outcome = cli(*common, "--out", f"run{expected}", *options)
        assert outcome.code == 0, outcome.err
        assert json.loads(Path(f"run{expected}/data.json").read_text())["shapes"] == {f"{expected}x{expected}": 12}
        assert find_defaults(Path(f"run{expected}/model"), 1).width_px == expected


def test_sheets_of_no_prompts_and_a_file_to_go_on_from(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    common = ("train-unet", "--data", "data", "--out", "run", "--max-steps", "1")
    says = "--sample-every 5 has no prompts to draw (give a file of them with --sample-prompts)"
    assert_refused(cli(*common, "--init", tiny_model, "--sample-every", "5"), says)
    (tmp_path / "sd.safetensors").write_bytes(b"")
    says = (
        "--init sd.safetensors is a file, and training goes on from a folder (latentgen convert sd.safetensors FOLDER)"
    )
    assert_refused(cli(*common, "--init", "sd.safetensors"), says)


@pytest.mark.parametrize(
    ("sampling", "snr", "told"),
    [
        ({"timestep_sampling": "logit-normal"}, True, "where drawing begins is hardly learnt"),
        ({"timestep_sampling": "logit-normal", "logit_mean": 3.0, "logit_std": 2.0}, True, None),
        ({"timestep_sampling": "uniform"}, True, None),
        ({"timestep_sampling": "logit-normal"}, False, None),
        ({"min_snr_gamma": 5.0}, True, "it is not learnt"),
    ],
)
def test_a_last_timestep_that_is_not_learnt_is_told_of(sampling: dict[str, Any], snr: bool, told: str | None) -> None:
    given = {"caption_dropout": 0.0, "noise_offset": 0.0, "timestep_sampling": "uniform", "logit_mean": None}
    settings = objective_settings(**{**given, "logit_std": None, "min_snr_gamma": None, **sampling})
    diffusion = replace(TINY_MODEL.diffusion, prediction_type="v_prediction", rescale_betas_zero_snr=snr)
    said: list[str] = []
    tell_of_weights(settings, diffusion, said.append)
    assert len(said) == (told is not None)
    assert told is None or told in said[0]


def test_what_is_missing_is_said_before_torch_is_imported(tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    """In a fresh interpreter; exit code 3 and one line for each of them."""
    code = """
import json, sys
from latentgen.cli.app import main
for arguments in json.loads(sys.argv[1]):
    assert main(arguments) == 3, arguments
    heavy = [name for name in ("torch", "numpy", "open_clip", "transformers") if name in sys.modules]
    assert not heavy, (arguments, heavy)
"""
    missing = str(tmp_path / "missing")
    model, run = str(tiny_model), ["--out", str(tmp_path / "run"), "--max-steps", "1", "--resolution", "32"]
    parts = {"--data": str(pictures), "--vae": model, "--text-encoder": model, "--init": model}
    cases = [
        ["train-unet", *run, *(text for option, value in {**parts, wrong: missing}.items() for text in (option, value))]
        for wrong in parts
    ]
    cases.append(["train-unet", *run, "--data", str(pictures), "--init", model, "--text-encoder", "openai/none"])
    export = {"--unet": model, "--vae": model, "--text-encoder": model}
    cases += [
        ["export", "--out", str(tmp_path / "m"), *(t for o, v in {**export, wrong: missing}.items() for t in (o, v))]
        for wrong in export
    ]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(cases)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == len(cases)
    assert all(line.startswith("error: ") for line in lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"], "nothing was written"

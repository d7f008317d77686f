"""The training commands: from a folder of pictures to a model that draws, and every way to ask for it wrongly."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentgen.checkpoints.folder import load_model, load_vae, save_vae
from latentgen.checkpoints.io import read_tensors
from latentgen.cli.train_noise import prompt_lines
from latentgen.errors import InputError
from latentgen.presets import EMBEDDED
from tests.cli.conftest import Cli, Outcome
from tests.tiny import TINY_MODEL
from tests.training.tiny_runs import write_pictures

QUICK = ("--batch-size", "2", "--max-steps", "2", "--warmup", "1", "--threads", "1")
MERGES = str(TINY_MODEL.text_encoder.vocab_size - 514)
LOGIT_NORMAL = ("--timestep-sampling", "logit-normal")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "data", 12)


@pytest.fixture
def tiny_preset(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is trained from scratch is the tiny model."""
    for command in ("train_vae", "train_clip", "train_unet"):
        monkeypatch.setattr(f"latentgen.cli.{command}.EMBEDDED", TINY_MODEL)


def assert_refused(outcome: Outcome, says: str, code: int = 2) -> None:
    assert outcome.code == code, outcome.err
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1, outcome.err
    assert outcome.err.startswith("error: ")
    assert says in outcome.err


def assert_fails(outcome: Outcome, says: str, code: int = 2) -> None:
    """As `assert_refused`, where notes may come before the error."""
    assert_refused(Outcome(outcome.code, outcome.out, outcome.err.splitlines()[-1] + "\n"), says, code)


@pytest.mark.usefixtures("tiny_preset")
def test_from_pictures_to_a_model_that_draws(cli: Cli, pictures: Path, tmp_path: Path) -> None:
    """train-vae, train-clip, train-unet, export, generate; and diffusers opens what came out."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# three\na red picture\n\na blue picture\na grey picture\n")
    data = ("--data", pictures)

    vae = cli("train-vae", *data, "--out", "vae", "--resolution", "16", "--crop", "16", *QUICK)
    assert (vae.code, vae.out) == (0, "vae/model\n"), vae.err
    assert "2 steps, 4 samples, training_psnr_db" in vae.err
    assert (tmp_path / "vae/samples/step_00000002.png").exists()
    assert load_vae(Path("vae/model")).config.scaling_factor == 1.0

    clip = cli("train-clip", *data, "--out", "clip", "--resolution", "16", "--merges", MERGES, *QUICK)
    assert (clip.code, clip.out) == (0, "clip/model\n"), clip.err
    assert "retrieval_top1_of_12" in clip.err

    trained = ("--vae", "vae/model", "--text-encoder", "clip/model")
    more = ("--resolution", "16", "--sample-prompts", prompts, "--sample-every", "1", "--cache", "cache")
    unet = cli("train-unet", *data, *trained, "--out", "unet", *more, *QUICK)
    assert (unet.code, unet.out) == (0, "unet/model\n"), unet.err
    assert sorted(path.name for path in Path("unet/samples").iterdir()) == [
        *("prompts.txt", "step_00000001.png", "step_00000002.png")
    ]
    assert Path("unet/samples/prompts.txt").read_text() == "a red picture\na blue picture\na grey picture\n"
    assert {path.name.split("-")[0] for path in Path("cache").iterdir()} == {"pixels", "latents", "contexts"}

    parts = ("--unet", "unet/model", "--vae", "vae/model", "--text-encoder", "clip/model")
    exported = cli("export", *parts, "--out", "model", "--dtype", "float32", "--steps", "2", "--guidance", "2")
    assert (exported.code, exported.out) == (0, "model\n"), exported.err
    bundle = load_model(Path("model"))
    assert (bundle.config.defaults.width_px, bundle.config.defaults.steps) == (16, 2)
    averaged = read_tensors(Path("unet/step_00000002/ema.safetensors"))
    for name, value in bundle.unet.state_dict().items():
        assert torch.equal(value, averaged[name]), f"{name}: the averaged weights are exported"
    drawn = cli("generate", "a red picture", "--model", "model", "--seed", "1", "--output", "red.png")
    assert (drawn.code, drawn.out) == (0, "red.png\n"), drawn.err

    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline.from_pretrained("model", safety_checker=None, requires_safety_checker=False)
    x, context = torch.randn(1, 4, 2, 2), torch.randn(1, 77, 24)
    with torch.inference_mode():
        theirs = pipeline.unet(x, 500, context).sample
        ours = bundle.unet(x, torch.tensor([500]), context)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("tiny_preset")
def test_a_vae_is_trained_further_and_resumed(cli: Cli, pictures: Path, tiny_model: Path) -> None:
    """--init and --decoder-only: latents stay what they were; --resume goes on where it stood."""
    common = ("train-vae", "--data", pictures, "--out", "run", "--init", tiny_model, "--decoder-only")
    sizes = ("--resolution", "16", "--crop", "16", "--batch-size", "2", "--warmup", "0", "--save-every", "1")
    assert cli(*common, *sizes, "--max-steps", "1").code == 0
    before, after = load_vae(tiny_model).state_dict(), load_vae(Path("run/model")).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}
    assert load_vae(Path("run/model")).config.scaling_factor == TINY_MODEL.vae.scaling_factor

    assert_refused(cli(*common, *sizes, "--max-steps", "2"), "run already holds a run (--resume latest")
    resumed = cli(*common, *sizes, "--max-steps", "2", "--resume", "latest", "--log-every", "1")
    assert resumed.code == 0, resumed.err
    assert "step 2/2" in resumed.err
    assert "step 1/2" not in resumed.err
    assert_fails(cli(*common, *sizes, "--max-steps", "3", "--resume", "auto", "--lr", "0.1"), "lr: 1e-05 then, 0.1 now")
    assert_refused(
        cli(*common, *sizes, "--max-steps", "1", "--resume", "latest", "--out", "other"), "no run to resume", code=3
    )


@pytest.mark.usefixtures("tiny_preset")
def test_a_decoder_is_trained_on_latents_encoded_once(cli: Cli, pictures: Path, tiny_model: Path) -> None:
    """--cache-latents: the second run meets the file of the first, and so does one that goes on from its decoder."""
    common = ("train-vae", "--data", pictures, "--decoder-only", "--cache-latents")
    sizes = ("--resolution", "16", "--crop", "16", *QUICK, "--cache", "cache", "--latent-noise", "0.1")
    first = cli(*common, *sizes, "--out", "first", "--init", tiny_model)
    assert first.code == 0, first.err
    assert "pictures with the VAE" in first.err
    for out, init in (("second", tiny_model), ("further", "first/model")):
        more = cli(*common, *sizes, "--out", out, "--init", init)
        assert more.code == 0, more.err
        assert "pictures with the VAE" not in more.err
    other = load_vae(tiny_model)
    other.encoder.conv_in.weight.data += 0.1
    save_vae(other, Path("other/vae"))
    resume = ("--resume", "latest", "--override", "max_steps", "--max-steps", "5")
    mixed = cli(*common, *sizes, *resume, "--out", "first", "--init", "other")
    assert_fails(mixed, "settings differ: cached_latents: 'latents-")
    before, after = load_vae(tiny_model).state_dict(), load_vae(Path("first/model")).state_dict()
    again = load_vae(Path("second/model")).state_dict()
    assert all(torch.equal(after[name], again[name]) for name in after)
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"decoder", "post_quant_conv"}


@pytest.mark.usefixtures("tiny_preset")
def test_a_run_is_told_as_events_or_not_at_all(cli: Cli, pictures: Path) -> None:
    """--json: one object a line on stdout, and nothing else there; --quiet: the result alone. Both leave a report.

    --log tensorboard: the same steps, and the sheets.
    """
    sizes = ("--resolution", "16", "--crop", "16", *QUICK, "--log-every", "1", "--perceptual", "none")
    told = cli("train-vae", "--data", pictures, "--out", "told", *sizes, "--json", "--log", "tensorboard")
    assert told.code == 0, told.err
    events = [json.loads(line) for line in told.out.splitlines()]
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["start", "step", "step"]
    assert kinds[-1] == "done"
    assert {"checkpoint", "samples"} <= set(kinds)
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    logged = [json.loads(line) for line in Path("told/log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in logged if "lr" in line] == [e["loss"] for e in events if e["event"] == "step"]
    assert events[-1]["path"] == "told/model"
    board = EventAccumulator("told/tensorboard").Reload()
    assert [each.step for each in board.Scalars("training/loss")] == [1, 2]
    assert [each.step for each in board.Images("samples")] == [2]
    assert events[0]["parameters"] == sum(value.numel() for value in load_vae(Path("told/model")).parameters())

    quiet = cli("train-vae", "--data", pictures, "--out", "quiet", *sizes, "--quiet")
    assert (quiet.code, quiet.out, quiet.err) == (0, "quiet/model\n", "")
    for run in ("told", "quiet"):
        assert ">Finished<" in Path(run, "report.html").read_text()


@pytest.mark.usefixtures("tiny_preset")
def test_a_failing_run_says_why_in_its_report(cli: Cli, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from latentgen.training.vae import VAEObjective

    loss = VAEObjective.loss

    def not_finite(self: VAEObjective, network: object, batch: object, step: int) -> object:
        value, metrics = loss(self, network, batch, step)  # pyright: ignore[reportArgumentType]
        return value * (float("nan") if step == 1 else 1.0), metrics

    monkeypatch.setattr(VAEObjective, "loss", not_finite)
    sizes = ("--resolution", "16", "--crop", "16", *QUICK, "--save-every", "1")
    outcome = cli("train-vae", "--data", pictures, "--out", "run", *sizes)
    assert (outcome.code, outcome.out) == (1, "")
    page = Path("run/report.html").read_text()
    assert ">Failed<" in page
    assert "the loss became nan at step 2. Step 1 is saved" in page


@pytest.mark.usefixtures("tiny_preset")
def test_a_report_that_cannot_be_written_stops_no_training(
    cli: Cli, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("run/report.html").mkdir(parents=True)
    sizes = ("--resolution", "16", "--crop", "16", *QUICK)
    assert cli("train-vae", "--data", pictures, "--out", "run", *sizes).code == 0
    assert "run/report.html cannot be written: Is a directory" in caplog.text


@pytest.mark.usefixtures("tiny_preset")
def test_interrupted(cli: Cli, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal ends the run with a checkpoint and its own exit code, in no time: no sheet, no figures, no export."""
    import os
    import signal

    from latentgen.training.vae import VAEObjective

    batch = VAEObjective.batch

    def batch_then_signal(self: VAEObjective, draws: object) -> object:
        os.kill(os.getpid(), signal.SIGINT)
        return batch(self, draws)  # pyright: ignore[reportArgumentType]

    command = ("train-vae", "--data", pictures, "--out", "run", "--resolution", "16", "--crop", "16", *QUICK)
    with monkeypatch.context() as patched:
        patched.setattr(VAEObjective, "batch", batch_then_signal)
        outcome = cli(*command)
    assert (outcome.code, outcome.out) == (130, "")
    assert "saved step 1; the same command with --resume latest goes on from it" in outcome.err
    assert sorted(path.name for path in Path("run").iterdir()) == [
        *(".lock", "cache", "config.json", "data.json", "log.jsonl", "pictures.json", "report.html", "step_00000001")
    ]
    assert "A signal ended this run after step 1." in Path("run/report.html").read_text()
    assert cli(*command, "--resume", "latest").out == "run/model\n"


# Nothing is computed for these

MINIMAL = {
    "train-vae": ("--data", "data", "--out", "run", "--max-steps", "5"),
    "train-clip": ("--data", "data", "--out", "run", "--max-steps", "5"),
    "train-unet": ("--data", "data", "--out", "run", "--max-steps", "5", "--vae", "vae", "--text-encoder", "clip"),
    "train-lora": ("--data", "data", "--out", "run", "--max-steps", "5", "--model", "model"),
}


@pytest.mark.parametrize("command", MINIMAL)
def test_dry_run_prints_what_would_be_done(command: str, cli: Cli, tmp_path: Path) -> None:
    outcome = cli(command, *MINIMAL[command], "--lr", "0.25", "--grad-accum", "3", "--dry-run")
    assert outcome.code == 0, outcome.err
    settings = json.loads(outcome.out)
    assert (settings["lr"], settings["grad_accum"], settings["max_steps"]) == (0.25, 3, 5)
    assert settings["data"] == "data"
    assert list(tmp_path.iterdir()) == []
    if command == "train-vae":
        assert settings["vae"]["block_out_channels"] == list(EMBEDDED.vae.block_out_channels)
    if command == "train-clip":
        assert settings["text_encoder"]["vocab_size"] == EMBEDDED.text_encoder.vocab_size


@pytest.mark.parametrize("command", MINIMAL)
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--mixed-precision", "fp8"), "--mixed-precision fp8 is not one of no, bf16, fp16"),
        (("--lr-scheduler", "step"), "--lr-scheduler step is not one of constant, linear, cosine"),
        (("--resume", "yes"), "--resume yes is not latest, auto, or the step of a checkpoint"),
        (("--lr", "0"), "--lr 0.0 must be positive"),
        (("--muon-lr", "nan"), "--muon-lr nan must be positive"),
        (("--ema-decay", "1"), "--ema-decay 1.0 must lie in (0, 1)"),
        (("--batch-size", "0"), "'--batch-size'"),
        (("--seed", "4294967296"), "'--seed'"),
        (("--stepps", "5"), "there is no option --stepps"),
    ],
)
def test_bad_options(command: str, arguments: tuple[str, str], says: str, cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli(command, *MINIMAL[command], *arguments), says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("train-vae", ("--resolution", "100"), "--resolution 100: sides are multiples of 16"),
        ("train-clip", ("--resolution", "100"), "--resolution 100: sides are multiples of 16"),
        ("train-vae", ("--out", "data/run"), "--out data/run is in the data folder"),
        ("train-clip", ("--out", "data"), "--out data is in the data folder"),
        ("train-vae", ("--crop", "100"), "--crop 100: sides are multiples of 16"),
        ("train-vae", ("--crop", "512"), "--crop 512 is larger than the pictures, 256 px"),
        ("train-vae", ("--channels", "16,x"), "--channels 16,x is not a list of widths"),
        ("train-vae", ("--channels", "0,16"), "--channels 0,16: widths are at least 1"),
        ("train-vae", ("--channels", "16,33"), "width 33 is not a multiple of norm_num_groups 2"),
        ("train-vae", ("--decoder-only",), "--decoder-only keeps an encoder, but there is none"),
        ("train-vae", ("--init", "m", "--channels", "16,32"), "--channels and --latent-channels are --init's own"),
        ("train-clip", ("--merges", "50000"), "'--merges'"),
        ("train-unet", ("--timestep-sampling", "even"), "--timestep-sampling even is not one of uniform, logit-normal"),
        ("train-unet", ("--logit-mean", "0.5"), "--logit-mean and --logit-std are of logit-normal timesteps"),
        ("train-unet", (*LOGIT_NORMAL, "--logit-mean", "inf"), "--logit-mean inf must be finite"),
        ("train-unet", (*LOGIT_NORMAL, "--logit-std", "0"), "--logit-std 0.0 must be positive and finite"),
        ("train-unet", ("--prediction-type", "x0"), "--prediction-type x0 is not one of epsilon, v_prediction, sample"),
        ("train-unet", ("--attention-cap", "inf"), "--attention-cap inf must be a number above 0"),
        ("train-unet", ("--attention-cap", "0"), "--attention-cap 0.0 must be a number above 0"),
        ("train-unet", ("--min-snr-gamma", "0"), "--min-snr-gamma 0.0 must be positive"),
        ("train-unet", ("--caption-dropout", "2"), "'--caption-dropout'"),
        ("train-unet", ("--sample-prompts", "/"), "--sample-prompts / cannot be read: Is a directory"),
        ("train-unet", ("--sample-prompts", "none.txt"), "--sample-prompts none.txt cannot be read: No such file"),
    ],
)
def test_bad_options_of_one_command(
    command: str, arguments: tuple[str, ...], says: str, cli: Cli, tmp_path: Path
) -> None:
    assert_refused(cli(command, *MINIMAL[command], *arguments), says)
    assert list(tmp_path.iterdir()) == []


def test_sample_prompts_are_read_as_other_prompts_are(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"\xef\xbb\xbf# mine\r\na cat\r\n\r\na hen \xe2\x80\xa8and more\n")
    assert prompt_lines(tmp_path / "prompts.txt") == ("a cat", "a hen \u2028and more")


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.jsonl", '{"prompt": "a"}', "p.jsonl: sheets are drawn with the model's settings"),
        ("p.txt", "a\n\na <lora:ink:1>", "p.txt, line 3: no LoRA is applied in training"),
        ("p.txt", "a\na <lora:ink:much>", "p.txt, line 2: "),
        ("p.txt", "# none", "p.txt holds no prompts"),
    ],
)
def test_sample_prompts_that_cannot_be_drawn(name: str, text: str, says: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=re.escape(says)):
        prompt_lines(tmp_path / name)


def test_a_run_needs_an_end(cli: Cli) -> None:
    assert_refused(cli("train-clip", "--data", "data", "--out", "run"), "give --max-steps or --max-minutes")
    cosine = cli("train-clip", "--data", "data", "--out", "run", "--max-minutes", "1", "--lr-scheduler", "cosine")
    assert_refused(cosine, "--lr-scheduler cosine decays over --max-steps")


def test_data_that_is_not_there_or_not_whole(cli: Cli, tmp_path: Path) -> None:
    sizes = ("--resolution", "16", "--crop", "16")
    assert_fails(cli("train-vae", *MINIMAL["train-vae"], *sizes), "no data folder at data", code=3)
    write_pictures(tmp_path / "data", 2)
    (tmp_path / "data/001.png").write_bytes(b"<html>")
    says = "1 of 2 pictures in data cannot be used: 001.png: no PNG, JPEG or WebP picture"
    assert_fails(cli("train-vae", *MINIMAL["train-vae"], *sizes), says)
    (tmp_path / "data/001.txt").unlink()
    assert_fails(cli("train-clip", *MINIMAL["train-clip"]), "001.png: no caption: write one to 001.txt")


def test_parts_that_do_not_fit(cli: Cli, tiny_model: Path, pictures: Path, tmp_path: Path) -> None:
    parts = ("--vae", tiny_model, "--text-encoder", tiny_model, "--init", tiny_model)
    common = ("train-unet", "--data", pictures, "--out", "run", "--max-steps", "1")
    assert_refused(cli(*common, *parts, "--resolution", "24"), "--resolution 24: sides are multiples of 16")
    assert_refused(cli(*common, *parts, "--resolution", "16", "--mixed-precision", "fp16"), "fp16 needs a GPU")
    missing = ("--vae", "nowhere", "--text-encoder", tiny_model)
    assert_refused(cli(*common, *missing, "--resolution", "16"), "nowhere", code=3)
    (tmp_path / "vae" / "model").mkdir(parents=True)
    (tmp_path / "vae" / "model" / "vae").symlink_to(tiny_model / "vae")
    swapped = cli(*common, "--vae", tiny_model, "--text-encoder", "vae/model", "--resolution", "16")
    assert_refused(swapped, "vae/model holds no text_encoder: only vae", code=3)
    not_exported = cli("train-lora", "--data", pictures, "--out", "lora", "--max-steps", "1", "--model", "vae")
    assert_refused(not_exported, "vae is not a model folder: it has no model_index.json (`latentgen export`", code=3)
    run = cli(*common, "--vae", "vae", "--text-encoder", tiny_model, "--resolution", "16")
    assert_refused(run, "vae is a training run, not a model (its model is vae/model)", code=3)
    (tmp_path / "file").write_text("")
    taken = cli(*common, *parts, "--resolution", "16", "--out", "file", "--cache", "cache")
    assert_refused(taken, "cannot write to file: it is a file (choose another --out)")


def test_export_of_parts_that_do_not_fit(cli: Cli, tiny_model: Path) -> None:
    parts = ("--unet", tiny_model, "--vae", tiny_model, "--text-encoder", tiny_model, "--out", "model")
    assert_refused(cli("export", *parts, "--dtype", "int8"), "--dtype int8 is not one of float16, float32")
    assert_refused(cli("export", *parts, "--sampler", "fastest"), "fastest")
    assert_refused(cli("export", *parts, "--unet", "nowhere"), "nowhere", code=3)
    assert cli("export", *parts).code == 0
    half = load_model(Path("model"), dtype=torch.float16)
    assert next(half.unet.parameters()).dtype == torch.float16
    Path("taken").mkdir()
    Path("taken/letter.txt").write_text("dear")
    assert_refused(cli("export", *parts, "--out", "taken"), "taken holds letter.txt")


def test_parts_are_found_by_a_models_name(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `generate --model` finds it; a path that is there goes first."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    home = tmp_path / "data" / "latentgen" / "models"
    home.mkdir(parents=True)
    (home / "mine").symlink_to(tiny_model)
    exported = cli("export", "--unet", "mine", "--vae", "mine", "--text-encoder", "mine", "--out", "model")
    assert exported.code == 0, exported.err
    shown = cli("train-unet", "--data", "data", "--out", "run", "--max-steps", "1", "--init", "mine", "--dry-run")
    parts = json.loads(shown.out)
    assert [parts[key] for key in ("init", "vae", "text_encoder")] == [str(home / "mine")] * 3
    Path("mine").mkdir()
    assert_refused(cli("export", "--unet", "mine", "--vae", "mine", "--text-encoder", "mine", "--out", "b"), "mine", 3)


def test_export_replaces_a_model_only_if_told_to_and_never_a_file_of_the_users(cli: Cli, tiny_model: Path) -> None:
    parts = ("--unet", tiny_model, "--vae", tiny_model, "--text-encoder", tiny_model, "--out", "model")
    assert cli("export", *parts).code == 0
    before = Path("model/model_index.json").read_bytes()
    assert_refused(cli("export", *parts, "--steps", "3"), "model exists (--overwrite replaces it)")
    assert Path("model/model_index.json").read_bytes() == before
    assert cli("export", *parts, "--steps", "3", "--overwrite").code == 0
    assert Path("model/model_index.json").read_bytes() != before
    Path("model/unet/NOTES.md").write_text("mine")
    assert_refused(
        cli("export", *parts, "--overwrite"), "model holds unet/NOTES.md and is no model that latentgen wrote"
    )
    assert Path("model/unet/NOTES.md").read_text() == "mine"


@pytest.mark.parametrize("command", MINIMAL)
def test_help_has_an_example_that_parses(command: str, cli: Cli, tmp_path: Path) -> None:
    """The examples in the help are commands: with --dry-run each is accepted, or misses no more than a run it names."""
    text = cli(command, "--help").out
    name = command.replace("-", "_")
    docstring = getattr(import_module(f"latentgen.cli.{name}"), name).__doc__
    examples = [" ".join(part.split()) for part in docstring.split("\n\n") if part.strip().startswith("latentgen ")]
    assert examples
    for example in examples:
        assert example.split(" --out")[0] in " ".join(text.split()), "it is shown"
        outcome = cli(*example.split()[1:], "--dry-run")
        assert (outcome.code, outcome.err) == (0, "") or outcome.err.startswith("error: no such path: runs/"), example

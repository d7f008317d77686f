"""--config FILE.toml and --log of the training commands: what a file may say, and every way to say it wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.cli.test_train import MINIMAL, assert_refused

FILE = """
# all that the command needs
data = "pictures"
out = "runs/vae"
max_steps = 7
batch-size = 3
lr = 1            # a whole number is a number
ema = false
channels = "16,32"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "vae.toml").write_text(FILE)
    return Path("vae.toml")


def test_a_file_gives_what_the_command_line_leaves_out(cli: Cli, file: Path) -> None:
    outcome = cli("train-vae", "--config", file, "--dry-run")
    assert outcome.code == 0, outcome.err
    settings = json.loads(outcome.out)
    expected = {"data": "pictures", "out": "runs/vae", "max_steps": 7, "batch_size": 3, "lr": 1.0, "ema_decay": None}
    assert {key: settings[key] for key in expected} == expected
    assert settings["vae"]["block_out_channels"] == [16, 32]


@pytest.mark.parametrize("before", [True, False])
def test_the_command_line_goes_first(before: bool, cli: Cli, file: Path) -> None:
    own = ("--train-batch-size", "5", "--ema", "--data", "others")
    config = ("--config", file)
    outcome = cli("train-vae", *(config + own if before else own + config), "--dry-run")
    settings = json.loads(outcome.out)
    assert (settings["batch_size"], settings["ema_decay"], settings["data"]) == (5, 0.999, "others")
    assert settings["max_steps"] == 7


@pytest.mark.parametrize("command", ["train-unet", "train-vae"])
def test_weights_that_know_something_are_trained_gently(command: str, cli: Cli, tiny_model: Path) -> None:
    """--init without --lr; and what is said counts, also in a file."""
    init = ("--init", tiny_model)
    fresh, tuned = (json.loads(cli(command, *MINIMAL[command], *more, "--dry-run").out)["lr"] for more in ((), init))
    assert fresh >= 5e-4
    assert tuned == 1e-5
    Path("run.toml").write_text("lr = 0.25\n")
    for said in (("--lr", "0.25"), ("--config", "run.toml")):
        assert json.loads(cli(command, *MINIMAL[command], *init, *said, "--dry-run").out)["lr"] == 0.25


def test_lists_and_aliases(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text('override = ["lr"]\ntrain_batch_size = 2\nlearning-rate = 0.5\n')
    settings = json.loads(cli("train-vae", *MINIMAL["train-vae"], "--config", "run.toml", "--dry-run").out)
    assert (settings["batch_size"], settings["lr"]) == (2, 0.5)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("batch-sise = 8", "run.toml: there is no option batch-sise (did you mean batch-size?)"),
        ("colour = 8", "run.toml: there is no option colour (the names are those of --help"),
        ("config = 'other.toml'", "run.toml: there is no option config"),
        ("no-ema = true", "run.toml: there is no option no-ema"),
        ("batch-size = 'four'", "run.toml: batch-size takes a whole number, not a string"),
        ("batch_size = 4.0", "run.toml: batch_size takes a whole number, not 4.0"),
        ("batch_size = true", "run.toml: batch_size takes a whole number, not true or false"),
        ("batch-size = 0", "run.toml: batch-size 0 is out of range (at least 1)"),
        ("seed = 4294967296", "run.toml: seed 4294967296 is out of range (0 to 4294967295)"),
        ("ema = 1", "run.toml: ema takes true or false, not 1"),
        ("lr = '1e-4'", "run.toml: lr takes a number, not a string"),
        ("data = 3", "run.toml: data takes a string, not 3"),
        ("override = 3", "run.toml: override takes a list of strings, not 3"),
        ("override = [1]", "run.toml: override takes a list of strings, not a list"),
        ("lr = 1e-4\nlearning_rate = 1e-4", "run.toml: learning_rate is given twice, under two of its names"),
        ("[lr]\npeak = 1", "run.toml: lr takes a number, not a table: options are not nested"),
        ("[optimizer]\nlr = 1", "run.toml: there is no option optimizer"),
        ("lr = \n", "--config run.toml is not TOML: Invalid value (at line 1, column 6) (a line is `batch-size = 8`)"),
        ("lr = 1\nlr = 2", "--config run.toml is not TOML: Cannot overwrite a value"),
        ("#" * 70_000, "--config run.toml is over 64 KiB"),
        (b"\xff", "--config run.toml is not UTF-8 text: byte 0"),
        ("lr-scheduler = 'step'", "--lr-scheduler step is not one of constant, linear, cosine"),
    ],
)
def test_bad_files(content: str | bytes, says: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert_refused(cli("train-vae", *MINIMAL["train-vae"], "--config", "run.toml"), says)
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_files_that_cannot_be_read(cli: Cli, tmp_path: Path) -> None:
    assert_refused(cli("train-vae", "--config", "none.toml"), "there is no file none.toml", code=3)
    assert_refused(cli("train-vae", "--config", tmp_path), "cannot be read: Is a directory")


def test_what_no_file_and_no_option_gives_is_missed(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text("max-steps = 1\ndata = 'd'\n")
    assert_refused(cli("train-vae", "--config", "run.toml"), "missing option '--out'")


def test_tensorboard_is_asked_for_before_anything_is_computed(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from latentgen.cli import train_options

    assert_refused(cli("train-vae", *MINIMAL["train-vae"], "--report-to", "wandb"), "--log wandb is not one of jsonl, ")
    monkeypatch.setattr(train_options, "find_spec", lambda name: None)
    says = "--log tensorboard needs tensorboard (pip install 'latentgen[log]')"
    assert_refused(cli("train-vae", *MINIMAL["train-vae"], "--log", "tensorboard"), says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", MINIMAL)
def test_every_option_stands_in_a_panel(command: str, cli: Cli) -> None:
    """Of the help page's first panel, which has no name of ours, --help is the only entry."""
    page = cli(command, "--help").out
    panels = [line.strip("╭─╮ ") for line in page.splitlines() if line.startswith("╭")]
    assert panels[0] == "Options"
    assert {"Data and run folder", "What is trained", "The run", "Optimizer", "Log and checkpoints", "Messages"} <= set(
        panels
    )
    first = page.split("╭─ Options")[1].split("╰")[0]
    assert [word for word in first.split() if word.startswith("--")] == ["--help"]


def test_precision_is_what_accelerate_was_configured_with_unless_it_is_given(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`accelerate launch` hands its config file's `mixed_precision` on in this variable."""
    command = ("train-vae", *MINIMAL["train-vae"], "--dry-run")

    def precision(*more: str) -> str:
        return json.loads(cli(*command, *more).out)["mixed_precision"]

    assert precision() == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert precision() == "bf16"
    assert precision("--mixed-precision", "no") == "no"
    Path("run.toml").write_text('mixed-precision = "fp16"\n')
    assert precision("--config", "run.toml") == "fp16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    assert_refused(cli(*command), "ACCELERATE_MIXED_PRECISION fp8 is not one of no, bf16, fp16")

"""`latentgen evaluate`: with a tiny model and a tiny probe."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.cli.conftest import Cli, snapshot
from tests.training.tiny_runs import write_pictures

REPOSITORY = Path(__file__).parents[2]
SHORT = ("--per-category", "1", "--steps", "1", "--renders", "1", "--series", "2", "--quiet")
BARE = ("--renders", "0", "--series", "0")


@pytest.fixture(scope="session")
def probe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the vocabulary heroes, with all its labels, and untaught."""
    import torch

    from latentgen.corpus.records import make_record
    from latentgen.evaluation.labels import LabelSet
    from latentgen.evaluation.probe import Probe, ProbeConfig, save_probe

    torch.manual_seed(0)
    labels = LabelSet.of([make_record("heroes", seed, 1).labels() for seed in range(400)])
    config = ProbeConfig(labels, size_px=32, channels=(8, 8, 8), blocks=(1, 1, 1), head_channels=16)
    path = tmp_path_factory.mktemp("probe") / "probe.safetensors"
    save_probe(path, Probe(config), {})
    return path


def test_scenes_draws_judges_and_resumes(cli: Cli, tiny_model: Path, probe: Path, tmp_path: Path) -> None:
    training = tmp_path / "training"
    assert cli("data", "render", "--out", training, "--count", "4", "--size", "64", "--quiet").code == 0
    command = ("evaluate", "scenes", "-m", tiny_model, "--probe", probe, "--out", "scores", *SHORT)
    outcome = cli(*command, "--nearest", training)
    assert outcome.code == 0, outcome.err
    assert "attribute binding" in outcome.out
    assert "held-out composition" in outcome.out
    assert "{" not in outcome.out
    figure = r" +\d+\.\d{3}"
    for name, figures in (
        ("Frechet distance to renders, 30 pictures", figure),  # with --renders 1 there is no second set
        ("diversity, 5 prompts", 2 * figure),
        ("nearest of 4 training pictures, 5th percentile", 2 * figure),
    ):
        assert re.search(f"^{name}{figures}$", outcome.out, flags=re.MULTILINE), outcome.out
    out = tmp_path / "scores"
    scores = json.loads((out / "scores.json").read_text())
    assert scores["scores"]["all"]["all"]["model"]["total"] == 30
    assert scores["scores"]["all"]["all"]["ceiling"]["total"] == 30
    assert scores["drawn"]["steps"] == 1
    assert len(scores["probe"]) == 10
    assert scores["corpus_version"] > 0
    assert scores["neutral"]["distribution"]["pictures"] == 30
    assert scores["neutral"]["diversity"]["renders"] > 0
    assert scores["neutral"]["nearest"]["training_pictures"] == 4
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert len(lines) == 30
    assert all((out / line["file"]).is_file() for line in lines)
    assert {"prompt", "seed", "scene", "right", "seen", "renders"} <= set(lines[0])
    sheets = {"sheet-seen.png", "sheet-held-out-composition.png", "sheet-held-out-phrasing.png", "nearest.png"}
    assert sheets <= {path.name for path in out.iterdir()}

    # A second run draws only the picture that is gone, the same again.
    pictures, first = out / "pictures", out / lines[0]["file"]
    before = snapshot(pictures)
    times = {path: path.stat().st_mtime_ns for path in pictures.iterdir()}
    first.unlink()
    (out / ".scores.json.4242.tmp").write_text("a killed one was writing this")
    again = cli(*command, *BARE)
    assert again.code == 0, again.err
    assert snapshot(pictures) == before
    assert [path for path in pictures.iterdir() if path.stat().st_mtime_ns != times[path]] == [first]
    assert json.loads((out / "scores.json").read_text())["scores"]["all"]["all"]["ratio"] is None


def test_scores_come_without_the_neutral_network(
    cli: Cli, tiny_model: Path, probe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import latentgen.evaluation.features as features

    monkeypatch.setattr(features, "PACKAGES", ("a_package_that_is_not_there",))
    outcome = cli("evaluate", "scenes", "-m", tiny_model, "--probe", probe, "--out", "scores", *SHORT, *BARE)
    assert outcome.code == 0
    assert 'pip install "latentgen[evaluate]"' in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert json.loads(Path("scores/scores.json").read_text())["neutral"] == {}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--vocabulary", "full"), 2, "--vocabulary full cannot be evaluated"),
        (("--sampler", "eulre"), 2, "eulre"),
        (("--steps", "0"), 2, "steps"),
        (("--guidance-interval", "1"), 2, "is not two numbers"),
        (("--probe", "none.safetensors"), 3, "the probe none.safetensors is no file"),
        (("--nearest", "nowhere"), 3, "no data folder"),
        (("--out", "notes"), 2, "holds other files: todo.txt"),
        (("--out", "notes/todo.txt"), 2, "is a file"),
        (("-m", "missing"), 3, "missing"),
    ],
)
def test_bad_scenes_arguments_are_one_line(
    cli: Cli, tiny_model: Path, probe: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    Path("notes").mkdir()
    Path("notes/todo.txt").write_text("mine")
    outcome = cli("evaluate", "scenes", "-m", tiny_model, "--probe", probe, *arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert [path.name for path in Path().iterdir()] == ["notes"]


def test_bad_arguments_do_not_import_torch(tiny_model: Path, probe: Path, tmp_path: Path) -> None:
    (tmp_path / "todo.txt").touch()
    code = """
import sys
from latentgen.cli.app import main
assert main(["evaluate", "--help"]) == 0
assert main(["evaluate", "scenes", "-m", sys.argv[1], "--probe", sys.argv[2], "--out", sys.argv[3]]) == 2
assert main(["evaluate", "train-probe", "--out", "probe.safetensors"]) == 2
assert "torch" not in sys.modules
"""
    arguments = [sys.executable, "-c", code, str(tiny_model), str(probe), str(tmp_path)]
    done = subprocess.run(arguments, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_probe_is_trained_from_renders_and_from_data(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    small = ("--size", "32", "--steps", "2", "--batch-size", "8", "--quiet")
    outcome = cli("evaluate", "train-probe", "--render", "40", "--vae", tiny_model, "--out", "a.safetensors", *small)
    assert outcome.code == 0, outcome.err
    assert "sharp" in outcome.out
    assert "setting" in outcome.out
    assert cli("data", "render", "--out", tmp_path / "data", "--count", "40", "--size", "32", "--quiet").code == 0
    outcome = cli("evaluate", "train-probe", "--data", tmp_path / "data", "--out", "b.safetensors", *small, "--json")
    assert outcome.code == 0, outcome.err
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["event"] for event in events] == ["step", "step", "accuracy", "probe"]
    further = ("--data", tmp_path / "data", "--init", "b.safetensors", *small)
    assert cli("evaluate", "train-probe", *further, "--out", "c.safetensors").code == 0
    assert Path("b.safetensors").read_bytes() != Path("c.safetensors").read_bytes()
    again = cli("evaluate", "train-probe", "--data", tmp_path / "data", "--out", "b.safetensors", *small)
    assert again.code == 2
    assert "--overwrite" in again.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "p.safetensors"), "--data or --render"),
        (("--out", "p.safetensors", "--render", "9", "--data", "x"), "--data or --render"),
        (("--out", "p.pt", "--render", "9"), "must end in .safetensors"),
        (("--out", "no/p.safetensors", "--render", "9"), "there is no folder no"),
        (("--out", "p.safetensors", "--render", "9", "--size", "40"), "multiple of 16"),
        (("--out", "p.safetensors", "--render", "9"), "too few"),
        (("--out", "p.safetensors", "--render", "9", "--vocabulary", "full"), "cannot be evaluated"),
    ],
)
def test_bad_train_probe_arguments_are_one_line(cli: Cli, arguments: tuple[str, ...], message: str) -> None:
    outcome = cli("evaluate", "train-probe", *arguments)
    assert outcome.code == 2
    assert message in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert not list(Path().iterdir())


def test_pictures_without_labels_cannot_teach(cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    Image.new("RGB", (32, 32)).save(folder / "a.png")
    (folder / "a.txt").write_text("black")
    outcome = cli("evaluate", "train-probe", "--data", folder, "--out", "p.safetensors")
    assert outcome.code == 2
    assert "have no labels" in outcome.err


def test_an_autoencoder_is_measured(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    assert cli("data", "render", "--out", folder, "--count", "3", "--size", "64", "--quiet").code == 0
    outcome = cli("evaluate", "vae", "-m", tiny_model, "--data", folder, "--size", "64", "--limit", "2")
    assert outcome.code == 0, outcome.err
    assert "PSNR" in outcome.out
    assert "of 2 pictures" in outcome.out
    event = json.loads(cli("evaluate", "vae", "-m", tiny_model, "--data", folder, "--size", "64", "--json").out)
    assert event["pictures"] == 3
    assert event["psnr_db"] > 0
    assert {"ssim", "overflow_pictures", "overflow_places", "logvar_max"} <= set(event)
    wrong = cli("evaluate", "vae", "-m", tiny_model, "--data", folder, "--size", "60")
    assert wrong.code == 2
    assert "does not fit this autoencoder" in wrong.err


def test_an_autoencoder_is_measured_on_pictures_without_captions(cli: Cli, tiny_model: Path) -> None:
    folder = write_pictures(Path("photos"), 2, side_px=32)
    for caption in folder.glob("*.txt"):
        caption.unlink()
    command = ("evaluate", "vae", "-m", tiny_model, "--data", folder, "--size", "32")
    assert json.loads(cli(*command, "--json").out)["pictures"] == 2
    (folder / "a.gif").write_bytes(b"GIF89a")
    refused = cli(*command)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "1 of 3 pictures in photos cannot be used: a.gif" in refused.err
    assert refused.err.endswith("(mend or remove them)\n"), "there is no --skip-bad here"


def test_words(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    pictures = write_pictures(tmp_path / "data", 12, side_px=32)
    command = ("evaluate", "words", "-m", tiny_model, "--data", pictures, "--threads", "1")
    outcome = cli(*command, "--exchange", "red:green", "--exchange", " picture : number ", "--limit", "4")
    assert outcome.code == 0, outcome.err
    head, _, first, second = outcome.out.splitlines()
    assert "64 px" in head
    assert re.fullmatch(r"red / green +4  \d+% \(\d+% to \d+%\) +(-?\d+\.\d\d%\s*){4}", first), first
    assert second.startswith("picture / number")
    events = cli(*command, "--exchange", "red:green", "--json")
    (event,) = [json.loads(line) for line in events.out.splitlines()]
    assert (event["event"], event["exchange"], event["total"]) == ("words", ["red", "green"], 12)
    assert len(event["gains"]) == 4
    again = cli(*command, "--exchange", "red:green", "--json")
    assert again.out == events.out


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--exchange", "left"), "--exchange 'left' is not two words (as left:right)"),
        (("--exchange", ":right"), "--exchange ':right' is not two words"),
        (("--exchange", "a:b:c"), "--exchange 'a:b:c' is not two words"),
        (("--exchange", "left:LEFT"), "--exchange 'left:LEFT' is not two words"),
        (("--exchange", "left:right"), "no caption of data holds 'left' or 'right'"),
        (("--exchange", "red:green", "--size", "33"), "--size 33 does not fit this model"),
    ],
)
def test_words_that_cannot_be_measured(
    arguments: tuple[str, ...], says: str, cli: Cli, tiny_model: Path, tmp_path: Path
) -> None:
    write_pictures(tmp_path / "data", 2, side_px=32)
    outcome = cli("evaluate", "words", "-m", tiny_model, "--data", "data", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert says in outcome.err
    assert len(outcome.err.splitlines()) == 1

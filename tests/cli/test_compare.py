"""`latentgen compare`: two pictures, and two folders of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.cli.conftest import Cli

SMOOTH = np.linspace(20, 200, 40 * 30 * 3).reshape(30, 40, 3).astype(np.uint8)


def save(path: Path, pixels: np.ndarray = SMOOTH) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def test_equal_pictures_are_equal(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png"), save(tmp_path / "b.png")
    outcome = cli("compare", "a.png", "b.png", "--min-psnr", "99")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "a.png, b.png  equal\n"


def test_the_figures_of_a_pair(cli: Cli, tmp_path: Path) -> None:
    """13 of 255 everywhere: 20 log10(255 / 13) = 25.85 dB, the structure all but kept."""
    save(tmp_path / "a.png"), save(tmp_path / "b.png", SMOOTH + 13)
    outcome = cli("compare", "a.png", "b.png", "--json")
    (event,) = map(json.loads, outcome.out.splitlines())
    assert (event["psnr_db"], event["largest"], event["share"]) == (25.85, 13, 1.0)
    assert 0.9 < event["ssim"] < 1
    outcome = cli("compare", "a.png", "b.png")
    assert outcome.out.startswith("a.png, b.png  PSNR 25.85 dB  SSIM 0.9")
    assert outcome.out.endswith("by up to 13 of 255 in 100.00% of the bytes\n")


def test_a_limit_makes_it_a_check(cli: Cli, tmp_path: Path) -> None:
    for name, added in (("1.png", 1), ("2.png", 13)):
        save(tmp_path / "one" / name), save(tmp_path / "other" / name, SMOOTH + added)
    assert cli("compare", "one", "other", "--min-psnr", "25").code == 0
    outcome = cli("compare", "one", "other", "--min-psnr", "40")
    assert outcome.code == 1
    assert outcome.err == "error: 1 of 2 pairs are less alike than 40 dB\n"
    assert len(outcome.out.splitlines()) == 2


def test_folders_are_compared_by_name(cli: Cli, tmp_path: Path) -> None:
    for folder, names in (("one", ("a.png", "b.webp", "c.png")), ("other", ("a.png", "c.png", "d.png"))):
        for name in names:
            save(tmp_path / folder / name)
        (tmp_path / folder / "notes.txt").write_text("no picture")
        (tmp_path / folder / "folder.png").mkdir()
    outcome = cli("compare", "one", "other")
    assert outcome.code == 0
    assert [line.split()[0] for line in outcome.out.splitlines()] == ["a.png", "c.png"]
    assert outcome.err == "warning: only in one: b.webp\nwarning: only in other: d.png\n"


def test_the_settings_that_differ_are_named(cli: Cli, tiny_model: Path) -> None:
    common = ("generate", "a cat", "-m", tiny_model, "--seed", "3", "--steps", "2", "--no-fast")
    assert cli(*common, "--guidance", "2", "-o", "a.png").code == 0
    assert cli(*common, "--guidance", "4", "--hires", "2x", "-o", "b.png").code == 0
    assert cli(*common, "--guidance", "4", "-o", "c.png").code == 0
    lines = cli("compare", "a.png", "c.png").out.splitlines()
    assert [line.strip() for line in lines[1:]] == ["guidance: 2.0, 4.0"]
    lines = cli("compare", "a.png", "b.png").out.splitlines()
    assert "sizes differ: 64x64 and 128x128" in lines[0]
    assert {line.split(":")[0].strip() for line in lines[1:]} >= {"guidance", "hires.scale", "hires.strength"}
    event = json.loads(cli("compare", "a.png", "c.png", "--json").out)
    assert event["settings"] == {"guidance": [2.0, 4.0]}


def test_a_sheet_shows_both_and_the_difference(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png"), save(tmp_path / "b.png", SMOOTH + 5)
    outcome = cli("compare", "a.png", "b.png", "--sheet", "sheet.png")
    assert outcome.code == 0
    assert outcome.out.splitlines()[-1] == "sheet.png"
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (30, 120, 3)
    assert np.array_equal(sheet[:, :40], SMOOTH)
    assert np.array_equal(sheet[:, 40:80], SMOOTH + 5)
    assert (sheet[:, 80:] == 40).all()
    outcome = cli("compare", "a.png", "b.png", "--sheet", "sheet.png")
    assert (outcome.code, outcome.err) == (2, "error: --sheet sheet.png exists (--overwrite replaces it)\n")
    assert cli("compare", "a.png", "b.png", "--sheet", "sheet.png", "--overwrite").code == 0


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("a.png", "none.png"), 3, "no such file: none.png"),
        (("a.png", "one"), 2, "one is a folder, the other a file: a.png, one"),
        (("one", "empty"), 2, "no pictures of equal names in one and empty"),
        (("a.png", "one/notes.txt"), 2, "is not a whole PNG, JPEG or WebP picture"),
        (("a.png", "a.png", "--min-psnr", "nan"), 2, "--min-psnr nan is out of range (0 to 100"),
        (("a.png", "a.png", "--min-psnr", "101"), 2, "--min-psnr 101 is out of range (0 to 100"),
        (("a.png", "a.png", "--min-psnr", "-1"), 2, "--min-psnr -1 is out of range (0 to 100"),
        (("a.png", "a.png", "--sheet", "a.jpg"), 2, "--sheet a.jpg is not a PNG"),
        (("a.png", "a.png", "--sheet", "no/a.png"), 2, "--sheet no/a.png: there is no folder no"),
        (("a.png", "small.png", "--sheet", "s.png"), 2, "--sheet has nothing to show: no pair is of one size"),
    ],
)
def test_what_cannot_be_compared(arguments: tuple[str, ...], code: int, says: str, cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png"), save(tmp_path / "one" / "b.png"), save(tmp_path / "small.png", SMOOTH[:8, :8])
    (tmp_path / "one" / "notes.txt").write_text("no picture")
    (tmp_path / "empty").mkdir()
    outcome = cli("compare", *arguments)
    assert outcome.code == code
    assert says in outcome.err.splitlines()[-1]
    assert not (tmp_path / "s.png").exists()


def test_pictures_too_small_for_ssim_have_the_rest(cli: Cli, tmp_path: Path) -> None:
    save(tmp_path / "a.png", SMOOTH[:8, :8]), save(tmp_path / "b.png", SMOOTH[:8, :8] + 1)
    assert "SSIM" not in cli("compare", "a.png", "b.png").out
    assert json.loads(cli("compare", "a.png", "b.png", "--json").out)["ssim"] is None

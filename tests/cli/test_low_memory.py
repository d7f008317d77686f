"""`generate --low-memory`, and which hashes of a model's files `generate` and `replay --verify` believe."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentgen.checkpoints import folder
from tests.cli.conftest import Cli


def test_a_picture_drawn_with_little_memory_is_redrawn_without(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-o", "a.png", "--low-memory").code == 0
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")


def test_pictures_on_the_way_are_the_same(cli: Cli, tiny_model: Path) -> None:
    """Each is decoded by a VAE that was read after the U-Net was let go, and the U-Net is read again."""
    for folder_name, options in (("with", ["--low-memory"]), ("without", [])):
        drawn = cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-n", "2", "--steps", "3", "--save-steps",
                    f"{folder_name}/", "-o", f"{folder_name}-end/", *options)  # fmt: skip
        assert drawn.code == 0, drawn.err
    names = sorted(str(path.relative_to("without")) for path in Path("without").rglob("*.png"))
    assert len(names) == 6
    assert all((Path("with") / name).read_bytes() == (Path("without") / name).read_bytes() for name in names)


def test_a_preview_by_the_vae_would_keep_two_networks(cli: Cli, tiny_model: Path) -> None:
    watching = ("--preview", "p.png", "--preview-every", "2")
    refused = cli("generate", "a cat", "-m", tiny_model, "--low-memory", *watching)
    assert (refused.code, "--low-memory keeps one network" in refused.err) == (2, True)
    assert cli("generate", "a cat", "-m", tiny_model, "--low-memory", *watching[:2]).code == 0


def test_verify_reads_every_file_again(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = folder.sha256, list[bool]()

    def watched(*paths: Path, remembered: bool = False) -> str:
        asked.append(remembered)
        return real(*paths, remembered=remembered)

    monkeypatch.setattr(folder, "sha256", watched)
    cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-o", "a.png")
    cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert asked == [True, False]

"""`generate --compile`: refused on a CPU, recorded in the file, drawn again without a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from latentgen.images.files import read_picture_text
from latentgen.images.metadata import PictureMetadata
from latentgen.kernels import gpu
from tests.cli.conftest import Cli


def test_a_cpu_is_one_line(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "--device", "cpu", "--compile")
    assert outcome.code == 2
    assert outcome.err == "error: --compile is for a CUDA GPU, and this is drawn on cpu (leave it out)\n"
    assert not list(Path().iterdir())


def test_a_compiler_that_fails_is_one_line(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._dynamo.exc import Unsupported

    def failing(*_: object) -> object:
        raise Unsupported("Cannot find a working triton installation\nand more")

    monkeypatch.setattr(gpu, "DEVICES", ("cpu",))
    monkeypatch.setattr(gpu, "_compiled", failing)
    outcome = cli("generate", "a cat", "-m", tiny_model, "--device", "cpu", "--compile", "-q")
    assert outcome.code == 1
    assert outcome.err.startswith("error: torch.compile failed: Cannot find a working triton installation")
    assert outcome.err.endswith("leave out --compile)\n")
    assert outcome.err.count("\n") == 1
    assert not list(Path().rglob("*.png"))


def test_it_is_recorded_and_drawn_again_without_a_gpu(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "DEVICES", ("cpu",))
        patch.setattr(gpu, "_compiled", lambda function, *_: function)
        flags = ("-m", str(tiny_model), "-s", "5", "--dtype", "float32", "--device", "cpu", "--compile")
        outcome = cli("generate", "a cat", *flags, "-o", "a.png")
    assert outcome.code == 0, outcome.err
    assert "a minute or more" in outcome.err
    document = read_picture_text(Path("a.png"))[2].document
    assert document is not None
    assert PictureMetadata.from_json(document).computation.kernels == "torch.compile"
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")

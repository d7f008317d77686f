from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latentgen.cli.replay import compare
from latentgen.images.files import FORMATS, PictureText, encode_picture, read_picture
from latentgen.images.metadata import PictureMetadata
from latentgen.pipeline import TextToImage
from tests.cli.conftest import Cli
from tests.tiny import tiny_unet


def draw(cli: Cli, model: Path, name: str = "a.png") -> Path:
    assert cli("generate", "a cat", "-m", model, "-s", "5", "--sampler", "euler_a", "-o", name).code == 0
    return Path(name)


@pytest.mark.parametrize("ending", FORMATS)
def test_a_picture_is_redrawn_from_its_file_alone(ending: str, cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model, f"a{ending}")
    outcome = cli("replay", path, "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", f"{path}: bit-identical\n")
    assert os.listdir() == [str(path)]


def test_without_verify_the_picture_is_written_again(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    outcome = cli("replay", path, "-m", tiny_model, "-o", "again.png")
    assert (outcome.code, outcome.out) == (0, "again.png\n")
    assert Path("again.png").read_bytes() == path.read_bytes()


def test_another_model_is_named_as_the_cause(cli: Cli, tiny_model: Path) -> None:
    from latentgen.checkpoints.folder import load_model, save_model

    path = draw(cli, tiny_model)
    bundle = load_model(tiny_model)
    bundle.unet = tiny_unet(seed=9)
    save_model(bundle, Path("other"))
    outcome = cli("replay", path, "--verify", "-m", "other")
    assert outcome.code == 1
    assert "a.png: the redrawn picture differs by up to" in outcome.err
    assert "another model" in outcome.err
    assert outcome.err.count("\n") == 1


def test_another_dtype_is_named_as_the_cause(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    outcome = cli("replay", path, "--verify", "-m", tiny_model, "--dtype", "bfloat16")
    assert outcome.code == 1
    assert "dtype float32 then, bfloat16 now" in outcome.err


def test_a_picture_from_a_gpu_is_redrawn_on_what_is_here(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    pixels, text = read_picture(path)
    recorded = PictureMetadata.from_json(text.document or {})
    foreign = replace(
        recorded, pixels_sha256="x", computation=replace(recorded.computation, device="tpu", dtype="float16")
    )
    path.write_bytes(encode_picture(pixels, "PNG", PictureText(text.parameters, foreign.to_json())))
    outcome = cli("replay", path, "--verify", "-m", tiny_model)
    assert outcome.code == 1
    assert "dtype float16 then, float32 now; device tpu then, cpu now" in outcome.err


def rewrite(path: Path, **computation: object) -> None:
    """The same picture, whose file says that it was computed otherwise."""
    pixels, text = read_picture(path)
    document = {**(text.document or {})}
    document["computation"] = {**document["computation"], **computation}
    path.write_bytes(encode_picture(pixels, "PNG", PictureText(text.parameters, document)))


def test_a_picture_of_a_batch_is_redrawn_in_a_batch(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-n", "3", "--batch-size", "3", "-o", "{seed}.png")
    assert outcome.code == 0
    generate = TextToImage.generate
    sizes: list[object] = []

    def watched(self: TextToImage, requests: Any, **options: Any) -> Any:
        sizes.append((len(requests), options["batch_size"]))
        return generate(self, requests, **options)

    monkeypatch.setattr(TextToImage, "generate", watched)
    for path in ("5.png", "6.png", "7.png"):
        outcome = cli("replay", path, "--verify", "-m", tiny_model)
        assert (outcome.code, outcome.err) == (0, f"{path}: bit-identical\n")
    assert sizes == [(3, 3)] * 3


def test_a_file_cannot_start_a_thousand_threads(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = draw(cli, tiny_model)
    rewrite(path, threads=1000)
    started: list[int] = []
    monkeypatch.setattr("torch.set_num_threads", started.append)
    cli("replay", path, "--verify", "-m", tiny_model)
    assert started == [4 * (os.cpu_count() or 1)]


@pytest.mark.parametrize(("name", "value"), [("threads", 10**6), ("threads", 0), ("batch_size", 10**6)])
def test_numbers_out_of_bounds_in_a_file_are_one_line(name: str, value: int, cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    rewrite(path, **{name: value})
    outcome = cli("replay", path, "--verify", "-m", tiny_model)
    assert outcome.code == 2
    assert outcome.err == f"error: the picture's metadata: {name} is out of range (1 to 1024)\n"


def test_a_prompt_that_is_too_long_is_said_once(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat " + "1 " * 75 + "and a zebra", "-m", tiny_model, "-s", "5", "-o", "a.png").code == 0
    lines = cli("replay", "a.png", "--verify", "-m", tiny_model).err.splitlines()
    assert lines[0].startswith("warning: the text encoder reads 75 tokens")
    assert lines[1:] == ["a.png: bit-identical"]


def test_pixels_that_were_changed_afterwards_are_noticed(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    pixels, text = read_picture(path)
    changed = pixels.copy()
    changed[0, 0] ^= 1
    path.write_bytes(encode_picture(changed, "PNG", PictureText(text.parameters, text.document)))
    outcome = cli("replay", path, "--verify", "-m", tiny_model)
    assert outcome.code == 1
    assert "the pixels in the file were changed after it was drawn" in outcome.err


def test_the_embedded_model_is_found_by_its_name(cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = Path.cwd() / "weights" / "embedded"
    shutil.copytree(tiny_model, embedded)
    monkeypatch.setattr("latentgen.cli.model_names.embedded_model_path", lambda: embedded)
    assert cli("generate", "a cat", "-o", "a.png").code == 0
    assert cli("replay", "a.png", "--verify").err == "a.png: bit-identical\n"


def test_a_model_that_is_not_here_is_named(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("replay", draw(cli, tiny_model), "--verify")
    assert outcome.code == 3
    assert "drawn with tiny (" in outcome.err
    assert "name its folder with --model" in outcome.err


def test_a_picture_without_our_metadata_cannot_be_redrawn(cli: Cli) -> None:
    Path("a.png").write_bytes(
        encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", PictureText("a cat\nSteps: 3", None))
    )
    outcome = cli("replay", "a.png")
    assert outcome.code == 2
    assert "see: latentgen info a.png" in outcome.err


def test_metadata_of_a_later_format_are_refused(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    pixels, text = read_picture(path)
    path.write_bytes(encode_picture(pixels, "PNG", PictureText(None, {**(text.document or {}), "format": 2})))
    outcome = cli("replay", path)
    assert outcome.code == 2
    assert "have format 2; this version reads 1" in outcome.err


def test_causes_are_listed_likeliest_first(cli: Cli, tiny_model: Path) -> None:
    pixels, text = read_picture(draw(cli, tiny_model))
    recorded = PictureMetadata.from_json(json.loads(json.dumps(text.document)))
    other = np.clip(pixels.astype(int) + 2, 0, 255).astype(np.uint8)
    computation = replace(recorded.computation, torch="1.0", batch_size=4)
    drawn = replace(recorded, pixels_sha256="x", computation=computation)
    verdict, is_same = compare(recorded, pixels, drawn, other)
    assert not is_same
    assert verdict.startswith("the redrawn picture differs by up to 2 of 255 in ")
    assert verdict.endswith(f"torch {recorded.computation.torch} then, 1.0 now; batch size 1 then, 4 now")
    unexplained, _ = compare(recorded, pixels, replace(recorded, pixels_sha256="x"), other)
    assert unexplained.endswith("none of what the file records differs")

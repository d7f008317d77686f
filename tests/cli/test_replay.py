from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from latentgen.cli.replay import compare
from latentgen.images.files import FORMATS, PictureText, encode_picture, read_picture
from latentgen.images.metadata import PictureMetadata
from latentgen.pipeline import TextToImage, choose_dtype, dtype_name
from tests.cli.conftest import Cli
from tests.tiny import tiny_unet


def draw(cli: Cli, model: Path, name: str = "a.png", *flags: str) -> Path:
    assert cli("generate", "a cat", "-m", model, "-s", "5", "--sampler", "euler_a", "-o", name, *flags).code == 0
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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("fast", ["--fast", "--no-fast"])
def test_the_dtype_and_the_form_are_those_of_the_picture(dtype: str, fast: str, cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model, "a.png", "--dtype", dtype, fast)
    outcome = cli("replay", path, "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, "a.png: bit-identical\n")


def test_another_dtype_is_named_as_the_cause(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model, "a.png", "--dtype", "float32")
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
    now = dtype_name(choose_dtype("auto", torch.device("cpu")))
    assert f"dtype float16 then, {now} now; device tpu then, cpu now" in outcome.err


def rewrite(path: Path, **computation: object) -> None:
    """The same picture, whose file says that it was computed otherwise."""
    pixels, text = read_picture(path)
    document = {**(text.document or {})}
    document["computation"] = {**document["computation"], **computation}
    path.write_bytes(encode_picture(pixels, "PNG", PictureText(text.parameters, document)))


def test_a_picture_of_a_batch_is_redrawn_in_a_batch(
    cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = draw(cli, tiny_model)
    rewrite(path, batch_size=3)  # as a GPU draws them
    generate = TextToImage.generate
    sizes: list[object] = []

    def watched(self: TextToImage, requests: Any, **options: Any) -> Any:
        sizes.append((len(requests), options["batch_size"]))
        return generate(self, requests, **options)

    monkeypatch.setattr(TextToImage, "generate", watched)
    outcome = cli("replay", path, "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err) == (0, f"{path}: bit-identical\n")
    assert sizes == [(3, 3)]


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


def test_a_long_prompt_is_redrawn_too(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat " + "1 " * 75 + "and a zebra", "-m", tiny_model, "-s", "5", "-o", "a.png").code == 0
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err.splitlines()[-1]) == (0, "a.png: bit-identical")


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


def test_a_picture_without_settings_cannot_be_redrawn(cli: Cli) -> None:
    write_with("a.png", "a cat\nSteps: 3")
    outcome = cli("replay", "a.png")
    assert outcome.code == 2
    assert "see: latentgen info a.png" in outcome.err


# From a picture


def write_picture(name: str, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Path(name).write_bytes(encode_picture(pixels, "PNG", None))
    return Path(name)


def test_a_picture_drawn_from_another_needs_that_one(cli: Cli, tiny_model: Path) -> None:
    start, other = write_picture("start.png", 1), write_picture("other.png", 2)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save("mask.png")
    drawn = cli(
        "generate",
        "a cat",
        "-m",
        tiny_model,
        "-s",
        "5",
        "-i",
        start,
        "--mask",
        "mask.png",
        "-o",
        "a.png",
        "--steps",
        "8",
    )
    assert drawn.code == 0, drawn.err
    missing = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert missing.code == 2
    assert "give it with --init-image FILE" in missing.err
    without_mask = cli("replay", "a.png", "--verify", "-m", tiny_model, "-i", start)
    assert (without_mask.code, "give it with --mask FILE" in without_mask.err) == (2, True)
    wrong = cli("replay", "a.png", "--verify", "-m", tiny_model, "-i", other, "--mask", "mask.png")
    assert wrong.code == 2
    assert "--init-image other.png is not what it was drawn from" in wrong.err
    right = cli("replay", "a.png", "--verify", "-m", tiny_model, "-i", start, "--mask", "mask.png")
    assert (right.code, right.err) == (0, "a.png: bit-identical\n")


def test_a_picture_for_nothing_is_refused(cli: Cli, tiny_model: Path) -> None:
    path = draw(cli, tiny_model)
    outcome = cli("replay", path, "--verify", "-m", tiny_model, "-i", path)
    assert (outcome.code, "was drawn without one" in outcome.err) == (2, True)


# Of other tools


def write_with(name: str, parameters: str) -> None:
    pixels = np.zeros((8, 8, 3), np.uint8)
    Path(name).write_bytes(encode_picture(pixels, "PNG", PictureText(parameters, None)))


def test_another_tools_picture_is_drawn_as_generate_would(cli: Cli, tiny_model: Path) -> None:
    write_with(
        "a.png",
        "a cat\nNegative prompt: fog\nSteps: 6, Sampler: DPM++ 2M Karras, CFG scale: 4.5, Seed: 4294967301, "
        "Size: 64x64, RNG: CPU, Version: v1.6.0",
    )
    outcome = cli("replay", "a.png", "-m", tiny_model, "-o", "again.png")
    assert (outcome.code, outcome.out) == (0, "again.png\n")
    assert outcome.err == (
        "a.png: drawn by AUTOMATIC1111; all of it is honoured\n"
        "seed 4294967301: its low 32 bits, 5, make the same noise\n"
    )
    # torch's generator looks at the low 32 bits of a seed: 4294967301 is 2^32 + 5.
    flags = (
        "--negative",
        "fog",
        "--steps",
        "6",
        "--sampler",
        "dpmpp_2m",
        "--schedule",
        "karras",
        "-g",
        "4.5",
        "-s",
        "5",
    )
    assert cli("generate", "a cat", "-m", tiny_model, *flags, "--size", "64x64", "-o", "direct.png").code == 0
    assert Path("again.png").read_bytes() == Path("direct.png").read_bytes()


def test_what_could_not_be_honoured_is_listed(cli: Cli, tiny_model: Path) -> None:
    write_with(
        "a.png",
        "a cat <lora:ink:0.8>\nSteps: 100000, Sampler: Restart, Schedule type: KL Optimal, CFG scale: 4.5, "
        "Size: 70x64, Clip skip: 99, Model: dream, Hires upscale: 1, Denoising strength: 0.5, Version: v1.9.4",
    )
    outcome = cli("replay", "a.png", "-m", tiny_model, "-o", "again.png")
    assert outcome.code == 0, outcome.err
    heads = [line.strip().split(":")[0] for line in outcome.err.splitlines()]
    assert heads[0] == "a.png"
    assert "an NVIDIA GPU's is drawn" in outcome.err
    expected = {
        "model dream",
        "LoRA ink (0.8)",
        "starting noise",
        "seed",
        "sampler Restart",
        "schedule KL Optimal",
        "size 70x64",
        "steps 100000 is out of range",
        "clip-skip 99 is out of range",
        "second pass",
    }
    assert expected <= set(heads)
    request = PictureMetadata.from_json(read_picture(Path("again.png"))[1].document or {}).request
    assert request.rng == "nv"
    assert (request.prompt, request.guidance, request.width_px, request.hires) == ("a cat", 4.5, 64, None)


A1111 = "Steps: 4, Sampler: Euler, CFG scale: 4.5, Seed: 5, Size: 64x64, RNG: CPU, Version: v1.9.4"
DIRECT = ("--steps", "4", "--sampler", "euler", "--schedule", "uniform", "-g", "4.5", "-s", "5", "--size", "64x64")
"""The same for `generate`."""


def test_another_tools_starting_picture_and_mask_are_used_as_there(cli: Cli, tiny_model: Path) -> None:
    start = write_picture("start.png", 1)
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    Image.fromarray(mask).save("mask.png")
    write_with("a.png", f"a cat\n{A1111}, Denoising strength: 0.5, Mask blur: 2, Mask mode: Inpaint not masked")
    given = ("-i", start, "--mask", "mask.png")
    outcome = cli("replay", "a.png", "-m", tiny_model, *given, "-o", "again.png")
    assert outcome.code == 0, outcome.err
    assert outcome.err == "a.png: drawn by AUTOMATIC1111; all of it is honoured\ninpaint: 2 of 4 steps\n"
    used = ("--strength", "0.5", "--mask-blur", "2", "--invert-mask")
    assert cli("generate", "a cat", "-m", tiny_model, *DIRECT, *given, *used, "-o", "direct.png").code == 0
    assert Path("again.png").read_bytes() == Path("direct.png").read_bytes()
    without_mask = cli("replay", "a.png", "-m", tiny_model, "-i", start, "-o", "b.png").err.splitlines()
    assert without_mask[:2] == [
        "a.png: drawn by AUTOMATIC1111; not as there:",
        "  the mask: it is not in the file; give it with --mask",
    ]
    missing = cli("replay", "a.png", "-m", tiny_model, "-i", "no.png", "-o", "c.png")
    assert (missing.code, missing.err) == (3, "error: there is no file no.png\n")
    alone = cli("replay", "a.png", "-m", tiny_model, "--mask", "mask.png", "-o", "c.png")
    assert (alone.code, alone.err.count("\n"), "needs a picture to start from" in alone.err) == (2, 1, True)


def test_a_picture_without_a_size_starts_at_the_size_of_its_own(cli: Cli, tiny_model: Path) -> None:
    """ComfyUI says none where a picture is loaded."""
    pixels = np.zeros((48, 80, 3), np.uint8)
    Path("start.png").write_bytes(encode_picture(pixels, "PNG", None))
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "start.png"}},
        "2": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat"}},
        "4": {"class_type": "KSampler", "inputs": {
            "seed": 156680208700286, "steps": 4, "denoise": 0.5, "positive": ["3", 0], "latent_image": ["2", 0]}},
    }  # fmt: skip
    chunks = PngImagePlugin.PngInfo()
    chunks.add_text("prompt", json.dumps(nodes))
    Image.new("RGB", (8, 8)).save("a.png", pnginfo=chunks)
    outcome = cli("replay", "a.png", "-m", tiny_model, "-i", "start.png", "-o", "again.png")
    assert outcome.code == 0, outcome.err
    assert "seed 156680208700286: its low 32 bits, 4096709502, make the same noise\n" in outcome.err
    assert read_picture(Path("again.png"))[0].shape == pixels.shape
    request = PictureMetadata.from_json(read_picture(Path("again.png"))[1].document or {}).request
    assert (request.seed, request.init and request.init.strength) == (4096709502, 0.5)


@pytest.mark.parametrize("flag", ["--init-image", "--mask"])
def test_another_tools_picture_without_one_refuses_it(flag: str, cli: Cli, tiny_model: Path) -> None:
    write_picture("b.png", 1)
    write_with("a.png", f"a cat\n{A1111}")
    outcome = cli("replay", "a.png", "-m", tiny_model, flag, "b.png")
    assert (outcome.code, outcome.err) == (2, f"error: {flag} b.png: this picture was drawn without one\n")
    assert sorted(os.listdir()) == ["a.png", "b.png"]
    write_with("a.png", f"a cat\n{A1111}, Denoising strength: 0.5")
    assert cli("replay", "a.png", "-m", tiny_model, "-i", "b.png", "--mask", "b.png").code == 2


@pytest.mark.parametrize("words", ["a [cat:dog:0.5]", "a [cat|dog]", "a cat AND a dog"])
def test_syntax_that_is_read_as_words_is_warned_of(words: str, cli: Cli, tiny_model: Path) -> None:
    write_with("a.png", f"{words}\n{A1111}")
    outcome = cli("replay", "a.png", "-m", tiny_model, "-o", "again.png")
    said = cli("generate", words, "-m", tiny_model, "-s", "1", "--dry-run").err
    assert said.startswith("warning: ")
    assert (outcome.code, outcome.err) == (0, f"a.png: drawn by AUTOMATIC1111; not as there:\n{said}")
    (line,) = json.loads(cli("info", "a.png", "--json").out)["not repeatable"]
    assert said == f"warning: {line}\n"


def test_a_prompt_of_many_chunks_is_told_of(cli: Cli, tiny_model: Path) -> None:
    write_with("a.png", f"{'cat ' * 80}\n{A1111}")
    outcome = cli("replay", "a.png", "-m", tiny_model, "-o", "again.png")
    assert outcome.err == "a.png: drawn by AUTOMATIC1111; all of it is honoured\nprompt of 160 tokens: 3 chunks\n"


def test_another_tools_pixels_cannot_be_verified(cli: Cli, tiny_model: Path) -> None:
    write_with("a.png", "a cat\nSteps: 6, Sampler: Euler, CFG scale: 4.5, Seed: 1")
    outcome = cli("replay", "a.png", "--verify", "-m", tiny_model)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)


@pytest.mark.parametrize("prompt", ["", "a \x07bell"])
def test_a_prompt_that_cannot_be_drawn_is_one_line(prompt: str, cli: Cli, tiny_model: Path) -> None:
    write_with("a.png", f"{prompt}\nSteps: 6, Sampler: Euler, CFG scale: 4.5, Seed: 1")
    outcome = cli("replay", "a.png", "-m", tiny_model)
    assert outcome.code == 2
    assert outcome.err.startswith("error: a.png: its prompt ")
    assert os.listdir() == ["a.png"]


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

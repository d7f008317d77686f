"""`generate --from PICTURE`: a picture's prompts and settings where the command line is silent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from latentgen.checkpoints.folder import save_vae
from latentgen.checkpoints.lora import write_lora
from latentgen.images.files import PictureText, encode_picture, read_picture_text
from tests.cli.conftest import Cli
from tests.cli.test_lora import some_lora
from tests.tiny import tiny_vae

EVERYTHING = (
    *("--negative", "fog", "-s", "5", "--steps", "6", "-g", "4.5", "--guidance-rescale", "0.3"),
    *("--guidance-interval", "0.2,0.8", "--deep-cache", "2", "--sampler", "ddim", "--eta", "0.5"),
    *("--schedule", "leading", "--clip-skip", "2", "--rng", "nv", "--size", "64x80", "--hires", "1.25x"),
)
A1111 = "Steps: 4, Sampler: Euler, CFG scale: 4.5, Seed: 5, Size: 64x80, RNG: CPU, Model: dream, Version: v1.9.4"


def request_of(path: str) -> dict[str, Any]:
    document = read_picture_text(Path(path))[2].document
    assert document is not None
    return document["request"]


def planned(cli: Cli, *arguments: str | Path) -> list[dict[str, Any]]:
    outcome = cli("generate", *arguments, "--dry-run", "--json")
    assert outcome.code == 0, outcome.err
    return [json.loads(line)["request"] for line in outcome.out.splitlines()]


def write_foreign(parameters: str) -> None:
    text = PictureText(parameters, None)
    Path("found.png").write_bytes(encode_picture(np.zeros((8, 8, 3), np.uint8), "PNG", text))


def write_random(name: str, *shape: int) -> str:
    Image.fromarray(np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)).save(name)
    return name


def test_without_more_it_is_the_same_picture(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a (cat:1.2)", "-m", tiny_model, *EVERYTHING, "-o", "a.png").code == 0
    outcome = cli("generate", "--from", "a.png", "-m", tiny_model, "-o", "b.png")
    assert (outcome.code, "not as there" in outcome.err) == (0, False), outcome.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


@pytest.mark.parametrize(
    ("said", "changes"),
    [
        (("--steps", "9"), {"steps": 9}),
        (("--seed", "0"), {"seed": 0}),
        (("--negative-prompt", ""), {"negative_prompt": ""}),
        (("--width", "48"), {"width_px": 48}),
        (("a dog",), {"prompt": "a dog"}),
        (("--rng", "cpu"), {"rng": None}),
        (("--sampler", "euler"), {"sampler": "euler", "eta": 0.0}),
        (("--sampler", "DPM++ 2M Karras"), {"sampler": "dpmpp_2m", "schedule": "karras", "eta": 0.0}),
    ],
)
def test_the_command_line_wins(said: tuple[str, ...], changes: dict[str, Any], cli: Cli, tiny_model: Path) -> None:
    (before,) = planned(cli, "a cat", "-m", tiny_model, *EVERYTHING)
    assert cli("generate", "a cat", "-m", tiny_model, *EVERYTHING, "-o", "a.png").code == 0
    (after,) = planned(cli, "--from", "a.png", "-m", tiny_model, *said)
    assert {name: after.get(name) for name in before if after.get(name) != before[name]} == changes


def test_every_sampler_has_its_own_walk(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat", "-m", tiny_model, *EVERYTHING, "-o", "a.png").code == 0
    names = ["DPM++ 2M Karras", "euler", "DDIM"]
    walks = [("dpmpp_2m", "karras", 0.0), ("euler", "leading", 0.0), ("ddim", "leading", 0.5)]
    Path("list.jsonl").write_text("".join(json.dumps({"prompt": "a", "sampler": name}) + "\n" for name in names))
    for how in (("--sweep", f"sampler={','.join(names)}"), ("--prompts", "list.jsonl")):
        found = planned(cli, "--from", "a.png", "-m", tiny_model, *how)
        assert [(each["sampler"], each["schedule"], each["eta"]) for each in found] == walks
    Path("both.jsonl").write_text(json.dumps({"prompt": "a", "sampler": names[0], "schedule": "leading"}))
    for said in (("--sweep", f"sampler={names[0]}", "--sweep", "schedule=leading"), ("--prompts", "both.jsonl")):
        assert "contradict each other" in cli("generate", "--from", "a.png", "-m", tiny_model, *said).err
    said = ("--sampler", names[0], "--schedule", "leading")
    assert "contradict each other" in cli("generate", "--from", "a.png", "-m", tiny_model, *said).err
    said = ("--sampler", "euler", "--eta", "0.5")
    assert "changes nothing with euler" in cli("generate", "--from", "a.png", "-m", tiny_model, *said).err


def test_a_picture_without_a_mask_says_nothing_of_its_edge(cli: Cli, tiny_model: Path) -> None:
    start, mask = write_random("a.png", 64, 64, 3), write_random("m.png", 64, 64)
    assert cli("generate", "a cat", "-m", tiny_model, "--init-image", start, "-o", "plain.png").code == 0
    (request,) = planned(cli, "--from", "plain.png", "-m", tiny_model, "--init-image", start, "--mask", mask)
    assert request["init"]["mask_blur_px"] == 4
    sharp = ("--mask", mask, "--mask-blur", "0")
    assert cli("generate", "a cat", "-m", tiny_model, "--init-image", start, *sharp, "-o", "sharp.png").code == 0
    (request,) = planned(cli, "--from", "sharp.png", "-m", tiny_model, "--init-image", start, "--mask", mask)
    assert request["init"]["mask_blur_px"] == 0


def test_other_prompts_and_a_sweep_take_its_settings(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "5", "--steps", "3", "-o", "a.png").code == 0
    Path("p.jsonl").write_text('{"prompt": "a hen", "steps": 2}\n{"prompt": "a fox"}\n')
    hen, fox = planned(cli, "--from", "a.png", "--prompts", "p.jsonl", "-m", tiny_model)
    assert [(each["prompt"], each["seed"], each["steps"]) for each in (hen, fox)] == [("a hen", 5, 2), ("a fox", 5, 3)]
    swept = planned(cli, "--from", "a.png", "--sweep", "steps=1,2", "-m", tiny_model)
    assert [(each["prompt"], each["seed"], each["steps"]) for each in swept] == [("a cat", 5, 1), ("a cat", 5, 2)]
    Path("c.toml").write_text('from = "a.png"\nguidance = 2\n')
    (configured,) = planned(cli, "--config", "c.toml", "-m", tiny_model)
    assert (configured["prompt"], configured["seed"], configured["guidance"]) == ("a cat", 5, 2.0)


def test_its_words_are_no_wildcards_and_those_of_the_command_line_are(cli: Cli, tiny_model: Path) -> None:
    prompt = "a {red|blue} __cat__"
    drawn = cli("generate", prompt, "--plain-prompt", "-m", tiny_model, "-s", "5", "--steps", "1", "-o", "a.png")
    assert drawn.code == 0, drawn.err
    assert [each["prompt"] for each in planned(cli, "--from", "a.png", "-m", tiny_model)] == [prompt]
    (other,) = planned(cli, "a {red|blue} dog", "--from", "a.png", "-m", tiny_model)
    assert other["prompt"] in ("a red dog", "a blue dog")


def test_its_files_are_given_again_or_listed(cli: Cli, tiny_model: Path) -> None:
    start, mask = write_random("start.png", 64, 64, 3), write_random("mask.png", 64, 64)
    files = ("-i", start, "--mask", mask)
    used = ("--strength", "0.5", "--mask-blur", "2", "--invert-mask")
    asked = ("generate", "a cat", "-m", tiny_model, "-s", "5", "--steps", "4", *files, *used, "-o", "a.png")
    assert cli(*asked).code == 0
    assert cli("generate", "--from", "a.png", "-m", tiny_model, *files, "-o", "b.png").code == 0
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    (stronger,) = planned(cli, "--from", "a.png", "-m", tiny_model, *files, "--strength", "0.75")
    assert stronger["init"] == {**request_of("a.png")["init"], "strength": 0.75}
    outcome = cli("generate", "--from", "a.png", "-m", tiny_model, "-o", "c.png")
    assert outcome.err.splitlines() == [
        "a.png: drawn by latentgen; not as there:",
        "  the picture it starts from (0.5): it is not in the file; give it with --init-image",
        "  the mask: it is not in the file; give it with --mask",
    ]
    assert "init" not in request_of("c.png")


def test_what_was_drawn_on_is_drawn_on_again(cli: Cli, tiny_model: Path) -> None:
    start = write_random("start.png", 48, 50, 3)
    asked = ("generate", "a cat", "-m", tiny_model, "-s", "5", "--steps", "2", "-i", start, "--outpaint", "10,0,0,0")
    assert cli(*asked, "-o", "a.png").code == 0
    outcome = cli("generate", "--from", "a.png", "-m", tiny_model, "-i", start, "-o", "b.png")
    assert outcome.code == 0, outcome.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()


def test_loras_have_their_recorded_scale_unless_another_is_given(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    write_lora(Path(tmp_path / "ink.safetensors"), some_lora(1), "kohya")
    write_lora(Path(tmp_path / "pen.safetensors"), some_lora(2), "diffusers")
    save_file({"emb_params": torch.zeros(1, 24)}, tmp_path / "toy.safetensors")
    save_vae(tiny_vae(seed=5), tmp_path / "mse")
    words = ("generate", "a toy <lora:ink:0.7>", "-m", tiny_model, "-s", "1", "--steps", "2", "-o", "a.png")
    loras = ("--lora", "pen.safetensors:0.5", "--lora", "ink.safetensors")
    assert cli(*words, *loras, "--embedding", "toy.safetensors", "--vae", "mse").code == 0

    def scales(*given: str) -> dict[str, float]:
        (request,) = planned(cli, "--from", "a.png", "-m", tiny_model, *given)
        return {use["name"]: use["scale"] for use in request.get("loras", ())}

    both = ("--lora", "ink.safetensors", "--lora", "pen.safetensors")
    assert scales(*both) == {"ink": 0.7, "pen": 0.5}
    assert scales("--lora", "ink.safetensors:0.2") == {"ink": 0.2}
    assert scales("another toy", *both) == {"ink": 0.7, "pen": 0.5}
    assert scales() == {}
    outcome = cli("generate", "--from", "a.png", "-m", tiny_model, "-o", "b.png", "--lora", "ink.safetensors")
    heads = [line.strip().partition(":")[0] for line in outcome.err.splitlines() if line.startswith("  ")]
    assert heads == ["LoRA pen (0.5)", "embedding toy", "VAE mse"]


def test_of_another_tools_picture_it_is_what_replay_draws(cli: Cli, tiny_model: Path) -> None:
    write_foreign(f"a cat <lora:ink:0.8>\nNegative prompt: fog\n{A1111}, Denoising strength: 0.5")
    replayed = cli("replay", "found.png", "-m", tiny_model, "-o", "a.png")
    outcome = cli("generate", "--from", "found.png", "-m", tiny_model, "-o", "b.png")
    assert (outcome.code, outcome.err) == (0, replayed.err)
    assert f"  model dream: {tiny_model} draws it here\n" in outcome.err
    assert Path("a.png").read_bytes() == Path("b.png").read_bytes()
    (other,) = planned(cli, "--from", "found.png", "-m", tiny_model, "--steps", "9")
    assert other == {**request_of("a.png"), "steps": 9}


def test_a_seed_that_is_not_in_the_file_is_a_random_one(cli: Cli, tiny_model: Path) -> None:
    write_foreign("a cat\nSteps: 1, Sampler: Euler, CFG scale: 4, Size: 64x64, RNG: CPU")
    outcome = cli("generate", "--from", "found.png", "-m", tiny_model, "-o", "a.png")
    assert outcome.err.splitlines()[1:] == [
        "  seed: it is not in the file; a random one is drawn",
        f"seed {request_of('a.png')['seed']}",
    ]


def test_another_tools_picture_was_guided_throughout(cli: Cli, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, "model")
    index = json.loads(Path("model/model_index.json").read_text())
    index["_latentgen"]["guidance_interval"] = [0.25, 1]
    Path("model/model_index.json").write_text(json.dumps(index))
    (own,) = planned(cli, "a cat", "-m", "model", "--seed", "3")
    assert own["guidance_interval"] == [0.25, 1]
    assert cli("info", "model").out.count("guidance 3 from 25% to 100% of the steps") == 1
    write_foreign("a cat\nSteps: 1, Sampler: Euler, CFG scale: 4, Seed: 3, Size: 64x64, RNG: CPU")
    (theirs,) = planned(cli, "--from", "found.png", "-m", "model")
    assert (theirs["guidance"], "guidance_interval" in theirs) == (4, False)
    for share, interval in (("0.4", [0.5, 1]), ("0.45", [0.5, 1])):  # a step at the share itself is not guided there
        plain = "a cat\nSteps: 10, Sampler: Euler, CFG scale: 4, Seed: 3, Size: 64x64, RNG: CPU"
        write_foreign(f"{plain}, Skip Early CFG: {share}")
        (later,) = planned(cli, "--from", "found.png", "-m", "model")
        assert (later["guidance"], later["guidance_interval"]) == (4, interval)
    write_foreign(f"{plain}, Skip Early CFG: 1")
    (never,) = planned(cli, "--from", "found.png", "-m", "model")
    assert never["guidance"] == 1
    assert cli("generate", "a cat", "-m", "model", "-s", "3", "--steps", "8", "-o", "own.png").code == 0
    parameters = read_picture_text(Path("own.png"))[2].parameters or ""
    assert ", Skip Early CFG: 0.1875, " in parameters
    write_foreign(parameters)
    (back,) = planned(cli, "--from", "found.png", "-m", "model")
    assert back["guidance_interval"] == [0.25, 1]
    late = ("--guidance-interval", "0.95,1", "--overwrite")  # no step begins there: the last one is guided
    assert cli("generate", "a cat", "-m", "model", "-s", "3", "--steps", "8", *late, "-o", "own.png").code == 0
    write_foreign(read_picture_text(Path("own.png"))[2].parameters or "")
    (back,) = planned(cli, "--from", "found.png", "-m", "model")
    assert back["guidance_interval"] == [0.875, 1]
    (asked,) = planned(cli, "--from", "found.png", "-m", "model", "--guidance-interval", "0.5,1")
    assert asked["guidance_interval"] == [0.5, 1]


def test_what_carries_no_settings_is_refused(cli: Cli, tiny_model: Path) -> None:
    write_random("a.png", 8, 8, 3)
    outcome = cli("generate", "--from", "a.png", "-m", tiny_model)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "a.png does not carry settings that latentgen reads (see: latentgen info a.png)" in outcome.err
    assert cli("generate", "--from", "no.png", "-m", tiny_model).code == 3


def test_the_model_is_the_pictures_own(cli: Cli, tiny_model: Path) -> None:
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "5", "--steps", "1", "-o", "a.png").code == 0
    outcome = cli("generate", "--from", "a.png")
    assert (outcome.code, "drawn with tiny (" in outcome.err) == (3, True)

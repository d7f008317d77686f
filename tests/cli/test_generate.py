from __future__ import annotations

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from latentgen.images.files import read_picture
from latentgen.images.pixels import pixels_sha256
from tests.cli.conftest import Cli

REPOSITORY = Path(__file__).parents[2]


def requests_in(folder: Path) -> dict[str, dict[str, object]]:
    """The request each picture of a folder carries, by file name."""
    found: dict[str, dict[str, object]] = {}
    for path in sorted(folder.iterdir()):
        document = read_picture(path)[1].document
        assert document is not None
        found[path.name] = document["request"]
    return found


def test_one_prompt_is_one_picture(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "--seed", "5", "-o", "cat.png")
    assert (outcome.code, outcome.out, outcome.err) == (0, "cat.png\n", "")
    pixels, text = read_picture(tmp_path / "cat.png")
    assert pixels.shape == (64, 64, 3)
    assert pixels.std() > 10
    assert text.parameters is not None
    assert re.fullmatch(
        r"a cat\nSteps: 4, Sampler: DPM\+\+ 2M, Schedule type: Karras, CFG scale: 3, Seed: 5, Size: 64x64, "
        r"Model hash: [0-9a-f]{10}, Model: tiny, RNG: CPU, Version: latentgen [0-9.]+",
        text.parameters,
    )
    assert text.document is not None
    assert text.document["pixels_sha256"] == pixels_sha256(pixels)


def test_every_flag_reaches_the_request(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    names = ("--sampler", "DDIM", "--schedule", "Trailing", "--negative", "fog", "-o", "a.png", "--format", "png")
    numbers = ("--seed", "0", "--cfg-scale", "0", "--steps", "2", "--eta", "0.5", "-W", "48", "-H", "80")
    assert cli("generate", "-p", "a cat", "-m", tiny_model, *names, *numbers).code == 0
    assert requests_in(tmp_path)["a.png"] == {
        "prompt": "a cat",
        "negative_prompt": "fog",
        "seed": 0,
        "width_px": 48,
        "height_px": 80,
        "steps": 2,
        "guidance": 0.0,
        "sampler": "ddim",
        "schedule": "trailing",
        "eta": 0.5,
    }


def test_a1111s_names_are_understood(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    assert cli("generate", "a", "-m", tiny_model, "--sampler", "Euler a", "-o", "a.png").code == 0
    assert cli("generate", "a", "-m", tiny_model, "--sampler", "DPM++ 2M Karras", "-o", "b.png").code == 0
    requests = requests_in(tmp_path)
    assert (requests["a.png"]["sampler"], requests["a.png"]["schedule"]) == ("euler_a", "uniform")
    assert (requests["b.png"]["sampler"], requests["b.png"]["schedule"]) == ("dpmpp_2m", "karras")


def test_picture_i_has_seed_plus_i_and_is_the_picture_of_that_seed(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "7", "-n", "3", "-o", "{seed}.png")
    assert outcome.out.split() == ["7.png", "8.png", "9.png"]
    assert cli("generate", "a cat", "-m", tiny_model, "-s", "8", "-o", "alone.png").code == 0
    assert (tmp_path / "alone.png").read_bytes() == (tmp_path / "8.png").read_bytes()


def test_prompts_come_from_arguments_options_and_files(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes("\ufeff# comment\r\na fox\r\n\r\n  über, -x  \r\n".encode())
    outcome = cli(
        "generate", "a cat", "-p", "a dog", "--prompts", "p.txt", "-m", tiny_model, "-o", "out/", "--seed", "1"
    )
    assert (outcome.code, len(outcome.out.split())) == (0, 4)
    prompts = [request["prompt"] for request in requests_in(tmp_path / "out").values()]
    assert prompts == ["a cat", "a dog", "a fox", "über, -x"]


def test_a_jsonl_line_may_hold_any_flag(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "a fox", "seed": 4, "steps": 2, "size": "48x80", "guidance": 1},
        {"prompt": "a hen", "sampler": "Euler a", "negative-prompt": "fog", "count": 2},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = cli("generate", "--prompts", "p.jsonl", "-m", tiny_model, "-o", "out/", "--seed", "1", "--negative", "x")
    assert outcome.code == 0, outcome.err
    fox, hen, second_hen = requests_in(tmp_path / "out").values()
    assert (fox["seed"], fox["steps"], fox["width_px"], fox["height_px"], fox["guidance"]) == (4, 2, 48, 80, 1.0)
    assert (fox["negative_prompt"], hen["negative_prompt"]) == ("x", "fog")
    assert (hen["seed"], second_hen["seed"], hen["sampler"], hen["steps"]) == (1, 2, "euler_a", 4)


def test_a_seed_of_64_bits_is_its_low_32(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    long, low = 156680208700286, 4096709502
    assert cli("generate", "a cat", "-m", tiny_model, "-s", str(low), "-o", "low.png").code == 0
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", str(long), "-o", "long.png")
    assert (outcome.code, outcome.err) == (0, f"seed {long}: its low 32 bits, {low}, make the same noise\n")
    assert (tmp_path / "long.png").read_bytes() == (tmp_path / "low.png").read_bytes()
    rows = [{"prompt": "a cat", "seed": seed} for seed in (2**64 - 1, long, 7)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = cli("generate", "--prompts", "p.jsonl", "-m", tiny_model, "--dry-run", "--json")
    assert [json.loads(line)["request"]["seed"] for line in outcome.out.splitlines()] == [2**32 - 1, low, 7]
    said = f"seed {2**64 - 1}: its low 32 bits, {2**32 - 1}, make the same noise; so with 1 more\n"
    assert outcome.err == said
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", str(long), "--rng", "nv", "--dry-run")
    assert "are drawn; an NVIDIA GPU looks at all 64" in outcome.err
    (tmp_path / "p.jsonl").write_text('{"prompt": "a cat", "seed": -2}')
    assert cli("generate", "--prompts", "p.jsonl", "-m", tiny_model, "--dry-run").code == 2


def test_a_jsonl_line_takes_every_name_of_a_flag(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    row = {
        "prompt": "a fox", "negative": "fog", "cfg_scale": 5, "repeats": 2, "guidance-interval": [0.1, 0.8],
        "guidance_rescale": 0.5, "clip_skip": 2, "height": 80, "steps": None, "rng": "nv",
    }  # fmt: skip
    text_form = {"prompt": "a hen", "guidance_interval": "0.1,0.8", "eta": 1, "sampler": "DDIM"}
    (tmp_path / "p.jsonl").write_text(f"{json.dumps(row)}\n# a comment\n{json.dumps(text_form)}\n")
    outcome = cli(
        "generate", "--prompts", "p.jsonl", "-m", tiny_model, "--steps", "9", "-s", "1", "--dry-run", "--json"
    )
    first, second, hen = (json.loads(line)["request"] for line in outcome.out.splitlines())
    assert first == {**second, "seed": 1}
    assert (first["negative_prompt"], first["guidance"], first["guidance_interval"]) == ("fog", 5.0, [0.1, 0.8])
    assert (first["guidance_rescale"], first["clip_skip"], first["height_px"]) == (0.5, 2, 80)
    assert (first["rng"], "rng" in hen) == ("nv", False)
    assert first["steps"] == 4, "null is the model's own, whatever the command line says"
    assert (hen["guidance_interval"], hen["eta"], hen["sampler"], hen["steps"]) == ([0.1, 0.8], 1.0, "ddim", 9)


def test_a_config_file_fills_in_what_the_command_line_leaves_out(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        'prompt = ["a cat", "a dog"]\nseed = 5\nsteps = 3\ncfg_scale = 4\nguidance-interval = [0.1, 0.8]\n'
        'size = "64x80"\nsampler = "DPM++ 2M Karras"\njson = true\n'
    )
    outcome = cli("generate", "--config", "c.toml", "-m", tiny_model, "--steps", "2", "--dry-run")
    assert outcome.code == 0, outcome.err
    cat, dog = (json.loads(line)["request"] for line in outcome.out.splitlines())
    assert (cat["prompt"], dog["prompt"], cat["seed"], cat["steps"], cat["guidance"]) == ("a cat", "a dog", 5, 2, 4.0)
    assert (cat["guidance_interval"], cat["height_px"], cat["sampler"]) == ([0.1, 0.8], 80, "dpmpp_2m")


def test_a_config_file_takes_one_string_for_a_list(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('prompt = "a cat"\nlora = "fox.safetensors"\n')
    outcome = cli("generate", "--config", "c.toml", "-m", tiny_model, "--dry-run")
    assert "--lora fox.safetensors" in outcome.err, "the file is looked for"
    (tmp_path / "c.toml").write_text('prompt = "a cat"\n')
    outcome = cli("generate", "--config", "c.toml", "-m", tiny_model, "--dry-run", "--json")
    assert json.loads(outcome.out)["request"]["prompt"] == "a cat"


def test_standard_input_is_a_prompt_a_line(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a fox\na hen\n")))
    assert cli("generate", "-p", "-", "-m", tiny_model, "-o", "out/").code == 0
    assert [request["prompt"] for request in requests_in(tmp_path / "out").values()] == ["a fox", "a hen"]


def test_a_random_seed_is_printed_and_stored(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "--seed=-1", "-o", "a.png")
    seed = requests_in(tmp_path)["a.png"]["seed"]
    assert outcome.err == f"seed {seed}\n"
    assert cli("generate", "a cat", "-m", tiny_model, "-o", "b.png", "-q").err == ""
    assert requests_in(tmp_path)["b.png"]["seed"] != seed


# Files


def test_numbers_go_on_where_the_folder_ends(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    for seed in ("3", "2"):
        assert cli("generate", "a cat", "-m", tiny_model, "-s", seed, "-n", "2").code == 0
    names = sorted(path.name for path in (tmp_path / "outputs").iterdir())
    assert [name.split("-", 3)[3] for name in names] == ["00001-3.png", "00002-4.png", "00003-2.png", "00004-3.png"]
    assert all(re.match(r"\d{4}-\d\d-\d\d-", name) for name in names)


def test_a_number_right_behind_a_word_is_read_whole(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    for number in (2, 10):
        (tmp_path / f"a-cat{number:03}.png").touch()
    assert cli("generate", "a cat", "-m", tiny_model, "-o", "{prompt_slug}{n:03}.png").out == "a-cat011.png\n"
    for number in (1, 2):
        assert cli("generate", "a", "-m", tiny_model, "-s", "42", "-o", "{seed}{n:03}.png").out == f"4200{number}.png\n"


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (("-o", "{prompt_slug}-{n:03}.webp"), "a-red-cat-001.webp"),
        (("-o", "x.jpg"), "x.jpg"),
        (("-o", "pictures", "--format", "jpg"), r"pictures/.*-00001-5\.jpg"),
    ],
)
def test_names_and_formats(arguments: tuple[str, ...], name: str, cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "A  red/../Cat!", "-m", tiny_model, "-s", "5", *arguments)
    assert outcome.code == 0, outcome.err
    assert re.fullmatch(name, outcome.out.strip())
    _, text = read_picture(tmp_path / outcome.out.strip())
    assert text.document is not None


def test_a_prompt_too_long_for_a_jpeg_costs_that_picture_alone(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\n" + "é" * 20_000 + "\na hen\n")
    outcome = cli(
        "generate", "--prompts", "prompts.txt", "-m", tiny_model, "--format", "jpg", "-o", "drawn", "--steps", "1"
    )
    assert outcome.code == 5
    assert "1 of 3 pictures failed: the prompt is too long for a JPEG's metadata" in outcome.err
    assert len(list((tmp_path / "drawn").iterdir())) == 2


def test_nothing_is_replaced_unless_asked(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"mine")
    assert cli("generate", "a cat", "-m", tiny_model, "-o", "a.png").code == 2
    assert (tmp_path / "a.png").read_bytes() == b"mine"
    assert cli("generate", "a cat", "-m", tiny_model, "-o", "a.png", "--overwrite").code == 0
    assert (tmp_path / "a.png").read_bytes() != b"mine"


def test_a_file_that_appears_meanwhile_is_kept(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentgen.pipeline import TextToImage

    draw = TextToImage.generate

    def slow(self: TextToImage, *arguments: object, **options: object) -> object:
        (tmp_path / "a.png").write_bytes(b"theirs")
        return draw(self, *arguments, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(TextToImage, "generate", slow)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-o", "a.png")
    assert (outcome.code, outcome.out) == (2, "")
    assert (tmp_path / "a.png").read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["a.png"]


def test_without_metadata_the_prompt_is_nowhere(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    assert cli("generate", "zanzibar", "-m", tiny_model, "--no-metadata", "-o", "out/").code == 0
    (path,) = (tmp_path / "out").iterdir()
    assert b"zanzibar" not in path.read_bytes()
    assert "zanzibar" not in path.name
    assert b"tEXt" not in path.read_bytes()
    assert b"iTXt" not in path.read_bytes()


def test_metadata_never_hold_paths_or_names_of_people(
    cli: Cli, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CANARY", "canary-9f31")
    assert cli("generate", "a cat", "-m", tiny_model, "-o", "a.png").code == 0
    with Image.open(tmp_path / "a.png") as picture:  # its texts: a short host name may occur among the pixels' bytes
        texts = "\n".join(f"{key}: {value}" for key, value in picture.info.items())
    assert "a cat" in texts
    for secret in (str(tiny_model.parent), str(tmp_path), os.uname().nodename, "canary-9f31"):
        assert not re.search(rf"(?<!\w){re.escape(secret)}(?!\w)", texts), secret


# Words


def test_json_is_one_event_a_line(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-n", "2", "-o", "{seed}.png", "--json")
    events = [json.loads(line) for line in outcome.out.splitlines()]
    assert [event["event"] for event in events] == [*["step"] * 4, "picture", *["step"] * 4, "picture", "done"]
    assert events[3] == {"event": "step", "done": 4, "total": 8}
    assert (events[4]["path"], events[4]["seed"], events[4]["denoise_s"] > 0) == ("5.png", 5, True)
    assert (events[-1]["pictures"], events[-1]["failed"], events[-1]["load_s"] > 0) == (2, 0, True)


@pytest.mark.parametrize(
    ("prompts", "line"),
    [
        (("a", "lighthouse", "at", "night"), "4 prompts of one word each: put a prompt of several words in quotes\n"),
        (("cat", "dog"), ""),
        (("cat", "dog", "a hen"), ""),
        (("-p", "cat", "-p", "dog", "-p", "hen"), ""),
    ],
)
def test_words_without_quotes_are_told(prompts: tuple[str, ...], line: str, cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", *prompts, "-m", tiny_model, "-s", "1", "--dry-run")
    assert (outcome.code, outcome.err) == (0, line)


def test_a_size_far_from_the_models_own_is_told(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    asked = ("generate", "a cat", "a dog", "-m", tiny_model, "-s", "1", "--size", "112x96", "--dry-run")
    assert cli(*asked).err == (
        "112x96 is far from the 64x64 that tiny draws at: things come out several times; "
        "--size 64x64 --hires 2x draws a large picture in two passes\n"
    )
    assert cli(*asked, "-q").err == ""
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    assert "far from" not in cli(*asked, "-i", "a.png").err


def test_a_dry_run_says_what_would_be_drawn_and_draws_nothing(cli: Cli, tiny_model: Path, tmp_path: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "5", "-n", "2", "--steps", "9", "--dry-run")
    lines = outcome.out.splitlines()
    assert len(lines) == 2
    assert re.search(r"outputs/.*-00002-6\.png  64x64  seed 6  9 steps dpmpp_2m karras  guidance 3  'a cat'", lines[1])
    assert os.listdir(tmp_path) == []
    plan = json.loads(cli("generate", "a cat", "-m", tiny_model, "-s", "5", "--dry-run", "--json").out)
    assert (plan["event"], plan["request"]["seed"]) == ("plan", 5)


def test_verbose_says_how_long_it_took(cli: Cli, tiny_model: Path) -> None:
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "1", "-o", "a.png", "-v", "--threads", "1")
    assert re.search(r"loaded tiny on cpu in \d+\.\d\d s\n1 of 1 pictures in \d+\.\d\d s\n", outcome.err)


# Failures while drawing


@pytest.mark.parametrize(("bad", "code", "drawn"), [((1,), 5, 2), ((0, 1, 2), 1, 0)])
def test_pictures_that_fail_do_not_take_the_others_along(
    bad: tuple[int, ...], code: int, drawn: int, cli: Cli, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from latentgen.pipeline import text_to_image

    class Poisoned(text_to_image.NoiseSource):
        def __init__(self, seeds: list[int], rng: str) -> None:
            super().__init__(seeds, rng)
            self.is_bad = seeds[0] in bad

        def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
            return super().draw(shape) * (float("nan") if self.is_bad else 1.0)

    monkeypatch.setattr(text_to_image, "NoiseSource", Poisoned)
    outcome = cli("generate", "a cat", "-m", tiny_model, "-s", "0", "-n", "3", "-o", "{seed}.png")
    assert outcome.code == code
    assert len(outcome.out.split()) == drawn
    assert "latents are not finite from step 1 of 4" in outcome.err
    assert outcome.err.count("\n") == 1
    assert len(list(Path().iterdir())) == drawn

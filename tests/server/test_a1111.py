"""A1111's interface: the pictures are those of the command line, to the byte, and what is not done is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from latentgen.checkpoints.lora import write_lora
from latentgen.cli.app import main
from latentgen.errors import RuntimeFailure
from latentgen.images.files import read_picture_text
from latentgen.server import jobs
from latentgen.server.app import Server
from tests.server.conftest import Ask, decoded, encoded, pixels_of
from tests.tiny_bundle import some_lora

TRUNCATED = encoded(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))[:8000]
TXT2IMG, IMG2IMG = "/sdapi/v1/txt2img", "/sdapi/v1/img2img"
FULL: dict[str, Any] = {
    "prompt": "a (red:1.2) cat",
    "negative_prompt": "rain",
    "seed": 5,
    "steps": 4,
    "cfg_scale": 6,
    "width": 64,
    "height": 48,
    "sampler_name": "DPM++ 2M",
    "scheduler": "Karras",
    "batch_size": 2,
    "n_iter": 1,
}
"""As its clients send it."""
SILENT: dict[str, Any] = {
    "styles": [],
    "subseed": -1,
    "subseed_strength": 0,
    "seed_resize_from_h": -1,
    "seed_resize_from_w": -1,
    "restore_faces": False,
    "tiling": False,
    "do_not_save_samples": False,
    "do_not_save_grid": False,
    "eta": 1.0,
    "denoising_strength": None,
    "s_min_uncond": 0,
    "s_churn": 0,
    "s_tmax": 99999,
    "s_tmin": 0,
    "s_noise": 1,
    "override_settings": {},
    "override_settings_restore_afterwards": True,
    "refiner_checkpoint": None,
    "refiner_switch_at": None,
    "disable_extra_networks": False,
    "comments": {},
    "enable_hr": False,
    "firstphase_width": 0,
    "firstphase_height": 0,
    "hr_scale": 2,
    "hr_upscaler": "Latent",
    "hr_second_pass_steps": 0,
    "hr_resize_x": 0,
    "hr_resize_y": 0,
    "hr_checkpoint_name": None,
    "hr_sampler_name": None,
    "hr_prompt": "",
    "hr_negative_prompt": "",
    "sampler_index": "Euler",
    "script_name": None,
    "script_args": [],
    "send_images": True,
    "save_images": False,
    "alwayson_scripts": {},
    "force_task_id": None,
    "infotext": None,
}
"""What that program's own documentation page sends beside it, at its defaults."""


SILENT_IMG2IMG: dict[str, Any] = {
    "resize_mode": 0,
    "inpainting_fill": 0,
    "inpaint_full_res": True,
    "inpaint_full_res_padding": 0,
    "mask_blur": 4,
    "inpainting_mask_invert": 0,
    "image_cfg_scale": 1.5,
    "initial_noise_multiplier": 1,
    "include_init_images": False,
}


def by_command(tiny_model: Path, *arguments: str) -> bytes:
    assert main(["generate", *arguments, "-m", str(tiny_model), "-o", "command.png", "--overwrite", "-q"]) == 0
    return Path("command.png").read_bytes()


def info_of(answer: dict[str, Any]) -> dict[str, Any]:
    return json.loads(answer["info"])


def test_pictures_are_those_of_the_command_line(ask: Ask, tiny_model: Path) -> None:
    answer = ask(TXT2IMG, FULL | SILENT)
    flags = ["--negative", "rain", "--steps", "4", "--cfg", "6", "--size", "64x48", "--sampler", "DPM++ 2M Karras"]
    for k, picture in enumerate(answer["images"]):
        assert decoded(picture) == by_command(tiny_model, FULL["prompt"], "-s", str(5 + k), *flags)
    assert len(answer["images"]) == 2
    info = info_of(answer)
    assert info["all_seeds"] == [5, 6]
    assert (info["sampler_name"], info["scheduler"], info["cfg_scale"]) == ("DPM++ 2M", "Karras", 6)
    assert info["could_not"] == []


def test_numbers_and_yes_or_no_may_come_as_texts(ask: Ask) -> None:
    """As a plugin sends what stands in its fields, and a template what it was given; "false" is not true."""
    numbers = {key: str(value) for key, value in FULL.items() if isinstance(value, int)}
    as_texts = {**numbers, "enable_hr": "false", "send_images": "true", "denoising_strength": "", "eta": "1.0"}
    answer = ask(TXT2IMG, FULL | SILENT | as_texts)
    assert answer["images"] == ask(TXT2IMG, FULL | SILENT)["images"]
    assert info_of(answer)["could_not"] == []
    assert ask(TXT2IMG, FULL | {"send_images": "false"})["images"] == []


def test_sides_of_a1111s_are_brought_to_the_models(ask: Ask) -> None:
    info = info_of(ask(TXT2IMG, {"prompt": "a cat", "seed": 1, "steps": 2, "width": 73, "height": 4}))
    assert (info["width"], info["height"]) == (80, 16)
    assert info["could_not"][0] == "width: 80 instead of 73; sides are multiples of 16"


def test_a_second_pass_ends_in_the_size_that_is_asked_for(ask: Ask) -> None:
    body = {"prompt": "a cat", "seed": 1, "steps": 2, "width": 64, "height": 48, "enable_hr": True, "hr_scale": 2}
    info = info_of(ask(TXT2IMG, body | {"hr_resize_x": 96, "hr_upscaler": "R-ESRGAN 4x+"}))
    assert "Hires upscale: 1.5" in info["infotexts"][0]
    assert [each.partition(":")[0] for each in info["could_not"]] == ["hr_upscaler"]
    info = info_of(ask(TXT2IMG, body | {"hr_resize_x": 0, "hr_upscaler": "Latent (nearest)"}))
    assert "Hires upscale: 2" in info["infotexts"][0]
    assert info["could_not"] == []


def test_what_other_clients_send_beside_it(ask: Ask, client: TestClient, server: Server) -> None:
    """SillyTavern its own settings, SD.Next's clients a clip skip, others the model under some name of its."""
    for name in (server.title, server.fingerprint, server.title.partition(" [")[0].upper() + ".safetensors"):
        overridden = {"sd_model_checkpoint": name, "samples_format": "png", "some_list": []}
        body = {**FULL, "url": "http://here", "auth": "user:secret", "clip_skip": 1, "override_settings": overridden}
        answer = ask(TXT2IMG, body)
        assert info_of(answer)["could_not"] == []
        assert "secret" not in json.dumps(answer["parameters"])
    assert client.get("/sdapi/v1/embeddings").json() == {"loaded": {}, "skipped": {}}


def test_what_is_not_said_is_the_models_default(ask: Ask, tiny_model: Path) -> None:
    answer = ask(TXT2IMG, {"prompt": "a cat", "seed": 3})
    assert decoded(answer["images"][0]) == by_command(tiny_model, "a cat", "-s", "3")


def test_infotexts_are_those_of_the_files(ask: Ask, tmp_path: Path) -> None:
    answer = ask(TXT2IMG, FULL)
    (tmp_path / "a.png").write_bytes(decoded(answer["images"][1]))
    _, _, text = read_picture_text(tmp_path / "a.png")
    assert info_of(answer)["infotexts"][1] == text.parameters
    assert "Seed: 6" in info_of(answer)["infotexts"][1]


def test_eta_is_ddims(ask: Ask, tiny_model: Path) -> None:
    body = {"prompt": "a cat", "seed": 3, "steps": 4, "sampler_name": "DDIM", "scheduler": "automatic", "eta": 0.5}
    answer = ask(TXT2IMG, body)
    flags = ["--steps", "4", "--sampler", "ddim", "--eta", "0.5"]
    assert decoded(answer["images"][0]) == by_command(tiny_model, "a cat", "-s", "3", *flags)
    assert info_of(answer)["could_not"] == []


def test_a_second_pass(ask: Ask, tiny_model: Path) -> None:
    body = {"prompt": "a cat", "seed": 3, "steps": 4, "enable_hr": True, "hr_scale": 2, "denoising_strength": 0.5}
    drawn = decoded(ask(TXT2IMG, body)["images"][0])
    flags = ["--steps", "4", "--hires", "2x", "--hires-strength", "0.5"]
    assert drawn == by_command(tiny_model, "a cat", "-s", "3", *flags)


def test_from_a_picture_under_a_mask(ask: Ask, tiny_model: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[8:32, 12:40] = 255
    body = {"prompt": "a cat", "seed": 3, "steps": 8, "denoising_strength": 0.6, "width": 64, "height": 48}
    body |= {"init_images": [f"data:image/png;base64,{encoded(photo)}"], "mask": encoded(mask), "mask_blur": 0}
    answer = ask(IMG2IMG, body)
    drawn = pixels_of(answer["images"][0])
    assert np.array_equal(drawn[mask == 0], photo[mask == 0])
    assert not np.array_equal(drawn[mask != 0], photo[mask != 0])
    Path("photo.png").write_bytes(decoded(encoded(photo)))
    Path("mask.png").write_bytes(decoded(encoded(mask)))
    flags = ["--steps", "8", "-i", "photo.png", "--strength", "0.6", "--mask", "mask.png", "--mask-blur", "0"]
    assert decoded(answer["images"][0]) == by_command(tiny_model, "a cat", "-s", "3", *flags)
    assert "init_images" not in answer["parameters"]
    assert "mask" not in answer["parameters"]


def test_what_is_told_of_a_picture_depends_on_what_it_changes(ask: Ask) -> None:
    photo, mask = np.full((48, 64, 3), 200, np.uint8), np.full((48, 64), 255, np.uint8)
    body = {"prompt": "a cat", "steps": 4, "init_images": [encoded(photo)], **SILENT_IMG2IMG}
    assert info_of(ask(IMG2IMG, body))["could_not"] == []
    assert told_of(ask(IMG2IMG, body | {"mask": encoded(mask)})) == ["inpainting_fill", "inpaint_full_res"]
    assert told_of(ask(IMG2IMG, body | {"width": 64, "height": 64})) == ["resize_mode"]
    assert told_of(ask(IMG2IMG, body | {"width": 64, "height": 64, "resize_mode": 1})) == []


def told_of(answer: dict[str, Any]) -> list[str]:
    """The keys that were not done."""
    return [remark.partition(":")[0] for remark in info_of(answer)["could_not"]]


def test_what_belongs_to_a_second_pass_is_told_beside_one(ask: Ask) -> None:
    said = {"prompt": "a cat", "steps": 2, "hr_second_pass_steps": 10, "hr_prompt": "dog", "refiner_switch_at": 0.8}
    assert told_of(ask(TXT2IMG, said)) == []
    with_it = said | {"enable_hr": True, "hr_scale": 4 / 3, "refiner_checkpoint": "xl"}
    assert sorted(told_of(ask(TXT2IMG, with_it))) == [
        "hr_prompt",
        "hr_second_pass_steps",
        "refiner_checkpoint",
        "refiner_switch_at",
    ]


def test_an_inverted_mask(ask: Ask) -> None:
    photo = np.full((48, 64, 3), 200, np.uint8)
    mask = np.zeros((48, 64), np.uint8)
    mask[:, 32:] = 255
    body = {"prompt": "a cat", "steps": 4, "init_images": [encoded(photo)], "mask": encoded(mask), "mask_blur": 0}
    drawn = pixels_of(ask(IMG2IMG, body | {"inpainting_mask_invert": 1})["images"][0])
    assert np.array_equal(drawn[:, 32:], photo[:, 32:])


@pytest.mark.parametrize(
    ("said", "remark"),
    [
        ({"tiling": True}, "tiling: pictures have edges"),
        ({"subseed_strength": 0.5}, "subseed_strength: the noise follows from one seed"),
        ({"alwayson_scripts": {"ControlNet": {}}}, "alwayson_scripts: there are no scripts"),
        ({"override_settings": {"eta_noise_seed_delta": 31337}}, "override_settings.eta_noise_seed_delta: not a"),
        ({"override_settings": {"randn_source": ["NV"]}}, "override_settings.randn_source: not a setting"),
        ({"eta": 0.5}, "eta: ancestral samplers add all of their noise"),
        ({"something_new": 3}, "something_new: not a setting that latentgen has"),
    ],
)
def test_what_is_not_done_is_said(ask: Ask, said: dict[str, Any], remark: str) -> None:
    (told,) = info_of(ask(TXT2IMG, {"prompt": "a cat", "steps": 2, **said}))["could_not"]
    assert told.startswith(remark)


def test_clip_skip_and_the_models_own_name_are_honoured(ask: Ask, server: Server) -> None:
    settings = {"CLIP_stop_at_last_layers": 2, "sd_model_checkpoint": server.title, "randn_source": "NV"}
    info = info_of(ask(TXT2IMG, {"prompt": "a cat", "steps": 2, "override_settings": settings}))
    assert (info["clip_skip"], info["could_not"]) == (2, [])
    assert "RNG: NV" in info["infotexts"][0]


def test_a_size_far_from_the_models_own_is_said(ask: Ask) -> None:
    info = info_of(ask(TXT2IMG, {"prompt": "a cat", "steps": 2, "width": 128, "height": 96}))
    assert [note for note in info["notes"] if note.startswith("128x96 is far from the 64x64 that ")]


def test_a_seed_of_64_bits_is_its_low_32(ask: Ask) -> None:
    info = info_of(ask(TXT2IMG, {"prompt": "a cat", "steps": 2, "seed": 156680208700286}))
    assert (info["seed"], info["all_seeds"]) == (4096709502, [4096709502])
    assert "seed 156680208700286: its low 32 bits, 4096709502, make the same noise" in info["notes"]


@pytest.fixture
def loras(tmp_path: Path) -> Path:
    folder = tmp_path / "data/latentgen/loras"
    folder.mkdir(parents=True)
    return folder


def test_a_lora_of_the_folder_is_drawn_with(client: TestClient, ask: Ask, loras: Path, tiny_model: Path) -> None:
    plain = ask(TXT2IMG, {"prompt": "a cat", "seed": 1, "steps": 2})["images"]
    write_lora(loras / "ink.safetensors", some_lora(1), "kohya")
    assert [each["name"] for each in client.get("/sdapi/v1/loras").json()] == ["ink"]
    answer = ask(TXT2IMG, {"prompt": "a cat <lora:ink:2>", "seed": 1, "steps": 2})
    assert decoded(answer["images"][0]) == by_command(tiny_model, "a cat <lora:ink:2>", "-s", "1", "--steps", "2")
    assert any(note.startswith("lora ink: ") for note in info_of(answer)["notes"])
    assert ask(TXT2IMG, {"prompt": "a cat", "seed": 1, "steps": 2})["images"] == plain


def test_a_lora_that_is_exchanged_is_read_again(ask: Ask, loras: Path, tiny_model: Path) -> None:
    words = {"prompt": "a cat <lora:ink:1>", "seed": 1, "steps": 2}
    for seed in (1, 2):
        write_lora(loras / "ink.safetensors", some_lora(seed), "kohya")
        drawn = decoded(ask(TXT2IMG, words)["images"][0])
        assert drawn == by_command(tiny_model, words["prompt"], "-s", "1", "--steps", "2")


def test_few_loras_are_kept(ask: Ask, server: Server, loras: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MAX_LORAS", 2)
    words = {"seed": 1, "steps": 2}
    for seed in range(4):
        write_lora(loras / f"l{seed}.safetensors", some_lora(seed), "kohya")
    first = ask(TXT2IMG, {"prompt": "a cat <lora:l0:1>", **words})["images"]
    for seed in range(1, 4):
        ask(TXT2IMG, {"prompt": f"a cat <lora:l{seed}:1>", **words})
    assert len(server.worker.pipeline.adapters._files) == 2  # pyright: ignore[reportPrivateUsage]
    assert ask(TXT2IMG, {"prompt": "a cat <lora:l0:1>", **words})["images"] == first


def test_a_damaged_lora_is_no_fault_of_the_servers(client: TestClient, loras: Path) -> None:
    (loras / "ink.safetensors").write_bytes(b"no weights")
    assert client.post(TXT2IMG, json={"prompt": "a cat <lora:ink:1>"}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        (TXT2IMG, {}, "the request: prompt is empty (say what to draw)"),
        (TXT2IMG, {"prompt": 3}, "prompt must be text, not 3"),
        (TXT2IMG, {"prompt": "a cat", "steps": 0}, "the request: steps 0 is out of range (1 to 1000)"),
        (TXT2IMG, {"prompt": "a cat", "cfg_scale": "7x"}, "cfg_scale: guidance must be a number, not '7x'"),
        (TXT2IMG, {"prompt": "a cat", "cfg_scale": "1e999"}, "cfg_scale: guidance must be a number, not '1e999'"),
        (TXT2IMG, {"prompt": "a cat", "width": "1e308"}, "width must be a whole number, not '1e308'"),
        (TXT2IMG, {"prompt": "a cat", "enable_hr": True, "hr_resize_x": "wide"}, "hr_resize_x must be a number of pix"),
        (TXT2IMG, {"prompt": "a cat", "enable_hr": "maybe"}, "enable_hr must be true or false, not 'maybe'"),
        (TXT2IMG, {"prompt": "a cat", "steps": 2.5}, "steps must be a whole number, not 2.5"),
        (TXT2IMG, {"prompt": "a cat", "width": -64}, "the request: width -64 "),
        (TXT2IMG, {"prompt": "a cat", "n_iter": 101}, "too many pictures for one request (at most 100)"),
        (TXT2IMG, {"prompt": "a cat", "n_iter": 2**40, "batch_size": 2**40}, "too many pictures for one request"),
        (TXT2IMG, {"prompt": "a cat", "n_iter": 0}, "n_iter 0 is out of range (1 or more)"),
        (TXT2IMG, {"prompt": "a cat", "n_iter": -2, "batch_size": -1}, "n_iter -2 is out of range (1 or more)"),
        (TXT2IMG, {"prompt": "a cat", "n_iter": 3, "width": 8192, "height": 8192}, "the pictures of one request hold"),
        (TXT2IMG, {"prompt": "a cat", "sampler_name": "x" * 10_000}, "sampler_name is a name of 10000 characters"),
        (TXT2IMG, {"prompt": "a cat", "sampler_name": "PLMS"}, "no such sampler: 'PLMS' (the nearest here"),
        (TXT2IMG, {"prompt": "a cat", "override_settings": [1]}, "override_settings must be an object"),
        (TXT2IMG, {"prompt": "a cat", "override_settings": {"sd_model_checkpoint": "xl"}}, "the model here is tiny ["),
        (IMG2IMG, {"prompt": "a cat"}, "init_images must be a list of one picture"),
        (IMG2IMG, {"prompt": "a cat", "init_images": [3]}, "init_images must be a picture in base64"),
        (IMG2IMG, {"prompt": "a cat", "init_images": ["?"]}, "init_images is not base64"),
        (IMG2IMG, {"prompt": "a cat", "init_images": ["aGVsbG8="]}, "picture is not a whole PNG, JPEG or WebP"),
        (IMG2IMG, {"prompt": "a cat", "init_images": [TRUNCATED]}, "the request: picture is not a whole PNG"),
        (IMG2IMG, {"prompt": "a cat", "init_images": [TRUNCATED], "width": 2**64}, "the request: picture is not"),
        ("/sdapi/v1/png-info", {"image": "aGVsbG8="}, "image is not a whole PNG, JPEG or WebP"),
        ("/sdapi/v1/options", {"sd_model_checkpoint": "xl"}, "the model here is tiny ["),
        ("/sdapi/v1/options", {"samples_format": "jpg"}, "samples_format is not a setting that can be changed here"),
    ],
)
def test_bad_requests_are_told_in_one_line(client: TestClient, path: str, body: dict[str, Any], message: str) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert response.json()["detail"].startswith(message)
    assert response.json()["error"]["message"] == response.json()["detail"]
    assert "/tmp" not in response.text, "a path of the server's"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[1]",
        b"\xff",
        b"[" * 100_000,
        b"1" * 10_000,
        b'{"prompt": "a cat", "foo": NaN}',
        b'{"prompt": "a cat", "foo": [1e400]}',
        b'{"prompt": "a cat", "foo": {"bar": -1' + b"0" * 100 + b"}}",
        b'{"prompt": "a \\ud800 cat"}',
        b'{"prompt": "a cat", "\\ud800": 1}',
    ],
)
def test_what_no_answer_could_repeat_is_refused(client: TestClient, data: bytes) -> None:
    response = client.post(TXT2IMG, content=data)
    assert response.status_code == 400
    assert "JSON" in response.json()["detail"]


def test_a_lora_that_is_not_there(client: TestClient) -> None:
    response = client.post(TXT2IMG, json={"prompt": "a cat <lora:ink:1>"})
    assert (response.status_code, response.json()["detail"][:40]) == (404, "<lora:ink>: there is no such LoRA (give ")


def test_a_picture_that_fails_leaves_the_others(ask: Ask, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    real, drawn = server.worker.pipeline._decode, list[int]()  # pyright: ignore[reportPrivateUsage]

    def second_fails(latents: Any, failure: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 2:
            raise RuntimeFailure("the latents are not finite")
        return real(latents, failure)

    monkeypatch.setattr(server.worker.pipeline, "_decode", second_fails)
    answer = ask(TXT2IMG, {"prompt": "a cat", "seed": 1, "steps": 2, "n_iter": 3})
    info = info_of(answer)
    assert (len(answer["images"]), info["all_seeds"], info["interrupted"]) == (2, [1, 3], False)
    assert info["notes"] == ["a picture could not be drawn: the latents are not finite"]


def test_what_clients_look_at_first(client: TestClient, server: Server) -> None:
    title = server.title
    (model,) = client.get("/sdapi/v1/sd-models").json()
    assert (model["title"], model["model_name"]) == (title, "tiny")
    assert client.get("/sdapi/v1/options").json()["sd_model_checkpoint"] == title
    assert client.post("/sdapi/v1/options", json={"sd_model_checkpoint": "tiny"}).status_code == 200
    assert "Euler a" in {each["name"] for each in client.get("/sdapi/v1/samplers").json()}
    assert "Karras" in {each["label"] for each in client.get("/sdapi/v1/schedulers").json()}
    for name in (
        "sd-vae",
        "upscalers",
        "embeddings",
        "hypernetworks",
        "prompt-styles",
        "loras",
        "scripts",
        "cmd-flags",
    ):
        assert client.get(f"/sdapi/v1/{name}").status_code == 200


def test_every_sampler_of_the_list_draws(client: TestClient, ask: Ask) -> None:
    for each in client.get("/sdapi/v1/samplers").json():
        answer = ask(TXT2IMG, {"prompt": "a cat", "steps": 2, "sampler_name": each["name"]})
        assert info_of(answer)["sampler_name"] == each["name"]


def test_what_a_picture_says(ask: Ask) -> None:
    drawn = ask(TXT2IMG, {"prompt": "a cat", "seed": 4, "steps": 2})["images"][0]
    said = ask("/sdapi/v1/png-info", {"image": drawn})
    assert said["info"].startswith("a cat\nSteps: 2, ")
    assert said["items"]["latentgen"]["request"]["seed"] == 4

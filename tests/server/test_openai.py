"""OpenAI's interface for pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from latentgen.cli.app import main
from tests.server.conftest import Ask, decoded, pixels_of

GENERATIONS = "/v1/images/generations"


def test_pictures_are_those_of_the_command_line(ask: Ask, tiny_model: Path) -> None:
    body = {"model": "gpt-image-1", "prompt": "a cat", "n": 2, "size": "64x48", "quality": "high", "user": "me"}
    answer = ask(GENERATIONS, body | {"seed": 7, "steps": 4, "cfg_scale": 5})
    flags = ["-m", str(tiny_model), "--steps", "4", "--guidance", "5", "--size", "64x48", "-q"]
    for k, row in enumerate(answer["data"]):
        assert main(["generate", "a cat", "-s", str(7 + k), *flags, "-o", f"{k}.png"]) == 0
        assert decoded(row["b64_json"]) == Path(f"{k}.png").read_bytes()
        assert row["seed"] == 7 + k
    assert (len(answer["data"]), answer["size"], answer["output_format"]) == (2, "64x48", "png")


def test_a_url_is_the_picture_itself(ask: Ask) -> None:
    body = {"prompt": "a cat", "seed": 7, "steps": 2}
    (row,) = ask(GENERATIONS, body | {"response_format": "url"})["data"]
    head, _, picture = row["url"].partition(",")
    assert head == "data:image/png;base64"
    assert np.array_equal(pixels_of(picture), pixels_of(ask(GENERATIONS, body)["data"][0]["b64_json"]))


def test_clients_of_dall_e_look_for_a_url(ask: Ask) -> None:
    body = {"prompt": "a cat", "seed": 7, "steps": 2, "model": "dall-e-3"}
    assert "url" in ask(GENERATIONS, body)["data"][0]
    assert "b64_json" in ask(GENERATIONS, body | {"response_format": "b64_json"})["data"][0]


@pytest.mark.parametrize(("name", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP")])
def test_other_formats(ask: Ask, name: str, kind: str) -> None:
    answer = ask(GENERATIONS, {"prompt": "a cat", "steps": 2, "size": "auto", "output_format": name})
    assert Image.open(io.BytesIO(decoded(answer["data"][0]["b64_json"]))).format == kind


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"prompt": ""}, "the request: prompt is empty (say what to draw)"),
        ({"n": "2"}, "n must be a whole number, not '2'"),
        ({"size": "large"}, "--size large is not a size"),
        ({"size": "65x64"}, "the request: width 65 does not fit this model"),
        ({"stream": True}, "stream: pictures are sent whole"),
        ({"response_format": "ftp"}, "response_format 'ftp' is not known (b64_json or url)"),
        ({"output_format": "gif"}, "output_format 'gif' is not known (png, jpeg, webp)"),
        ({"init_image": "/etc/passwd"}, "init_image names a file of the server's"),
        ({"mask": "/etc/passwd"}, "mask names a file of the server's"),
        ({"stpes": 3}, "there is no flag stpes (did you mean steps?)"),
        ({"overwrite": True}, "overwrite holds for the whole run"),
        ({"x" * 1000: 1}, "there is no flag xxx"),
        ({"steps": "x" * 1000}, "steps must be a whole number, not 'xxx"),
        ({"sampler": "x" * 1000}, "sampler is a name of 1000 characters"),
        ({"sampler": "ddim", "eta": 2**63}, "the request: eta 9223372036854775808 is out of range"),
    ],
)
def test_bad_requests_are_told_in_one_line(client: TestClient, said: dict[str, Any], message: str) -> None:
    response = client.post(GENERATIONS, json={"prompt": "a cat", "steps": 2, **said})
    assert response.status_code == 400
    error = response.json()["error"]
    assert len(error["message"]) < 600
    assert error["message"].startswith(message)
    assert error["type"] == "invalid_request_error"


def test_words_that_do_not_fit_into_a_jpeg(ask: Ask) -> None:
    answer = ask(GENERATIONS, {"prompt": "cat " * 20_000, "steps": 2, "output_format": "jpeg"})
    assert Image.open(io.BytesIO(decoded(answer["data"][0]["b64_json"]))).format == "JPEG"
    assert answer["notes"][-1].startswith("the picture carries no words: ")


def test_models(client: TestClient) -> None:
    (row,) = client.get("/v1/models").json()["data"]
    assert (row["id"], row["object"]) == ("tiny", "model")

"""A server over the tiny model, asked without a socket."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from latentgen.checkpoints.layout import read_config
from latentgen.cli.add_ons import AddOnOptions, AddOns
from latentgen.cli.console import Console
from latentgen.cli.preview import Decode, linear_decoder
from latentgen.pipeline import TextToImage
from latentgen.server.app import Server, make_app
from latentgen.server.jobs import Planner, Worker
from latentgen.server.telling import Teller
from tests.tiny_bundle import save_tiny_model

OWN_URL = "http://localhost:7860"

Ask = Callable[..., Any]
"""`ask(path, {...})`: the JSON that answers a POST, of which nothing must go wrong."""


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def server(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Server:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    config = read_config(tiny_model)

    def build() -> tuple[TextToImage, Decode]:
        pipeline = TextToImage.load(tiny_model)
        return pipeline, linear_decoder(pipeline)

    planner = Planner(tiny_model, config, AddOns.find(AddOnOptions(), config))
    return Server(planner, Worker(build, max_jobs=2), Teller(Console()))


@pytest.fixture
def client(server: Server) -> TestClient:
    return TestClient(make_app(server, only_loopback=True), base_url=OWN_URL, raise_server_exceptions=False)


@pytest.fixture
def ask(client: TestClient) -> Ask:
    def post(path: str, body: dict[str, Any]) -> Any:
        response = client.post(path, json=body)
        assert response.status_code == 200, response.text
        return response.json()

    return post


def decoded(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def pixels_of(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(decoded(text))))


def encoded(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()

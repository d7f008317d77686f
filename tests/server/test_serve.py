"""`latentgen serve` as a process: it says where it is, answers, and ends as it is told."""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image

from latentgen.cli.app import main

HARD_LIMIT_S = 60


@contextmanager
def serving(model: Path, *options: str) -> Generator[tuple[str, subprocess.Popen[str]]]:
    """A server on a free port: its address, and its process."""
    command = [sys.executable, "-m", "latentgen", "serve", "-m", str(model), "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def ask(url: str, body: dict[str, Any] | None = None, **headers: str) -> Any:
    data = None if body is None else json.dumps(body).encode()
    with urllib.request.urlopen(urllib.request.Request(url, data, headers), timeout=HARD_LIMIT_S) as response:
        return json.loads(response.read())


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str]:
    started = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=HARD_LIMIT_S)
    assert time.monotonic() - started < HARD_LIMIT_S / 2
    return process.returncode, err


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_it_draws_and_ends(tiny_model: Path, number: int, code: int, word: str) -> None:
    with serving(tiny_model) as (url, process):
        answer = ask(f"{url}/sdapi/v1/txt2img", {"prompt": "a cat", "seed": 1, "steps": 2})
        assert len(answer["images"]) == 1
        returned, err = ended(process, number)
        assert returned == code
        first, *_, last = err.splitlines()
        assert first.startswith("tiny on ")
        assert "/sdapi/v1/txt2img: 1 picture in " in err
        assert last.startswith(word)


def test_it_ends_while_it_draws(tiny_model: Path) -> None:
    with serving(tiny_model) as (url, process):
        answers: list[int] = []

        def long() -> None:
            try:
                ask(f"{url}/sdapi/v1/txt2img", {"prompt": "a cat", "steps": 1000, "n_iter": 100})
            except urllib.error.HTTPError as error:
                answers.append(error.code)

        client = Thread(target=long)
        client.start()
        while not ask(f"{url}/sdapi/v1/progress")["progress"]:
            time.sleep(0.05)
        assert ended(process, signal.SIGTERM)[0] == 143
        client.join(HARD_LIMIT_S)
        assert answers == [503]


def test_a_client_that_goes_away_is_drawn_for_no_longer(tiny_model: Path) -> None:
    with serving(tiny_model) as (url, _):
        host, port = url.removeprefix("http://").split(":")
        body = json.dumps({"prompt": "a cat", "steps": 1000, "n_iter": 100})
        with socket.create_connection((host, int(port))) as client:
            head = f"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
            client.sendall((head + body).encode())
            while not ask(f"{url}/sdapi/v1/progress")["progress"]:
                time.sleep(0.05)
        deadline = time.monotonic() + HARD_LIMIT_S
        while ask(f"{url}/sdapi/v1/progress?skip_current_image=true")["state"]["job_count"]:
            assert time.monotonic() < deadline, "it goes on"
            time.sleep(0.05)


def test_one_sees_and_stops_ones_own_picture(tiny_model: Path) -> None:
    with serving(tiny_model) as (url, _):
        answers: dict[str, Any] = {}

        def long(name: str) -> None:
            body = {"prompt": "a cat", "steps": 1000, "n_iter": 100, "force_task_id": name}
            answers[name] = ask(f"{url}/sdapi/v1/txt2img", body)

        clients = {name: Thread(target=long, args=(name,)) for name in ("first", "second")}
        clients["first"].start()
        while not (at := ask(f"{url}/sdapi/v1/progress"))["current_image"]:
            time.sleep(0.05)
        picture = Image.open(io.BytesIO(base64.b64decode(at["current_image"])))
        assert picture.size == (64, 64)
        clients["second"].start()
        while not (waiting := ask(f"{url}/sdapi/v1/progress?id_task=second"))["state"]["job"]:
            time.sleep(0.05)
        assert (waiting["state"]["job"], waiting["textinfo"]) == ("waiting", "1 before it")
        assert waiting["current_image"] is None
        for name in ("second", "first"):
            ask(f"{url}/sdapi/v1/interrupt", {"id_task": name})
            clients[name].join(HARD_LIMIT_S)
            assert json.loads(answers[name]["info"])["interrupted"]
            assert name == "first" or clients["first"].is_alive()


def test_a_launcher_that_reads_nothing_holds_nothing_up(tiny_model: Path) -> None:
    """A pipe that is full would stop whoever writes into it."""
    with serving(tiny_model) as (url, process):
        assert process.stderr is not None
        if sys.platform == "linux":  # elsewhere the pipe is larger than what is written here
            fcntl.fcntl(process.stderr, fcntl.F_SETPIPE_SZ, 4096)
        for _ in range(100):
            with pytest.raises(urllib.error.HTTPError):
                ask(f"{url}/sdapi/v1/{'x' * 100}")
        assert ask(f"{url}/health") == {"status": "ok"}
        process.send_signal(signal.SIGTERM)
        assert process.wait(HARD_LIMIT_S) == 143


def test_events_and_the_key_of_the_environment(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENTGEN_API_KEY", "secret")
    with serving(tiny_model, "--json") as (line, process):
        event = json.loads(line)
        assert (event["event"], event["model"]) == ("serving", "tiny")
        with pytest.raises(urllib.error.HTTPError, match="401"):
            ask(f"{event['url']}/v1/models")
        answer = ask(
            f"{event['url']}/v1/images/generations",
            {"prompt": "a cat", "seed": 9, "steps": 2},
            Authorization="Bearer secret",
        )
        assert [row["seed"] for row in answer["data"]] == [9]
        assert process.stdout is not None
        drawn = json.loads(process.stdout.readline())
        assert (drawn["event"], drawn["pictures"], drawn["seeds"]) == ("drawn", 1, [9])


def test_a_network_without_a_key_is_warned_of(tiny_model: Path) -> None:
    with serving(tiny_model, "--host", "0.0.0.0") as (url, process):
        assert url.startswith("http://0.0.0.0:")
        assert "warning: whoever reaches http://0.0.0.0:" in ended(process, signal.SIGTERM)[1]


def test_a_port_that_is_taken(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        assert main(["serve", "-m", str(tiny_model), "--port", str(port)]) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: cannot listen on 127.0.0.1 port {port}: Address already in use (another --port, or 0 for any)\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "no.such.host.invalid"], "error: --host no.such.host.invalid is no address of this machine"),
        (["--lora", "missing.safetensors"], "error: --lora missing.safetensors: there is no such LoRA"),
        (["--api-key", ""], "error: --api-key is empty (leave it out to answer everybody)"),
        (["--cors-origin", "*"], "error: --cors-origin * is not an origin"),
        (["--port", "70000"], "error: invalid value for '--port'"),
    ],
)
def test_bad_arguments(
    tiny_model: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["serve", "-m", str(tiny_model), *arguments]) in (2, 3)
    assert capsys.readouterr().err.startswith(message)


def test_without_the_packages(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["uvicorn"] = None
from latentgen.cli.app import main
raise SystemExit(main(["serve"]))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ}, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr == ('error: serving needs uvicorn, not installed here (pip install "latentgen[serve]")\n')

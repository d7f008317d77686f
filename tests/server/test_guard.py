"""Who may ask: other sites' pages and callers without the key are turned away, whatever they ask for."""

from __future__ import annotations

import base64
import errno
import re
from importlib.resources import files
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from latentgen.cli.serve import parse_origin
from latentgen.errors import InputError
from latentgen.server import app as app_module
from latentgen.server.app import Server, make_app
from latentgen.server.jobs import Planner
from tests.server.conftest import OWN_URL

ELSEWHERE = "http://elsewhere.example"


@pytest.mark.parametrize("host", ["localhost:7860", "127.0.0.1:7860", "[::1]:7860", "LOCALHOST"])
def test_names_of_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("host", ["elsewhere.example", "localhost.elsewhere.example:7860", "", "[", "10.0.0.1"])
def test_a_name_that_was_pointed_at_this_machine(client: TestClient, host: str) -> None:
    response = client.get("/health", headers={"Host": host})
    assert response.status_code == 403
    assert "does not answer to" in response.json()["detail"]


@pytest.mark.parametrize(
    ("host", "status"),
    [("192.168.1.2:7860", 200), ("[fe80::1]:7860", 200), ("studio.local:7860", 200), ("studio", 200), ("a.site", 403)],
)
def test_a_server_for_a_network(server: Server, host: str, status: int) -> None:
    """Without a key its names are those that no site on the internet has; with one, any."""
    open_to_all = TestClient(make_app(server, only_loopback=False), base_url=OWN_URL)
    assert open_to_all.get("/health", headers={"Host": host}).status_code == status
    for only_loopback in (False, True):  # the other way, behind a proxy on the same machine
        with_key = TestClient(make_app(server, only_loopback=only_loopback, api_key="k"), base_url=OWN_URL)
        assert with_key.get("/health", headers={"Host": host}).status_code == 200


def test_pages_of_other_sites(client: TestClient, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Planner, "plan", lambda self, entries: pytest.fail("it is planned"))
    body = '{"prompt": "a cat"}'
    simple = {"Origin": ELSEWHERE, "Content-Type": "text/plain"}  # what a page may send without asking first
    assert client.post("/sdapi/v1/txt2img", content=body, headers=simple).status_code == 403
    for origin in ("null", "http://[", "//", ""):
        assert client.post("/sdapi/v1/interrupt", headers={"Origin": origin}).status_code == 403
    assert client.get("/health", headers={"Origin": OWN_URL}).status_code == 200


def test_an_origin_that_is_allowed(server: Server) -> None:
    client = TestClient(make_app(server, only_loopback=True, api_key="k", origins=[ELSEWHERE]), base_url=OWN_URL)
    asked = {"Origin": ELSEWHERE, "Access-Control-Request-Method": "POST"}
    preflight = client.options("/sdapi/v1/txt2img", headers=asked | {"Access-Control-Request-Headers": "authorization"})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == ELSEWHERE
    answer = client.get("/v1/models", headers={"Origin": ELSEWHERE, "Authorization": "Bearer k"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, ELSEWHERE)
    assert client.get("/health", headers={"Origin": "http://third.example"}).status_code == 403
    refused = client.get("/v1/models", headers={"Origin": ELSEWHERE})
    assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, ELSEWHERE)


@pytest.mark.parametrize("text", ["*", "elsewhere.example", "http://", "http://a/b", "file:///a"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(InputError, match=r"is not an origin \(for instance"):
        parse_origin(text)
    assert parse_origin("HTTP://Localhost:3000/") == "http://localhost:3000"


def test_the_key(server: Server) -> None:
    client = TestClient(make_app(server, only_loopback=True, api_key="ключ"), base_url=OWN_URL)
    for path in ("/sdapi/v1/sd-models", "/v1/models", "/sdapi/v1/progress", "/nothing"):
        for given in (None, "Bearer", "Bearer wrong", "Basic ключ", "ключ"):
            headers = {} if given is None else {"Authorization": given.encode()}
            assert client.get(path, headers=headers).status_code == 401
    for right in ("bearer ключ".encode(), b"Basic " + base64.b64encode("any:ключ".encode())):
        assert client.get("/v1/models", headers={"Authorization": right}).status_code == 200
    for wrong in (b"any:other", "ключ".encode(), b"any:"):
        assert (
            client.get("/v1/models", headers={"Authorization": b"Basic " + base64.b64encode(wrong)}).status_code == 401
        )
    assert client.get("/v1/models").headers["www-authenticate"].startswith("Basic")
    assert client.get("/").status_code == 200, "the page, which asks for the key"


def test_too_large_a_body(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "MAX_BODY_BYTES", 2000)
    monkeypatch.setattr(app_module, "MAX_WORDS_BYTES", 1000)
    for path, limit in (("txt2img", 1000), ("options", 1000), ("img2img", 2000), ("png-info", 2000)):
        response = client.post(f"/sdapi/v1/{path}", json={"prompt": "a" * 2000})
        assert (response.status_code, response.json()["detail"]) == (400, f"the request holds more than {limit} bytes")


def test_paths_and_methods_that_there_are_not(client: TestClient) -> None:
    assert client.get("/nothing").json()["detail"] == "GET /nothing: Not Found"
    assert client.get("/sdapi/v1/txt2img").status_code == 405


def test_a_bug_is_told_and_its_traceback_kept(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Planner, entries: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(Planner, "plan", broken)
    response = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat"})
    assert response.status_code == 500
    found = re.fullmatch(
        r"this is a bug in latentgen: ZeroDivisionError: division by zero \(details: (.+)\)", response.json()["detail"]
    )
    assert found is not None
    assert "ZeroDivisionError" in Path(found[1]).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x"), 500, "cannot write /x: No space left on device"),
        (MemoryError(), 507, "not enough memory (a smaller --size"),
    ],
)
def test_a_full_disk_and_memory_are_no_bugs(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, message: str
) -> None:
    def refused(self: Planner, entries: object) -> None:
        raise error

    monkeypatch.setattr(Planner, "plan", refused)
    response = client.post("/sdapi/v1/txt2img", json={"prompt": "a cat"})
    assert response.status_code == status
    assert response.json()["detail"].startswith(message)


def test_the_page_needs_nothing_from_outside(client: TestClient, server: Server) -> None:
    response = client.get("/")
    assert "tiny" in response.text
    assert 'value="dpmpp_2m"' in response.text
    assert not re.search(r"(https?:)?//\w", response.text), "an address"
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy
    template = files("latentgen.server").joinpath("page.html").read_text(encoding="utf-8")
    assert set(re.findall(r'ask\("([^"?]+)', template)) <= {route.path for route in server.routes()}

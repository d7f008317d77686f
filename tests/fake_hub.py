"""A Hugging Face hub on loopback: the few answers that huggingface_hub needs to fetch a model, and a log of questions.

Weights are "large" files: they have an LFS entry with their SHA-256, and are served from another port, as by the hub's
file servers, to which no token may travel. Source: the endpoints that `huggingface_hub/hf_api.py` and
`file_download.py` call.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest


@dataclass
class FakeRepository:
    revisions: dict[str, str]
    """Branch or tag to commit."""
    commits: dict[str, dict[str, bytes]]
    """Commit to files."""
    error: tuple[int, str] | None = None
    """Status and X-Error-Code of every answer."""
    token: str | None = None
    """What a request must carry to be answered."""


@dataclass
class FakeHub:
    repositories: dict[str, FakeRepository] = field(default_factory=dict)
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    """Method, path and headers (lower case) of all that was asked of the hub and of its file server."""
    drops: dict[str, list[int]] = field(default_factory=dict)
    """By path of a file: after how many bytes of each next answer the connection is dropped."""
    spoiled: set[str] = field(default_factory=set)
    """Files that arrive with a byte that is not theirs."""
    resumes: bool = True
    """Whether the file server knows Range."""
    endpoint: str = ""
    files_endpoint: str = ""

    def add(self, repository: str, folder: Path, *, revision: str = "main", commit: str = "a" * 40) -> FakeRepository:
        """A repository whose `revision` holds the files of a folder."""
        entry = self.repositories.setdefault(repository, FakeRepository({}, {}))
        entry.revisions[revision] = commit
        entry.commits[commit] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
        }
        return entry

    def fetched(self) -> list[tuple[str, str]]:
        """Each file whose content was sent, with the Range that was asked for."""
        found: list[tuple[str, str]] = []
        for method, address, headers in self.requests:
            match = re.fullmatch(r"/[^/]+/[^/]+/resolve/[^/]+/(.+)|/blob/[^/]+/(.+)", address)
            if method == "GET" and match and (match[2] or not is_large(match[1])):
                found.append((match[2] or match[1], headers.get("range", "")))
        return found


def is_large(path: str) -> bool:
    return path.endswith((".safetensors", ".bin", ".ckpt"))


@contextmanager
def serve(hub: FakeHub) -> Generator[FakeHub]:
    class HubHandler(_Handler):
        owner = hub

        def answer(self) -> None:
            if match := re.fullmatch(r"/api/models/([^/?]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?", self.path):
                self.information(match[1], match[2] or "main")
            elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^?]+)", self.path):
                self.file(*match.groups())
            else:
                self.refuse(404, "EntryNotFound")

    class FilesHandler(_Handler):
        owner = hub

        def answer(self) -> None:
            _, _, sha256, path = self.path.split("/", 3)
            contents = (files.get(path) for entry in hub.repositories.values() for files in entry.commits.values())
            content = next(each for each in contents if each and hashlib.sha256(each).hexdigest() == sha256)
            self.content(content, path)

    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for handler in (HubHandler, FilesHandler)]
    hub.endpoint, hub.files_endpoint = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    threads = [threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.owner.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        self.answer()

    do_HEAD = do_GET

    def answer(self) -> None:
        raise NotImplementedError

    def log_message(self, format: str, *args: object) -> None:
        pass

    def entry(self, repository: str) -> FakeRepository | None:
        """The repository, or None after the refusal has been sent."""
        entry = self.owner.repositories.get(repository)
        if entry is None:
            self.refuse(404, "RepoNotFound")
        elif entry.error is not None:
            self.refuse(*entry.error)
        elif entry.token is not None and self.headers.get("authorization") != f"Bearer {entry.token}":
            self.refuse(401, "GatedRepo")
        else:
            return entry
        return None

    def information(self, repository: str, revision: str) -> None:
        entry = self.entry(repository)
        if entry is None:
            return
        commit = entry.revisions.get(revision, revision)
        if commit not in entry.commits:
            self.refuse(404, "RevisionNotFound")
            return
        siblings = []
        for path, content in entry.commits[commit].items():
            lfs = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            siblings.append({"rfilename": path, "size": len(content)} | ({"lfs": lfs} if is_large(path) else {}))
        body = json.dumps({"id": repository, "modelId": repository, "sha": commit, "siblings": siblings}).encode()
        self.send(200, body, {"Content-Type": "application/json"})

    def file(self, repository: str, revision: str, path: str) -> None:
        entry = self.entry(repository)
        if entry is None:
            return
        commit = entry.revisions.get(revision, revision)
        content = entry.commits.get(commit, {}).get(path)
        if content is None:
            self.refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
            return
        headers = {"X-Repo-Commit": commit}
        if is_large(path):
            sha256 = hashlib.sha256(content).hexdigest()
            headers |= {
                "X-Linked-Etag": f'"{sha256}"',
                "X-Linked-Size": str(len(content)),
                "Location": f"{self.owner.files_endpoint}/blob/{sha256}/{path}",
            }
            self.send(302, b"", headers)
        else:
            self.content(content, path, headers | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'})

    def content(self, content: bytes, path: str, headers: dict[str, str] | None = None) -> None:
        if path in self.owner.spoiled:
            content = bytes([content[0] ^ 1]) + content[1:]
        begin, status, extra = 0, 200, {**(headers or {}), "Content-Length": str(len(content))}
        if self.owner.resumes and (match := re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))):
            begin, status = int(match[1]), 206
            extra["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            extra["Content-Length"] = str(len(content) - begin)
        body = content[begin:]
        drops = self.owner.drops.get(path)
        if drops and self.command == "GET":
            body = body[: drops.pop(0)]
            self.close_connection = True
        self.send(status, body, extra)

    def refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self.send(status, b"", {**(headers or {}), **({"X-Error-Code": code} if code else {})})

    def send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@contextmanager
def fake_hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[FakeHub]:
    """A hub of its own, an empty cache in `home`, and huggingface_hub online, without its waits between attempts.

    The library reads these settings when it is imported, and the tests import it offline (`conftest.py`).
    """
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1024)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setenv("HF_HOME", str(home))
    with serve(FakeHub()) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        yield hub

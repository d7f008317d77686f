"""Who may ask: an ASGI layer in front of the routes that turns away other sites' pages and callers without the key.

A server on one's own machine can be reached by every page that is open in a browser there. A page of another site is
known by its Origin, and one whose name was pointed at this machine (DNS rebinding) by its Host.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import socket
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from latentgen.cli.serve import is_loopback
from latentgen.server.failures import error_response

OPEN: Final = ("/", "/health")
"""Paths that need no key: the page itself, which then asks for it."""
_OWN_NETWORK: Final = (".local", ".lan", ".home", ".home.arpa", ".internal")
"""Endings of names that no site on the internet has."""


class Guard:
    """403 for another site's page and for a name that may be one's, 401 without the key."""

    def __init__(
        self, app: ASGIApp, *, only_loopback: bool, api_key: str | None = None, origins: Sequence[str] = ()
    ) -> None:
        """Where a key is asked for, the server is reached by any name: a proxy's, say. Without one, by a name of this
        machine itself if only_loopback, else by an address or a name of its own network.

        origins: of other sites' pages that may ask, such as "http://localhost:3000".
        """
        self.app = app
        self._only_loopback = only_loopback
        self._api_key = api_key
        self._origins = frozenset(origins)
        self._names = {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        answering = self.app if refusal is None else error_response(*refusal)
        await answering(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        """Status and message for who may not ask."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self._answers_to(_host(f"//{host}")):
            hint = "localhost or 127.0.0.1" if self._only_loopback else "its address; with --api-key any name"
            return 403, f"this server does not answer to {host or 'no name'} ({hint})"
        if origin is not None and origin not in self._origins and origin.partition("//")[2] != host:
            return 403, f"this server is not for pages of {origin} (latentgen serve --cors-origin ORIGIN)"
        if self._api_key is not None and scope["path"] not in OPEN and not self._has_key(headers):
            return 401, "the API key is missing or wrong (Authorization: Bearer KEY, or the key as a password)"
        return None

    def _answers_to(self, name: str | None) -> bool:
        if name is None:
            return False
        if self._api_key is not None:
            return True
        if self._only_loopback:
            return is_loopback(name)
        return "." not in name or name.endswith(_OWN_NETWORK) or name in self._names or _is_address(name)

    def _has_key(self, headers: dict[str, str]) -> bool:
        """As a token, which OpenAI's clients send, or as a password under any name, which A1111's do."""
        assert self._api_key is not None, "there is no key"
        kind, _, told = headers.get("authorization", "").partition(" ")
        key = told.strip(" \t").encode("latin-1")
        if kind.lower() == "basic":
            try:
                key = base64.b64decode(key, validate=True).partition(b":")[2]
            except ValueError:
                return False
        elif kind.lower() != "bearer":
            return False
        return hmac.compare_digest(key, self._api_key.encode())


def _host(url: str) -> str | None:
    """The name in a URL, in small letters; None if there is none or it is no URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True

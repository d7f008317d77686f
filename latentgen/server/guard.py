"""Who may ask: an ASGI layer in front of the routes that turns away other sites' pages and callers without the key.

A server on one's own machine can be reached by every page that is open in a browser there. A page of another site is
known by its Origin, and one whose name was pointed at this machine (DNS rebinding) by its Host.
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from typing import Final
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from latentgen.server.failures import error_response

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HOST_HINT: Final = "localhost or 127.0.0.1; for others: latentgen serve --host ADDRESS"
_CORS_HINT: Final = "latentgen serve --cors-origin ORIGIN"
OPEN: Final = ("/", "/health")
"""Paths that need no key: the page itself, which then asks for it."""


class Guard:
    """403 for another site's page, 401 without the key, and leave for the origins that are allowed (CORS)."""

    def __init__(
        self, app: ASGIApp, *, only_loopback: bool, api_key: str | None = None, origins: Sequence[str] = ()
    ) -> None:
        """only_loopback: the server is reached by a name of this machine itself, and by no other.

        origins: of pages that may ask, such as "http://localhost:3000".
        """
        self._origins = tuple(origin.rstrip("/") for origin in origins)
        cors = CORSMiddleware(app, allow_origins=self._origins, allow_methods=["*"], allow_headers=["*"])
        self.app = cors if self._origins else app
        self._only_loopback = only_loopback
        self._api_key = api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        origin = headers.get("origin")
        host = headers.get("host", "")
        if self._only_loopback and _name(f"//{host}") not in LOOPBACK:
            refusal = error_response(403, f"this server does not answer to {host or 'no name'} ({_HOST_HINT})")
            await refusal(scope, receive, send)
        elif origin is not None and urlsplit(origin).netloc != host and origin not in self._origins:
            refusal = error_response(403, f"this server is not for pages of {origin} ({_CORS_HINT})")
            await refusal(scope, receive, send)
        elif scope["method"] != "OPTIONS" and not self._has_key(scope["path"], headers.get("authorization", "")):
            refusal = error_response(401, "the API key is missing or wrong (Authorization: Bearer KEY)")
            await refusal(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _has_key(self, path: str, authorization: str) -> bool:
        if self._api_key is None or path in OPEN:
            return True
        kind, _, key = authorization.partition(" ")
        return kind.lower() == "bearer" and hmac.compare_digest(key.strip().encode("latin-1"), self._api_key.encode())


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None

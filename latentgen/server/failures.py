"""What goes wrong, as answers: the command line's own line, in a form that clients of either interface read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentgen.cli.boundary import as_ours, one_line, record_bug
from latentgen.errors import InputError, LatentgenError, ModelLoadError, ModelNotFoundError, OutOfMemoryError
from latentgen.server.jobs import Busy
from latentgen.server.telling import Teller

MAX_TRACEBACKS: Final = 20
"""Files that a server writes of bugs, which a client might meet again and again."""
BUSY: Final = 503
_STATUS: Final = (
    (Busy, BUSY),
    (ModelNotFoundError, 404),
    (ModelLoadError, 400),
    (InputError, 400),
    (OutOfMemoryError, 507),
)
_STATUS_OF_CODE: Final = {OutOfMemoryError.exit_code: 507}


def error_response(status: int, message: str) -> JSONResponse:
    """OpenAI's error object, and A1111's `detail`.

    OpenAI's clients ask again where an answer's number is 500 or more; only a server that was busy should be.
    """
    headers = {"WWW-Authenticate": 'Basic realm="latentgen"'} if status == 401 else None
    if status >= 500:
        headers = {"x-should-retry": "true" if status == BUSY else "false"}
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error, "detail": message}, status, headers)


class Failures:
    """Starlette's exception handlers. Each answers, and tells the operator."""

    def __init__(self, teller: Teller) -> None:
        self._teller = teller
        self._tracebacks = 0

    def handlers(self) -> dict[Any, Callable[[Request, Exception], Awaitable[Response]]]:
        return {LatentgenError: self.ours, HTTPException: self.refused, Exception: self.other}

    async def ours(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, LatentgenError)
        status = next((number for kind, number in _STATUS if isinstance(error, kind)), 500)
        return self._answer(request, status, str(error))

    async def refused(self, request: Request, error: Exception) -> Response:
        """Of a path or a method that there is not."""
        assert isinstance(error, HTTPException)
        return self._answer(request, error.status_code, f"{request.method} {request.url.path}: {error.detail}")

    async def other(self, request: Request, error: Exception) -> Response:
        """Of a full disk or memory, and of a bug of ours, whose traceback goes to a file as the command line's does."""
        known = as_ours(error)
        if known is not None:
            message, hint, code = known
            return self._answer(request, _STATUS_OF_CODE.get(code, 500), one_line(message, hint, limit=None))
        self._tracebacks += 1
        if self._tracebacks > MAX_TRACEBACKS:
            return self._answer(request, 500, "this is a bug in latentgen, and not the first: see those before")
        try:
            message, hint = record_bug(error)
        except OSError:
            message, hint = f"this is a bug in latentgen: {type(error).__name__}: {error}", None
        return self._answer(request, 500, one_line(message, hint, limit=None))

    def _answer(self, request: Request, status: int, message: str) -> Response:
        self._teller.failed(request.url.path, status, message)
        return error_response(status, message)

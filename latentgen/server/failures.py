"""What goes wrong, as answers: the command line's own line, in a form that clients of either interface read."""

from __future__ import annotations

from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from latentgen.cli.boundary import record_bug
from latentgen.errors import InputError, LatentgenError, ModelNotFoundError, OutOfMemoryError, is_out_of_memory
from latentgen.server.jobs import Busy

_STATUS: Final = ((Busy, 503), (ModelNotFoundError, 404), (InputError, 400), (OutOfMemoryError, 507))


def error_response(status: int, message: str) -> JSONResponse:
    """OpenAI's error object, and A1111's `detail`."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": message, "type": kind, "param": None, "code": None}
    return JSONResponse({"error": error, "detail": message}, status)


async def on_failure(request: Request, error: Exception) -> Response:
    """Of our own errors."""
    assert isinstance(error, LatentgenError)
    status = next((number for kind, number in _STATUS if isinstance(error, kind)), 500)
    return error_response(status, str(error))


async def on_refusal(request: Request, error: Exception) -> Response:
    """Of a path or a method that there is not."""
    assert isinstance(error, HTTPException)
    return error_response(error.status_code, f"{request.method} {request.url.path}: {error.detail}")


async def on_bug(request: Request, error: Exception) -> Response:
    """Of a bug of ours, whose traceback goes to a file as the command line's does; and of memory that ran out."""
    if is_out_of_memory(error):
        return error_response(507, "not enough memory (a smaller size needs less)")
    message, hint = record_bug(error)
    return error_response(500, f"{message} ({hint})")

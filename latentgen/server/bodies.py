"""The JSON that clients send: an object's values as flags of a picture, and pictures that travel in base64."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from latentgen.cli.flag_names import SIZE, find_flag, sides
from latentgen.errors import InputError
from latentgen.images.files import open_picture

Body = Mapping[str, Any]


def parse_body(data: bytes) -> Body:
    """The object in a request. Raises InputError for anything else."""
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, a number of thousands of digits
        raise InputError(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InputError("the request is no JSON object", hint='{"prompt": "a lighthouse at sunset"}')
    return cast("Body", body)


def text_of(body: Body, key: str) -> str | None:
    """A text; None if it is not given. Raises InputError for another kind of value."""
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key} must be text, not {value!r}")
    return value


def whole(body: Body, key: str, default: int) -> int:
    """A whole number. Raises InputError for another kind of value."""
    value = as_whole(body.get(key))
    if value is None:
        return default
    if type(value) is not int:
        raise InputError(f"{key} must be a whole number, not {value!r}")
    return value


def as_whole(value: Any) -> Any:
    """20.0 as 20, as clients write whole numbers whose language has floats alone; all else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flag_value(key: str, name: str, value: Any) -> dict[str, Any]:
    """The fields of `Flags` that a value stands for; `name` is the flag's, `key` what the client calls it.

    Raises InputError for a flag that there is not, that names a file here, or a value of the wrong kind.
    """
    flag = find_flag(name)
    if flag.kind is Path:
        raise InputError(f"{key} names a file of the server's", hint="send the picture itself: /sdapi/v1/img2img")
    if flag.kind is int:
        value = as_whole(value)
    try:
        read = flag.from_json(value)
    except InputError as error:
        message = error.message if key == flag.name else f"{key}: {error.message}"
        raise InputError(message, hint=error.hint) from None
    return dict(sides(read)) if flag.field == SIZE else {flag.field: read}


def save_picture(key: str, value: Any, path: Path) -> Path:
    """Write a picture's base64 text, or a data: URL of one, to a file. Raises InputError if it is none."""
    if not isinstance(value, str):
        raise InputError(f"{key} must be a picture in base64")
    _, _, encoded = value.rpartition(",") if value.startswith("data:") else ("", "", value)
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{key} is not base64", hint="the bytes of a PNG, JPEG or WebP file in base64") from None
    path.write_bytes(data)
    try:
        with open_picture(path):
            return path
    except InputError as error:  # the client has no business with where its picture lies here
        raise InputError(error.message.replace(str(path), key), hint=error.hint) from None


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

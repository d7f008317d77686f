"""The JSON that clients send: an object's values as flags of a picture, and pictures that travel in base64."""

from __future__ import annotations

import base64
import binascii
import json
import tempfile
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from latentgen.cli.flag_names import SIZE, find_flag, sides
from latentgen.errors import InputError
from latentgen.images.foreign import short

Body = Mapping[str, Any]
MAX_NUMBER: Final = 2**64
MAX_NAME_CHARACTERS: Final = 200
"""Of texts that name something; a misspelt one is looked for among the known ones."""


def parse_body(data: bytes) -> Body:
    """The object in a request. Raises InputError for anything else, and for what no answer could repeat."""
    try:
        body = json.loads(data, parse_constant=_refuse)
        _check(body)
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, not UTF-8, a number of thousands of digits
        raise InputError(f"the request is not JSON: {error}") from None
    if not isinstance(body, dict):
        raise InputError("the request is no JSON object", hint='{"prompt": "a lighthouse at sunset"}')
    return cast("Body", body)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _check(value: Any) -> None:
    """Raise ValueError for numbers beyond 64 bits or a float, and for halves of characters, anywhere in it."""
    if isinstance(value, str):
        value.encode()  # UnicodeEncodeError is one
    elif isinstance(value, int | float):
        if not -MAX_NUMBER <= value <= MAX_NUMBER:
            raise ValueError("a number in it is too large")
    elif isinstance(value, list):
        for each in cast("list[Any]", value):
            _check(each)
    elif isinstance(value, dict):
        for key, each in cast("dict[str, Any]", value).items():
            key.encode()
            _check(each)


def text_of(body: Body, key: str) -> str | None:
    """A text; None if it is not given. Raises InputError for another kind of value."""
    value = body.get(key)
    if value is not None and not isinstance(value, str):
        raise InputError(f"{key} must be text, not {short(repr(value))}")
    return value


def name_in(body: Body, key: str) -> str | None:
    """A text that names something; None if there is none. Raises InputError for another kind of value."""
    value = text_of(body, key) or None
    if value is not None and len(value) > MAX_NAME_CHARACTERS:
        raise InputError(f"{key} is a name of {len(value)} characters", hint=f"at most {MAX_NAME_CHARACTERS}")
    return value


def number_of_pictures(body: Body, key: str) -> int:
    """A whole number from 1 on, by default that. Raises InputError for another kind of value."""
    value = as_whole(body.get(key))
    if value is None:
        return 1
    if type(value) is not int:
        raise InputError(f"{key} must be a whole number, not {short(repr(value))}")
    if value < 1:
        raise InputError(f"{key} {value} is out of range", hint="1 or more")
    return value


def is_true(body: Body, key: str, *, default: bool = False) -> bool:
    """A yes or no, which some clients send as a number or a text. Raises InputError for anything else."""
    value = body.get(key)
    if value is None or value == "":
        return default
    word = value.strip().casefold() if isinstance(value, str) else value
    if word in (True, "true", "1"):
        return True
    if word in (False, "false", "0"):
        return False
    raise InputError(f"{key} must be true or false, not {short(repr(value))}")


def as_whole(value: Any) -> Any:
    """20.0 as 20, as clients write whole numbers whose language has floats alone; all else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flag_value(key: str, name: str, value: Any) -> dict[str, Any]:
    """The fields of `Flags` that a value stands for; `name` is the flag's, `key` what the client calls it.

    Raises InputError for a flag that there is not, that names a file here, or a value of the wrong kind.
    """
    if len(name) > MAX_NAME_CHARACTERS:
        raise InputError(f"there is no flag {short(name)}")
    flag = find_flag(name)
    if flag.kind is Path:
        raise InputError(f"{key} names a file of the server's", hint="send the picture itself: /sdapi/v1/img2img")
    if flag.kind is int:
        value = as_whole(value)
    if flag.kind is not str:
        value = short(value) if isinstance(value, str) else value
    elif flag.field != "negative_prompt" and isinstance(value, str) and len(value) > MAX_NAME_CHARACTERS:
        raise InputError(f"{key} is a name of {len(value)} characters", hint=f"at most {MAX_NAME_CHARACTERS}")
    try:
        read = flag.from_json(value)
    except InputError as error:
        message = short(error.message if key == flag.name else f"{key}: {error.message}")
        raise InputError(message, hint=error.hint) from None
    return dict(sides(read)) if flag.field == SIZE else {flag.field: read}


@contextmanager
def uploads() -> Generator[Path]:
    """A folder for what a client sends, for as long as its request is worked on. No error tells where it lies."""
    with tempfile.TemporaryDirectory(prefix="latentgen-") as name:
        try:
            yield Path(name)
        except InputError as error:
            raise InputError(error.message.replace(f"{name}/", ""), hint=error.hint) from None


def save_picture(key: str, value: Any, path: Path) -> Path:
    """Write a picture's base64 text, or a data: URL of one, to a file. Raises InputError if it is no base64."""
    if not isinstance(value, str):
        raise InputError(f"{key} must be a picture in base64")
    _, _, encoded = value.rpartition(",") if value.startswith("data:") else ("", "", value)
    try:
        data = base64.b64decode("".join(encoded.split()), validate=True)
    except (binascii.Error, ValueError):
        raise InputError(f"{key} is not base64", hint="the bytes of a PNG, JPEG or WebP file in base64") from None
    path.write_bytes(data)
    return path


def in_base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")

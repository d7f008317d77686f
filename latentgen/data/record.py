"""One picture of a data set with its captions, or the reason why it cannot be trained on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, NamedTuple, cast


class Fault(StrEnum):
    """Why a picture is not used: the words a user reads and counts by."""

    NO_CAPTION = "no caption"
    EMPTY_CAPTION = "empty caption"
    BAD_TEXT = "caption is not UTF-8 text"
    BAD_LABELS = "metadata cannot be read"
    SHARED_NAME = "shares its caption with another picture"
    CASE_ONLY = "name differs from another's only in case"
    NAMED_TWICE = "occurs twice"
    INCOMPLETE = "not one picture with one .txt"
    NOT_A_FILE = "no regular file"
    OUTSIDE = "leads out of the data folder"
    UNREADABLE = "cannot be read"
    DAMAGED_SHARD = "damaged shard"
    FOREIGN = "no PNG, JPEG or WebP picture"
    DAMAGED = "damaged picture"
    TOO_LARGE = "too large"
    TOO_SMALL = "too small"
    TOO_LONG = "too elongated"
    ANIMATED = "animation"


class Stamp(NamedTuple):
    """What tells without reading it that a file is still the one that was read; `touch` alone changes it."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    """Also changes where a program puts the modification time back."""


@dataclass(frozen=True, slots=True)
class Record:
    """One picture and its captions; the picture's bytes stay on disk until `read`."""

    key: str
    captions: tuple[str, ...]
    path: Path
    offset: int | None = None
    """Where the picture starts in a tar shard; None when `path` is the picture itself."""
    size_bytes: int = 0
    labels: Mapping[str, Any] = field(default_factory=dict[str, Any])
    sha256: str = ""
    """Of the encoded picture; empty until it was looked at (`scan.py`), as the two below."""
    size_px: tuple[int, int] = (0, 0)
    """Width and height, upright."""
    stamp: Stamp | None = None
    """Of the file at `path`, taken before the picture was read."""

    @property
    def file(self) -> str:
        """The file that holds the picture, relative to the data folder."""
        return self.path.name if self.offset is not None else self.key + self.path.suffix

    @property
    def name(self) -> str:
        """What the picture is called in messages and manifests: `x.png`, or `00000.tar/x`."""
        return self.file if self.offset is None else f"{self.file}/{self.key}"

    def read(self) -> bytes:
        """The encoded picture."""
        if self.offset is None:
            return self.path.read_bytes()
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size_bytes)


@dataclass(frozen=True, slots=True)
class Skipped:
    """A picture that is not used. A shard that cannot be read as a whole is one of these, too."""

    file: str
    fault: Fault
    detail: str = ""

    @property
    def reason(self) -> str:
        return f"{self.fault.value}: {self.detail}" if self.detail else self.fault.value

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"


class FaultError(Exception):
    """A picture or its caption cannot be used; whoever catches it knows the file's name."""

    def __init__(self, fault: Fault, detail: str = "") -> None:
        super().__init__(f"{fault.value}: {detail}" if detail else fault.value)
        self.fault, self.detail = fault, detail

    def skipped(self, file: str) -> Skipped:
        return Skipped(file, self.fault, self.detail)


def parse_labels(text: str) -> dict[str, Any]:
    """A JSON object. Raises FaultError for anything else."""
    try:
        labels = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FaultError(Fault.BAD_LABELS, f"not JSON: {error}") from None
    if not isinstance(labels, dict):
        raise FaultError(Fault.BAD_LABELS, "it is no JSON object")
    return cast("dict[str, Any]", labels)


def take_captions(labels: dict[str, Any], first: object) -> tuple[str, ...]:
    """The captions of a picture: the list `captions`, taken out of its labels, or else `first` alone."""
    captions = labels.pop("captions", None)
    return check_captions(captions if captions is not None else [first])


def check_captions(captions: object) -> tuple[str, ...]:
    """Captions as they are trained on, stripped. Raises FaultError for what is no text, or says nothing."""
    if not isinstance(captions, Sequence) or isinstance(captions, str):
        raise FaultError(Fault.BAD_LABELS, "captions are not a list of strings")
    checked: list[str] = []
    for caption in cast("Sequence[object]", captions):
        if not isinstance(caption, str):
            raise FaultError(Fault.BAD_LABELS, "captions are not a list of strings")
        if "\0" in caption:  # so reads UTF-16 without its mark
            raise FaultError(Fault.BAD_TEXT, "it holds NUL characters")
        try:
            caption.encode()
        except UnicodeEncodeError:
            raise FaultError(Fault.BAD_TEXT, "it holds half a surrogate pair") from None
        if not caption.strip():
            raise FaultError(Fault.EMPTY_CAPTION)
        checked.append(caption.strip())
    if not checked:
        raise FaultError(Fault.EMPTY_CAPTION)
    return tuple(checked)


def decode_caption(data: bytes) -> str:
    """A caption file's text. Raises FaultError where it is not UTF-8."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise FaultError(Fault.BAD_TEXT, f"byte {error.start} is {data[error.start]:#04x}") from None

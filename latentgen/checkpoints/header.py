"""The header of a safetensors file, checked strictly before a byte of data is read.

The format: eight bytes of little-endian length, that many bytes of JSON (name -> dtype, shape, data_offsets), then the
data. The reference reader is looser: it takes duplicate keys, unknown fields and control characters in names, and asks
for gigabytes where a header lists a million tensors. A file that passes here also opens there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any, BinaryIO, Final, NoReturn, cast

from latentgen.errors import ModelLoadError, ModelNotFoundError
from latentgen.file_starts import picture_format

MAX_HEADER_BYTES: Final = 16 * 2**20
"""The U-Net of SD 1.5 needs 0.1 MB; the format allows 100 MB."""
MAX_TENSORS: Final = 20_000

DTYPE_BYTES: Final = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Element types of the networks we load; quantised ones (F8, F4 ...) are refused by name."""
QUANTISED_BYTES: Final = {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "U32": 4, "U64": 8}
"""Element types that other models' files use: accepted where a file is only to be named."""

DOWNLOAD_AGAIN: Final = "the file is damaged or incomplete; copy or download it again"


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """Where a tensor lies in the file and what it is."""

    name: str
    dtype: str
    """A key of DTYPE_BYTES, or of QUANTISED_BYTES where those were asked for."""
    shape: tuple[int, ...]
    begin: int
    """First byte, counted from the start of the file."""
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The tensors of a file in the order they lie in it, and its free-form text metadata."""

    entries: tuple[TensorEntry, ...]
    metadata: dict[str, str]


def open_header(path: Path, *, quantised: bool = False) -> Header:
    """The header of the file at `path`, however large the file.

    Raises ModelNotFoundError if there is no such file, ModelLoadError as `read_header` and for one that is unreadable.
    """
    try:
        with path.open("rb") as file:
            return read_header(file, os.fstat(file.fileno()).st_size, path, quantised=quantised)
    except FileNotFoundError:
        raise ModelNotFoundError(f"no such file: {path}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None


def read_header(file: BinaryIO, size: int, path: Path, *, quantised: bool = False) -> Header:
    """Read and check the header of a file `size` bytes long; `path` is for messages.

    `quantised` accepts the element types of QUANTISED_BYTES too, of which no tensor can be read here.

    Raises ModelLoadError naming what is wrong: another kind of file, a length out of bounds, JSON with duplicate keys,
    a tensor whose bytes, shape and dtype disagree, tensors that overlap or leave gaps.
    """
    start = file.read(1024)
    if foreign := recognise_foreign(start, path):
        raise ModelLoadError(f"{path} {foreign[0]}", hint=foreign[1])
    length = int.from_bytes(start[:8], "little")
    if size < 10 or not 2 <= length <= size - 8:
        raise ModelLoadError(
            f"{path} is not a whole safetensors file: its header length does not fit", hint=DOWNLOAD_AGAIN
        )
    if length > MAX_HEADER_BYTES:
        raise ModelLoadError(f"{path}: a header of {length} bytes; at most {MAX_HEADER_BYTES} are accepted")
    file.seek(8)
    text = file.read(length)
    if len(text) < length:
        raise ModelLoadError(f"{path} became shorter while it was read")
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise ModelLoadError(f"{path}: more than {MAX_TENSORS} tensors; no network here has that many")
    known = DTYPE_BYTES | QUANTISED_BYTES if quantised else DTYPE_BYTES
    return _check_header(_parse(text, path), 8 + length, size, path, known)


def recognise_foreign(start: bytes, path: Path) -> tuple[str, str] | None:
    """What a file that is no safetensors file is, by its first bytes, and the way out; None if it may be one."""
    head = start.lstrip()[:64].lower()
    if not start:
        return "is empty", DOWNLOAD_AGAIN
    if start.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the weights themselves", "run: git lfs pull"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not weights", "the download needs another link or a login; download it again"
    if start.startswith(b"GGUF"):
        return "is a GGUF file, which is not read here", "take the same model as .safetensors"
    if picture_format(start) is not None:
        return "is a picture, not weights", f"what it was made with: latentgen info {quote(path.name)}"
    if is_pickle(start):
        ending = "-tensors.safetensors" if path.suffix.lower() == ".safetensors" else ".safetensors"
        way_out = f"to copy its tensors out: latentgen convert {quote(path.name)} {quote(path.stem + ending)}"
        return "is a pickle, which could run code; it is never opened here", way_out
    return None


def is_pickle(start: bytes) -> bool:
    """Whether a file that begins so is one of torch's pickles: in a zip archive, or bare as before torch 1.6."""
    return start.startswith((b"PK\x03\x04", b"\x80\x02}", b"\x80\x02\x8a", b"\x80\x04\x95"))


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    def refuse(problem: str) -> NoReturn:
        raise ModelLoadError(f"{path}: malformed header: {problem}", hint=DOWNLOAD_AGAIN)

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            refuse(f"{twice!a} appears twice")
        return found

    def natural(digits: str) -> int:
        if digits.startswith("-") or len(digits) > 19:
            refuse(f"number {digits[:24]}")
        return int(digits)

    def no_float(digits: str) -> NoReturn:
        refuse(f"number {digits[:24]}")

    if not text.startswith(b"{"):
        refuse("it does not begin with {")
    try:
        value = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=unique,
            parse_int=natural,
            parse_float=no_float,
            parse_constant=no_float,
        )
    except UnicodeDecodeError as error:
        refuse(f"not UTF-8 at byte {error.start}")
    except json.JSONDecodeError as error:
        refuse(f"{error.msg} at character {error.pos}")
    except RecursionError:
        refuse("nested too deeply")
    return cast("dict[str, Any]", value)


def _check_header(content: dict[str, Any], data_start: int, size: int, path: Path, known: Mapping[str, int]) -> Header:
    metadata = content.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelLoadError(f"{path}: malformed header: __metadata__ must map text to text")
    entries = [_check_entry(name, fields, data_start, path, known) for name, fields in content.items()]
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    position = data_start
    for entry in entries:
        if entry.begin != position:
            problem = "overlaps the tensor before it" if entry.begin < position else "leaves a gap before it"
            raise ModelLoadError(f"{path}: tensor {entry.name} {problem}", hint=DOWNLOAD_AGAIN)
        position = entry.end
    if position != size:
        verb = "is cut short" if position > size else "has bytes after the last tensor"
        raise ModelLoadError(f"{path} {verb}: {size} bytes where the header says {position}", hint=DOWNLOAD_AGAIN)
    return Header(tuple(entries), cast("dict[str, str]", metadata))


def read_account(path: Path, kind: str) -> dict[str, Any] | None:
    """What latentgen wrote of itself into a safetensors file's metadata; None if that is not of this kind.

    Raises FileNotFoundError for a file that is not there, ModelLoadError for one that is no safetensors file.
    """
    try:
        with path.open("rb") as file:
            header = read_header(file, os.fstat(file.fileno()).st_size, path)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    try:
        account = json.loads(header.metadata.get("latentgen", "null"))
    except (json.JSONDecodeError, RecursionError):
        return None
    known = cast("dict[str, Any]", account) if isinstance(account, dict) else {}
    return known if known.get("kind") == kind else None


def _check_entry(name: str, fields: object, data_start: int, path: Path, known: Mapping[str, int]) -> TensorEntry:
    if not name or len(name) > 512 or not name.isascii() or not name.isprintable():
        raise ModelLoadError(f"{path}: a tensor's name is not plain text: {name[:80]!a}")
    match fields:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(begin), int(end)], **rest} if not rest:
            pass
        case _:
            raise ModelLoadError(f"{path}: malformed header entry for tensor {name}", hint=DOWNLOAD_AGAIN)
    if not all(isinstance(side, int) for side in shape) or any(isinstance(n, bool) for n in (*shape, begin, end)):
        raise ModelLoadError(f"{path}: malformed header entry for tensor {name}", hint=DOWNLOAD_AGAIN)
    if dtype not in known:
        raise ModelLoadError(
            f"{path}: tensor {name} has the element type {dtype!a}, which is not supported",
            hint="use a float32, float16 or bfloat16 file",
        )
    room = known[dtype]
    for side in shape:
        room *= max(side, 1)  # an empty tensor has strides too, which must be numbers
        if room >= 2**63:
            raise ModelLoadError(f"{path}: tensor {name} is impossibly large: {shape[:8]}")
    needed = 0 if 0 in shape else room
    if end - begin != needed:
        raise ModelLoadError(
            f"{path}: tensor {name} holds {end - begin} bytes, but {dtype} {shape[:8]} needs {needed}",
            hint=DOWNLOAD_AGAIN,
        )
    return TensorEntry(name, dtype, tuple(shape), data_start + begin, data_start + end)

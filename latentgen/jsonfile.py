"""JSON files, read with errors that name file and line, and written so that a crash leaves the old file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from latentgen.errors import ModelLoadError

MAX_JSON_BYTES = 64 * 2**20
"""Far above any config or vocabulary (CLIP's vocab.json: 0.9 MB); a larger file is something else."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ModelLoadError naming the file and, where the text is not JSON, the line."""
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise ModelLoadError(f"{path} holds {size} bytes, too many for a config file", hint="is it a weights file?")
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ModelLoadError(
            f"{path} is missing", hint="the model folder is incomplete; copy or download it again"
        ) from None
    except UnicodeDecodeError as error:
        raise ModelLoadError(f"{path} is not UTF-8 text: byte {error.start}") from None
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    if text.startswith("version https://git-lfs"):
        raise ModelLoadError(f"{path} is a Git LFS pointer, not the file itself", hint="run: git lfs pull")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ModelLoadError(f"{path}, line {error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise ModelLoadError(f"{path}: not a config: nested too deeply") from None
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write an object as indented UTF-8 JSON. Written as `write_text` does."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file that is whole on the disk before it takes the place of an older one."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)

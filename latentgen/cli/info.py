"""`latentgen info`: what a picture, a weights file or a model folder holds, in milliseconds and without torch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Annotated, TypeGuard, cast

import typer

from latentgen.cli.foreign import foreign_summary
from latentgen.cli.options import Json
from latentgen.cli.summary import Summary, model_summary, print_summary, weights_summary
from latentgen.errors import ModelNotFoundError
from latentgen.file_starts import START_BYTES, picture_format


def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A picture, a .safetensors file or a model folder.")],
    json_output: Json = False,
) -> None:
    """Say what a picture, a weights file or a model folder holds.

    latentgen info outputs/2026-01-31-00001-42.png

    latentgen info my-model/ --json
    """
    try:
        kind = "folder" if path.is_dir() else _kind(_start(path))
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    summaries = {"folder": model_summary, "picture": picture_summary, "gif": gif_summary, "weights": weights_summary}
    summary = summaries[kind](path)
    if json_output:
        print(json.dumps(summary))
    else:
        print_summary({key: "\n".join(value) if _is_lines(value) else value for key, value in summary.items()})


def picture_summary(path: Path) -> Summary:
    """Format, size and whatever the picture says of itself: our metadata, else another tool's account."""
    from latentgen.images.files import read_picture_text
    from latentgen.images.foreign import read_foreign

    format, (width_px, height_px), text = read_picture_text(path)
    summary: Summary = {"file": path.name, "kind": f"{format} picture", "size": f"{width_px}x{height_px}"}
    document = dict(text.document or {})
    request = document.pop("request", None)
    if isinstance(request, dict):
        summary["made by"] = f"latentgen {document.pop('version', '?')}"
        summary |= cast("Summary", request) | {key: value for key, value in document.items() if key != "format"}
    elif (foreign := read_foreign(text)) is not None:
        summary |= foreign_summary(foreign)
    else:
        summary["made by"] = "unknown: there are no settings that latentgen reads"
        if text.parameters is not None:
            summary["text"] = text.parameters
    if text.chunks:
        summary["other text"] = ", ".join(text.chunks)
    return summary


def gif_summary(path: Path) -> Summary:
    """Its size: nobody writes settings into a GIF."""
    width_px, height_px = struct.unpack("<HH", _start(path)[6:10].ljust(4, b"\0"))
    unknown = "unknown: there are no settings that latentgen reads"
    return {"file": path.name, "kind": "GIF animation", "size": f"{width_px}x{height_px}", "made by": unknown}


def _is_lines(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(each, str) for each in cast("list[object]", value))


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(START_BYTES)


def _kind(start: bytes) -> str:
    format = picture_format(start)
    return "weights" if format is None else "gif" if format == "GIF" else "picture"

"""`latentgen info`: what a picture, a weights file or a model folder holds, in milliseconds and without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, cast

import typer

from latentgen.cli.options import Json
from latentgen.cli.summary import Summary, model_summary, print_summary, weights_summary
from latentgen.errors import ModelNotFoundError

_PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF")


def info(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A picture, a .safetensors file or a model folder.")],
    json_output: Json = False,
) -> None:
    """Say what a picture, a weights file or a model folder holds.

    latentgen info outputs/2026-01-31-00001-42.png

    latentgen info my-model/ --json
    """
    try:
        kind = "folder" if path.is_dir() else "picture" if _start(path).startswith(_PICTURE_STARTS) else "weights"
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    summary = {"folder": model_summary, "picture": picture_summary, "weights": weights_summary}[kind](path)
    if json_output:
        print(json.dumps(summary))
    else:
        print_summary(summary)


def picture_summary(path: Path) -> Summary:
    """Format, size and whatever the picture says of itself: our metadata, else A1111's parameters."""
    from latentgen.images.a1111 import parse_parameters
    from latentgen.images.files import read_picture_text

    format, (width_px, height_px), text = read_picture_text(path)
    summary: Summary = {"file": path.name, "kind": f"{format} picture", "size": f"{width_px}x{height_px}"}
    document = dict(text.document or {})
    request = document.pop("request", None)
    if isinstance(request, dict):
        summary["made by"] = f"latentgen {document.pop('version', '?')}"
        summary |= cast("Summary", request) | {key: value for key, value in document.items() if key != "format"}
    elif text.parameters is not None:
        parameters = parse_parameters(text.parameters)
        summary |= {"made by": "a tool that writes A1111 parameters", "prompt": parameters.prompt}
        if parameters.negative_prompt:
            summary["negative prompt"] = parameters.negative_prompt
        summary |= parameters.fields
    else:
        summary["made by"] = "unknown: there is no metadata that latentgen reads"
    if text.other:
        summary["other text"] = ", ".join(text.other)
    return summary


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)

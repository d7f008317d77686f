"""OpenAI's interface for pictures, `/v1/images/generations`, with the flags of a picture beside its own fields.

Source: the "Images" part of that interface's reference.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from latentgen.cli.plan import Entry, Flags
from latentgen.errors import InputError, RuntimeFailure
from latentgen.server.bodies import Body, flag_value, in_base64, name_in, number_of_pictures, text_of

if TYPE_CHECKING:
    from latentgen.pipeline import GenerationResult
    from latentgen.server.jobs import Job

_OWN: Final = frozenset({"prompt", "n", "size", "response_format", "output_format"})
_IGNORED: Final = frozenset(
    {"model", "quality", "style", "user", "background", "moderation", "output_compression", "partial_images", "stream"}
)
"""Fields that mean nothing to a model of this kind, or are looked at here."""
_FORMATS: Final = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


def read_generation(body: Body) -> tuple[Entry, str, bool]:
    """The prompt with its flags, the format of its pictures, and whether they are wanted as URLs. Raises InputError.

    Where nothing is said of that, they are for clients of DALL-E, which look for one, and for no others.
    """
    if body.get("stream"):
        raise InputError("stream: pictures are sent whole", hint="/sdapi/v1/progress shows them while they are drawn")
    values: dict[str, Any] = {"count": number_of_pictures(body, "n")}
    size = name_in(body, "size")
    if size not in (None, "auto"):
        values |= flag_value("size", "size", size)
    for key, value in body.items():
        if key not in _OWN and key not in _IGNORED and value is not None:
            values |= flag_value(key, key, value)
    usual = "url" if (name_in(body, "model") or "").startswith("dall-e") else "b64_json"
    wanted = name_in(body, "response_format") or usual
    if wanted not in ("b64_json", "url"):
        raise InputError(f"response_format {wanted!r} is not known", hint="b64_json or url")
    kind = name_in(body, "output_format") or "png"
    if kind not in _FORMATS:
        raise InputError(f"output_format {kind!r} is not known", hint=", ".join(_FORMATS))
    return Entry(text_of(body, "prompt") or "", Flags(**values), "the request"), kind, wanted == "url"


def answer(results: Sequence[GenerationResult], job: Job, kind: str, *, as_url: bool) -> dict[str, Any]:
    """The pictures, whose files carry their requests; a URL is the file itself, as `data:`.

    Raises RuntimeFailure if there is none.
    """
    if not results:
        raise RuntimeFailure("the drawing was interrupted before a picture was ready")
    rows: list[dict[str, Any]] = []
    notes = list(job.notes)
    for result in results:
        try:
            encoded = in_base64(result.encode(_FORMATS[kind]))
        except InputError as failure:  # its words do not fit into a JPEG
            encoded = in_base64(result.encode(_FORMATS[kind], with_metadata=False))
            notes.append(f"the picture carries no words: {failure.message}")
        picture = {"url": f"data:image/{kind};base64,{encoded}"} if as_url else {"b64_json": encoded}
        rows.append({**picture, "seed": result.seed})
    first = job.requests[0]
    size = f"{first.width_px}x{first.height_px}"
    return {"created": int(time.time()), "data": rows, "output_format": kind, "size": size, "notes": notes}


def models(name: str) -> dict[str, Any]:
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 0, "owned_by": "latentgen"}]}

"""The `parameters` text of AUTOMATIC1111's stable-diffusion-webui, which most tools and sites of the field read.

Prompt lines; `Negative prompt: ...` if there is one; then `Steps: 20, Sampler: Euler a, ...` on the last line. A value
that holds a comma, a colon or a line break is written as a JSON string.
Source: `create_infotext` and `parse_generation_parameters` in that project, whose files the tests hold samples of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

_NEGATIVE = "Negative prompt:"


@dataclass(frozen=True, slots=True)
class A1111Parameters:
    prompt: str
    negative_prompt: str = ""
    fields: Mapping[str, str] = field(default_factory=dict[str, str])
    """Of the last line, in its order: "Steps", "Sampler", "CFG scale", "Seed", "Size" ..."""


def format_parameters(parameters: A1111Parameters) -> str:
    """The text of the PNG chunk."""
    lines = [parameters.prompt]
    if parameters.negative_prompt:
        lines.append(f"{_NEGATIVE} {parameters.negative_prompt}")
    lines.append(", ".join(f"{key}: {_quote(value)}" for key, value in parameters.fields.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> A1111Parameters:
    """Read a `parameters` text, ours or another tool's. What is not a list of fields counts as prompt."""
    lines = text.strip().splitlines()
    fields: dict[str, str] = {}
    if lines and "Steps: " in lines[-1]:
        fields = _parse_fields(lines.pop())
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        if target is prompt and line.startswith(_NEGATIVE):
            target = negative
            line = line.removeprefix(_NEGATIVE)
        target.append(line.strip())
    return A1111Parameters("\n".join(prompt).strip(), "\n".join(negative).strip(), fields)


def _quote(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(sign in value for sign in ',:\n"') else value


def _parse_fields(line: str) -> dict[str, str]:
    """`Key: value, Key: "quoted, value", ...`; a piece without a colon ends the list."""
    fields: dict[str, str] = {}
    rest = line.strip()
    while rest:
        key, colon, rest = rest.partition(":")
        if not colon:
            break
        rest = rest.lstrip()
        value = ""
        if rest.startswith('"'):
            try:
                value, end = json.JSONDecoder().raw_decode(rest)
                rest = rest[end:].partition(",")[2]
            except json.JSONDecodeError:
                value = ""
        if not value:
            value, _, rest = rest.partition(",")
        fields[key.strip()] = str(value).strip()
        rest = rest.lstrip()
    return fields

"""What a report says in words and tables: settings, data, trained parts, history."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any, TypeGuard

from latentgen.training.charts import count
from latentgen.training.run_settings import HISTORY
from latentgen.training.run_story import Story

TITLES = {
    "lr": "Learning rate",
    "grad_norm": "Gradient norm",
    "samples_per_s": "Samples/s",
    "psnr_db": "PSNR, dB",
    "ssim": "SSIM",
    "l1": "L1",
    "kl": "KL",
    "unet": "U-Net",
    "vae": "VAE",
    "weights": "Loss weights",
}
START_FACTS = ("start", "step", "images_seen", "time", "processes", "parameters", "trainable")
"""Of a start's line: what the history says in words of its own; the rest it lists as it is."""


def facts(story: Story) -> str:
    plain = {key: value for key, value in story.config.items() if not isinstance(value, Mapping) and key != HISTORY}
    cards = [_card("Settings", _rows(plain))]
    cards += [_card(title_of(key), _rows(value)) for key, value in story.config.items() if isinstance(value, Mapping)]
    cards.append(_card("Data", _rows(_flat(story.data))))
    written = [
        (part.name, f"{millions(part.parameters)} parameters, {megabytes(part.size_bytes)}") for part in story.parts
    ]
    kept = ", ".join(count(step) for step in story.checkpoints)
    cards.append(_card("Trained parts", [*written, *([("checkpoints kept", f"step {kept}")] if kept else [])]))
    cards.append(_card("History", [_told(line) for line in story.history]))
    return f'<section><h2>Settings, data and history</h2><div class="facts">{"".join(cards)}</div></section>'


def _card(title: str, rows: Iterable[tuple[str, str]]) -> str:
    body = "".join(
        f'<tr{" class=bad" if name.startswith("failed") else ""}><th scope="row">{escape(name)}</th>'
        f"<td>{escape(value)}</td></tr>"
        for name, value in rows
    )
    return f'<div class="card"><h3>{escape(title)}</h3><table>{body}</table></div>' if body else ""


def _rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(str(name), shown(value)) for name, value in values.items()]


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one, with their names joined by a space."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat.update(_flat(value, f"{prefix}{name} ") if isinstance(value, Mapping) else {f"{prefix}{name}": value})
    return flat


def _told(line: Mapping[str, Any]) -> tuple[str, str]:
    """A line of the log that is about the run, as its name and its story."""
    step = count(line["step"])
    if line.get("failed"):
        return f"failed at step {step}", failure(line)
    if line.get("override"):
        return f"settings changed at step {step}", _overridden(line["override"])
    if line.get("interrupted"):
        return f"interrupted at step {step}", f"signal {line['signal']}" if "signal" in line else ""
    if line.get("end"):
        figures = {key: value for key, value in line.items() if key not in ("end", "step", "images_seen")}
        return f"ended at step {step}", ", ".join(f"{key} {shown(value)}" for key, value in figures.items())
    words = [f"{line[key]} {unit}" for key, unit in (("processes", "process"),) if is_count(line.get(key))]
    if is_count(line.get("processes")) and line["processes"] != 1:
        words = [f"{line['processes']} processes"]
    words += [f"{key} {shown(value)}" for key, value in line.items() if key not in START_FACTS]
    if isinstance(line.get("time"), str):
        words.insert(0, line["time"].replace("T", " ").replace("Z", " UTC"))
    return "started" if line["step"] == 0 else f"resumed at step {step}", ", ".join(words)


def _overridden(changes: object) -> str:
    """`lr from 0.001 to 0.0005`, where a change is told as the value before and the value now."""
    if not isinstance(changes, Mapping):
        return shown(changes)
    return ", ".join(
        f"{key} from {shown(pair[0])} to {shown(pair[1])}" if isinstance(pair, list) and len(pair) == 2 else str(key)
        for key, pair in changes.items()
    )


def failure(line: Mapping[str, Any]) -> str:
    """A failure in words; a line about a step that was not finite has the numbers."""
    if isinstance(line.get("error"), str):
        return line["error"]
    numbers = ", ".join(f"{name.replace('_', ' ')} {line[name]}" for name in ("loss", "grad_norm") if name in line)
    step = count(line["step"])
    return f"Step {step} was not finite: {numbers}" if numbers else f"Failed at step {step}"


# Values in words


def shown(value: object) -> str:
    """A setting as text; of a path from the root only the name, so that a report can be given away."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return ", ".join(shown(each) for each in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {shown(each)}" for key, each in value.items())
    text = str(value)
    return re.split(r"[/\\]", text.rstrip("/\\"))[-1] if re.match(r"/|~|[A-Za-z]:[/\\]", text) else text


def millions(parameters: int) -> str:
    return f"{parameters / 1e6:.1f} M" if parameters >= 1e6 else count(parameters)


def megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def duration(seconds: float) -> str:
    """`42 s`, `8.1 min`, `72 min`, `3.1 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.1f} min" if seconds < 600 else f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def title_of(name: str) -> str:
    return TITLES.get(name, name.replace("_", " ").capitalize())


def is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)

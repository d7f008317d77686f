"""The settings of a run, config.json, and what of them a resume may change.

config.json holds what the run goes on with, and under `history` what was overridden: at which step, which key, from
what to what.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentgen.errors import InputError, RuntimeFailure
from latentgen.jsonfile import write_json

CONFIG = "config.json"
HISTORY = "history"
MAY_CHANGE_ON_RESUME = frozenset(
    {
        "max_steps",
        "max_minutes",
        "save_every_steps",
        "keep",
        "sample_every_steps",
        "validate_every_steps",
        "log_every_steps",
    }
)
"""Settings that do not change what a step computes. A decaying learning rate's `max_steps` does."""

Differences = Mapping[str, tuple[Any, Any]]
"""Key -> its value then, and now."""


def write_settings(folder: Path, settings: Mapping[str, Any]) -> None:
    """Write a run's config.json, as a whole. Raises RuntimeFailure if the disk refuses."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / CONFIG, as_read_back(settings))
    except OSError as error:
        raise RuntimeFailure(f"cannot write to {folder}: {error.strerror}") from None


def check_settings(folder: Path, settings: Mapping[str, Any], *, override: Sequence[str]) -> Differences:
    """Compare a run's settings with those it is to go on with; the differences that were asked for.

    Raises InputError naming the keys that differ and are not in `override`, or the key in `override` that no run has.
    """
    before, now = _read(folder), as_read_back(settings)
    before.pop(HISTORY, None)
    known = before.keys() | now.keys()
    for key in override:
        if key not in known:
            raise InputError(f"--override {key}: no such setting", hint="those of " + str(folder / CONFIG))
    may_change = MAY_CHANGE_ON_RESUME
    if now.get("lr_scheduler") != "constant":  # the learning rate of every step depends on the last
        may_change -= {"max_steps"}
    changed = {
        key: (before.get(key), now.get(key))
        for key in sorted(known)
        if key not in may_change and before.get(key) != now.get(key)
    }
    if refused := [key for key in changed if key not in override]:
        differences = "; ".join(f"{key}: {changed[key][0]!r} then, {changed[key][1]!r} now" for key in refused)
        ways = " ".join(f"--override {key}" for key in refused)
        hint = f"use the same, or another --out, or {ways}"
        raise InputError(f"cannot resume {folder}: its settings differ: {differences}", hint=hint)
    return changed


def take_up(folder: Path, settings: Mapping[str, Any], differences: Differences, step: int) -> None:
    """Take settings up into config.json, and note in its history the differences that were asked for at `step`.

    Raises RuntimeFailure if the disk refuses; the file is then as it was.
    """
    before, now = _read(folder), as_read_back(settings)
    history = before.pop(HISTORY, [])
    may_change = {key: now[key] for key in MAY_CHANGE_ON_RESUME if key in now}
    after = {**before, **may_change, **{key: value for key, (_, value) in differences.items()}}
    if differences:
        history.append({"step": step, "changed": {key: list(values) for key, values in differences.items()}})
    if differences or after != before:
        write_settings(folder, {**after, **({HISTORY: history} if history else {})})


def as_read_back(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON gives them back: tuples are lists."""
    return json.loads(json.dumps(settings))


def _read(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text())
        if not isinstance(settings, dict):
            raise ValueError("it holds no object")
        return settings
    except (OSError, ValueError) as error:
        hint = "without it nobody can say whether the run may go on; restore it, or choose another --out"
        raise RuntimeFailure(f"{folder / CONFIG} cannot be read: {error}", hint=hint) from error

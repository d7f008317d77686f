"""`data.json` of a run folder: what the run was trained on, so that a resume can say what has changed since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentgen.data.record import Record, Stamp
from latentgen.data.records import content_hash, fingerprint
from latentgen.data.scan import Seen
from latentgen.errors import RuntimeFailure
from latentgen.jsonfile import write_text

SHOWN = 3
"""Pictures named for each kind of change."""


def data_manifest(records: Sequence[Record]) -> dict[str, Any]:
    """What is kept about a data set: its fingerprint, and of each picture the hashes, the size and the file's stamp.

    Names are relative to the data folder.
    """
    return {
        "fingerprint": fingerprint(records),
        "pictures": {
            record.name: {
                "sha256": content_hash(record),
                "captions": hashlib.sha256(json.dumps(record.captions).encode()).hexdigest()[:16],
                "size_px": list(record.size_px),
                "stamp": None if record.stamp is None else list(record.stamp),
            }
            for record in records
        },
    }


def describe_change(before: Mapping[str, Any], after: Mapping[str, Any], *, captions: bool = True) -> str:
    """What differs between two manifests, such as "2 pictures added (x.png, y.png), 1 changed (z.png)".

    The empty string where their fingerprints are the same; or, without captions, their pictures.
    """
    if before["fingerprint"] == after["fingerprint"]:
        return ""
    then, now = before["pictures"], after["pictures"]
    if not captions:
        if [(name, then[name]["sha256"]) for name in then] == [(name, now[name]["sha256"]) for name in now]:
            return ""
        now = {name: {**entry, "captions": then.get(name, entry)["captions"]} for name, entry in now.items()}
    common = [name for name in now if name in then]
    changes = {
        "added": [name for name in now if name not in then],
        "removed": [name for name in then if name not in now],
        "changed": [name for name in common if then[name]["sha256"] != now[name]["sha256"]],
        "captioned differently": [name for name in common if then[name]["captions"] != now[name]["captions"]],
    }
    parts: list[str] = []
    for what, names in changes.items():
        if names:
            noun = "" if parts else " picture" if len(names) == 1 else " pictures"
            shown = ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
            parts.append(f"{len(names)}{noun} {what} ({shown})")
    return ", ".join(parts) or "their order changed"


def pictures_seen(manifest: Mapping[str, Any]) -> dict[str, Seen]:
    """A manifest's pictures by name, for `scan` to know again."""
    return {
        name: Seen(Stamp(*entry["stamp"]), entry["sha256"], (entry["size_px"][0], entry["size_px"][1]))
        for name, entry in manifest["pictures"].items()
        if entry["stamp"] is not None
    }


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Raises RuntimeFailure if the disk refuses. ASCII: a file's name need not be valid UTF-8."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(manifest) + "\n")
    except OSError as error:
        raise RuntimeFailure(f"cannot write {path}: {error.strerror}") from None


def read_manifest(path: Path) -> dict[str, Any] | None:
    """A manifest that `write_manifest` wrote; None if there is none. Raises RuntimeFailure for a damaged one."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        pictures_seen(manifest)
        _ = manifest["fingerprint"], [(entry["captions"]) for entry in manifest["pictures"].values()]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        hint = "without it nobody can say whether the data has changed; restore it, or choose another --out"
        raise RuntimeFailure(f"{path} cannot be read: {error}", hint=hint) from None
    return manifest

"""A training run's folder: resolved config, log, sample pictures, checkpoints that are whole or absent.

    config.json            what the run was started with; a resume must agree
    log.jsonl              one JSON object a line; after a resume, the later line about a step counts
    samples/               pictures drawn while training
    step_NNNNNNNN/         model.safetensors, ema.safetensors, optimizer.safetensors, manifest.json

A checkpoint is written into a temporary folder beside its place, every file is flushed to disk, the manifest with
sizes and SHA-256 comes last, then the folder is renamed. Old checkpoints are removed only after that. So a process
killed at any moment leaves the previous checkpoint or the new one, never half of one.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentgen.checkpoints.io import read_tensors, sha256, sync_folder, write_tensors
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.jsonfile import write_json

logger = logging.getLogger(__name__)

CONFIG = "config.json"
MANIFEST = "manifest.json"
MAY_CHANGE_ON_RESUME = frozenset(
    {"max_steps", "max_minutes", "save_every_steps", "keep", "sample_every_steps", "log_every_steps"}
)
"""Settings that do not change what a step computes. A cosine schedule's `max_steps` does."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after `step` optimizer steps."""

    step: int
    images_seen: int
    model: dict[str, Tensor]
    ema: dict[str, Tensor]
    """Empty when the run keeps no EMA."""
    optimizer: dict[str, Tensor]


class RunDir:
    """See the module's docstring."""

    def __init__(self, path: Path) -> None:
        self.path = path

    # Starting and resuming

    def start(self, config: Mapping[str, Any], *, resume: str | None) -> Checkpoint | None:
        """Begin a run or take one up again; None for a fresh start.

        resume: None (the folder must hold no run), "latest" (it must), "auto" (whichever is the case). A run that was
        stopped before its first checkpoint is begun again, with settings as they are now.
        Raises InputError when the folder's config differs from `config`, naming the keys.
        """
        self.check_start(resume)
        settings: dict[str, Any] = json.loads(json.dumps(config))  # as they read back: tuples are lists
        if self.checkpoint_folders():
            self._check_config(settings)
            return self.latest()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_json(self.path / CONFIG, settings)
        except OSError as error:
            raise RuntimeFailure(f"cannot write to {self.path}: {error.strerror}") from None
        return None

    def check_start(self, resume: str | None) -> None:
        """Whether the folder holds a run, as `resume` has it: a look that can be had before anything is computed."""
        started = (self.path / CONFIG).exists() or bool(self.checkpoint_folders())
        if started and resume is None:
            hint = "--resume latest continues it, or choose another --out"
            raise InputError(f"{self.path} already holds a run", hint=hint)
        if not started and resume == "latest":
            raise ModelNotFoundError(f"{self.path} holds no run to resume", hint="leave --resume out to start one")

    def _check_config(self, config: dict[str, Any]) -> None:
        try:
            before: dict[str, Any] = json.loads((self.path / CONFIG).read_text())
        except (OSError, ValueError) as error:
            hint = "without it nobody can say whether the run may go on; restore it, or choose another --out"
            raise RuntimeFailure(f"{self.path / CONFIG} cannot be read: {error}", hint=hint) from error
        may_change = MAY_CHANGE_ON_RESUME
        if config.get("lr_scheduler") == "cosine":  # the learning rate of every step depends on the last
            may_change -= {"max_steps"}
        changed = {
            key: (before.get(key), config.get(key))
            for key in sorted(before.keys() | config.keys())
            if key not in may_change and before.get(key) != config.get(key)
        }
        if changed:
            differences = "; ".join(f"{key}: {old!r} then, {new!r} now" for key, (old, new) in changed.items())
            hint = "use the same, or another --out"
            raise InputError(f"cannot resume {self.path}: its settings differ: {differences}", hint=hint)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies, with a warning about newer ones that do not; None if there is none yet.

        Raises RuntimeFailure when checkpoints exist and all are damaged: never a silent fresh start.
        """
        folders = self.checkpoint_folders()
        for folder in reversed(folders):
            manifest = _verified_manifest(folder)
            if manifest is None:
                logger.warning("checkpoint %s is damaged; looking for an older one", folder)
                continue
            return Checkpoint(
                step=manifest["step"],
                images_seen=manifest["images_seen"],
                model=read_tensors(folder / "model.safetensors"),
                ema=read_tensors(folder / "ema.safetensors") if "ema.safetensors" in manifest["files"] else {},
                optimizer=read_tensors(folder / "optimizer.safetensors"),
            )
        if folders:
            hint = "restore one, or choose another --out"
            raise RuntimeFailure(f"every checkpoint in {self.path} is damaged", hint=hint)
        return None

    def checkpoint_folders(self) -> list[Path]:
        """Published checkpoints, oldest first (by the step in their name, never by time stamp)."""
        found = [path for path in self.path.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
        return sorted(found, key=_step_of)

    @contextmanager
    def locked(self) -> Generator[None]:
        """Hold the run for this process; the kernel lets go when the process dies, however it dies."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("a+")
        except OSError as error:
            raise InputError(f"cannot write to {self.path}: {error.strerror}", hint="choose another --out") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                holder = lock.read().strip() or "unknown"
                raise InputError(f"another process ({holder}) is training in {self.path}") from None
            lock.truncate(0)
            lock.write(f"pid {os.getpid()}")
            lock.flush()
            yield

    # Writing

    def save(self, checkpoint: Checkpoint, *, keep: int) -> Path:
        """Publish a checkpoint, then remove all but the newest `keep`.

        A sound checkpoint of the same step is left as it is: it holds the same numbers.
        Raises RuntimeFailure if the disk refuses; earlier checkpoints are then as they were.
        """
        place = self.path / f"step_{checkpoint.step:08d}"
        if _verified_manifest(place) is not None:
            return place
        aside = self.path / f".tmp-{checkpoint.step}-{os.getpid()}"
        try:
            for leftover in self.path.glob(".tmp-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            aside.mkdir(parents=True)
            _write_checkpoint(checkpoint, aside)
            self._remove(place)  # a damaged one
            aside.rename(place)
            sync_folder(self.path)
            published = self.checkpoint_folders()
            kept = [folder for folder in published if _step_of(folder) <= checkpoint.step][-keep:]
            for folder in published:
                if folder not in kept:  # older, or damaged ones from which this run had to step back
                    self._remove(folder)
        except OSError as error:
            hint = "the last checkpoint is intact"
            raise RuntimeFailure(f"cannot save to {self.path}: {error.strerror}", hint=hint) from None
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return place

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint; renamed first, so that half of one never bears the name of a whole one."""
        if folder.exists():
            condemned = self.path / f".tmp-old-{folder.name}"
            folder.rename(condemned)
            shutil.rmtree(condemned, ignore_errors=True)

    def log(self, event: Mapping[str, Any]) -> None:
        """Append a line to log.jsonl. JSON has no word for NaN and infinity: they are written as strings."""
        plain = {
            key: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in event.items()
        }
        try:
            with (self.path / "log.jsonl").open("a") as file:
                file.write(json.dumps(plain) + "\n")
        except OSError as error:
            raise RuntimeFailure(f"cannot write {self.path / 'log.jsonl'}: {error.strerror}") from None

    @property
    def samples(self) -> Path:
        """The folder of sample pictures, made when first asked for."""
        folder = self.path / "samples"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _step_of(folder: Path) -> int:
    return int(folder.name[5:])


def _write_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    files = {"model.safetensors": checkpoint.model, "optimizer.safetensors": checkpoint.optimizer}
    if checkpoint.ema:
        files["ema.safetensors"] = checkpoint.ema
    manifest: dict[str, Any] = {"step": checkpoint.step, "images_seen": checkpoint.images_seen, "files": {}}
    for name, tensors in files.items():
        write_tensors(folder / name, tensors, {})
        manifest["files"][name] = {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
    write_json(folder / MANIFEST, manifest)
    sync_folder(folder)


def _verified_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint whose files are all there, of the stated size and hash; None for any other."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        whole = {"step", "images_seen"} <= manifest.keys()
        whole = whole and {"model.safetensors", "optimizer.safetensors"} <= manifest["files"].keys()
        for name, entry in manifest["files"].items():
            whole = whole and (folder / name).stat().st_size == entry["bytes"]
            whole = whole and sha256(folder / name) == entry["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if whole else None

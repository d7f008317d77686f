"""A training run's folder: resolved config, log, sample pictures, checkpoints that are whole or absent.

    config.json            what the run was started with; a resume must agree
    log.jsonl              one JSON object a line; after a resume, the later line about a step counts
    samples/               pictures drawn while training
    step_NNNNNNNN/         model.safetensors, ema.safetensors, optimizer.safetensors, manifest.json

A checkpoint is written into a temporary folder beside its place, every file is flushed to disk, the manifest with
sizes and SHA-256 comes last, then the folder is renamed. Old checkpoints are removed only after the new one has been
read back and verified. So a process killed at any moment leaves the previous checkpoint or the new one, never half of
one.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.io import read_tensors, sync_folder, write_tensors
from latentgen.errors import InputError, ModelNotFoundError, RuntimeFailure
from latentgen.jsonfile import write_json
from latentgen.training.run_lock import locked
from latentgen.training.run_settings import CONFIG, check_settings, take_up, write_settings
from latentgen.training.watch import is_alive

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
ASIDE = ".tmp-"
"""How the name of what is being written, or removed, begins."""


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

    def start(
        self,
        config: Mapping[str, Any],
        *,
        resume: str | None,
        override: Sequence[str] = (),
        check: Callable[[Checkpoint], None] = lambda _checkpoint: None,
    ) -> Checkpoint | None:
        """Begin a run or take one up again; None for a fresh start. What a killed process left half-written is removed.

        resume: None (the folder must hold no run), "latest" (it must), "auto" (whichever is the case), or the step of a
        checkpoint that was kept; `go_on_from` it when a step is made. A run that was stopped before its first
        checkpoint is begun again, with settings as they are now.
        override: settings that may differ from the folder's; they are logged, and config.json keeps a history of them.
        check: raises what keeps a checkpoint from being gone on with, before anything of the run is changed.
        Raises InputError when other settings differ, naming the keys, and when the run stands beyond its `max_steps`.
        """
        self.check_start(resume)
        self._clean()
        self._clean_caches()
        self._mend_log()
        if not self.checkpoint_folders():
            write_settings(self.path, config)
            return None
        differences = check_settings(self.path, config, override=override)
        checkpoint = self.chosen(resume)
        last_step = config.get("max_steps")
        if checkpoint is not None and last_step is not None and checkpoint.step > last_step:
            hint = "give a later last step"
            raise InputError(f"the run stands at step {checkpoint.step}, beyond --max-steps {last_step}", hint=hint)
        if checkpoint is not None:
            check(checkpoint)
            take_up(self.path, config, differences, checkpoint.step)
        if differences and checkpoint is not None:
            self.log({"override": {key: list(values) for key, values in differences.items()}, "step": checkpoint.step})
        return checkpoint

    def check_start(self, resume: str | None) -> None:
        """Whether the folder holds a run, as `resume` has it: a look that can be had before anything is computed."""
        started = (self.path / CONFIG).exists() or bool(self.checkpoint_folders())
        if started and resume is None:
            hint = "--resume latest continues it, or choose another --out"
            raise InputError(f"{self.path} already holds a run", hint=hint)
        if not started and resume == "latest":
            raise ModelNotFoundError(f"{self.path} holds no run to resume", hint="leave --resume out to start one")
        if resume is not None and resume.isdigit():
            steps = [_step_of(folder) for folder in self.checkpoint_folders()]
            if int(resume) not in steps:
                hint = f"it has {', '.join(map(str, steps))}; --keep keeps more" if steps else "it has none"
                raise ModelNotFoundError(f"{self.path} keeps no checkpoint of step {resume}", hint=hint)

    def chosen(self, resume: str | None) -> Checkpoint | None:
        """The checkpoint that `resume` names, see `start`: the latest, if it is not a step."""
        return self.at(int(resume)) if resume is not None and resume.isdigit() else self.latest()

    def go_on_from(self, step: int) -> None:
        """Remove the checkpoints of later steps: what is trained now is not what they hold, whatever the settings."""
        try:
            for folder in self.checkpoint_folders():
                if _step_of(folder) > step:
                    self._remove(folder)
        except OSError as error:
            raise RuntimeFailure(f"cannot go on in {self.path}: {error.strerror}") from None

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step. Raises RuntimeFailure if it is damaged, or there is none."""
        folder = self.path / f"step_{step:08d}"
        manifest = _verified_manifest(folder)
        if manifest is None:
            raise RuntimeFailure(
                f"{folder} is damaged, or not there", hint="--resume latest takes the newest sound one"
            )
        return _read_checkpoint(folder, manifest)

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
            return _read_checkpoint(folder, manifest)
        if folders:
            hint = "restore one, or choose another --out"
            raise RuntimeFailure(f"every checkpoint in {self.path} is damaged", hint=hint)
        return None

    def checkpoint_folders(self) -> list[Path]:
        """Published checkpoints, oldest first (by the step in their name, never by time stamp)."""
        found = [path for path in self.path.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
        return sorted(found, key=_step_of)

    def locked(self) -> AbstractContextManager[None]:
        """Hold the run for this process; see `run_lock`."""
        return locked(self.path)

    # Writing

    def save(self, checkpoint: Checkpoint, *, keep: int) -> Path:
        """Publish a checkpoint and read it back, then remove all but the newest `keep`.

        A sound checkpoint of the same step is left as it is: it holds the same numbers.
        Raises RuntimeFailure if the disk refuses or gives back other bytes; earlier checkpoints are then as they were.
        """
        place = self.path / f"step_{checkpoint.step:08d}"
        if _verified_manifest(place) is not None:
            return place
        aside = self.path / f"{ASIDE}{checkpoint.step}-{os.getpid()}"
        try:
            self._clean()
            aside.mkdir(parents=True)
            _write_checkpoint(checkpoint, aside)
            self._remove(place)  # a damaged one
            aside.rename(place)
            sync_folder(self.path)
            if _verified_manifest(place) is None:
                raise RuntimeFailure(f"{place} does not read back as it was written", hint="is the disk sound?")
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

    @contextmanager
    def sample_folder(self) -> Generator[Path]:
        """An empty folder to draw into, whose files become those of `samples` when the block ends well."""
        aside = self.samples / f"{ASIDE}{os.getpid()}"
        try:
            aside.mkdir()
            yield aside
            for file in aside.iterdir():
                file.replace(self.samples / file.name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def _clean(self) -> None:
        """Remove what a killed process left: half a checkpoint, half a sheet of samples."""
        for leftover in (*self.path.glob(f"{ASIDE}*"), *self.path.glob(f"samples/{ASIDE}*")):
            shutil.rmtree(leftover, ignore_errors=True)
        for leftover in self.path.glob(".*.tmp"):
            leftover.unlink(missing_ok=True)

    def _clean_caches(self) -> None:
        """The same of caches: half of one may be gigabytes. Another run may be writing there; its process is alive."""
        for leftover in self.path.glob("cache/.*.tmp"):
            process = leftover.suffixes[-2:-1]
            if process and process[0][1:].isdigit() and not is_alive(int(process[0][1:])):
                leftover.unlink(missing_ok=True)

    def _mend_log(self) -> None:
        """Cut off a last line that a killed process had not finished."""
        log = self.path / "log.jsonl"
        try:
            if log.exists() and not (text := log.read_bytes()).endswith(b"\n"):
                os.truncate(log, text.rfind(b"\n") + 1)
        except OSError as error:
            raise RuntimeFailure(f"cannot write {log}: {error.strerror}") from None

    def _remove(self, folder: Path) -> None:
        """Remove a checkpoint; renamed first, so that half of one never bears the name of a whole one."""
        if folder.exists():
            condemned = self.path / f"{ASIDE}old-{folder.name}"
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


def _read_checkpoint(folder: Path, manifest: Mapping[str, Any]) -> Checkpoint:
    return Checkpoint(
        step=manifest["step"],
        images_seen=manifest["images_seen"],
        model=read_tensors(folder / "model.safetensors"),
        ema=read_tensors(folder / "ema.safetensors") if "ema.safetensors" in manifest["files"] else {},
        optimizer=read_tensors(folder / "optimizer.safetensors"),
    )


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

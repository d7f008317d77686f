"""What a server draws: jobs, planned as `generate` plans, that wait in line for the one model and its one thread."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.cli.add_ons import AddOns, LoRAFiles
from latentgen.cli.console import Console
from latentgen.cli.embeddings import with_embeddings
from latentgen.cli.init_pictures import InitFiles, pass_notes
from latentgen.cli.memory import check_memory
from latentgen.cli.model_names import models_folder
from latentgen.cli.plan import Entry, plan_requests
from latentgen.cli.prompt_syntax import tell_of_prompts
from latentgen.cli.seen_words import tell_of_unseen_words
from latentgen.cli.wildcards import Wildcards, wildcard_folders
from latentgen.config import ModelConfig
from latentgen.diffusion.strength import total_steps
from latentgen.errors import InputError, RuntimeFailure
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.checkpoints.textual_inversion import EmbeddingFile
    from latentgen.cli.preview import Decode
    from latentgen.images.pixels import Pixels
    from latentgen.pipeline import GenerationResult, TextToImage
    from latentgen.samplers.step import Step

MAX_PICTURES = 100
"""Of one job: a server's answer holds all of them."""


class Busy(RuntimeFailure):
    """The line is full, or the server is about to end."""


class _Stopped(BaseException):
    """Raised between two steps of a job that nobody wants any more. Not an Exception: nothing may handle it."""


@dataclass(slots=True, eq=False)
class Job:
    """Pictures that are asked for together, and how far they are. One thread draws; others read and may `stop`."""

    requests: Sequence[GenerationRequest]
    init_files: InitFiles
    loras: LoRAFiles
    notes: Sequence[str]
    """What `generate` would say of these requests before it draws them."""
    drawn: list[GenerationResult] = field(default_factory=list["GenerationResult"])
    steps_done: int = 0
    """Steps times pictures, as `steps` counts them."""
    latest: Step | None = None
    started: float | None = None
    """On `time.monotonic`'s clock; None while it waits."""
    is_stopped: bool = False

    @property
    def steps(self) -> int:
        return sum(map(total_steps, self.requests))

    def stop(self) -> None:
        """End at the next step; pictures that are ready stay."""
        self.is_stopped = True

    def on_step(self, step: Step) -> None:
        if self.is_stopped:
            raise _Stopped
        self.steps_done += len(step.x)
        self.latest = step


@dataclass(frozen=True, slots=True)
class Planner:
    """From prompts and flags to a job for one model, checked as on the command line; nothing of it needs torch."""

    folder: Path
    config: ModelConfig
    add_ons: AddOns
    embeddings: Sequence[EmbeddingFile] = ()
    device: str = "auto"
    dtype: str = "auto"

    def plan(self, entries: Sequence[Entry]) -> Job:
        """Raises InputError, ModelNotFoundError or OutOfMemoryError for what this model or machine cannot draw."""
        if (count := sum(entry.flags.count for entry in entries)) > MAX_PICTURES:
            raise InputError(f"{count} pictures are too many for one request", hint=f"at most {MAX_PICTURES}")
        init_files = InitFiles()
        wildcards = Wildcards(wildcard_folders(None, None, models_folder().parent))
        requests = plan_requests(entries, self.config, wildcards, init_files)
        requests = with_embeddings(self.add_ons.with_loras(requests), self.embeddings)
        told = _Told()
        tell_of_prompts(told, requests, self.folder, self.embeddings, strict=False)
        tell_of_unseen_words(told, requests, self.folder, [file.name for file in self.embeddings])
        check_memory(requests, self.config, self.device, self.dtype)
        notes = [*told.lines, *init_files.notes, *pass_notes(requests, self.config)]
        return Job(requests, init_files, self.add_ons.loras, notes)


@dataclass(frozen=True, slots=True)
class _Told(Console):
    """A console that keeps what it is told."""

    lines: list[str] = field(default_factory=list[str])

    def note(self, text: str) -> None:
        self.lines.append(text)

    def warn(self, text: str) -> None:
        self.lines.append(text)


@dataclass(frozen=True, slots=True)
class Progress:
    """Of the job that is drawn now."""

    share: float
    """0 .. 1."""
    left_s: float | None
    """Seconds, if it goes on as fast; None before the first step."""
    step: int
    """Of the picture that is drawn now, from 1."""
    steps: int
    pictures_done: int
    pictures: int
    is_stopped: bool


class Worker:
    """Draws jobs one after another, each in the thread that all are drawn in."""

    def __init__(
        self, pipeline: TextToImage, preview: Decode | None, *, batch_size: int | None = None, max_jobs: int = 16
    ) -> None:
        """preview: latents to a picture while it is drawn; None shows nothing.

        batch_size: as of `TextToImage.generate`. max_jobs: in line, the one that is drawn among them.
        """
        self.pipeline = pipeline
        self._preview = preview
        self._batch_size = batch_size
        self._max_jobs = max_jobs
        self._jobs: deque[Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="latentgen drawing")
        self._loras: set[str] = set()
        """Fingerprints of those that were read."""
        self._is_closed = False

    async def draw(self, job: Job) -> list[GenerationResult]:
        """The job's pictures; fewer if it is stopped. Raises Busy if the line is full, and what drawing raises."""
        self._check_open()
        if len(self._jobs) >= self._max_jobs:
            raise Busy(f"{len(self._jobs)} requests are in line already", hint="try again later")
        self._jobs.append(job)
        try:
            results = await asyncio.get_running_loop().run_in_executor(self._thread, self._draw, job)
        finally:
            job.stop()  # what is asked for by nobody any more, as when the server ends
            self._jobs.remove(job)
        if len(results) < len(job.requests):
            self._check_open()
        return results

    def _check_open(self) -> None:
        if self._is_closed:
            raise Busy("the server is ending")

    def stop(self) -> None:
        """Stop the job that is drawn now, if there is one."""
        if self._jobs:
            self._jobs[0].stop()

    def close(self) -> None:
        """Stop all jobs, and take no more."""
        self._is_closed = True
        for job in list(self._jobs):
            job.stop()
        self._thread.shutdown(wait=False)

    def progress(self) -> Progress | None:
        """None while nothing is drawn."""
        job = self._jobs[0] if self._jobs else None
        if job is None:
            return None
        done, total, latest = job.steps_done, job.steps, job.latest
        left = None
        if job.started is not None and done:
            left = (time.monotonic() - job.started) / done * (total - done)
        step, steps = (0, job.requests[0].steps) if latest is None else (latest.index + 1, latest.total)
        return Progress(done / total, left, step, steps, len(job.drawn), len(job.requests), job.is_stopped)

    @property
    def waiting(self) -> int:
        """Jobs in line behind the one that is drawn."""
        return max(len(self._jobs) - 1, 0)

    def preview(self) -> Pixels | None:
        """The picture that is drawn now, as it looks; None if there is nothing to be seen yet."""
        latest = self._jobs[0].latest if self._jobs else None
        return None if latest is None or self._preview is None else self._preview(latest.denoised[:1])

    def _draw(self, job: Job) -> list[GenerationResult]:
        job.started = time.monotonic()
        try:
            if job.is_stopped:
                return []
            for name, use in {use.name: use for request in job.requests for use in request.loras}.items():
                if use.fingerprint not in self._loras:
                    self.pipeline.add_lora(job.loras.path(name))
                    self._loras.add(use.fingerprint)
            results = self.pipeline.generate(
                job.requests, pictures=job.init_files, batch_size=self._batch_size, on_step=job.on_step
            )
            for result in results:
                job.drawn.append(result)
        except _Stopped:
            pass
        return job.drawn

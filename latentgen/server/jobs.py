"""What a server draws: jobs, planned as `generate` plans, that wait in line for the one model and its one thread."""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.cli.add_ons import AddOns, LoRAFiles
from latentgen.cli.console import Console
from latentgen.cli.embeddings import with_embeddings
from latentgen.cli.init_pictures import InitFiles, pass_notes, size_notes
from latentgen.cli.memory import check_memory
from latentgen.cli.model_names import models_folder
from latentgen.cli.plan import Entry, plan_requests
from latentgen.cli.prompt_syntax import tell_of_prompts
from latentgen.cli.seen_words import tell_of_unseen_words
from latentgen.cli.wildcards import Wildcards, wildcard_folders
from latentgen.config import ModelConfig
from latentgen.diffusion.strength import hires_size, total_steps
from latentgen.errors import InputError, LatentgenError, RuntimeFailure
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.checkpoints.textual_inversion import EmbeddingFile
    from latentgen.cli.preview import Decode
    from latentgen.images.pixels import Pixels
    from latentgen.pipeline import GenerationResult, TextToImage
    from latentgen.samplers.step import Step

MAX_PICTURES = 100
MAX_PIXELS = 2**27
"""Of one job, all pictures together: a server's answer holds them all. 100 of 1024 x 1024 are fewer."""
WATCHED_FOR_S = 5.0
"""So long after a look the next steps are made into pictures."""
MAX_LORAS = 16
"""Kept in memory beside those that a job needs."""


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
    notes: list[str]
    """What `generate` would say of these requests; what it would say while it draws comes in as it is drawn."""
    id: str | None = None
    """What the client calls it."""
    drawn: list[GenerationResult] = field(default_factory=list["GenerationResult"])
    failures: list[LatentgenError] = field(default_factory=list[LatentgenError])
    """Of pictures that could not be drawn; the others are."""
    steps_done: int = 0
    """Steps times pictures, as `steps` counts them."""
    latest: Step | None = None
    preview: Pixels | None = None
    watched: float = -math.inf
    """When it was last looked at, on `time.monotonic`'s clock."""
    started: float | None = None
    """On `time.monotonic`'s clock; None while it waits."""
    is_stopped: bool = False
    future: Future[list[GenerationResult]] | None = None

    @property
    def steps(self) -> int:
        return sum(map(total_steps, self.requests))

    def stop(self) -> None:
        """End at the next step, or never begin; pictures that are ready stay."""
        self.is_stopped = True
        if self.future is not None:
            self.future.cancel()  # only if it waits

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
        if any(entry.flags.count > MAX_PICTURES for entry in entries):
            raise InputError("too many pictures for one request", hint=f"at most {MAX_PICTURES}")
        init_files = InitFiles()
        wildcards = Wildcards(wildcard_folders(None, None, models_folder().parent))
        requests = plan_requests(entries, self.config, wildcards, init_files)
        # Files of the folder of LoRAs are looked at anew for every job: they may have been exchanged.
        add_ons = replace(self.add_ons, loras=LoRAFiles(dict(self.add_ons.loras.given)))
        requests = with_embeddings(add_ons.with_loras(requests), self.embeddings)
        self._check_size(requests)
        told = _Told()
        tell_of_prompts(told, requests, self.folder, self.embeddings, strict=False)
        tell_of_unseen_words(told, requests, self.folder, [file.name for file in self.embeddings])
        check_memory(requests, self.config, self.device, self.dtype)
        sizes = size_notes(requests, self.config, self.folder)
        notes = [*told.lines, *sizes, *init_files.notes, *pass_notes(requests, self.config)]
        return Job(requests, init_files, add_ons.loras, notes)

    def _check_size(self, requests: Sequence[GenerationRequest]) -> None:
        pixels = 0
        for each in requests:
            width, height = each.width_px, each.height_px
            if each.hires is not None:
                width, height = hires_size(each, self.config.size_multiple_px)
            pixels += width * height
        if pixels > MAX_PIXELS:
            raise InputError(f"the pictures of one request hold {pixels} pixels", hint=f"at most {MAX_PIXELS} together")


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
    """Of a job in line."""

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
    ahead: int
    """Jobs in line before it."""


class Worker:
    """Draws jobs one after another, all in one thread, which is the only one that computes.

    A second thread that computes, if only once, gets OpenMP threads of its own; then there are more than cores, libgomp
    lets all of them sleep at every turn instead of spinning, and a picture takes 1.4 times as long (measured).
    """

    def __init__(
        self,
        build: Callable[[], tuple[TextToImage, Decode | None]],
        *,
        batch_size: int | None = None,
        max_jobs: int = 16,
    ) -> None:
        """build: loads what draws, in the thread that will, and what shows latents while they are drawn, or None.

        batch_size: as of `TextToImage.generate`. max_jobs: requests that are read, in line, drawn or answered.
        Raises what `build` raises.
        """
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="latentgen drawing")
        self.pipeline, self._preview = self._thread.submit(build).result()
        self._batch_size = batch_size
        self._max_jobs = max_jobs
        self._places = 0
        self._jobs: deque[Job] = deque()
        """In line; the first is drawn."""
        self._loras: OrderedDict[str, None] = OrderedDict()
        """Fingerprints of those that were read, the one used last at the end."""
        self._is_closed = False

    @contextmanager
    def place(self) -> Generator[None]:
        """A request's place, from before it is read until it is answered: what waits takes memory. Raises Busy."""
        self._check_open()
        if self._places >= self._max_jobs:
            raise Busy(f"{self._places} requests are in line already", hint="try again later")
        self._places += 1
        try:
            yield
        finally:
            self._places -= 1

    async def draw(self, job: Job) -> list[GenerationResult]:
        """The job's pictures; fewer if it is stopped or some of them fail.

        Raises Busy when the server ends, the first failure if no picture could be drawn, and what drawing raises.
        """
        self._check_open()
        job.future = self._thread.submit(self._draw, job)
        self._jobs.append(job)
        try:
            results = await asyncio.wrap_future(job.future)
        except asyncio.CancelledError:
            if not (job.is_stopped and job.future.cancelled()):
                raise  # it is the caller that is cancelled
            results = []  # stopped while it waited
        finally:
            job.stop()
            self._jobs.remove(job)
        if len(results) < len(job.requests) - len(job.failures):
            self._check_open()
        if job.failures and not results:
            raise job.failures[0]
        return results

    def _check_open(self) -> None:
        if self._is_closed:
            raise Busy("the server is ending")

    def close(self) -> None:
        """Stop all jobs, and take no more. May be called by a signal's handler: it takes no lock."""
        self._is_closed = True
        for job in self._jobs:
            job.is_stopped = True

    def find(self, id: str | None = None) -> Job | None:
        """The job of that id, or the one that is drawn now; None if it is not in line."""
        return next((job for job in list(self._jobs) if id is None or job.id == id), None)

    def progress(self, job: Job) -> Progress:
        done, total, latest = job.steps_done, job.steps, job.latest
        left = None
        if job.started is not None and done:
            left = (time.monotonic() - job.started) / done * (total - done)
        step, steps = (0, job.requests[0].steps) if latest is None else (latest.index + 1, latest.total)
        ahead = self._jobs.index(job) if job in self._jobs else 0
        return Progress(done / total, left, step, steps, len(job.drawn), len(job.requests), job.is_stopped, ahead)

    def preview(self, job: Job) -> Pixels | None:
        """The picture of it that is drawn now, as it looked at the last step; None if nobody watched by then."""
        job.watched = time.monotonic()
        return job.preview

    def _on_step(self, job: Job, step: Step) -> None:
        job.on_step(step)
        if self._preview is not None and time.monotonic() - job.watched < WATCHED_FOR_S:
            job.preview = self._preview(step.denoised[:1])

    def _draw(self, job: Job) -> list[GenerationResult]:
        job.started = time.monotonic()
        try:
            if not job.is_stopped:
                self._add_loras(job)
                results = self.pipeline.generate(
                    job.requests,
                    pictures=job.init_files,
                    batch_size=self._batch_size,
                    on_step=partial(self._on_step, job),
                    on_failure=lambda _, failure: job.failures.append(failure),
                )
                for result in results:
                    job.drawn.append(result)
        except _Stopped:
            pass
        job.notes.extend(f"a picture could not be drawn: {failure}" for failure in job.failures)
        return job.drawn

    def _add_loras(self, job: Job) -> None:
        """Read what the job needs and is not there, and let go of what was not used for long."""
        used = {use.fingerprint: use for request in job.requests for use in request.loras}
        for fingerprint, use in used.items():
            if fingerprint not in self._loras:
                read = self.pipeline.add_lora(job.loras.path(use.name))
                self._loras[read.fingerprint] = None
                if read.fingerprint != fingerprint:
                    raise InputError(f"the LoRA {use.name} was exchanged meanwhile", hint="ask again")
            self._loras.move_to_end(fingerprint)
            job.notes.append(f"lora {use.name}: {self.pipeline.adapters.report(use)}")
        while len(self._loras) > max(MAX_LORAS, len(used)):
            self.pipeline.adapters.forget(self._loras.popitem(last=False)[0])

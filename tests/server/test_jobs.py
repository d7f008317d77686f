"""The line of jobs: one at a time, progress, stopping, and what is left when the server ends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentgen.checkpoints.layout import read_config
from latentgen.cli.add_ons import AddOnOptions, AddOns
from latentgen.cli.plan import Entry, Flags
from latentgen.errors import RuntimeFailure
from latentgen.request import GenerationRequest
from latentgen.samplers.step import Step
from latentgen.server.jobs import Busy, Job, Planner, Worker

STEPS = 4


class Gated:
    """A pipeline whose every step waits until it is let go."""

    def __init__(self) -> None:
        self.gate, self.reached = threading.Semaphore(0), threading.Semaphore(0)
        self.threads: set[int] = set()
        """That loaded it, drew or made pictures of its steps."""
        self.together = 0
        self.drawing = 0

    def generate(
        self, requests: Sequence[GenerationRequest], *, on_step: Callable[[Step], None], **_: Any
    ) -> Iterator[object]:
        self.threads.add(threading.get_ident())
        self.drawing += 1
        self.together = max(self.together, self.drawing)
        try:
            for request in requests:
                for index in range(request.steps):
                    self.reached.release()
                    assert self.gate.acquire(timeout=20)
                    x = torch.full((1, 4, 2, 2), float(index))
                    on_step(Step(index, request.steps, 1.0, x, x))
                yield request
        finally:
            self.drawing -= 1

    def let(self, steps: int) -> None:
        for _ in range(steps):
            self.gate.release()

    async def after(self, steps: int) -> None:
        """Wait until so many steps have begun."""
        for _ in range(steps):
            assert await asyncio.to_thread(self.reached.acquire, timeout=20)


@pytest.fixture
def pipeline() -> Gated:
    return Gated()


def worker_of(pipeline: Gated, max_jobs: int = 3) -> Worker:
    def preview(latents: torch.Tensor) -> np.ndarray:
        pipeline.threads.add(threading.get_ident())
        return np.full((2, 2, 3), int(latents.mean()), np.uint8)

    def build() -> Any:
        pipeline.threads.add(threading.get_ident())
        return pipeline, preview

    return Worker(build, max_jobs=max_jobs)


@pytest.fixture
def plan(tiny_model: Path) -> Callable[..., Job]:
    config = read_config(tiny_model)
    planner = Planner(tiny_model, config, AddOns.find(AddOnOptions(), config))

    def planned(count: int = 1) -> Job:
        return planner.plan([Entry("a cat", Flags(count=count, steps=STEPS))])

    return planned


def test_jobs_are_drawn_one_after_another_in_their_order(pipeline: Gated, plan: Callable[..., Job]) -> None:
    async def three() -> list[list[Any]]:
        worker = worker_of(pipeline)
        jobs = [plan() for _ in range(3)]
        tasks = [asyncio.create_task(worker.draw(job)) for job in jobs]
        await pipeline.after(1)
        assert [worker.progress(job).ahead for job in jobs] == [0, 1, 2]
        pipeline.let(3 * STEPS)
        drawn = await asyncio.gather(*tasks)
        assert [list(job.requests) for job in jobs] == drawn
        assert worker.find() is None
        return drawn

    assert [len(each) for each in asyncio.run(three())] == [1, 1, 1]
    assert pipeline.together == 1


def test_progress_and_what_is_seen(pipeline: Gated, plan: Callable[..., Job]) -> None:
    async def watched() -> None:
        worker = worker_of(pipeline)
        job = plan(2)
        task = asyncio.create_task(worker.draw(job))
        await pipeline.after(1)
        assert worker.find() is job
        at = worker.progress(job)
        assert (at.share, at.left_s, at.step, at.steps, at.pictures_done, at.pictures) == (0, None, 0, STEPS, 0, 2)
        assert worker.preview(job) is None
        pipeline.let(STEPS + 2)
        await pipeline.after(STEPS + 2)  # two steps of the second picture are done, its third has begun
        at = worker.progress(job)
        assert (at.share, at.step, at.pictures_done) == ((STEPS + 2) / (2 * STEPS), 2, 1)
        assert at.left_s is not None
        assert at.left_s > 0
        preview = worker.preview(job)
        assert preview is not None
        assert preview.max() == 1, "the second step's"
        pipeline.let(STEPS)
        assert len(await task) == 2

    asyncio.run(watched())
    assert len(pipeline.threads) == 1, "several threads compute"
    assert threading.get_ident() not in pipeline.threads


def test_what_loading_raises_is_raised() -> None:
    def build() -> Any:
        raise RuntimeFailure("the weights are gone")

    with pytest.raises(RuntimeFailure, match="gone"):
        Worker(build)


def test_a_stopped_job_keeps_what_is_ready(pipeline: Gated, plan: Callable[..., Job]) -> None:
    async def stopped() -> None:
        worker = worker_of(pipeline)
        jobs = [plan(2), plan(1)]
        first, second = (asyncio.create_task(worker.draw(job)) for job in jobs)
        await pipeline.after(1)
        pipeline.let(STEPS + 1)
        await pipeline.after(STEPS + 1)
        jobs[0].stop()
        assert [worker.progress(job).is_stopped for job in jobs] == [True, False]
        pipeline.let(1)
        assert len(await first) == 1
        pipeline.let(STEPS)
        assert len(await second) == 1, "the next one is not stopped"

    asyncio.run(stopped())


def test_a_job_that_nobody_waits_for_is_stopped(pipeline: Gated, plan: Callable[..., Job]) -> None:
    async def cancelled() -> None:
        worker, job = worker_of(pipeline), plan()
        task = asyncio.create_task(worker.draw(job))
        await pipeline.after(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert job.is_stopped
        assert worker.find() is None
        pipeline.let(1)

    asyncio.run(cancelled())


def test_a_job_that_is_stopped_while_it_waits_leaves_the_line_at_once(
    pipeline: Gated, plan: Callable[..., Job]
) -> None:
    async def left() -> None:
        worker, jobs = worker_of(pipeline), [plan(), plan(), plan()]
        for name, job in zip("abc", jobs, strict=True):
            job.id = name
        tasks = [asyncio.create_task(worker.draw(job)) for job in jobs]
        await pipeline.after(1)
        assert worker.find("b") is jobs[1]
        jobs[1].stop()
        assert await tasks[1] == []
        assert worker.find("b") is None
        assert worker.progress(jobs[2]).ahead == 1
        pipeline.let(2 * STEPS)
        assert [len(await task) for task in (tasks[0], tasks[2])] == [1, 1]

    asyncio.run(left())


def test_a_full_line_is_refused(pipeline: Gated) -> None:
    worker = worker_of(pipeline, max_jobs=1)
    with worker.place(), pytest.raises(Busy, match=r"1 requests are in line already \(try again later\)"):
        worker.place().__enter__()
    with worker.place():
        pass


def test_a_server_that_ends_lets_nobody_wait(pipeline: Gated, plan: Callable[..., Job]) -> None:
    async def ended() -> None:
        worker = worker_of(pipeline)
        tasks = [asyncio.create_task(worker.draw(plan())) for _ in range(2)]
        await pipeline.after(1)
        worker.close()
        pipeline.let(1)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(each) for each in results] == [Busy, Busy]
        with pytest.raises(Busy, match="the server is ending"):
            await worker.draw(plan())
        with pytest.raises(Busy, match="the server is ending"):
            worker.place().__enter__()

    asyncio.run(ended())


def test_a_failure_reaches_who_asked_and_the_next_job_is_drawn(
    pipeline: Gated, plan: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Iterator[object]:
        raise RuntimeFailure("the latents are not finite")
        yield

    async def failing() -> None:
        worker = worker_of(pipeline)
        with monkeypatch.context() as patch:
            patch.setattr(pipeline, "generate", broken)
            with pytest.raises(RuntimeFailure, match="not finite"):
                await worker.draw(plan())
        pipeline.let(STEPS)
        assert len(await worker.draw(plan())) == 1

    asyncio.run(failing())


def test_words_that_the_model_never_saw_are_noted(tiny_model: Path) -> None:
    from latentgen import embedded_model_path

    folder = embedded_model_path()
    config = read_config(folder)
    job = Planner(folder, config, AddOns.find(AddOnOptions(), config)).plan([Entry("a spacesuit", Flags())])
    assert [note.split(":")[0] for note in job.notes] == ["spacesuit"]

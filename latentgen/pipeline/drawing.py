"""One picture, step by step: the sampler runs ahead only as far as it is asked to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from latentgen.errors import RuntimeFailure
from latentgen.samplers.step import OnStep, Step

T = TypeVar("T")


class Drawing(Generic[T]):
    """An iterator over the steps of a computation that reports them to a callback; then its `result`.

    The computation runs in a thread of its own and waits after every step, so that between two steps nothing is
    computed and what a step holds may be looked at. `close`, leaving a `with` block, or dropping it stops it.
    """

    def __init__(self, compute: Callable[[OnStep], T]) -> None:
        """compute: calls the function it is given with each step, in order, and returns the result."""
        self._worker = _Worker(compute)

    def __iter__(self) -> Iterator[Step]:
        return self

    def __next__(self) -> Step:
        """The next step. Raises what the computation raises."""
        step = self._worker.advance()
        if step is None:
            raise StopIteration
        return step

    @property
    def result(self) -> T:
        """What the computation gives in the end; steps that nobody asked for yet are computed now."""
        while self._worker.advance() is not None:
            pass
        if not self._worker.results:
            raise RuntimeFailure("the drawing was stopped before its end")
        return self._worker.results[0]

    def close(self) -> None:
        """Stop where it is."""
        self._worker.stop()

    def __enter__(self) -> Drawing[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class _Stopped(BaseException):
    """Raised inside the computation when nobody wants the rest. Not an Exception: nothing on the way may handle it."""


class _Worker(Generic[T]):
    """The computation and its thread, which holds on to this object but not to the `Drawing` that is handed out."""

    def __init__(self, compute: Callable[[OnStep], T]) -> None:
        self.results: list[T] = []
        self._compute = compute
        self._thread: threading.Thread | None = None
        self._go, self._ready = threading.Semaphore(0), threading.Semaphore(0)
        self._step: Step | None = None
        self._failure: BaseException | None = None
        self._over = False

    def advance(self) -> Step | None:
        """Let the computation go on to its next step; None at its end, and ever after."""
        if self._over:
            return None
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="latentgen drawing", daemon=True)
            self._thread.start()
        self._step = None
        self._go.release()
        self._ready.acquire()
        if self._step is None:
            self._over = True
            self._thread.join()
        if self._failure is not None:
            raise self._failure
        return self._step

    def stop(self) -> None:
        if not self._over:
            self._over = True
            if self._thread is not None:
                self._go.release()
                self._thread.join()

    def _run(self) -> None:
        try:
            self._wait()
            self.results.append(self._compute(self._on_step))
        except _Stopped:
            return
        except BaseException as failure:  # noqa: BLE001  it is raised again in the thread that iterates
            self._failure = failure
        self._ready.release()

    def _on_step(self, step: Step) -> None:
        self._step = step
        self._ready.release()
        self._wait()

    def _wait(self) -> None:
        self._go.acquire()
        if self._over:
            raise _Stopped

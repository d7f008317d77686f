"""A pipeline for a command: threads set, model loaded, and how long that took."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from latentgen.pipeline import TextToImage


def load_model(
    folder: Path,
    *,
    device: str,
    dtype: str,
    threads: int | None,
    fast: bool = True,
    int8: bool = False,
    low_memory: bool = False,
    compile: bool = False,
    remembered: bool = True,
) -> tuple[TextToImage, float]:
    """Import torch and load a model folder, as `TextToImage.load` does; the pipeline, and the seconds of both."""
    started = time.perf_counter()
    from latentgen.kernels.crowding import expect_others
    from latentgen.kernels.memory import keep_freed_memory, map_large_tensors

    expect_others()
    import torch

    from latentgen.pipeline import TextToImage

    if fast or low_memory:
        map_large_tensors()
    if threads is not None:
        torch.set_num_threads(threads)
    pipeline = TextToImage.load(
        folder,
        device=device,
        dtype=dtype,
        fast=fast,
        int8=int8,
        low_memory=low_memory,
        compile=compile,
        remembered=remembered,
    )
    pipeline.makes_room = threads is None
    if fast and not low_memory:
        keep_freed_memory()
    return pipeline, time.perf_counter() - started

"""`--embedding`: textual inversions for the prompts that name them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.checkpoints.textual_inversion import EmbeddingFile, look_at_embedding
from latentgen.config import ModelConfig
from latentgen.errors import InputError
from latentgen.prompts.embeddings import find_embeddings
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.cli.console import Console
    from latentgen.pipeline import TextToImage


def look_at_embeddings(paths: Sequence[Path], config: ModelConfig) -> list[EmbeddingFile]:
    """What the files hold, from their headers. Raises ModelLoadError for one that does not fit the model."""
    files: dict[str, EmbeddingFile] = {}
    for path in paths:
        file = look_at_embedding(path)
        file.check_width(config.text_encoder.hidden_size)
        other = files.get(file.name.lower())
        if other is not None and other.fingerprint != file.fingerprint:
            raise InputError(f"{other.path} and {path} are both called {file.name} in prompts", hint="rename a file")
        files[file.name.lower()] = file
    return list(files.values())


def with_embeddings(requests: Sequence[GenerationRequest], files: Sequence[EmbeddingFile]) -> list[GenerationRequest]:
    """The requests, each with the embeddings whose names stand in one of its prompts."""
    if not files:
        return list(requests)
    by_name = {file.name: file.use for file in files}
    find = cache(lambda prompt: find_embeddings(prompt, by_name))
    found: list[GenerationRequest] = []
    for request in requests:
        named = {*find(request.prompt), *find(request.negative_prompt)}
        found.append(replace(request, embeddings=tuple(use for name, use in by_name.items() if name in named)))
    return found


def warn_of_unused(console: Console, requests: Sequence[GenerationRequest], files: Sequence[EmbeddingFile]) -> None:
    used = {use for request in requests for use in request.embeddings}
    for file in files:
        if file.use not in used:
            console.warn(f"--embedding {file.path} is not used: no prompt has its name in it, {file.name}")


def load_embeddings(
    console: Console, pipeline: TextToImage, requests: Sequence[GenerationRequest], files: Sequence[EmbeddingFile]
) -> None:
    """Give the pipeline the vectors that the requests need."""
    used = {use for request in requests for use in request.embeddings}
    for file in files:
        if file.use in used:
            pipeline.add_embedding(file.path)
            plural = "" if file.vectors == 1 else "s"
            console.detail(f"embedding {file.name} ({file.fingerprint}): {file.vectors} vector{plural} of {file.width}")

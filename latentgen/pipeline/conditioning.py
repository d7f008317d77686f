"""Prompts to what the U-Net reads: contexts, encoded once for all the pictures that share them.

A prompt goes through the text encoder in chunks of 75 tokens, each by itself, and the contexts of its chunks follow one
another: 77 places a chunk. Where a word has a weight, its place in the context is multiplied with it, and the chunk is
then scaled to the mean that it had. Source: AUTOMATIC1111/stable-diffusion-webui, `modules/sd_hijack_clip.py` and
`modules/sd_emphasis.py` ("Original").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from latentgen.checkpoints.folder import ModelBundle
from latentgen.checkpoints.textual_inversion import look_at_embedding, read_embedding
from latentgen.errors import InputError
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import CONTEXT_LENGTH, Tokenizer
from latentgen.prompts.check import check_prompts, skipped_layers
from latentgen.prompts.chunks import Chunk, chunk_prompt
from latentgen.prompts.syntax import parse_prompt
from latentgen.request import EmbeddingUse, GenerationRequest, LoRAUse

CONTEXTS_KEPT = 64
"""Encoded prompts remembered while drawing: a negative prompt and a batch, however many a prompt file holds."""


@dataclass(frozen=True, slots=True, eq=False)
class Conditioning:
    """The contexts of a batch of B pictures."""

    cond: Tensor
    """(B, L, D), L = 77 times the chunks."""
    uncond: Tensor | None
    """(B, L, D); None where guidance is 1 and nothing reads it."""


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a request has its prompts read; part of what tells remembered contexts apart."""

    clip_skip: int | None
    loras: tuple[LoRAUse, ...]
    """Already in the text encoder's weights."""
    embeddings: tuple[EmbeddingUse, ...]

    @classmethod
    def of(cls, request: GenerationRequest) -> _Reading:
        return cls(request.clip_skip, request.loras, request.embeddings)


class Conditioner:
    """Encodes the prompts of requests with a model's text encoder, and remembers the last few."""

    def __init__(self, bundle: ModelBundle) -> None:
        self.bundle = bundle
        self._embeddings: dict[EmbeddingUse, Tensor] = {}
        self._chunks = lru_cache(maxsize=CONTEXTS_KEPT)(self._chunk)
        self._contexts = lru_cache(maxsize=CONTEXTS_KEPT)(self._encode)

    def add_embedding(self, path: Path) -> EmbeddingUse:
        """Read a textual inversion, so that requests may hold it; what they call it.

        Raises ModelNotFoundError or ModelLoadError if it cannot be read or was made for another text encoder.
        """
        file = look_at_embedding(path)
        file.check_width(self.bundle.config.text_encoder.hidden_size)
        weight = next(self.bundle.text_encoder.parameters())
        self._embeddings[file.use] = read_embedding(file).to(weight)
        return file.use

    def check(self, request: GenerationRequest) -> None:
        """Raise InputError if the prompts cannot be encoded: syntax, clip skip, an embedding that was not added."""
        check_prompts(request, self.bundle.config)
        for use in request.embeddings:
            if use not in self._embeddings:
                raise InputError(
                    f"the embedding {use.name} ({use.fingerprint}) is not loaded", hint="give its file with --embedding"
                )

    def chunks(self, request: GenerationRequest) -> int:
        """The chunks of a request's context: of the longer one of its prompts.

        Only requests that are alike in it may be encoded together, so that no picture depends on its neighbours.
        """
        return max(len(self._chunks(prompt, request.embeddings)) for prompt in _prompts(request))

    def encode(self, batch: Sequence[GenerationRequest]) -> Conditioning:
        """The contexts of requests that are drawn together. A prompt with fewer chunks is filled up with empty ones."""
        chunks = self.chunks(batch[0])
        assert all(self.chunks(request) == chunks for request in batch), "requests of different lengths in one batch"
        contexts = [
            torch.stack([self._padded(prompt, _Reading.of(request), chunks) for request, prompt in row])
            for row in zip(*([(request, prompt) for prompt in _prompts(request)] for request in batch), strict=True)
        ]
        return Conditioning(contexts[0], contexts[1] if len(contexts) == 2 else None)

    def _padded(self, prompt: str, reading: _Reading, chunks: int) -> Tensor:
        """(77 * chunks, D)."""
        context = self._contexts(prompt, reading)
        missing = chunks - len(context) // CONTEXT_LENGTH
        return torch.cat([context, *[self._contexts("", reading)] * missing]) if missing else context

    @torch.inference_mode()
    def _encode(self, prompt: str, reading: _Reading) -> Tensor:
        """(77 * chunks, D) of a prompt, encoded by itself, so that it does not depend on what is drawn beside it."""
        encoder = self.bundle.text_encoder
        chunks = self._chunks(prompt, reading.embeddings)
        token_ids = _token_ids(chunks, self.bundle.tokenizer, encoder)
        context = encoder(
            token_ids,
            skip_last=skipped_layers(reading.clip_skip),
            token_vectors=self._token_vectors(token_ids, chunks, reading.embeddings),
        )
        return torch.cat([_weigh(each, chunk) for each, chunk in zip(context, chunks, strict=True)])

    def _chunk(self, prompt: str, embeddings: tuple[EmbeddingUse, ...]) -> tuple[Chunk, ...]:
        vectors = {use.name: len(self._embeddings[use]) for use in embeddings}
        return chunk_prompt(parse_prompt(prompt), self.bundle.tokenizer, vectors)

    def _token_vectors(
        self, token_ids: Tensor, chunks: Sequence[Chunk], embeddings: tuple[EmbeddingUse, ...]
    ) -> Tensor | None:
        """(chunks, 77, D) with the vectors of textual inversions at their places; None where there are none."""
        placed = [
            (row, column, token)
            for row, chunk in enumerate(chunks)
            for column, token in enumerate(chunk, start=1)  # bos is at 0
            if token.embedding is not None
        ]
        if not placed:
            return None
        by_name = {use.name: self._embeddings[use] for use in embeddings}
        vectors = self.bundle.text_encoder.look_up(token_ids)
        for row, column, token in placed:
            assert token.embedding is not None
            vectors[row, column] = by_name[token.embedding][token.vector]
        return vectors


def chunks_of(prompt: str, tokenizer: Tokenizer) -> tuple[Chunk, ...]:
    """The chunks of a prompt without textual inversions. Raises InputError for what cannot be read."""
    return chunk_prompt(parse_prompt(prompt), tokenizer, {})


def encode_prompts(prompts: Sequence[str], tokenizer: Tokenizer, encoder: CLIPTextModel) -> Tensor:
    """(B, L, D), L = 77 times the chunks of the longest: as a `Conditioner` encodes them, without add-ons.

    A prompt with fewer chunks is filled up with empty ones. Gradients are as they are outside.
    """
    chunks = [chunks_of(prompt, tokenizer) for prompt in prompts]
    longest = max(map(len, chunks))
    contexts: list[Tensor] = []
    for each in chunks:
        filled = [*each, *[()] * (longest - len(each))]
        rows = encoder(_token_ids(filled, tokenizer, encoder))
        contexts.append(torch.cat([_weigh(row, chunk) for row, chunk in zip(rows, filled, strict=True)]))
    return torch.stack(contexts)


def _token_ids(chunks: Sequence[Chunk], tokenizer: Tokenizer, encoder: CLIPTextModel) -> Tensor:
    """(chunks, 77) int64 on the encoder's device."""
    rows = [tokenizer.wrap([token.id for token in chunk]) for chunk in chunks]
    return torch.tensor(rows, device=next(encoder.parameters()).device)


def _prompts(request: GenerationRequest) -> tuple[str, ...]:
    """What is encoded of a request: without guidance nothing reads the negative prompt."""
    return (request.prompt,) if request.guidance == 1 else (request.prompt, request.negative_prompt)


def _weigh(context: Tensor, chunk: Chunk) -> Tensor:
    """A chunk's context (77, D) times the weights of its tokens, with the mean over all of it as it was."""
    if all(token.weight == 1 for token in chunk):
        return context
    wide = context.to(torch.promote_types(context.dtype, torch.float32))  # half precision loses the mean
    weights = torch.ones(len(context), 1, dtype=wide.dtype, device=context.device)
    weights[1 : 1 + len(chunk), 0] = torch.tensor([token.weight for token in chunk], dtype=wide.dtype)
    weighted = wide * weights
    # Mean of means: torch sums more than 32,768 values in an order that depends on the number of threads.
    return (weighted * (wide.mean(dim=-1).mean() / weighted.mean(dim=-1).mean())).to(context.dtype)

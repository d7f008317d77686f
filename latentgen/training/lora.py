"""Training a LoRA: the U-Net's own objective, with all weights frozen but the adapters'."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from latentgen.data.records import Record
from latentgen.models.lora import LoRANetwork
from latentgen.models.tokenizer import Tokenizer
from latentgen.training.rng import Draw, Order
from latentgen.training.unet import UNetBatch, UNetObjective


class TokenIds:
    """In place of a `ContextCache` where the text encoder is adapted too: tokens, which it encodes at every step."""

    def __init__(self, records: Sequence[Record], tokenizer: Tokenizer) -> None:
        captions = sorted({caption for record in records for caption in record.captions} | {""})
        self._row = {caption: row for row, caption in enumerate(captions)}
        self._ids = tokenizer.encode(captions)

    def context(self, caption: str) -> Tensor:
        """(77,) int64."""
        return self._ids[self._row[caption]]


class LoRAObjective:
    """The loss of `UNetObjective` on the network with its adapters (arXiv:2106.09685, eq. 2)."""

    def __init__(self, network: LoRANetwork, denoising: UNetObjective) -> None:
        """denoising: of `network.unet`; its contexts are `TokenIds` where the text encoder is adapted.

        A resumed run must share its identity, hence the fingerprints of all frozen weights belong in there.
        """
        self._network, self.denoising = network, denoising

    @property
    def network(self) -> LoRANetwork:
        return self._network

    def order(self, seed: int, samples_per_step: int) -> Order:
        return self.denoising.order(seed, samples_per_step)

    def describe(self) -> Mapping[str, Any]:
        sizes = self._network.sizes
        adapters = {
            "modules": len(sizes),
            "rank": sorted({size.rank for size in sizes.values()}),
            "alpha": sorted({size.alpha for size in sizes.values()}),
            "sha256": hashlib.sha256(repr(sorted(sizes.items(), key=itemgetter(0))).encode()).hexdigest()[:16],
        }
        return {**self.denoising.describe(), "objective": "lora", "adapters": adapters}

    def batch(self, draws: Sequence[Draw]) -> UNetBatch:
        return self.denoising.batch(draws)

    def loss(self, network: nn.Module, batch: UNetBatch, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.denoising.loss(network, batch, step)

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        return self.denoising.validate(network)

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """Sheets drawn by the frozen networks, in which the adapters are active."""
        self.denoising.write_samples(self._network.unet, folder, step)

"""Attention heads that training keeps alive: logits may not grow until a softmax has no gradient left.

Where every query of a head looks at one key alone, whatever the picture and the prompt, the head's gradient is next to
nothing. An optimizer that normalises its updates (Muon, and Adam) then moves the head's matrices as far as ever, along
noise, and it never comes back. Of the embedded model's ten cross-attentions five had died so within a million samples,
those of the coarse levels, all on the token that begins a text.

The remedy is QK-Clip (Kimi K2, arXiv:2507.20534, section 2.1): after a step, the queries and keys of a head whose
logits are too large are scaled down. What is too large is measured against the number of keys, as a softmax does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from latentgen.models.attention import Attention
from latentgen.training.sharding import parted_like

EVERY_STEPS = 10
SAMPLES = 1
"""Of each process's batch: a head that is dead is so for all, and others come by in other batches."""
QUERIES = 256
"""Of a sample, evenly spread, at most."""
SMALLEST_FACTOR = 0.95
"""Of queries and of keys at a time, so that a network that was trained without the cap can follow."""


class AttentionCap:
    """Watches the attention layers of a network, and scales down the heads whose logits stand out too far."""

    def __init__(self, network: nn.Module, cap: float) -> None:
        """cap: the log-odds of one key against all others together that a head may come to: with 5 a softmax of equal
        others leaves these 0.7 %. The largest logit may stand above the mean of its row by log(keys) + cap.
        """
        self.cap = cap
        self.layers = [module for module in network.modules() if isinstance(module, Attention)]
        self.watching = False
        self._queries: list[Tensor] = [torch.empty(0)] * len(self.layers)
        self._keys: list[Tensor] = [torch.empty(0)] * len(self.layers)
        for number, layer in enumerate(self.layers):
            layer.to_q.register_forward_hook(self._kept_in(self._queries, number))
            layer.to_k.register_forward_hook(self._kept_in(self._keys, number))

    def before_step(self, step: int) -> None:
        """Watch the passes of every tenth step."""
        self.watching = bool(self.layers) and (step + 1) % EVERY_STEPS == 0

    @torch.no_grad()
    def after_step(self, largest: Callable[[Tensor], Tensor]) -> None:
        """Scale down, in place, what the watched passes showed to be too large.

        largest: the largest of each number over all processes, so that all scale by the same.
        """
        if not self.watching:
            return
        self.watching = False
        seen = zip(self._queries, self._keys, self.layers, strict=True)
        shares = [self._share_of_limit(q, k, layer.heads) for q, k, layer in seen]
        factors = largest(torch.cat(shares)).clamp(min=1).rsqrt().clamp(min=SMALLEST_FACTOR)
        for layer, of_layer in zip(self.layers, factors.split([layer.heads for layer in self.layers]), strict=True):
            if bool((of_layer == 1).all()):
                continue
            for projection in (layer.to_q, layer.to_k):
                weight = projection.weight
                rows = of_layer.repeat_interleave(weight.shape[0] // layer.heads)[:, None].expand(weight.shape)
                weight.mul_(parted_like(rows.contiguous().to(weight.dtype), weight))

    def _share_of_limit(self, q: Tensor, k: Tensor, heads: int) -> Tensor:
        """(heads,): how far the largest logit stands above the mean of its row, 1 where it just may."""
        q, k = (each.float().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (SAMPLES, heads, queries, keys)
        heights = (logits.amax(dim=-1) - logits.mean(dim=-1)).amax(dim=(0, 2))
        return heights / (math.log(logits.shape[-1]) + self.cap)

    def _kept_in(self, kept: list[Tensor], number: int) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(_: nn.Module, inputs: object, output: Tensor) -> None:
            if self.watching:
                tokens = output.detach()[:SAMPLES]
                if kept is self._queries:
                    tokens = tokens[:, :: -(-tokens.shape[1] // QUERIES)]
                kept[number] = tokens.clone()  # a view would hold the whole batch

        return keep

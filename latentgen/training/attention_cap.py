"""Attention heads that training keeps alive: logits may not grow until a softmax has no gradient left.

Where every query of a head looks at one key alone, whatever the picture and the prompt, the head's gradient is next to
nothing. An optimizer that normalises its updates (Muon, and Adam) then moves the head's matrices as far as ever, along
noise, and it never comes back. Of the embedded model's ten cross-attentions five had died so within 1.8 million
samples, all four heads of each, on the token that begins a text.

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
QUERIES = 256
"""Of a sample, evenly spread, at most."""
SMALLEST_FACTOR = 0.9
"""Of queries and of keys at a time, so that a network that was trained without the cap can follow."""


class AttentionCap:
    """Watches the attention layers of a network, and scales down the heads whose logits stand out too far.

    One sample of each process is watched, the first of its last pass: a head that is dead is so for all.
    """

    largest: float | None = None
    """How far the head that stands out most did so when last watched, before it was scaled; 1 is the limit."""

    def __init__(self, network: nn.Module, cap: float) -> None:
        """cap: the log-odds of one key against all others together that a head may come to, where these are many and
        equal: with 5 they are left 0.7 %. The largest logit may stand above the mean of its row by log(keys) + cap.
        """
        self.cap = cap
        self.layers = [module for module in network.modules() if isinstance(module, Attention)]
        self._is_watching = False
        self._queries: dict[int, Tensor] = {}
        self._keys: dict[int, Tensor] = {}
        self._hooks = [
            projection.register_forward_hook(self._kept_in(kept, number))
            for number, layer in enumerate(self.layers)
            for projection, kept in ((layer.to_q, self._queries), (layer.to_k, self._keys))
        ]

    def before_step(self, step: int) -> None:
        """Watch the passes of every tenth step."""
        self._is_watching = (step + 1) % EVERY_STEPS == 0

    @torch.no_grad()
    def after_step(self, largest: Callable[[Tensor], Tensor]) -> None:
        """Scale down, in place, what the watched passes showed to be too large.

        largest: the largest of each number over all processes, so that all scale by the same.
        """
        if not self._is_watching or not self.layers:
            return
        self._is_watching = False
        seen = [(self._queries.pop(number), self._keys.pop(number)) for number in range(len(self.layers))]
        shares = [self._share_of_limit(q, k, layer.heads) for (q, k), layer in zip(seen, self.layers, strict=True)]
        over_all = largest(torch.cat(shares))
        self.largest = float(over_all.max())
        if self.largest <= 1:
            return
        factors = over_all.clamp(min=1).rsqrt().clamp(min=SMALLEST_FACTOR)
        for layer, of_layer in zip(self.layers, factors.split([layer.heads for layer in self.layers]), strict=True):
            for projection in (layer.to_q, layer.to_k):
                weight = projection.weight
                rows = of_layer.repeat_interleave(weight.shape[0] // layer.heads)[:, None].expand(weight.shape)
                weight.mul_(parted_like(rows.contiguous().to(weight.dtype), weight))

    def close(self) -> None:
        """Leave the network alone."""
        for hook in self._hooks:
            hook.remove()

    def _share_of_limit(self, q: Tensor, k: Tensor, heads: int) -> Tensor:
        """(heads,): how far the largest logit stands above the mean of its row, 1 where it just may.

        q (1, N, C), k (1, M, C).
        """
        q = q[:, :: -(-q.shape[1] // QUERIES)]
        q, k = (each.float().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k))
        logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5  # (1, heads, queries, M)
        heights = (logits.amax(dim=-1) - logits.mean(dim=-1)).amax(dim=(0, 2))
        return heights / (math.log(logits.shape[-1]) + self.cap)

    def _kept_in(self, kept: dict[int, Tensor], number: int) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(_: nn.Module, inputs: object, output: Tensor) -> None:
            if self._is_watching:
                kept[number] = output.detach()[:1].clone()  # a view would hold the whole batch

        return keep

"""Draws from the tiny data, and training on one batch of them."""

from __future__ import annotations

import torch

from latentgen.training.loop import Objective
from latentgen.training.rng import Draw, SampleOrder


def draws(indices: range, items: int = 10) -> list[Draw]:
    order = SampleOrder(items, seed=0)
    return [order.draw(i) for i in indices]


def overfit(objective: Objective, steps: int, lr: float) -> tuple[float, float]:
    """First and last loss on one batch of four."""
    batch = objective.batch(draws(range(4)))
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=lr)
    losses: list[float] = []
    for _ in range(steps):
        loss, _ = objective.loss(objective.network, batch, 0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]

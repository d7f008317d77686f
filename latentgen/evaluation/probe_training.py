"""Training a probe on labelled renders, and measuring it: accuracy by question on pictures it has not seen."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from latentgen.data.pixels import to_float
from latentgen.evaluation.augment import Augmentation, augment
from latentgen.evaluation.labelled import LabelledPictures
from latentgen.evaluation.labels import GLOBAL_FACTORS, LabelSet
from latentgen.evaluation.probe import Answers, Probe, ProbeConfig
from latentgen.evaluation.targets import UNKNOWN, Targets, encode_labels

LABEL_SMOOTHING: Final = 0.02
WEIGHT_DECAY: Final = 0.02
WARMUP_SHARE: Final = 0.05
JUDGED_AT_ONCE: Final = 64
"""Pictures in one pass when nothing is learnt."""

OnStep = Callable[[int, float, float], None]
"""Called with the steps done, the share of the training that is done, and the loss."""


@dataclass(frozen=True, slots=True)
class ProbeTraining:
    """How a probe is trained. It ends with the steps or with the minutes, whichever is first."""

    steps: int = 4000
    max_minutes: float = math.inf
    batch_size: int = 64
    lr: float = 3e-3
    """Peak, AdamW (arXiv:1711.05101); a linear warm-up, then a half cosine to 0."""
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)


def new_probe(config: ProbeConfig, seed: int) -> Probe:
    """A probe with random weights, a function of the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Probe(config).to(memory_format=torch.channels_last)


def train_probe(probe: Probe, data: LabelledPictures, training: ProbeTraining, on_step: OnStep | None = None) -> Probe:
    """Train a probe, in place, on all of `data`. The same arguments give the same one, unless the minutes end it.

    Raises InputError if the data has a label that the probe does not know.
    """
    generator = torch.Generator().manual_seed(training.seed)
    targets = encode_labels(data.labels, probe.config.labels)
    optimizer = torch.optim.AdamW(probe.parameters(), lr=training.lr, weight_decay=WEIGHT_DECAY)
    started, progress = time.monotonic(), 0.0
    probe.train()
    for step, rows in enumerate(_batches(len(data), training.batch_size, generator), start=1):
        for group in optimizer.param_groups:
            group["lr"] = training.lr * _warm_cosine(progress)
        x, wanted = augment(to_float(data.pixels[rows]), targets.take(rows), generator, training.augmentation)
        with torch.autocast("cpu", torch.bfloat16):
            answers = probe(x.contiguous(memory_format=torch.channels_last))
        loss = probe_loss(answers, wanted)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        minutes = (time.monotonic() - started) / 60
        progress = max(step / training.steps, minutes / training.max_minutes)
        if on_step is not None:
            on_step(step, min(progress, 1.0), float(loss.detach()))
        if progress >= 1:
            break
    return probe.eval()


def probe_loss(answers: Answers, targets: Targets) -> Tensor:
    """The sum of the questions' cross-entropies, each a mean over what is labelled."""

    def cross_entropy(logits: Tensor, wanted: Tensor) -> Tensor:
        known = wanted != UNKNOWN
        if not bool(known.any()):
            return logits.sum() * 0
        return F.cross_entropy(logits[known], wanted[known], label_smoothing=LABEL_SMOOTHING)

    # Summed over the nouns, so that what is not there weighs as much as it occurs: the answers stay calibrated.
    loss = cross_entropy(answers.count, targets.count) * (targets.count.shape[1] / 2)
    loss = loss + cross_entropy(answers.colour, targets.colour) + cross_entropy(answers.position, targets.position)
    for column, logits in enumerate(answers.factors):
        loss = loss + cross_entropy(logits, targets.factors[:, column])
    return loss


@torch.inference_mode()
def measure_probe(
    probe: Probe, data: LabelledPictures, change: Callable[[Tensor], Tensor] | None = None
) -> dict[str, float]:
    """Share of right answers by question, on pictures as they are or after `change`.

    nouns: pictures in which exactly the right nouns are found; count, colour and position: of the nouns that are
    there and labelled; setting, time, weather and style: of the pictures.
    """
    targets = encode_labels(data.labels, probe.config.labels)
    right: dict[str, list[Tensor]] = {}
    for rows in torch.arange(len(data)).split(JUDGED_AT_ONCE):
        x = to_float(data.pixels[rows])
        answers = probe((x if change is None else change(x)).contiguous(memory_format=torch.channels_last))
        wanted = targets.take(rows)
        shown = wanted.count > 0
        found = answers.count.argmax(-1)
        right.setdefault("nouns", []).append(((found > 0) == shown).all(dim=1))
        right.setdefault("count", []).append((found == wanted.count)[shown])
        for name, logits, truth in (
            ("colour", answers.colour, wanted.colour),
            ("position", answers.position, wanted.position),
        ):
            right.setdefault(name, []).append((logits.argmax(-1) == truth)[truth != UNKNOWN])
        for column, factor in enumerate(GLOBAL_FACTORS):
            right.setdefault(factor, []).append(answers.factors[column].argmax(-1) == wanted.factors[:, column])
    joined = {name: torch.cat(parts) for name, parts in right.items()}
    return {name: round(float(each.float().mean()), 4) for name, each in joined.items() if len(each)}


def default_config(data: LabelledPictures) -> ProbeConfig:
    """The default probe for the answers that occur in the data."""
    return ProbeConfig(LabelSet.of(data.labels), size_px=int(data.pixels.shape[1]))


def _batches(count: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Row numbers for ever: every picture once in each epoch, in a new order."""
    while True:
        order = torch.randperm(count, generator=generator)
        # An incomplete last batch would have other statistics in the batch norms.
        yield from order.split(size)[: max(1, count // size)]


def _warm_cosine(progress: float) -> float:
    if progress < WARMUP_SHARE:
        return max(progress / WARMUP_SHARE, 0.02)
    return 0.5 * (1 + math.cos(math.pi * (progress - WARMUP_SHARE) / (1 - WARMUP_SHARE)))

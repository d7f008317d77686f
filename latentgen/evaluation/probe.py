"""The probe: a small network that reads labels off a picture, and its file.

It judges drawn pictures in the place of GenEval's object detector (arXiv:2310.11513): our world has exact labels, so
the judge can be trained on them, and its own errors measured on fresh renders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.checkpoints.header import read_account
from latentgen.checkpoints.io import load_strict, read_tensors, write_tensors
from latentgen.errors import ModelLoadError, ModelNotFoundError
from latentgen.evaluation.labels import GLOBAL_FACTORS, POSITIONS, LabelSet

FORMAT: Final = 1
KIND: Final = "scene probe"
MAP_DOWNSCALE: Final = 8
"""Pixels per cell of a noun's map."""


@dataclass(frozen=True, slots=True)
class ProbeConfig:
    """Size of a probe; about a million parameters by default."""

    labels: LabelSet
    size_px: int = 128
    """Side of the pictures that it reads; others are resized."""
    channels: tuple[int, int, int] = (48, 96, 128)
    """At 1/4, 1/8 and 1/16 of the picture."""
    blocks: tuple[int, int, int] = (1, 2, 2)
    head_channels: int = 96

    def __post_init__(self) -> None:
        if self.size_px % 16 or len(self.channels) != 3 or len(self.blocks) != 3:
            raise ValueError("a probe's side is a multiple of 16, and it has three levels")


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """What the probe says of B pictures: logits, float32. N nouns."""

    count: Tensor
    """(B, N, max_count + 1); class 0 is not there."""
    colour: Tensor
    """(B, N, colours)"""
    position: Tensor
    """(B, N, 3)"""
    factors: tuple[Tensor, ...]
    """(B, answers) for each of GLOBAL_FACTORS."""


class _Block(nn.Module):
    """Two convolutions with a residual path; the first may halve the sides."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(self.conv1(x)))
        x = x if self.stride == 1 else F.avg_pool2d(x, self.stride)
        return F.relu(self.norm2(self.conv2(h)) + self.shortcut(x))


class Probe(nn.Module):
    """Pictures (B, 3, S, S) in [-1, 1] to `Answers`.

    A residual trunk feeds one map per noun, S/8 cells a side. Where a noun's map is high its features are gathered
    (attention pooling); the map's profile from left to right tells how many there are and where.
    """

    def __init__(self, config: ProbeConfig) -> None:
        super().__init__()
        self.config = config
        labels, (fine, middle, coarse), head = config.labels, config.channels, config.head_channels
        # Four by four pixels become channels: convolutions at full size would take half of the time.
        self.stem = nn.Sequential(
            nn.PixelUnshuffle(4), nn.Conv2d(48, fine, 3, 1, 1, bias=False), nn.BatchNorm2d(fine), nn.ReLU()
        )
        self.fine = _level(fine, fine, config.blocks[0], stride=1)
        self.middle = _level(fine, middle, config.blocks[1], stride=2)
        self.coarse = _level(middle, coarse, config.blocks[2], stride=2)
        self.lateral = nn.Conv2d(middle, head, 1)
        self.top_down = nn.Conv2d(coarse, head, 1)
        self.maps = nn.Conv2d(head, len(labels.nouns), 1)
        cells = config.size_px // MAP_DOWNSCALE
        self.noun = nn.Parameter(torch.randn(len(labels.nouns), head) * head**-0.5)
        self.gather = nn.Linear(head + cells + 1, head)
        self.count = nn.Linear(head, labels.max_count + 1)
        self.colour = nn.Linear(head, len(labels.colours))
        self.position = nn.Linear(head, len(POSITIONS))
        self.factors = nn.ModuleList(nn.Linear(2 * coarse, len(labels.answers(factor))) for factor in GLOBAL_FACTORS)

    def forward(self, pictures: Tensor) -> Answers:
        features, coarse = self._trunk(pictures)
        features = F.relu(features)
        maps = self.maps(features).float()  # (B, N, h, w)
        attention = maps.flatten(2).softmax(dim=-1)  # (B, N, h w)
        gathered = attention @ features.flatten(2).transpose(1, 2).float()  # (B, N, head)
        profile = maps.amax(dim=2)  # (B, N, w)
        mass = maps.sigmoid().mean(dim=(2, 3))[..., None]  # (B, N, 1)
        per_noun = F.relu(self.gather(torch.cat([gathered, profile, mass], dim=-1)) + self.noun)
        pooled = torch.cat([coarse.mean(dim=(2, 3)), coarse.amax(dim=(2, 3))], dim=-1).float()
        return Answers(
            self.count(per_noun).float(),
            self.colour(per_noun).float(),
            self.position(per_noun).float(),
            tuple(head(pooled).float() for head in self.factors),
        )

    def features(self, pictures: Tensor) -> Tensor:
        """What each place of pictures (B, 3, H, W) in [-1, 1] shows: (B, head_channels, S/8, S/8), before its ReLU."""
        side = (self.config.size_px, self.config.size_px)
        if pictures.shape[-2:] != side:
            pictures = F.interpolate(pictures, side, mode="area")
        return self._trunk(pictures.contiguous(memory_format=torch.channels_last))[0]

    def _trunk(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Features at 1/8 of the picture, and the coarse ones at 1/16 that are among them."""
        middle = self.middle(self.fine(self.stem(pictures)))
        coarse = self.coarse(middle)
        # Coarse features know what a thing is, finer ones where it ends.
        return self.lateral(middle) + F.interpolate(self.top_down(coarse), scale_factor=2.0), coarse


def _level(inputs: int, outputs: int, blocks: int, *, stride: int) -> nn.Sequential:
    return nn.Sequential(_Block(inputs, outputs, stride), *(_Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def save_probe(path: Path, probe: Probe, accuracy: Mapping[str, Any]) -> None:
    """Write the probe in half precision with its config and its measured accuracy in the header.

    Raises RuntimeFailure if the disk refuses, leaving no partial file.
    """
    about = {"format": FORMAT, "kind": KIND, "config": asdict(probe.config), "accuracy": dict(accuracy)}
    tensors = {name: each.half() if each.is_floating_point() else each for name, each in probe.state_dict().items()}
    write_tensors(path, tensors, {"latentgen": json.dumps(about)})


def load_probe(path: Path, *, device: torch.device | str = "cpu") -> Probe:
    """A probe in float32, ready to judge. Raises ModelNotFoundError or ModelLoadError if the file is not a probe."""
    probe = Probe(_read_config(path))
    load_strict(probe, read_tensors(path, dtype=torch.float32), path, device=device)
    return probe.eval().to(memory_format=torch.channels_last)


def _read_config(path: Path) -> ProbeConfig:
    try:
        about = read_account(path, KIND)
    except FileNotFoundError:
        raise ModelNotFoundError(
            f"there is no probe at {path}", hint="make one: latentgen evaluate train-probe"
        ) from None
    if about is None:
        raise ModelLoadError(f"{path} is not a probe", hint="they are made by: latentgen evaluate train-probe")
    if about.get("format") != FORMAT:
        raise ModelLoadError(f"{path} has format {about.get('format')!r}; this version reads {FORMAT}")
    try:
        given = dict(cast("dict[str, Any]", about["config"]))
        labels = LabelSet.from_json(given.pop("labels"))
        channels, blocks = (tuple(given.pop(name)) for name in ("channels", "blocks"))
        return ProbeConfig(labels, channels=channels, blocks=blocks, **given)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelLoadError(f"{path} has a damaged config: {error}", hint="make the probe again") from None

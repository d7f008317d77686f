"""Representation alignment: the U-Net's features of a noisy picture, held against a frozen network's of the clean one.

A network that knows what is on a picture tells the U-Net what to look for long before its own loss would. The head that
compares both is trained along and thrown away. Source: REPA, arXiv:2410.06940, section 3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from latentgen.data.array_file import open_array, write_array
from latentgen.data.pixels import Pictures, to_float
from latentgen.models.unet import UNet
from latentgen.training.caches import as_float16
from latentgen.training.rng import Draw, Order
from latentgen.training.unet import UNetBatch, UNetObjective

HEAD_WIDTH = 256
MEASURED_ON = 256
"""Pictures, spread over the set, from which each channel's mean and deviation are taken."""
PICTURES_AT_A_TIME = 32


@dataclass(frozen=True, slots=True)
class FrozenNetwork:
    """What sees the clean pictures."""

    see: Callable[[Tensor], Tensor]
    """Pictures (B, 3, H, W) in [-1, 1], of any size, to features (B, C, h, w) of one size."""
    identity: str
    """A name for its weights."""


class FeatureCache:
    """A frozen network's features of every picture, (C, h, w) each; kept as (n, C, h, w) float16.

    Raises RuntimeFailure if they do not fit into float16, or the disk refuses a file.
    """

    def __init__(self, pixels: Pictures, frozen: FrozenNetwork, folder: Path, report: Callable[[str], None]) -> None:
        with torch.inference_mode():
            example = frozen.see(to_float(pixels.batch([0])))
        self.channels = example.shape[1]
        shape = (len(pixels), *example.shape[1:])
        path = folder / f"features-{pixels.identity}-{frozen.identity}.npy"
        if not path.exists():
            report(f"encoding {len(pixels)} pictures with the network to align with")
            write_array(path, shape, np.float16, _encode(pixels, frozen))
        self._features: NDArray[np.float16] = open_array(path, shape, np.float16)
        some = self._features[np.unique(np.linspace(0, len(pixels) - 1, MEASURED_ON).astype(int))].astype(np.float32)
        mean, deviation = some.mean(axis=(0, 2, 3)), some.std(axis=(0, 2, 3))
        self._mean = torch.from_numpy(mean)[:, None, None]
        self._deviation = torch.from_numpy(deviation).clamp(min=1e-4)[:, None, None]

    def features(self, item: int, height: int, width: int) -> Tensor:
        """Of one picture, as a map of this size: (C, height, width) float32, of mean 0 and deviation 1 over the set."""
        features = (torch.from_numpy(self._features[item].astype(np.float32)) - self._mean) / self._deviation
        return F.interpolate(features[None], (height, width), mode="bilinear", antialias=True, align_corners=False)[0]


class AlignedUNet(nn.Module):
    """A U-Net, and the head that tells the frozen network's features from what enters the U-Net's finest way up."""

    def __init__(self, unet: UNet, channels: int) -> None:
        """channels: of the frozen network's features."""
        super().__init__()
        assert len(unet.config.block_out_channels) > 1, "a U-Net of one level has no coarser features"
        self.unet = unet
        self.head = nn.Sequential(
            nn.Conv2d(unet.config.block_out_channels[1], HEAD_WIDTH, 1),
            nn.SiLU(),
            nn.Conv2d(HEAD_WIDTH, channels, 1),
        )
        self._entering: Tensor | None = None
        unet.up_blocks[-2].register_forward_hook(self._keep)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """As `UNet`: the prediction (B, C, h, w), and the features it tells (B, channels, h, w)."""
        prediction = self.unet(x, t, context)
        entering, self._entering = self._entering, None
        assert entering is not None, "the U-Net was called"
        return prediction, self.head(entering)

    def _keep(self, block: nn.Module, inputs: object, output: Tensor) -> None:
        self._entering = output


def unet_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The U-Net's part of an `AlignedUNet`'s tensors, under its own names."""
    return part_of(tensors, "unet.")


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors of one part of a network, under that part's own names; prefix: what they begin with in the whole."""
    return {name.removeprefix(prefix): each for name, each in tensors.items() if name.startswith(prefix)}


class AlignedBatch(NamedTuple):
    """A `UNetBatch`, and what the frozen network sees in its pictures."""

    latents: Tensor
    eps: Tensor
    t: Tensor
    context: Tensor
    features: Tensor
    """(B, C, h, w), of the latents' sides."""


class AlignedObjective:
    """The loss of `UNetObjective`, and the cosine between told and seen features taken from it (arXiv:2410.06940)."""

    def __init__(self, network: AlignedUNet, denoising: UNetObjective, features: FeatureCache, weight: float) -> None:
        """denoising: of `network.unet`; a resumed run must share its identity, hence the frozen network's too."""
        self._network, self.denoising, self.features, self.weight = network, denoising, features, weight

    @property
    def network(self) -> AlignedUNet:
        return self._network

    def order(self, seed: int, samples_per_step: int) -> Order:
        return self.denoising.order(seed, samples_per_step)

    def describe(self) -> Mapping[str, Any]:
        return {**self.denoising.describe(), "objective": "aligned unet", "align_weight": self.weight}

    def batch(self, draws: Sequence[Draw]) -> AlignedBatch:
        batch = self.denoising.batch(draws)
        sides = batch.latents.shape[-2:]
        features = [self.features.features(draw.item, *sides) for draw in draws]
        return AlignedBatch(*batch, torch.stack(features))

    def loss(self, network: nn.Module, batch: AlignedBatch, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        *parts, features = batch
        told: list[Tensor] = []

        def predict(x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            prediction, answer = network(x, t, context)
            told.append(answer)
            return prediction

        denoising, metrics = self.denoising.loss(predict, UNetBatch(*parts), step)
        (answer,) = told
        alignment = F.cosine_similarity(answer.float(), features, dim=1).mean()
        figures = {"denoising": denoising.detach(), "alignment": alignment.detach()}
        return denoising + self.weight * (1 - alignment), {**metrics, **figures}

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        return self.denoising.validate(_unet_of(network))

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        self.denoising.write_samples(_unet_of(network), folder, step)


def _unet_of(network: nn.Module) -> UNet:
    assert isinstance(network, AlignedUNet), "the loop hands back the network it was given"
    return network.unet


def _encode(pixels: Pictures, frozen: FrozenNetwork) -> Iterator[NDArray[np.float16]]:
    """One group of pictures after another; those of a group have one shape."""
    shapes = pixels.shapes
    groups: list[list[int]] = []
    for item in range(len(pixels)):
        if groups and shapes[groups[-1][0]] == shapes[item] and len(groups[-1]) < PICTURES_AT_A_TIME:
            groups[-1].append(item)
        else:
            groups.append([item])
    for group, pictures in zip(groups, pixels.batches(groups), strict=True):
        with torch.inference_mode():
            features = frozen.see(to_float(pictures))
        yield as_float16(features, f"the features of pictures {group[0]} to {group[-1]}")

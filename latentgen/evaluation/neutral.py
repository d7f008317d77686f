"""What a neutral network's features say of the drawn pictures as a set: how near to renders, how diverse, how new."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from latentgen.checkpoints.header import read_header
from latentgen.checkpoints.io import read_tensors, write_tensors
from latentgen.data.decode import decode
from latentgen.data.record import Record
from latentgen.data.records import fingerprint
from latentgen.errors import LatentgenError
from latentgen.evaluation.benchmark import Drawn
from latentgen.evaluation.features import (
    SIDE_PX,
    FeatureExtractor,
    frechet_distance,
    mean_pairwise_distance,
    nearest,
)
from latentgen.evaluation.labelled import OnProgress
from latentgen.evaluation.sheets import PAIRS_SHOWN, Pair
from latentgen.images.pixels import Pixels

FEATURES: Final = "features"
IDENTITY: Final = "latentgen.data"
_QUANTILES: Final = {"smallest": "smallest", "percentile_5": "5th percentile", "median": "median"}
"""Of the distances to training pictures: keys of the figures, and how they are called."""


def measure_drawn(extract: FeatureExtractor, drawn: Drawn) -> dict[str, Any]:
    """Fréchet distance and diversity, each with the same figure of renders of the same scenes.

    distribution: distance of the drawn pictures to renders of the same scenes, and of two sets of renders.
    diversity: mean pairwise distance of the pictures of one prompt, averaged over prompts.
    """
    figures: dict[str, Any] = {}
    renders = [extract(each) for each in drawn.renders]
    if renders:
        distance = frechet_distance(extract(drawn.pictures), renders[0])
        figures["distribution"] = {"pictures": len(drawn.pictures), "frechet": round(distance, 3)}
        if len(renders) > 1:
            figures["distribution"]["frechet_of_renders"] = round(frechet_distance(renders[1], renders[0]), 3)
    if drawn.series:
        figures["diversity"] = {"prompts": len(drawn.series), "drawn": _mean_diversity(extract, drawn.series)}
        if drawn.series_renders:
            figures["diversity"]["renders"] = _mean_diversity(extract, list(zip(*drawn.series_renders, strict=True)))
    return figures


def measure_nearest(
    extract: FeatureExtractor, drawn: Drawn, training: Tensor, records: Sequence[Record]
) -> tuple[dict[str, Any], list[Pair]]:
    """How far the drawn pictures are from the nearest training pictures, and fresh renders from theirs; the pairs.

    Drawn pictures that are much nearer than fresh renders are remembered, not drawn.
    """
    distances, rows = nearest(extract(drawn.pictures), training)
    figures: dict[str, Any] = {"training_pictures": len(records), "drawn": _summary(distances)}
    if drawn.renders:
        figures["renders"] = _summary(nearest(extract(drawn.renders[0]), training)[0])
    closest = distances.argsort()[:PAIRS_SHOWN].tolist()
    pairs: list[Pair] = []
    for k in closest:
        picture, record = drawn.pictures[k], records[int(rows[k])]
        trained = decode(record, (picture.shape[0], picture.shape[1]))
        pairs.append(Pair(picture, trained, drawn.items[k].prompt, record.captions[0], float(distances[k])))
    return figures, pairs


def figures_table(figures: Mapping[str, Any]) -> str:
    """What `measure_drawn` and `measure_nearest` found, in lines: of the drawn pictures, and beside it of renders."""
    rows: list[tuple[str, float, float | None]] = []
    if found := figures.get("distribution"):
        name = f"Frechet distance to renders, {found['pictures']} pictures"
        rows.append((name, found["frechet"], found.get("frechet_of_renders")))
    if found := figures.get("diversity"):
        rows.append((f"diversity, {found['prompts']} prompts", found["drawn"], found.get("renders")))
    if found := figures.get("nearest"):
        renders = found.get("renders", {})
        for key, quantile in _QUANTILES.items():
            name = f"nearest of {found['training_pictures']} training pictures, {quantile}"
            rows.append((name, found["drawn"][key], renders.get(key)))
    width = max((len(name) for name, *_ in rows), default=0)
    lines = [f"{'':{width}}  {'drawn':>9}  {'renders':>9}"]
    for name, drawn, rendered in rows:
        lines.append(f"{name:{width}}  {drawn:9.3f}" + ("" if rendered is None else f"  {rendered:9.3f}"))
    return "\n".join(lines)


def _mean_diversity(extract: FeatureExtractor, series: Sequence[Sequence[Pixels]]) -> float:
    return round(sum(mean_pairwise_distance(extract(each)) for each in series) / len(series), 4)


def _summary(distances: Tensor) -> dict[str, float]:
    """Smallest, 5th percentile and median."""
    smallest, low, middle = torch.quantile(distances, torch.tensor([0.0, 0.05, 0.5])).tolist()
    return {"smallest": round(smallest, 4), "percentile_5": round(low, 4), "median": round(middle, 4)}


def training_features(
    records: Sequence[Record], extract: FeatureExtractor, cache: Path, on_progress: OnProgress | None = None
) -> Tensor:
    """Features (n, D) of training pictures, kept in the file `cache` for as long as the pictures stay the same."""
    identity = fingerprint(records)
    kept = _kept(cache, identity)
    if kept is not None:
        return kept

    def pictures() -> Iterator[Pixels]:
        for number, record in enumerate(records, start=1):
            yield decode(record, (SIDE_PX, SIDE_PX))
            if on_progress is not None:
                on_progress(number, len(records))

    features = extract(pictures())
    cache.parent.mkdir(parents=True, exist_ok=True)
    write_tensors(cache, {FEATURES: features.contiguous()}, {"latentgen": json.dumps({IDENTITY: identity})})
    return features


def _kept(cache: Path, identity: str) -> Tensor | None:
    """The features in the file, if they are of these pictures."""
    try:
        with cache.open("rb") as file:
            metadata = read_header(file, cache.stat().st_size, cache).metadata
        if json.loads(metadata.get("latentgen", "{}")) != {IDENTITY: identity}:
            return None
        return read_tensors(cache).get(FEATURES)
    except (OSError, ValueError, LatentgenError):
        return None

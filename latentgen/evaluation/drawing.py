"""Drawing the benchmark's pictures into a folder; one that is there already is not drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from latentgen.config import ModelConfig
from latentgen.errors import LatentgenError
from latentgen.evaluation.labelled import OnProgress
from latentgen.evaluation.prompts import Item
from latentgen.images.files import read_picture_text, write_file
from latentgen.images.metadata import PictureMetadata
from latentgen.pipeline import TextToImage
from latentgen.request import GenerationRequest, RequestFields, complete_request


@dataclass(frozen=True, slots=True)
class Shot:
    """One picture to be drawn, and its file."""

    path: Path
    request: GenerationRequest


def plan_shots(items: Sequence[Item], folder: Path, config: ModelConfig, given: RequestFields) -> list[Shot]:
    """A picture for each item, drawn with the model's defaults but for what is `given`.

    Raises RequestError if the model cannot draw so.
    """
    return [_shot(item.prompt, item.drawing_seed, folder / f"{item.name}.png", config, given) for item in items]


def plan_series(
    items: Sequence[Item], seeds: int, folder: Path, config: ModelConfig, given: RequestFields
) -> list[list[Shot]]:
    """For each item `seeds` pictures of its prompt, which differ in their seed alone."""
    return [
        [_shot(item.prompt, k, folder / f"{item.name}-seed-{k}.png", config, given) for k in range(seeds)]
        for item in items
    ]


def _shot(prompt: str, seed: int, path: Path, config: ModelConfig, given: RequestFields) -> Shot:
    return Shot(path, complete_request(config, prompt=prompt, seed=seed, **given))


def draw_missing(
    pipeline: TextToImage, shots: Sequence[Shot], *, batch_size: int | None, on_progress: OnProgress | None = None
) -> int:
    """Draw what is not there yet; the number of pictures that were drawn.

    A picture is there if its file carries the same request and the model's fingerprint. Each is written as soon as it
    is drawn, aside and then named, so a run that is ended in any way is finished by the next one.
    """
    missing = [shot for shot in shots if not _is_there(shot, pipeline.fingerprint)]
    ready = len(shots) - len(missing)
    results = pipeline.generate([shot.request for shot in missing], batch_size=batch_size)
    for shot, result in zip(missing, results, strict=True):
        shot.path.parent.mkdir(parents=True, exist_ok=True)
        write_file(shot.path, result.encode(), overwrite=True)
        ready += 1
        if on_progress is not None:
            on_progress(ready, len(shots))
    return len(missing)


def _is_there(shot: Shot, fingerprint: str) -> bool:
    try:
        _, _, text = read_picture_text(shot.path)
        metadata = PictureMetadata.from_json(text.document or {})
    except LatentgenError:
        return False
    return metadata.request == shot.request and metadata.fingerprint == fingerprint

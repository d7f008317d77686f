"""Drawing into a folder: what is there with the same request and model is not drawn again."""

from __future__ import annotations

from pathlib import Path

from latentgen.evaluation.drawing import draw_missing, plan_series, plan_shots
from latentgen.evaluation.prompts import make_items
from latentgen.pipeline import TextToImage
from latentgen.request import RequestFields
from tests.tiny_bundle import tiny_bundle

GIVEN = RequestFields(steps=1)


def test_a_picture_is_drawn_once_for_its_request_and_model(tmp_path: Path) -> None:
    pipeline = TextToImage(tiny_bundle())
    items = make_items("heroes", 1)[:2]
    shots = plan_shots(items, tmp_path, pipeline.bundle.config, GIVEN)
    reports: list[tuple[int, int]] = []
    assert draw_missing(pipeline, shots, batch_size=None, on_progress=lambda *at: reports.append(at)) == 2
    assert reports == [(1, 2), (2, 2)]
    assert draw_missing(pipeline, shots, batch_size=None) == 0

    shots[0].path.write_bytes(b"torn")
    assert draw_missing(pipeline, shots, batch_size=None) == 1, "a damaged picture is not there"

    other = plan_shots(items, tmp_path, pipeline.bundle.config, RequestFields(steps=1, guidance=2.0))
    assert draw_missing(pipeline, other, batch_size=None) == 2, "other settings are other pictures"

    pipeline.fingerprint = "of another model"
    assert draw_missing(pipeline, other, batch_size=None) == 2


def test_a_series_differs_in_its_seeds_alone(tmp_path: Path) -> None:
    config = tiny_bundle().config
    items = make_items("heroes", 1)[:2]
    first, second = plan_series(items, 3, tmp_path, config, GIVEN)
    assert [shot.request.seed for shot in first] == [0, 1, 2]
    assert {shot.request.prompt for shot in second} == {items[1].prompt}
    paths = {shot.path for shot in (*first, *second, *plan_shots(items, tmp_path, config, GIVEN))}
    assert len(paths) == 8

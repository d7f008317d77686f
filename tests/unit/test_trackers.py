"""TensorBoard's files, read back by TensorBoard."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from latentgen.training.trackers import TensorBoard


def line(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "images_seen": 4 * step, "loss": loss, "lr": 1e-3, "elapsed_s": 1.0}


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    Image.fromarray(np.full((4, 6, 3), (255, 0, 0), np.uint8)).save(folder / "step_00000002.png")
    return folder


def read(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder)).Reload()


def test_scalars_and_sheets_come_back(tmp_path: Path, samples: Path) -> None:
    board = TensorBoard(tmp_path / "tensorboard", samples)
    board({"start": True, "step": 0, "parameters": 7})
    board({"told": "step", "step": 1, "loss": 9.0})
    board(line(1, 0.5))
    board(line(2, 0.25))
    board({"step": 2, "images_seen": 8, "validation": True, "loss": 0.75})
    board({"told": "samples", "step": 2})
    board({"told": "samples", "step": 3})  # an objective may have drawn none
    board.close()

    found = read(tmp_path / "tensorboard")
    names = {"training/images_seen", "training/loss", "training/lr", "validation/images_seen", "validation/loss"}
    assert set(found.Tags()["scalars"]) == names
    assert [(e.step, e.value) for e in found.Scalars("training/loss")] == [(1, 0.5), (2, 0.25)]
    assert [(e.step, e.value) for e in found.Scalars("validation/loss")] == [(2, 0.75)]
    (sheet,) = found.Images("samples")
    assert (sheet.step, sheet.width, sheet.height) == (2, 6, 4)


def test_a_resumed_run_repeats_no_step(tmp_path: Path, samples: Path) -> None:
    """Killed after step 4, resumed from the checkpoint of step 2: TensorBoard forgets 3 and 4 of the first start."""
    folder = tmp_path / "tensorboard"
    first = TensorBoard(folder, samples)
    first({"start": True, "step": 0})
    for step in range(1, 5):
        first(line(step, float(step)))
    first.close()
    second = TensorBoard(folder, samples)
    second({"start": True, "step": 2})
    for step in range(3, 6):
        second(line(step, 10.0 * step))
    second.close()
    found = read(folder)
    expected = [(1, 1.0), (2, 2.0), (3, 30.0), (4, 40.0), (5, 50.0)]
    assert [(event.step, event.value) for event in found.Scalars("training/loss")] == expected


def test_a_start_that_makes_no_step_hides_nothing(tmp_path: Path, samples: Path) -> None:
    folder = tmp_path / "tensorboard"
    first = TensorBoard(folder, samples)
    for event in ({"start": True, "step": 0}, *(line(step, float(step)) for step in range(1, 5))):
        first(event)
    first.close()
    second = TensorBoard(folder, samples)
    for event in ({"start": True, "step": 2}, {"step": 2, "validation": True, "val_loss": 0.5}):
        second(event)
    second.close()
    found = read(folder)
    assert [event.step for event in found.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [event.step for event in found.Scalars("validation/val_loss")] == [2]


def test_a_folder_that_cannot_be_written_is_a_warning(
    tmp_path: Path, samples: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "tensorboard").write_text(json.dumps("a file"))
    board = TensorBoard(tmp_path / "tensorboard", samples)
    board({"start": True, "step": 0})
    board(line(1, 0.5))
    board.close()
    assert len(caplog.records) == 1
    assert "tensorboard cannot be written, and is left as it is" in caplog.text

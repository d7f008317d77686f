"""Contact sheets: what is on them, and what is refused before anything is drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentgen.corpus import sheets
from latentgen.corpus.compose import render_scene
from latentgen.corpus.records import make_record
from latentgen.errors import InputError, ModelNotFoundError

DOCS = Path(__file__).parents[2] / "docs" / "corpus"
MOST_BYTES = 700_000
"""Of the sheets in the repository, together."""


def test_a_record_on_the_sheet_is_the_record_of_its_seed() -> None:
    page = np.array(sheets.records_sheet("heroes", 40, rows=1, columns=2, cell_px=64)).astype(int)
    scene = make_record("heroes", 41, 1).scene
    wanted = Image.fromarray(render_scene(scene, 41)).resize((64, 64), Image.Resampling.BOX)
    left = 2 * sheets.GAP_PX + 64
    assert np.array_equal(page[sheets.GAP_PX : sheets.GAP_PX + 64, left : left + 64], np.array(wanted))
    captions = page[sheets.GAP_PX + 64 : -sheets.GAP_PX]
    assert captions.shape[0] == 3 * sheets.LINE_PX
    assert (captions < 100).any()


def test_sheets_are_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sheets.SHEETS, "styles", lambda: Image.new("RGB", (40, 20), "red"))
    assert sheets.write_sheets(tmp_path / "new", ["styles"]) == [tmp_path / "new" / "corpus-styles.jpg"]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["corpus-styles.jpg"]
    assert Image.open(tmp_path / "new" / "corpus-styles.jpg").size == (40, 20)


def test_what_cannot_be_drawn_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="no contact sheet 'nouns2'; there are nouns, weathers"):
        sheets.write_sheets(out, ["nouns", "nouns2"])
    with pytest.raises(InputError, match="vocabulary 'heros' is not one of"):
        sheets.write_sheets(out, vocabulary="heros")  # type: ignore[arg-type]
    with pytest.raises(ModelNotFoundError, match="no artwork in"):
        sheets.write_sheets(out, ["records"], vocabulary="full", artwork_folder=tmp_path / "nowhere")
    assert not out.exists()
    out.touch()
    with pytest.raises(InputError, match="is a file, not a folder"):
        sheets.write_sheets(out, ["records"])


def test_the_documentation_has_every_sheet_and_they_are_small() -> None:
    files = sorted(DOCS.glob("*.jpg"))
    assert {file.stem for file in files} == {f"corpus-{name}" for name in sheets.SHEET_NAMES}
    assert sum(file.stat().st_size for file in files) <= MOST_BYTES
    page = (DOCS.parent / "corpus.md").read_text(encoding="utf-8")
    assert all(f"corpus/{file.name}" in page for file in files)

"""The folder of an evaluation: pictures, `manifest.jsonl` with a line for each prompt, `scores.json`, the sheets."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from latentgen import __version__
from latentgen.errors import InputError
from latentgen.evaluation.prompts import SPLITS
from latentgen.evaluation.scores import scores_json
from latentgen.evaluation.sheets import Pair, pair_sheet, verdict_sheet
from latentgen.images.files import write_file
from latentgen.images.pixels import Pixels
from latentgen.jsonfile import write_json, write_text

if TYPE_CHECKING:
    from latentgen.evaluation.benchmark import Judged
    from latentgen.evaluation.drawing import Shot

FORMAT: Final = 1
_ASIDE: Final = re.compile(r"\.(.+)\.[0-9]+\.tmp")
"""What a killed process was writing, by the name it was to have."""


class SceneFolder:
    """Where an evaluation lies. Everything but the pictures is written anew by each run, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pictures = folder / "pictures"
        self.training_features = folder / "training-features.safetensors"

    def check(self) -> None:
        """Raise InputError if the folder cannot be one, or holds something that no evaluation wrote."""
        for path in (self.folder, *self.folder.parents):
            if path.exists():
                if not path.is_dir():
                    raise InputError(f"--out: {path} is a file, not a folder")
                break
        known = {"pictures", "manifest.jsonl", "scores.json", "nearest.png", self.training_features.name}
        known |= {_sheet_name(split) for split in SPLITS}
        if self.folder.is_dir():
            names = (_ASIDE.sub(r"\1", path.name) for path in self.folder.iterdir())
            foreign = sorted(name for name in names if name not in known)
            if foreign:
                hint = "name an empty one, or that of an earlier evaluation"
                raise InputError(f"--out {self.folder} holds other files: {', '.join(foreign[:3])}", hint=hint)

    def write_manifest(self, judged: Sequence[Judged], shots: Sequence[Shot]) -> Path:
        """One line for each prompt: what was asked, what the probe saw, and the verdict."""
        lines = [
            {
                "file": shot.path.relative_to(self.folder).as_posix(),
                **each.item.to_json(),
                "right": each.verdict.is_right,
                "renders": each.verdict.ceiling.to_json() if each.verdict.ceiling.total else None,
                "seen": each.seen.in_words(),
                "request": shot.request.to_json(),
            }
            for each, shot in zip(judged, shots, strict=True)
        ]
        path = self.folder / "manifest.jsonl"
        write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        return path

    def write_scores(self, about: Mapping[str, Any], judged: Sequence[Judged], neutral: Mapping[str, Any]) -> Path:
        """`about`: the model, the probe, how it was drawn. `neutral`: figures of the neutral network, if it is here."""
        scores = scores_json([each.verdict for each in judged])
        path = self.folder / "scores.json"
        write_json(
            path, {"format": FORMAT, "latentgen": __version__, **about, "scores": scores, "neutral": dict(neutral)}
        )
        return path

    def write_sheets(self, judged: Sequence[Judged], pictures: Sequence[Pixels], title: str) -> list[Path]:
        """A sheet for each split that has prompts."""
        written: list[Path] = []
        for split in SPLITS:
            if any(each.item.split == split for each in judged):
                path = self.folder / _sheet_name(split)
                write_file(path, verdict_sheet(judged, pictures, split, f"{title}: {split}"), overwrite=True)
                written.append(path)
        return written

    def write_pairs(self, pairs: Sequence[Pair], title: str) -> Path:
        path = self.folder / "nearest.png"
        write_file(path, pair_sheet(pairs, title), overwrite=True)
        return path


def _sheet_name(split: str) -> str:
    return f"sheet-{split.replace(' ', '-')}.png"

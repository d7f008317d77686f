"""What a drawn backdrop offers to its subjects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latentgen.corpus.terrain import Ground

StageKind = Literal["land", "water", "float", "studio", "cliff"]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where subjects stand, swim or float in a backdrop; heights are canvas units."""

    kind: StageKind
    horizon: float
    foot_range: tuple[float, float]
    """Between these heights a subject has its foot or waterline."""
    ground: Ground
    """Surface below which a foot must be; flat where there is none."""
    preferred_x: float | None = None
    """The one good place for a single subject, if there is one."""
    waters: tuple[float, float] | None = None
    """Between these heights a boat has its waterline, on land by the water; None where there is none."""
    sea_floor: float = 220.0
    """Where things that do not swim stand, in a backdrop where others float."""
    inland: int = 1
    """Cliff only: the side of the edge that is land, -1 left or 1 right."""


def flat_at(height: float) -> Ground:
    """Level ground."""
    return lambda _: height

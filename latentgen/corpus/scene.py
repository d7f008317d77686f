"""What one picture shows: frozen dataclasses that fully decide the drawing, together with a seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from latentgen.errors import InputError

Category = Literal[
    "land_animal", "head", "air", "water", "undersea", "vehicle", "building", "plant", "food", "object", "spacey"
]
"""Placement class of a noun: where it can stand, float or fly. A `head` is a face that gets a drawn body."""
Setting = Literal[
    "sea", "cliff", "beach", "island", "lake", "river", "meadow", "hills", "mountains", "village", "autumn", "garden",
    "farm", "snow", "desert", "forest", "city", "underwater", "space", "table", "studio",
]  # fmt: skip
TimeOfDay = Literal["day", "dawn", "sunset", "dusk", "night"]
Weather = Literal["clear", "cloudy", "overcast", "rain", "storm", "snow", "fog", "rainbow", "aurora"]
Style = Literal["flat", "watercolor", "pixel art", "pencil sketch", "oil painting", "neon"]
Size = Literal["small", "medium", "large", "giant"]
Side = Literal["left", "right"]
Position = Literal["left", "centre", "right"]
Relation = Literal["left of", "in front of"]
Drawing = Literal[
    "lighthouse", "house", "cottage", "cabin", "castle", "windmill", "barn", "igloo", "pagoda", "campfire",
    "suspension", "volcano", "sailboat", "balloon", "pine", "palm", "round", "cherry", "autumn", "birch", "cactus",
]  # fmt: skip
"""The procedural heroes: twenty-one drawings, one for each noun."""

MAX_COUNT = 5


@dataclass(frozen=True, slots=True)
class Noun:
    """A thing that can be the subject of a picture, and where its picture comes from."""

    name: str
    category: Category
    drawing: Drawing | None = None
    """The procedural drawing; None for nouns that are shown by artwork."""
    colourable: bool = False
    """Whether the artwork may be recoloured (a caption then names the colour)."""
    fluent: str | None = None
    """Code points of the Fluent 3D picture, e.g. `1f415`."""
    noto: str | None = None
    """Name of the Noto icon, e.g. `dog`."""

    def __post_init__(self) -> None:
        if self.drawing is None and self.fluent is None:
            raise InputError(f"noun {self.name!r} has neither a procedural drawing nor artwork")


@dataclass(frozen=True, slots=True)
class Subject:
    """One or several of a noun."""

    noun: Noun
    count: int = 1
    colour: str | None = None
    """A colour word; None draws the noun's usual colour and leaves the word out of the caption."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MAX_COUNT:
            raise InputError(f"{self.noun.name}: count {self.count} is not between 1 and {MAX_COUNT}")


@dataclass(frozen=True, slots=True)
class SceneSpec:
    """A scene: one or two subjects in a setting, under a light and a weather, in a style."""

    setting: Setting
    time: TimeOfDay
    subjects: tuple[Subject, ...]
    weather: Weather = "clear"
    style: Style = "flat"
    size: Size = "medium"
    """Only a single subject is ever anything but medium."""
    side: Side | None = None
    """Where a single subject stands; None is near the middle."""
    behind: bool = False
    """The second of two subjects stands behind the first, instead of beside it."""
    backdrop: str | None = None
    """Colour word of the studio's wall; set in the studio only."""
    river: bool = False
    """The city's street is a river; drawn by chance where False."""
    sun_behind: bool = False
    """The sun or moon stands behind the middle of the picture."""

    def __post_init__(self) -> None:
        for value, choices, what in (
            (self.setting, Setting, "setting"),
            (self.time, TimeOfDay, "time"),
            (self.weather, Weather, "weather"),
            (self.style, Style, "style"),
            (self.size, Size, "size"),
        ):
            if value not in get_args(choices):
                raise InputError(f"scene: {what} {value!r} is not one of {', '.join(get_args(choices))}")
        if len(self.subjects) not in (1, 2):
            raise InputError(f"scene: {len(self.subjects)} subjects; a scene has one or two")
        if (self.setting == "studio") != (self.backdrop is not None):
            raise InputError("scene: a backdrop colour belongs to the studio, and the studio needs one")
        has_bridge = any(subject.noun.drawing == "suspension" for subject in self.subjects)
        if has_bridge and not (self.setting == "sea" or (self.setting == "city" and self.river)):
            raise InputError("scene: a suspension bridge needs water under it: the sea, or the city with its river")

    @property
    def snow_covered(self) -> bool:
        """Whether roofs, trees and ground are white."""
        return self.setting == "snow" or self.weather == "snow"

    def shows(self, drawing: Drawing) -> bool:
        """Whether a drawing is a subject: then the backdrop leaves it out, and what is counted is all there is."""
        return any(subject.noun.drawing == drawing for subject in self.subjects)

    @property
    def is_single(self) -> bool:
        """One subject, and one of it."""
        return len(self.subjects) == 1 and self.subjects[0].count == 1

    @property
    def relation(self) -> Relation | None:
        """What the first of two subjects is to the second; None for one subject."""
        if len(self.subjects) == 1:
            return None
        return "in front of" if self.behind else "left of"

    def position(self, index: int) -> Position | None:
        """The third of the picture that a subject's middle is in; None where the scene does not decide it."""
        if len(self.subjects) == 2:
            return None if self.behind else ("left", "right")[index]
        if self.subjects[0].count > 1 or (self.setting == "river" and self.side is None):
            return None
        return "centre" if self.side is None else self.side

    def to_json(self) -> dict[str, Any]:
        """The labels of the picture, as stored beside it."""
        return {
            "setting": self.setting,
            "time": self.time,
            "weather": self.weather,
            "style": self.style,
            "size": self.size,
            "side": self.side,
            "behind": self.behind,
            "backdrop": self.backdrop,
            "river": self.river,
            "sun_behind": self.sun_behind,
            "relation": self.relation,
            "subjects": [
                {
                    "noun": subject.noun.name,
                    "count": subject.count,
                    "colour": subject.colour,
                    "position": self.position(index),
                }
                for index, subject in enumerate(self.subjects)
            ],
        }

"""Held-out compositions: pairs of factors that training never sees together, chosen by hash.

Each noun, colour, setting, time and style is seen often in training, but the reserved pairs never; pictures of them
measure how a model combines what it knows. (Of the heroes purple is the balloon's alone, and reserved there: it is seen
where `in_any_colour` paints.)
"""

from __future__ import annotations

import hashlib

from latentgen.corpus.scene import SceneSpec, Subject

ALWAYS_TRAINED = {
    ("lighthouse", "sea"),
    ("lighthouse", "cliff"),
    ("lighthouse", "red"),
    ("palm tree", "beach"),
}
"""A noun and its setting or colour that must not be reserved, whatever their hash: the model's showpieces."""
ALWAYS_HELD_OUT = {
    ("sailboat", "orange"),
    ("hot air balloon", "purple"),
    ("house", "pink"),
    ("windmill", "snow"),
}
"""A noun and its setting or colour that are reserved by hand: the hash leaves the ten heroes too few to measure by."""


def _bucket(*parts: str) -> float:
    """A fixed number in [0, 1) for a combination of words."""
    digest = hashlib.blake2b("|".join(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32


def _is_reserved(kind: str, noun: str, value: str, share: float) -> bool:
    """By hand where a pair is named above, else by hash."""
    if (noun, value) in ALWAYS_TRAINED:
        return False
    return (noun, value) in ALWAYS_HELD_OUT or _bucket(kind, noun, value) < share


def held_out_pairs(scene: SceneSpec) -> tuple[str, ...]:
    """The kinds of reserved pairs the scene contains; empty if it may be trained on."""
    found = [kind for subject in scene.subjects for kind in _held_out_of_subject(scene, subject)]
    if (
        scene.weather != "clear"
        and scene.setting not in ("studio", "underwater", "space", "table")
        and _bucket("setting-time-weather", scene.setting, scene.time, scene.weather) < 0.05
    ):
        found.append("setting-time-weather")
    names = [subject.noun.name for subject in scene.subjects]
    if len(names) == 2 and _bucket("pair", *sorted(names)) < 0.10:
        found.append("noun-pair")
    return tuple(found)


def _held_out_of_subject(scene: SceneSpec, subject: Subject) -> list[str]:
    name = subject.noun.name
    found: list[str] = []
    if (
        subject.noun.category not in ("undersea", "spacey", "water")
        and scene.setting not in ("studio", "table")
        and _is_reserved("noun-setting", name, scene.setting, 0.05)
    ):
        found.append("noun-setting")
    if subject.colour and _is_reserved("noun-colour", name, subject.colour, 0.10):
        found.append("noun-colour")
    if scene.style != "flat" and _bucket("noun-style", name, scene.style) < 0.10:
        found.append("noun-style")
    if subject.count > 1 and _bucket("noun-count", name, str(subject.count)) < 0.15:
        found.append("noun-count")
    return found

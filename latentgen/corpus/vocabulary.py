"""The nouns of the full vocabulary: data only, so scenes and captions are sampled without any artwork.

`nouns.tsv` names for each noun its placement class, its procedural drawing or its artwork (Fluent code points, Noto
icon name), and whether the artwork may be recoloured. The order of the rows is part of the corpus: samples are indices.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import cast

from latentgen.corpus.scene import Category, Drawing, Noun

ABSENT = "-"


@cache
def nouns_by_category() -> dict[Category, tuple[Noun, ...]]:
    """Every noun under its placement class; a noun with two classes (a duck on land, on water) appears in both."""
    table = files("latentgen.corpus").joinpath("nouns.tsv").read_text(encoding="utf-8")
    grouped: dict[Category, list[Noun]] = {}
    for row in table.splitlines()[1:]:
        category, name, drawing, colourable, fluent, noto = row.split("\t")
        noun = Noun(
            name=name,
            category=cast("Category", category),
            drawing=None if drawing == ABSENT else cast("Drawing", drawing),
            colourable=colourable == "yes",
            fluent=None if fluent == ABSENT else fluent,
            noto=None if noto == ABSENT else noto,
        )
        grouped.setdefault(noun.category, []).append(noun)
    return {category: tuple(nouns) for category, nouns in grouped.items()}


@cache
def all_nouns() -> tuple[Noun, ...]:
    """Every row of the table, in its order."""
    return tuple(noun for nouns in nouns_by_category().values() for noun in nouns)

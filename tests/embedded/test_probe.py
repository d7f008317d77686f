"""The judge that comes with latentgen: what it says of renders that nobody has seen."""

from __future__ import annotations

import numpy as np

from latentgen.checkpoints.identify import identify
from latentgen.cli.evaluate_options import find_probe
from latentgen.evaluation.judging import check_vocabulary, is_right, read_pictures
from latentgen.evaluation.labelled import render_labelled
from latentgen.evaluation.probe import load_probe
from latentgen.evaluation.probe_training import measure_probe
from latentgen.evaluation.prompts import make_items

RENDERS = 60
FIRST_SEED = 700_000
"""Neither its own renders began there nor those of any training set."""


def test_it_reads_fresh_renders() -> None:
    """Loosely: of 600 pictures it is right about nouns in 97.5 %, weather 94.7 %, everything else more often."""
    probe = load_probe(find_probe(None, "heroes"))
    pictures = render_labelled("heroes", RENDERS, FIRST_SEED, probe.config.size_px)
    accuracy = measure_probe(probe, pictures)
    assert min(accuracy.values()) > 0.85, accuracy
    assert accuracy["nouns"] > 0.9


def test_it_knows_what_the_benchmark_asks_about() -> None:
    path = find_probe(None, "heroes")
    probe = load_probe(path)
    check_vocabulary(probe.config.labels, [item.scene for item in make_items("heroes", 2, 0)])
    assert identify(path).title == "a judge of pictures, for latentgen evaluate scenes"


def test_an_empty_picture_is_nobodys() -> None:
    probe = load_probe(find_probe(None, "heroes"))
    (seen,) = read_pictures(probe, [np.full((256, 256, 3), 127, dtype=np.uint8)])
    asked = [item for item in make_items("heroes", 2, 0) if item.category in ("two objects", "counting")]
    assert not any(is_right(item.category, item.scene, seen) for item in asked)

"""`latentgen evaluate scenes`: does a picture show what its prompt says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentgen.cli import options
from latentgen.cli.console import Console
from latentgen.cli.data import Vocabulary
from latentgen.cli.drawable import read_drawable
from latentgen.cli.evaluate_options import SamplingOptions, check_vocabulary_name, find_probe
from latentgen.cli.groups import grouped
from latentgen.cli.model_names import resolve_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from latentgen.data.record import Record
    from latentgen.evaluation.benchmark import Drawn
    from latentgen.evaluation.scene_folder import SceneFolder

SERIES_PROMPTS = 6
"""Prompts that are drawn with several seeds each."""


@grouped
def scenes(
    *,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder for pictures and scores; an interrupted one is finished.")
    ] = Path("outputs/scenes"),
    model: options.Model = None,
    vocabulary: Vocabulary = "heroes",
    probe: Annotated[
        Path | None, typer.Option("--probe", help="The judge, from `evaluate train-probe`. Default: latentgen's own.")
    ] = None,
    per_category: Annotated[
        int, typer.Option("--per-category", min=1, max=1000, metavar="N", help="Prompts in each category and split.")
    ] = 16,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, max=10**6, help="Which list of prompts.")] = 0,
    renders: Annotated[
        int, typer.Option("--renders", min=0, max=16, help="Renders of each scene that show how good the judge is.")
    ] = 2,
    series: Annotated[
        int, typer.Option("--series", min=0, max=64, help="Seeds of each prompt that diversity is measured on.")
    ] = 4,
    nearest: Annotated[
        Path | None, typer.Option("--nearest", metavar="DIR", help="Training pictures, to find the nearest of each.")
    ] = None,
    sampling: SamplingOptions,
    batch_size: options.BatchSize = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Draw a fixed list of prompts and count how often a probe sees in the picture what was asked for.

    Ten categories, as in GenEval, on compositions and wordings of training, on compositions that training never sees,
    and in wordings that it never sees. Beside each share stands what the probe gets right on renders of the same
    scenes: what a perfect model would reach.

    latentgen evaluate scenes -m my-model --out scores

    latentgen evaluate scenes -m my-model --per-category 8 --steps 30 --nearest scenes --out scores
    """
    console = Console(quiet, json_events=json_events)
    # Resolve: everything that can be wrong is found before torch is imported
    name = check_vocabulary_name(vocabulary)
    folder = resolve_model(model)
    config = read_drawable(folder)
    given = sampling.resolve(config)
    probe_file = find_probe(probe, name)
    from latentgen.evaluation.prompts import make_items
    from latentgen.evaluation.scene_folder import SceneFolder

    place = SceneFolder(out)
    place.check()
    can_render = renders > 0 and all(find_spec(module) is not None for module in ("skia", "cv2"))
    if renders and not can_render:
        console.warn('the probe\'s own accuracy is left out: rendering needs pip install "latentgen[corpus]"')
    records: Sequence[Record] = ()
    if nearest is not None:
        from latentgen.data.records import list_records

        records = list_records(nearest)

    items = make_items(name, per_category, seed)
    from latentgen.checkpoints.hashes import sha256
    from latentgen.cli.loading import load_model
    from latentgen.evaluation.benchmark import Drawn, corpus_version, judge, render_items
    from latentgen.evaluation.drawing import draw_missing, plan_series, plan_shots
    from latentgen.evaluation.judging import check_vocabulary
    from latentgen.evaluation.probe import load_probe
    from latentgen.evaluation.scores import table
    from latentgen.images.files import read_picture

    # Build
    judging = load_probe(probe_file)
    check_vocabulary(judging.config.labels, [item.scene for item in items])
    shots = plan_shots(items, place.pictures, config, given)
    seen = [item for item in items if item.split == "seen"]
    spread = -(-len(seen) // SERIES_PROMPTS)  # over the categories, by which they are sorted
    repeated = seen[::spread] if series > 1 else []
    lines = plan_series(repeated, series, place.pictures, config, given)
    pipeline, _ = load_model(folder, device=device, dtype=dtype, threads=threads)
    # Run
    with console.progress() as report:
        every_shot = [*shots, *(shot for line in lines for shot in line)]
        drawn = draw_missing(
            pipeline, every_shot, batch_size=batch_size, on_progress=lambda *at: report(*at, "drawing")
        )
        if drawn < len(every_shot):
            console.note(f"{len(every_shot) - drawn} of {len(every_shot)} pictures are in {out} already")
        found = Drawn(
            items=items,
            pictures=[read_picture(shot.path)[0] for shot in shots],
            renders=render_items(items, renders if can_render else 0, lambda *at: report(*at, "rendering")),
            series=[[read_picture(shot.path)[0] for shot in line] for line in lines],
            series_renders=render_items(repeated, series if can_render else 0),
        )
    judged = judge(judging, found)
    # Save, and again with what another network says: a picture of --nearest may be damaged
    first = shots[0].request
    about = {
        "model": pipeline.name,
        "fingerprint": pipeline.fingerprint,
        "vocabulary": name,
        "probe": sha256(probe_file)[:10],
        "corpus_version": corpus_version() if can_render else None,
        "seed": seed,
        "per_category": per_category,
        "drawn": {key: value for key, value in first.to_json().items() if key not in ("prompt", "seed")},
    }
    place.write_manifest(judged, shots)
    place.write_scores(about, judged, {})
    sheets = place.write_sheets(judged, found.pictures, f"{pipeline.name}, {first.steps} steps {first.sampler}")
    neutral = _neutral(console, place, found, records)
    scores = place.write_scores(about, judged, neutral)
    if json_events:
        console.event("scores", path=str(scores))
    else:
        print(table([each.verdict for each in judged]))
        if neutral:
            from latentgen.evaluation.neutral import figures_table

            print(figures_table(neutral))
    for path in sheets:
        console.result(path, "sheet")


def _neutral(console: Console, place: SceneFolder, found: Drawn, records: Sequence[Record]) -> dict[str, Any]:
    """Figures of the neutral network and the sheet of nearest pictures; none, and one line, where it is not there."""
    from latentgen.evaluation.features import NeutralFeatures, missing_packages
    from latentgen.evaluation.neutral import measure_drawn, measure_nearest, training_features

    if missing_packages():
        console.warn('distances between pictures are left out: they need pip install "latentgen[evaluate]"')
        return {}
    extract = NeutralFeatures()
    figures = measure_drawn(extract, found)
    if records:
        with console.progress() as report:
            training = training_features(
                records,
                extract,
                place.training_features,
                lambda done, total: report(done, total, "looking at training pictures"),
            )
        figures["nearest"], pairs = measure_nearest(extract, found, training, records)
        console.result(place.write_pairs(pairs, "drawn pictures and the nearest of training"), "sheet")
    return figures

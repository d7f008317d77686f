"""One self-contained page for a run, OUT/report.html: curves, samples over time, settings, data, history.

No resource comes from outside and nothing in the run can add one: all text is escaped, and the page's own policy allows
its one script (by hash), its style and `data:` pictures. It reads with scripts off, on a phone, in the dark, on paper.
"""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from latentgen import __version__
from latentgen.jsonfile import write_text
from latentgen.training.charts import Chart, Curve, Mark, Series, count, number
from latentgen.training.report_facts import duration, facts, failure, is_count, millions, title_of
from latentgen.training.run_story import Story, read_story
from latentgen.training.sheets import Sheet, SheetReader

logger = logging.getLogger(__name__)

REPORT = "report.html"

TRAINED = {
    "unet": "Diffusion network",
    "aligned unet": "Diffusion network",
    "unet and text encoder": "Diffusion network and text encoder",
    "aligned unet and text encoder": "Diffusion network and text encoder",
    "vae": "Autoencoder",
    "clip": "Text encoder",
    "lora": "LoRA adapters",
}
"""What an objective trains, by the name it gives itself in config.json."""
STATES = {
    "finished": "Finished",
    "running": "Training now",
    "interrupted": "Interrupted",
    "failed": "Failed",
    "unfinished": "Unfinished",
}
SHEET_LEGENDS = {
    "vae": "Pictures above, their reconstructions below.",
    "clip": "A picture's own caption <- the one found for it.",
}
LAST_CHARTS = ("lr", "grad_norm", "samples_per_s")
TABLE_ROWS = 16


class RunReport:
    """Keeps a run's report up to date: give an instance as the run's `report`."""

    def __init__(self, run: Path) -> None:
        self.run = run
        self._step: int | None = None
        self._sheets = SheetReader()

    def __call__(self, event: Mapping[str, Any]) -> None:
        """Write anew at every start, checkpoint and sheet of samples."""
        self._step = event["step"]
        if event.get("start") or event.get("told") in ("samples", "checkpoint"):
            self.write()

    def failed(self, why: str) -> None:
        """The run has begun and failed: log it. Of the run's folder only the name is told."""
        if self._step is not None:
            line = {"failed": True, "step": self._step, "error": why.replace(str(self.run), self.run.name)}
            with suppress(OSError), (self.run / "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """The run is over, however it ended."""
        if self._step is not None:
            self.write()

    def write(self) -> None:
        """Write OUT/report.html; where that fails, say so and let the training go on."""
        try:
            write_text(self.run / REPORT, render(read_story(self.run), self._sheets))
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or error
            logger.warning("%s cannot be written: %s", self.run / REPORT, why)


def render(story: Story, reader: SheetReader | None = None) -> str:
    """The page, as HTML."""
    charts = charts_of(story)
    script, style = _asset("report.js"), _asset("report.css")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    figures = json.dumps([chart.figures() for chart in charts], separators=(",", ":"))
    sections = [
        _header(story, charts),
        _sheets(story, (reader or SheetReader()).read(story.sheets)),
        _charts(story, charts),
        facts(story),
        f"<footer>Written by latentgen {escape(__version__)} · <code>latentgen report</code> writes it anew.</footer>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="generator" content="latentgen {escape(__version__)}">'
        f"<title>{escape(story.name)} · {STATES[story.state]} · latentgen</title><style>{style}</style></head>"
        f'<body><div class="wrap">{"".join(sections)}</div>'
        f'<script type="application/json" id="figures">{figures}</script><script>{script}</script></body></html>\n'
    )


def charts_of(story: Story) -> list[Chart]:
    """The run's curves: the loss first, what drives the training last; a validation beside its training figure."""
    marks = tuple(
        Mark(line["step"], "resumed" if line.get("start") else "failed", is_failure=bool(line.get("failed")))
        for line in story.history
        if line.get("failed") or (line.get("start") and line["step"] > 0)
    )
    curves = (*story.training.values(), *story.validation.values())
    last_step = max([story.step, *(curve.steps[-1] for curve in curves), *(mark.step for mark in marks)])
    checked: dict[str, list[Series]] = {}
    for name, curve in story.validation.items():
        figure, pictures = _measured(name)
        checked.setdefault(figure, []).append(Series(pictures, curve))
    names = list(dict.fromkeys([*story.training, *checked]))
    names.sort(
        key=lambda name: (name != "loss", name in LAST_CHARTS, LAST_CHARTS.index(name) if name in LAST_CHARTS else 0)
    )
    charts: list[Chart] = []
    for name in names:
        series: list[Series] = []
        if name in story.training:
            series.append(Series("training", story.training[name], smooth=name != "lr"))
        series += checked.get(name, [])
        charts.append(
            Chart(
                name,
                title_of(name),
                tuple(series),
                last_step,
                marks,
                may_be_log=name not in ("lr", "samples_per_s"),
                from_zero=name in ("lr", "samples_per_s"),
            )
        )
    return charts


def _measured(name: str) -> tuple[str, str]:
    """What a validation's figure measures, by the name it has in training, and on which pictures."""
    for prefix, pictures in (("held_out_", "held out"), ("training_", "training pictures")):
        if name.startswith(prefix):
            return name.removeprefix(prefix), pictures
    return name.removeprefix("validation_").removeprefix("val_"), "validation"


# The head of the page


def _header(story: Story, charts: Sequence[Chart]) -> str:
    told = [line["parameters"] for line in story.history if is_count(line.get("parameters"))]
    parameters = told[-1] if told else sum(part.parameters for part in story.parts)
    what = TRAINED.get(str(story.config.get("objective")), "Training run")
    if parameters:
        what += f" · {millions(parameters)} parameters"
    state = f'<span class="state {story.state}">{STATES[story.state]}</span>'
    return (
        f'<header><div class="top"><h1>{escape(story.name)}</h1>{state}</div><p class="what">{escape(what)}</p>'
        f"{_way(story)}{_notice(story)}{_tiles(story, charts)}</header>"
    )


def _way(story: Story) -> str:
    """How far a run with a last step is, as a line."""
    most = story.config.get("max_steps")
    if story.state == "finished" or not is_count(most) or not most:
        return ""
    share = min(100.0, 100 * story.step / most)
    return (
        f'<div class="way" role="progressbar" aria-label="steps done" aria-valuenow="{share:.0f}" aria-valuemin="0" '
        f'aria-valuemax="100"><i style="width:{share:.1f}%"></i></div>'
    )


def _notice(story: Story) -> str:
    """What a run that did not end well needs."""
    kept = f"Step {count(story.checkpoints[-1])} is saved" if story.checkpoints else "No checkpoint is saved"
    going_on = f"{kept}; <code>--resume latest</code> goes on from it." if story.checkpoints else f"{kept}."
    if story.state == "failed":
        failures = [failure(line) for line in story.history if line.get("failed")]
        words = f"{escape(failures[-1])}. {going_on}"
    elif story.state == "interrupted":
        words = f"A signal ended this run after step {count(story.step)}. {going_on}"
    elif story.state == "unfinished":
        words = f"The log has no end, and nothing is training here now. {going_on}"
    else:
        return ""
    return f'<p class="notice {story.state}">{words}</p>'


def _tiles(story: Story, charts: Sequence[Chart]) -> str:
    config, tiles = story.config, list[tuple[str, str, str]]()
    most = config.get("max_steps")
    tiles.append(("Steps", count(story.step), f"of {count(most)}" if is_count(most) else ""))
    for name in ("loss", *(name for name in story.training if name == "psnr_db")):
        for series in [each.series[0] for each in charts if each.name == name and name in story.training]:
            last, first = series.shown.values[-1], series.curve.values[0]
            tiles.append((f"{title_of(name)}, smoothed", number(last), f"first {number(first)}"))
    for name, curve in list(story.validation.items())[:3]:
        figure, pictures = _measured(name)
        title = title_of(figure)
        title = title if title[1:2].isupper() else title.lower()
        tiles.append((f"{pictures.capitalize()} {title}", number(curve.values[-1]), _best(name, curve)))
    batch = [config.get(key, 1) for key in ("batch_size", "grad_accum", "processes")]
    each = batch[0] * batch[1] * batch[2] if "batch_size" in config and all(map(is_count, batch)) else None
    tiles.append(("Samples", count(story.images_seen), "" if each is None else f"{count(each)} a step"))
    if "samples_per_s" in story.training:
        rates = sorted(story.training["samples_per_s"].values)
        tiles.append(("Samples/s", number(rates[len(rates) // 2]), "median"))
    if story.elapsed_s:
        starts = sum(1 for line in story.history if line.get("start"))
        tiles.append(("Time", duration(story.elapsed_s), f"in {starts} starts" if starts > 1 else ""))
    shown = "".join(
        f'<div class="tile"><dt>{escape(name)}</dt><dd>{escape(value)}<small>{escape(more)}</small></dd></div>'
        for name, value, more in tiles
    )
    return f'<dl class="tiles">{shown}</dl>'


def _best(name: str, curve: Curve) -> str:
    """The lowest loss, where a curve is one."""
    if "loss" not in name or len(curve) < 2:
        return f"at step {count(curve.steps[-1])}"
    return f"lowest {number(min(curve.values))}"


# Samples


def _sheets(story: Story, sheets: Sequence[Sheet]) -> str:
    if not sheets:
        return ""
    legend = SHEET_LEGENDS.get(str(story.config.get("objective")), "")
    figures = "".join(_sheet(sheet, legend) for sheet in sheets)
    slider = (
        '<div class="slider" hidden><button type="button">Play</button><input type="range" min="0" '
        f'max="{len(sheets) - 1}" step="1" value="{len(sheets) - 1}" aria-label="sheet of samples, by step">'
        "<output></output></div>"
    )
    prompts = "".join(f"<li>{escape(prompt)}</li>" for prompt in story.prompts)
    listed = f'<ol class="prompts" aria-label="prompts, in the order of the pictures">{prompts}</ol>' if prompts else ""
    left_out = len(story.sheets) - len(sheets)
    hint = f'<p class="hint">{len(sheets)} of {len(story.sheets)} sheets; all are in samples/.</p>' if left_out else ""
    return (
        '<section><h2>Samples while training</h2><div class="card sheets"><div>'
        f'<div class="strip" tabindex="0" role="region" aria-label="sheets of samples, oldest first">{figures}</div>'
        f"{slider if len(sheets) > 1 else ''}{hint}</div>{listed}</div></section>"
    )


def _sheet(sheet: Sheet, legend: str) -> str:
    name = f"Step {count(sheet.step)}"
    caption = f"<figcaption>{name}{'. ' + escape(legend) if legend else ''}</figcaption>"
    if sheet.text:
        return f'<figure data-name="{name}"><pre>{escape(sheet.text)}</pre>{caption}</figure>'
    broad = ' class="broad"' if sheet.width_px > 2.5 * sheet.height_px else ""
    return (
        f'<figure data-name="{name}"{broad}><img src="{sheet.data_uri}" width="{sheet.width_px}" '
        f'height="{sheet.height_px}" alt="Sample pictures after step {sheet.step}">{caption}</figure>'
    )


# Curves


def _charts(story: Story, charts: Sequence[Chart]) -> str:
    if not charts:
        return '<section><h2>Curves</h2><p class="hint">Nothing is logged yet.</p></section>'
    small = [kind for row in _rows_of(len(charts) - 1) for kind in [f"of{row}"] * row]
    cards = "".join(_chart(chart, kind) for chart, kind in zip(charts, ["wide", *small], strict=True))
    table = _table(charts)
    hint = "Faint lines are what was logged, strong ones are smoothed: median, then mean, over a twelfth of it."
    if any(line.get("start") and line["step"] > 0 for line in story.history):
        hint += " Where the run was resumed there is a dashed line."
    if any(line.get("failed") for line in story.history):
        hint += " Where it failed there is a red one."
    return (
        '<section><h2>Curves <span class="scale" id="at">over the steps</span></h2>'
        f'<div class="charts">{cards}</div>'
        f'<p class="hint">{hint}</p>'
        f'<details class="card"><summary>The figures as a table</summary>{table}</details></section>'
    )


def _rows_of(cards: int) -> list[int]:
    """Cards a row: two or three, so that no row has a gap."""
    if cards == 0:
        return []
    rows = -(-cards // 3)
    return [(cards + k) // rows for k in range(rows)]


def _chart(chart: Chart, kind: str) -> str:
    keys = "".join(
        f'<span><i class="s{k}"></i>{escape(series.name) if len(chart.series) > 1 else ""} '
        f"<b>{number(series.shown.values[-1])}</b></span>"
        for k, series in enumerate(chart.series)
    )
    scale = '<span class="scale">log scale</span>' if chart.y.is_log else ""
    return (
        f'<figure class="card chart {kind}"><figcaption><h3>{escape(chart.title)}{scale}</h3>'
        f'<span class="legend">{keys}</span></figcaption><div class="plotbox">{chart.svg()}</div></figure>'
    )


def _table(charts: Sequence[Chart]) -> str:
    """The first line of each chart at some steps."""
    curves = {chart.title: chart.series[0].shown for chart in charts}
    longest = max(curves.values(), key=len)
    rows = min(TABLE_ROWS, len(longest))
    picked = [longest.steps[i * (len(longest) - 1) // max(1, rows - 1)] for i in range(rows)]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in curves)
    at = {name: dict(zip(curve.steps, curve.values, strict=True)) for name, curve in curves.items()}
    body = "".join(
        f'<tr><th scope="row">{count(step)}</th>'
        + "".join(f"<td>{number(values[step]) if step in values else '–'}</td>" for values in at.values())
        + "</tr>"
        for step in picked
    )
    columns = f'<thead><tr><th scope="col">step</th>{head}</tr></thead>'
    return f'<div class="steps"><table>{columns}<tbody>{body}</tbody></table></div>'


def _asset(name: str) -> str:
    return (files("latentgen.training") / name).read_text(encoding="utf-8").strip()

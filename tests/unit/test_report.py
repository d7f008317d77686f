"""A run's report: what it shows against the log it was made from, for runs of every age and in every state."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import io
import json
import os
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from latentgen.errors import InputError, ModelNotFoundError
from latentgen.training.charts import MAX_POINTS, Axis, Chart, Curve, Series, count, number
from latentgen.training.report import RunReport, charts_of, render
from latentgen.training.report_facts import duration, shown
from latentgen.training.run_story import read_story
from latentgen.training.sheets import MAX_SHEETS, SheetReader

HOSTILE = "</script><script>alert('&\"')</script><img src=x onerror=alert(1)>"
VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """A page's tags, its text, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, tag
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self) -> Any:
        return json.loads(re.findall(r'<script type="application/json" id="figures">(.*?)</script>', self.source)[0])

    @property
    def charts(self) -> dict[str, ET.Element]:
        """The curves as XML, by title."""
        titles = re.findall(r"<figcaption><h3>(.*?)(?:<span|</h3>)", self.source)
        pictures = re.findall(r'<div class="plotbox">(<svg.*?</svg>)</div>', self.source)
        return dict(zip(titles, map(ET.fromstring, pictures), strict=True))


def read_back(chart: ET.Element, css_class: str) -> list[tuple[float, float]]:
    """The points of a drawn line in the values of its axes: what an eye with a ruler would read."""
    (path,) = [each for each in chart.iter() if each.get("class") == css_class]
    low_x, high_x = map(float, chart.attrib["data-x"].split())
    low, high, scale = chart.attrib["data-y"].split()
    axis = Axis(float(low), float(high), scale == "log")
    points = []
    for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path.attrib["d"]):
        up = 1 - float(y) / 1000
        value = axis.low * (axis.high / axis.low) ** up if axis.is_log else axis.low + up * (axis.high - axis.low)
        points.append((low_x + float(x) / 1000 * (high_x - low_x), value))
    return points


def line(step: int, loss: float, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "images_seen": 4 * step,
        "loss": loss,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "samples_per_s": 2.0,
        "elapsed_s": 2.0 * step,
        **more,
    }


def write_run(folder: Path, lines: list[Any], config: dict[str, Any] | None = None, end: str = "\n") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"objective": "unet", "lr": 1e-3, "batch_size": 4, "max_steps": 40} if config is None else config
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "log.jsonl").write_text("\n".join(json.dumps(each) for each in lines) + end)
    return folder


def write_sheet(folder: Path, step: int, size: tuple[int, int] = (64, 32), seed: int | None = None) -> None:
    (folder / "samples").mkdir(exist_ok=True)
    pixels = np.full((size[1], size[0], 3), step % 256, np.uint8)
    if seed is not None:
        pixels = np.random.default_rng(seed).integers(0, 256, pixels.shape, np.uint8)
    Image.fromarray(pixels).save(folder / "samples" / f"step_{step:08d}.png", compress_level=1)


def page_of(folder: Path) -> Page:
    return Page(render(read_story(folder)))


# Curves


def test_the_curves_are_those_of_the_log(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    losses = (1 / np.arange(1, 41) + 0.2 + 0.01 * rng.random(40)).tolist()
    lines = [{"start": True, "step": 0, "processes": 1}, *(line(i + 1, loss) for i, loss in enumerate(losses))]
    lines += [{"step": s, "images_seen": 0, "validation": True, "val_loss": 2.0 / s} for s in (10, 20, 40)]
    page = page_of(write_run(tmp_path, lines))
    assert list(page.charts) == ["Loss", "Learning rate", "Gradient norm", "Samples/s"]
    loss = page.charts["Loss"]
    height = float(loss.attrib["data-y"].split()[1])
    raw = read_back(loss, "raw s0")
    np.testing.assert_allclose(raw, list(zip(range(1, 41), losses, strict=True)), atol=0.003 * height)
    checked = read_back(loss, "line s1")
    np.testing.assert_allclose(checked, [(10, 0.2), (20, 0.1), (40, 0.05)], atol=0.003 * height)
    training, validation = page.figures[0]["series"]
    assert validation == {"steps": [10, 20, 40], "values": [0.2, 0.1, 0.05]}
    assert training["steps"] == list(range(1, 41))
    smoothed = read_back(loss, "line s0")
    np.testing.assert_allclose([v for _, v in smoothed], training["values"], atol=0.003 * height)


def test_held_out_figures_stand_with_those_they_measure(tmp_path: Path) -> None:
    checked = {"psnr_db": 20.0, "held_out_psnr_db": 18.0, "training_psnr_db": 21.0, "held_out_ssim": 0.5}
    lines = [{"start": True, "step": 0}, line(1, 0.5), {"step": 1, "images_seen": 4, "validation": True, **checked}]
    folder = write_run(tmp_path, lines)
    named = {chart.title: [series.name for series in chart.series] for chart in charts_of(read_story(folder))}
    assert named["PSNR, dB"] == ["validation", "held out", "training pictures"]
    assert named["SSIM"] == ["held out"]
    assert "<dt>Held out PSNR, dB</dt>" in render(read_story(folder))


@pytest.mark.parametrize("points", [1, 2, 23, 24, 100, 1000])
def test_smoothing_is_a_median_then_a_mean(points: int) -> None:
    values = np.random.default_rng(points).random(points)
    reach = points // 24
    medians = [np.median(values[i - min(i, reach) : i + min(i, reach) + 1]) for i in range(points)]
    near = [min(reach, i, points - 1 - i) for i in range(points)]
    expected = [np.mean(medians[i - n : i + n + 1]) for i, n in enumerate(near)]
    smoothed = Curve(tuple(range(points)), tuple(values.tolist())).smoothed()
    np.testing.assert_allclose(smoothed.values, expected, rtol=1e-12)


def test_a_spike_neither_bends_the_line_nor_sets_the_axis() -> None:
    values = [0.3 + 0.001 * (i % 5) for i in range(200)]
    values[70] = 1e6
    chart = Chart("loss", "Loss", (Series("training", Curve(tuple(range(200)), tuple(values)), smooth=True),), 200)
    assert max(chart.series[0].shown.values) < 0.31
    assert chart.y.high < 0.32
    assert "M" in chart.svg()


def test_thinning_keeps_ends_and_peaks() -> None:
    values = [0.0] * 50_000
    values[12_345], values[40_001] = 7.0, -3.0
    thin = Curve(tuple(range(50_000)), tuple(values)).thinned()
    assert len(thin) <= MAX_POINTS
    assert (thin.steps[0], thin.steps[-1]) == (0, 49_999)
    assert dict(zip(thin.steps, thin.values, strict=True))[12_345] == 7.0
    assert min(thin.values) == -3.0
    assert list(thin.steps) == sorted(set(thin.steps))


@pytest.mark.parametrize(
    ("axis", "about", "ticks"),
    [
        (Axis(0, 1000), 5, [0, 200, 400, 600, 800, 1000]),
        (Axis(0, 3600), 5, [0, 1000, 2000, 3000]),
        (Axis(0.19, 0.88), 4, [0.2, 0.4, 0.6, 0.8]),
        (Axis(-3, 3), 4, [-2, 0, 2]),
        (Axis(0.05, 2.1, is_log=True), 4, [0.05, 0.1, 0.2, 0.5, 1, 2]),
        (Axis(0.05, 12, is_log=True), 4, [0.1, 1, 10]),
        (Axis(1e-6, 1e4, is_log=True), 4, [1e-6, 1e-3, 1, 1e3]),
    ],
)
def test_ticks(axis: Axis, about: int, ticks: list[float]) -> None:
    np.testing.assert_allclose(axis.ticks(about), ticks, rtol=1e-9, atol=1e-12)


def test_a_curve_over_decades_has_a_logarithmic_axis() -> None:
    def axis(*values: float) -> Axis:
        return Chart("x", "X", (Series("x", Curve(tuple(range(len(values))), values)),), len(values)).y

    assert axis(1.0, 100.0).is_log
    assert not axis(1.0, 10.0).is_log
    assert not axis(-1.0, 100.0).is_log
    assert not axis(0.0, 100.0).is_log
    for constant in (0.0, 5.0, -5.0):  # an axis of no height would divide by zero
        assert axis(constant, constant).low < constant < axis(constant, constant).high


# Logs of every kind


def test_after_a_resume_the_later_lines_count(tmp_path: Path) -> None:
    first = [{"start": True, "step": 0}, *(line(s, 1.0) for s in range(1, 9))]
    second = [{"start": True, "step": 4}, *(line(s, 2.0, elapsed_s=float(s - 4)) for s in range(5, 7))]
    story = read_story(write_run(tmp_path, first + second))
    assert story.training["loss"] == Curve((1, 2, 3, 4, 5, 6), (1.0, 1.0, 1.0, 1.0, 2.0, 2.0))
    assert (story.step, story.images_seen) == (6, 24)
    assert story.elapsed_s == 16.0 + 2.0
    page = page_of(tmp_path)
    assert "resumed at step 4" in page.text
    (mark,) = [each for each in page.charts["Loss"].iter() if each.get("class") == "mark"]
    assert mark.get("d") == f"M{1000 * 4 / 6:.1f} 0V1000"


def test_a_start_that_makes_no_step_forgets_nothing(tmp_path: Path) -> None:
    """One that writes an older checkpoint's model; the next that goes on forgets."""
    first = [{"start": True, "step": 0}, *(line(s, 1.0) for s in range(1, 9))]
    looked = [{"start": True, "step": 4}, {"step": 4, "images_seen": 16, "validation": True, "val_loss": 0.5}]
    looked.append({"end": True, "step": 4, "images_seen": 16})
    story = read_story(write_run(tmp_path, first + looked))
    assert story.training["loss"].steps == tuple(range(1, 9))
    failed = [{"start": True, "step": 4}, {"failed": True, "step": 5, "error": "no memory"}]
    assert read_story(write_run(tmp_path, first + failed)).training["loss"].steps == tuple(range(1, 9))
    went_on = [{"start": True, "step": 8}, line(9, 2.0)]
    assert read_story(write_run(tmp_path, first + looked + went_on)).training["loss"].steps == tuple(range(1, 10))


def test_a_log_without_starts(tmp_path: Path) -> None:
    """Older logs: a repeated step replaces, and a clock that goes back is another start."""
    lines = [line(1, 1.0, elapsed_s=10.0), line(2, 1.0, elapsed_s=20.0), line(2, 3.0, elapsed_s=7.0)]
    story = read_story(write_run(tmp_path, lines))
    assert story.training["loss"] == Curve((1, 2), (1.0, 3.0))
    assert story.elapsed_s == 27.0


def test_a_run_in_progress_with_half_a_last_line(tmp_path: Path) -> None:
    write_run(tmp_path, [{"start": True, "step": 0}, line(10, 1.0)], end='\n{"step": 20, "los')
    assert read_story(tmp_path).state == "unfinished"
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        page = page_of(tmp_path)
    assert "Training now" in page.text
    (way,) = [each for each in page.of("div") if each.get("role") == "progressbar"]
    assert way["aria-valuenow"] == "25"


@pytest.mark.parametrize(
    ("last", "state", "says"),
    [
        ({"end": True, "step": 2, "psnr_db": 26.5}, "Finished", "psnr_db 26.5"),
        ({"interrupted": True, "step": 2, "signal": 15}, "Interrupted", "A signal ended this run after step 2."),
        ({"failed": True, "step": 3, "loss": "nan", "grad_norm": "inf"}, "Failed", "Step 3 was not finite: loss nan, "),
        ({"failed": True, "step": 2, "error": HOSTILE}, "Failed", HOSTILE),
        (line(3, 0.5), "Unfinished", "No checkpoint is saved."),
    ],
)
def test_how_a_run_ended(last: dict[str, Any], state: str, says: str, tmp_path: Path) -> None:
    page = page_of(write_run(tmp_path, [{"start": True, "step": 0}, line(1, 1.0), line(2, 0.5), last]))
    assert state in page.text
    assert says in page.text
    assert len(page.of("script")) == 2
    if last.get("failed"):
        assert [each for each in page.charts["Loss"].iter() if each.get("class") == "mark failure"]


@pytest.mark.parametrize(
    "log",
    [
        "",
        "\n\n{}\nnull\n[1]\n3\n",
        '{"step": "ten", "loss": 1}\n{"step": -1, "loss": 1}\n{"step": true, "loss": 1}\n{"loss": 1}\n',
        '{"step": 1, "loss": "nan"}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1e999}\n',
        '{"step": 1, "loss": null, "lr": [], "images_seen": "x", "elapsed_s": "y", "time": 3}\n',
        f'{{"step": 1, "loss": {10**400}}}\n',
        '{"start": true, "step": 0, "time": 5, "processes": "two"}\n{"end": true, "step": 0}\n',
        '{"override": 3, "step": 1}\n{"override": {"lr": 3}, "step": 1}\n{"failed": true, "step": 1}\n',
        "[" * 5000 + "\n",
    ],
)
def test_odd_logs(log: str, tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(log)
    page = page_of(tmp_path)
    assert "nan" not in page.text
    assert all("nan" not in each.get("d", "") for chart in page.charts.values() for each in chart.iter())


@pytest.mark.parametrize("config", ["", "[]", "{", '{"objective": ["x"], "max_steps": "many", "batch_size": null}'])
def test_odd_configs_and_data(config: str, tmp_path: Path) -> None:
    write_run(tmp_path, [line(1, 1.0)])
    for name in ("config.json", "data.json"):
        (tmp_path / name).write_text(config)
    assert "Training run" in page_of(tmp_path).text


def test_folders_that_hold_no_run(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="there is no run folder"):
        read_story(tmp_path / "none")
    with pytest.raises(InputError, match="holds no run"):
        read_story(tmp_path)


# What else is on the page


def test_nothing_in_a_run_gets_out_of_its_text(tmp_path: Path) -> None:
    """Every text of the run holds markup: on the page it is text, and no tag more is there than for a harmless one."""

    def page(folder: Path, text: str) -> Page:
        config = {"objective": text, text: text, "unet": {text: [text, {text: text}]}, "max_steps": 5}
        start = {"start": True, "step": 0, "time": text, "device": text, text: text}
        lines = [start, line(1, 1.0, **{text: 1.0}), {"override": {text: [text, text]}, "step": 1}]
        lines += [{"step": 1, "validation": True, text + "2": 2.0}, {"end": True, "step": 1, text: text}]
        write_run(folder, lines, config)
        (folder / "data.json").write_text(json.dumps({text: text, "more": {text: text}}))
        write_sheet(folder, 1)
        (folder / "samples" / "prompts.txt").write_text(text + "\n")
        (folder / "samples" / "step_00000002.txt").write_text(text)
        return page_of(folder)

    hostile, harmless = page(tmp_path / "a", HOSTILE), page(tmp_path / "b", "plain")
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in harmless.tags]
    assert HOSTILE in hostile.text
    assert not [name for _, attributes in hostile.tags for name in attributes if name.startswith("on")]


def test_the_page_fetches_nothing_and_runs_one_script(tmp_path: Path) -> None:
    write_run(tmp_path, [line(1, 1.0)])
    write_sheet(tmp_path, 1)
    page = page_of(tmp_path)
    for _, attributes in page.tags:
        assert all((attributes.get(name) or "data:").startswith("data:") for name in ("src", "href", "srcset"))
    style = re.findall(r"<style>(.*?)</style>", page.source, re.DOTALL)[0]
    assert "url(" not in style
    assert "@import" not in style
    script = re.findall(r"</script><script>(.*?)</script>", page.source, re.DOTALL)[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    (policy,) = [each["content"] for each in page.of("meta") if each.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert f"script-src 'sha256-{digest}'" in policy


def test_the_page_can_be_read_aloud(tmp_path: Path) -> None:
    write_run(tmp_path, [line(s, 1.0 / s) for s in (1, 2, 4)])
    write_sheet(tmp_path, 2)
    page = page_of(tmp_path)
    assert page.of("html") == [{"lang": "en"}]
    assert [image["alt"] for image in page.of("img")] == ["Sample pictures after step 2"]
    labels = [svg["aria-label"] for svg in page.of("svg") if svg.get("role") == "img"]
    assert labels[0] == "Loss over the steps. training: 1 at step 1, 0.25 at step 4; between 0.25 and 1"
    assert "0.25" in page.source.split("<tbody>")[1].split("</tbody>")[0], "the figures are there as a table, too"


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    start = {"start": True, "step": 0, "processes": 2, "time": "2026-01-02T03:04:05Z", "torch": "2.14.1"}
    lines = [{**start, "parameters": 1_234_567}, line(4, 0.5), {"override": {"lr": [0.001, 0.0005]}, "step": 4}]
    config = {"objective": "vae", "vae": {"latent_channels": 16}, "ema_decay": None, "history": ["not shown"]}
    write_run(tmp_path, lines, config)
    (tmp_path / "data.json").write_text(
        json.dumps({"folder": "/home/somebody/pictures/", "found": 12, "skipped": {"no caption": 2}})
    )
    (tmp_path / "step_00000004").mkdir()
    (tmp_path / "model" / "vae").mkdir(parents=True)
    save_file({"weight": np.zeros((30, 50), np.float32)}, tmp_path / "model/vae/diffusion_pytorch_model.safetensors")
    (tmp_path / "model" / "torn.safetensors").write_bytes(b"half")
    page = page_of(tmp_path)
    rows = dict(re.findall(r'<th scope="row">([^<]*)</th><td>([^<]*)</td>', page.source))
    expected = {
        "latent_channels": "16",
        "ema_decay": "–",
        "folder": "pictures",
        "found": "12",
        "skipped no caption": "2",
        "vae": f"{count(1500)} parameters, 0.0 MB",
        "checkpoints kept": "step 4",
        "started": "2026-01-02 03:04:05 UTC, 2 processes, torch 2.14.1",
        "settings changed at step 4": "lr from 0.001 to 0.0005",
    }
    assert {key: rows.get(key) for key in expected} == expected
    assert "Autoencoder · 1.2 M parameters" in page.text
    assert "somebody" not in page.source
    assert "not shown" not in page.source


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("/home/somebody/pictures", "pictures"),
        ("~/pictures/", "pictures"),
        ("C:\\Users\\somebody\\pictures", "pictures"),
        ("data/pictures", "data/pictures"),
        (["/a/b", 3, None, False], "b, 3, –, no"),
        (1e-6, "1e-06"),
    ],
)
def test_settings_as_text(value: object, text: str) -> None:
    assert shown(value) == text


def test_figures_as_text() -> None:
    assert [number(v) for v in (0, 0.23851, 25.0712, 1.2e-6, 115200.0, 3e12)] == [
        *("0", "0.2385", "25.07", "1.2e-06", "115\u202f200", "3e+12")
    ]
    assert [duration(s) for s in (42, 486, 4320, 11160)] == ["42 s", "8.1 min", "72 min", "3.1 h"]


# Samples


def test_sheets_are_scaled_down_and_chosen_evenly(tmp_path: Path) -> None:
    write_run(tmp_path, [line(1, 1.0)])
    steps = list(range(0, 400, 10))
    for step in steps:
        write_sheet(tmp_path, step)
    sheets = SheetReader().read(read_story(tmp_path).sheets)
    kept = [sheet.step for sheet in sheets]
    assert kept == [*range(0, 381, 20), 390]
    assert f"{len(kept)} of 40 sheets" in page_of(tmp_path).text
    with Image.open(io.BytesIO(base64.b64decode(sheets[-1].data_uri.partition(",")[2]))) as picture:
        assert picture.size == (64, 32)
        assert picture.getpixel((5, 5)) == (390 % 256,) * 3


def test_one_sheet_more_changes_no_choice(tmp_path: Path) -> None:
    before: list[int] = []
    for sheets in range(1, 200):
        paths = [tmp_path / f"step_{step:08d}.txt" for step in range(sheets)]
        paths[-1].write_text("text")
        chosen = [sheet.step for sheet in SheetReader().read(list(enumerate(paths)))]
        assert min(sheets, MAX_SHEETS // 2) <= len(chosen) <= MAX_SHEETS
        assert (chosen[0], chosen[-1]) == (0, sheets - 1)
        assert set(chosen[:-1]) <= {*before, sheets - 2}
        before = chosen


def test_the_largest_report_is_under_ten_megabytes(tmp_path: Path) -> None:
    """Sheets of pure noise, which no codec makes small."""
    write_run(tmp_path, [line(1, 1.0)])
    write_sheet(tmp_path, 1, (2048, 1024), seed=1)
    (sheet,) = SheetReader().read(read_story(tmp_path).sheets)
    assert 500 < sheet.width_px < 1600
    assert sheet.width_px / sheet.height_px == pytest.approx(2, abs=0.01)
    assert MAX_SHEETS * len(sheet.data_uri) < 9e6


def test_a_sheet_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path, [line(1, 1.0)])
    write_sheet(tmp_path, 1)
    reader = SheetReader()
    first = reader.read(read_story(tmp_path).sheets)
    with monkeypatch.context() as patched:
        patched.setattr(Image, "open", None)
        assert reader.read(read_story(tmp_path).sheets) == first
    write_sheet(tmp_path, 1, (32, 16))  # drawn anew after a resume
    assert reader.read(read_story(tmp_path).sheets)[0].width_px == 32


def test_damaged_sheets_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, [line(1, 1.0)])
    write_sheet(tmp_path, 2)
    whole = (tmp_path / "samples/step_00000002.png").read_bytes()
    (tmp_path / "samples/step_00000001.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "samples/step_00000003.png").write_bytes(b"<html>")
    (tmp_path / "samples/step_final.png").write_bytes(whole)
    assert [sheet.step for sheet in SheetReader().read(read_story(tmp_path).sheets)] == [2]


# While training


def test_it_is_written_as_the_run_goes_on(tmp_path: Path) -> None:
    write_run(tmp_path, [{"start": True, "step": 0}])
    report, file = RunReport(tmp_path), tmp_path / "report.html"
    report.close()
    assert not file.exists(), "a process that did not begin the run writes nothing into its folder"
    for event in ({"start": True, "step": 0}, {"told": "checkpoint", "step": 1}, {"told": "samples", "step": 1}):
        report(event)
        assert file.exists()
        file.unlink()
    report({"told": "step", "step": 2, "loss": 1.0})
    report(line(2, 1.0))
    assert not file.exists()
    report.failed(f"cannot save to {tmp_path}: No space left on device")
    report.close()
    page = file.read_text()
    assert f"cannot save to {tmp_path.name}: No space left on device" in page
    assert str(tmp_path) not in page


def test_a_name_that_is_no_text_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = tmp_path / os.fsdecode(b"run\xff")
    run.mkdir()
    write_run(run, [line(1, 1.0)])
    RunReport(run).write()
    assert "report.html cannot be written: 'utf-8' codec" in caplog.text


def test_the_mark_of_a_failure_is_within_its_chart(tmp_path: Path) -> None:
    write_run(tmp_path, [{"start": True, "step": 0}, line(150, 1.0), {"failed": True, "step": 183, "error": "full"}])
    assert all(chart.last_step == 183 for chart in charts_of(read_story(tmp_path)))


def test_a_disk_that_refuses_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, [line(1, 1.0)])

    def refuse(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", refuse)
    RunReport(tmp_path).write()
    assert "report.html cannot be written: No space left on device" in caplog.text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "log.jsonl"]

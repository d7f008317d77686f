"""`latentgen report`: a run folder to a page, and every way to ask for it wrongly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, snapshot
from tests.cli.test_train import assert_refused
from tests.unit.test_report import Page, line, write_run


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_run(tmp_path / "runs" / "fox", [{"start": True, "step": 0}, line(1, 0.5), {"end": True, "step": 1}])
    return Path("runs/fox")


def test_it_is_written_beside_the_run_or_where_it_is_wanted(cli: Cli, run: Path) -> None:
    outcome = cli("report", run)
    assert (outcome.code, outcome.out, outcome.err) == (0, "runs/fox/report.html\n", "")
    page = Page((run / "report.html").read_text())
    assert page.text.lstrip().startswith("fox · Finished · latentgen")
    before = snapshot(run)
    assert cli("report", run, "-o", "fox.html").out == "fox.html\n"
    assert Path("fox.html").read_text() == page.source
    assert snapshot(run) == before
    told = json.loads(cli("report", run, "--output", "fox.html", "--json").out)
    assert told == {"event": "report", "path": "fox.html", "state": "finished", "step": 1}


def test_what_is_no_run(cli: Cli, run: Path) -> None:
    assert_refused(cli("report", "runs/wolf"), "there is no run folder runs/wolf", code=3)
    assert_refused(cli("report", "runs"), "runs holds no run: neither config.json nor log.jsonl")
    assert_refused(cli("report", run / "log.jsonl"), "there is no run folder runs/fox/log.jsonl", code=3)
    assert_refused(cli("report"), "missing argument 'RUN'")


def test_where_it_cannot_be_written(cli: Cli, run: Path) -> None:
    assert_refused(cli("report", run, "-o", "runs"), "runs is a folder (name a file: --output FILE.html)")
    assert_refused(cli("report", run, "-o", "none/fox.html"), "cannot write none/fox.html: No such file or directory")
    assert not Path("none").exists()


def test_reading_a_run_needs_no_torch(run: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = """
import sys
from latentgen.cli.app import main
main(sys.argv[1:])
print("torch" in sys.modules)
"""
    arguments = [sys.executable, "-c", code, "report", str(run), "-o", "fox.html"]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("fox.html\nFalse\n", "")

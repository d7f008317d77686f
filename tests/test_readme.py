"""Every command in the README and in the model card parses, and every file that they link to exists."""

from __future__ import annotations

import re
import shlex
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.core import TyperGroup
from typer.main import get_command

from latentgen.cli.app import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "weights" / "README.md", ROOT / "docs" / "corpus.md"]
TARGETS = {name: command.target for group in COMMANDS.values() for name, command in group.items()}


def shell_lines(page: Path) -> list[str]:
    blocks = re.findall(r"^```(?:bash|sh)\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


COMMAND_LINES = sorted({line for page in PAGES for line in shell_lines(page) if line.startswith("latentgen ")})


def test_the_readme_shows_commands() -> None:
    assert len(COMMAND_LINES) > 10


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_command_parses(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, *arguments = shlex.split(line, comments=True)[1:]
    monkeypatch.chdir(tmp_path)
    for option_file in (argument for argument in arguments if argument.endswith(".toml")):
        Path(option_file).touch()
    module, _, attribute = TARGETS[name].partition(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        app = target
    else:
        app = typer.Typer(add_completion=False)
        app.command()(target)
    command = get_command(app)
    if isinstance(command, TyperGroup):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context(f"latentgen {name}", arguments)


@pytest.mark.parametrize(
    "line", sorted({line for page in PAGES for line in shell_lines(page) if line.startswith("make ")})
)
def test_make_target_exists(line: str) -> None:
    target = shlex.split(line, comments=True)[1]
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing

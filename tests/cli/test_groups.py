"""Options in groups: Typer sees them side by side, the command gets them together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from latentgen.cli.groups import grouped


@dataclass(frozen=True, kw_only=True)
class Drawing:
    steps: Annotated[int, typer.Option("--steps", "-n")]
    eta: Annotated[float | None, typer.Option("--eta")] = None


@dataclass(frozen=True, kw_only=True)
class Messages:
    quiet: Annotated[bool, typer.Option("--quiet")] = False


@dataclass(frozen=True, kw_only=True)
class OtherMessages:
    quiet: Annotated[bool, typer.Option("--silent")] = False


def application(seen: list[object]) -> typer.Typer:
    @grouped
    def command(*, drawing: Drawing, name: Annotated[str, typer.Argument()] = "x", messages: Messages) -> None:
        """What it does."""
        seen.extend([drawing, name, messages])

    app = typer.Typer(add_completion=False)
    app.command()(command)
    return app


def test_each_group_gets_its_own_options_and_a_single_one_stays_single() -> None:
    seen: list[object] = []
    result = CliRunner().invoke(application(seen), ["boat", "-n", "4", "--quiet"])
    assert (result.exit_code, seen) == (0, [Drawing(steps=4, eta=None), "boat", Messages(quiet=True)])


def test_an_option_without_a_default_is_required_and_help_shows_all() -> None:
    assert CliRunner().invoke(application([]), ["boat"]).exit_code == 2
    shown = CliRunner().invoke(application([]), ["--help"]).output
    assert all(text in shown for text in ("--steps", "--eta", "--quiet", "What it does."))


def test_two_groups_cannot_hold_the_same_option() -> None:
    with pytest.raises(AssertionError, match="an option twice"):

        @grouped
        def command(*, messages: Messages, others: OtherMessages) -> None: ...

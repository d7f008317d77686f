"""`latentgen models`: which models are here, and what one of them is."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from latentgen.cli.model_names import installed_models, resolve_model
from latentgen.cli.options import Json
from latentgen.cli.summary import model_summary, print_summary

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List models, or show one.\n\nlatentgen models list\n\nlatentgen models show embedded",
)


@app.command("list")
def list_models(json_output: Json = False) -> None:
    """List the models that are installed: names for --model."""
    models = installed_models()
    for name, folder in models.items():
        print(json.dumps({"name": name, "folder": str(folder)}) if json_output else f"{name}  {folder}")
    if not models:
        typer.echo("no model is installed; --model takes a model folder", err=True)


@app.command("show")
def show_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `models list`, or a model folder.")],
    json_output: Json = False,
) -> None:
    """Show a model's parts, its defaults, and what it weighs."""
    summary = model_summary(resolve_model(name))
    if json_output:
        print(json.dumps(summary))
    else:
        print_summary(summary)

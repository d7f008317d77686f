"""`latentgen evaluate`: measure a model instead of looking at it. A file for each command; here is their table."""

from __future__ import annotations

import typer

from latentgen.cli.evaluate_probe import train_probe
from latentgen.cli.evaluate_scenes import scenes
from latentgen.cli.evaluate_vae import vae

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Measure a model of the scene corpus: does a picture show what its prompt says, and how much does the"
        " autoencoder lose.\n\n"
        "latentgen evaluate scenes -m my-model --out scores\n\n"
        "latentgen evaluate vae -m my-model --data test-pictures\n\n"
        "latentgen evaluate train-probe --render 20000 --out probe.safetensors"
    ),
)
app.command("scenes")(scenes)
app.command("vae")(vae)
app.command("train-probe")(train_probe)

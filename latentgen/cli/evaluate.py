"""`latentgen evaluate`: measure a model instead of looking at it. A file for each command; here is their table."""

from __future__ import annotations

import typer

from latentgen.cli.evaluate_probe import train_probe
from latentgen.cli.evaluate_scenes import scenes
from latentgen.cli.evaluate_vae import vae
from latentgen.cli.evaluate_words import words

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Measure a model: does a picture of the scene corpus show what its prompt says, how much does the autoencoder"
        " lose, which words are taken notice of.\n\n"
        "latentgen evaluate scenes -m my-model --out scores\n\n"
        "latentgen evaluate vae -m my-model --data test-pictures\n\n"
        "latentgen evaluate words -m my-model --data test-pictures --exchange left:right\n\n"
        "latentgen evaluate train-probe --render 20000 --out probe.safetensors"
    ),
)
app.command("scenes")(scenes)
app.command("vae")(vae)
app.command("words")(words)
app.command("train-probe")(train_probe)

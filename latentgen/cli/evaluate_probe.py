"""`latentgen evaluate train-probe`: the judge of `evaluate scenes`, trained on labelled renders."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli import options
from latentgen.cli.console import Console
from latentgen.cli.data import Vocabulary, require_renderer
from latentgen.cli.evaluate_options import check_vocabulary_name
from latentgen.cli.output import missing_folder
from latentgen.errors import InputError

if TYPE_CHECKING:
    from latentgen.evaluation.labelled import Change
    from latentgen.images.pixels import Pixels

HELD_BACK_SHARE, LEAST_HELD_BACK = 0.04, 8
"""Of the pictures: not trained on, but measured on at the end."""
FIRST_RENDER_SEED = 2**39
"""Of rendered training pictures: far above any corpus, and below the benchmark's own scenes."""
RECONSTRUCTED_EVERY = 8
"""One picture of so many goes through the autoencoder of --vae, which takes longer than learning from it."""
SOFTENING = 2.0
"""Of the second measurement: about what a 28 dB autoencoder leaves."""


def train_probe(
    out: Annotated[Path, typer.Option("--out", "-o", help="The probe's file, .safetensors; about 2 MB.")],
    data: Annotated[
        list[Path] | None,
        typer.Option("--data", help="Pictures with labels, from `data render`; may be given several times."),
    ] = None,
    render: Annotated[
        int | None, typer.Option("--render", min=1, metavar="N", help="Draw N pictures to learn from instead.")
    ] = None,
    vocabulary: Vocabulary = "heroes",
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N pictures of each --data.")
    ] = None,
    init: Annotated[Path | None, typer.Option("--init", metavar="PROBE", help="Go on from this probe.")] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            "--vae", metavar="MODEL", help="Take an eighth of the pictures as this model's autoencoder gives them."
        ),
    ] = None,
    size: Annotated[
        int, typer.Option("--size", min=32, max=512, help="Side in pixels at which the probe looks.")
    ] = 128,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Optimizer steps.")] = 4000,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", min=0.01, help="End earlier, after this time.")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=2, help="Pictures a step.")] = 64,
    lr: Annotated[float, typer.Option("--lr", min=0, help="Peak learning rate (AdamW).")] = 3e-3,
    seed: Annotated[int, typer.Option("--seed", "-s", min=0, help="Fixes the training.")] = 0,
    threads: options.Threads = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Train the small network that reads labels off pictures, and measure it on renders it has not seen.

    Learn from renders with held-out compositions too: a judge that never saw an orange sailboat would call it red.

    latentgen evaluate train-probe --render 20000 --out probe.safetensors

    latentgen evaluate train-probe --data scenes --data held-out-scenes --max-minutes 20 --out probe.safetensors
    """
    console = Console(quiet, json_events=json_events)
    if (data is None) == (render is None):
        raise InputError("say what to learn from: --data or --render", hint="for instance --render 20000")
    if size % 16:
        raise InputError(f"--size {size} is no multiple of 16", hint=f"nearest: {size - size % 16 or 32}")
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors")
    if out.exists() and not overwrite:
        raise InputError(f"--out {out} exists", hint="--overwrite replaces it")
    if not out.parent.is_dir():
        raise missing_folder("--out", out.parent)
    name = check_vocabulary_name(vocabulary)
    if render is not None:
        require_renderer()

    import torch

    from latentgen.evaluation.augment import softened
    from latentgen.evaluation.labelled import read_labelled, render_labelled
    from latentgen.evaluation.probe import load_probe, save_probe
    from latentgen.evaluation.probe_training import ProbeTraining, default_config, measure_probe, new_probe
    from latentgen.evaluation.probe_training import train_probe as train

    if threads is not None:
        torch.set_num_threads(threads)
    start = None if init is None else load_probe(init)
    if start is not None and start.config.size_px != size:
        raise InputError(f"--size {size} is not that of {init}", hint=f"--size {start.config.size_px}")
    change = None if vae is None else _some_reconstructed(vae)
    with console.progress() as report:

        def on_picture(done: int, total: int) -> None:
            report(done, total, "reading" if render is None else "rendering")

        if render is None:
            pictures = read_labelled(data or [], size, limit=limit, change=change, on_progress=on_picture)
        else:
            pictures = render_labelled(name, render, FIRST_RENDER_SEED, size, change=change, on_progress=on_picture)
    if len(pictures) < 4 * LEAST_HELD_BACK:
        raise InputError(f"{len(pictures)} pictures are too few to learn from", hint=f"at least {4 * LEAST_HELD_BACK}")
    probe = new_probe(default_config(pictures), seed) if start is None else start
    learnt, unseen = pictures.hold_back(HELD_BACK_SHARE, least=LEAST_HELD_BACK)
    training = ProbeTraining(steps, math.inf if max_minutes is None else max_minutes, batch_size, lr, seed)
    with console.progress() as report:

        def on_step(step: int, progress: float, loss: float) -> None:
            report(progress, 1, f"step {step}, loss {loss:.3f}")
            console.event("step", step=step, loss=round(loss, 5))

        train(probe, learnt, training, on_step)
    sharp, soft = measure_probe(probe, unseen), measure_probe(probe, unseen, lambda x: softened(x, SOFTENING))
    accuracy = {"pictures": len(unseen), "sharp": sharp, "soft": soft}
    save_probe(out, probe, accuracy)
    if json_events:
        console.event("accuracy", **accuracy)
    else:
        print(f"{'':10}{'sharp':>8}{'soft':>8}   share of right answers on {len(unseen)} pictures not learnt from")
        for question, share in sharp.items():
            print(f"{question:10}{share:8.1%}{soft[question]:8.1%}")
    console.result(out, "probe")


def _some_reconstructed(model: str) -> Change:
    """Every eighth picture as the model's autoencoder gives it back."""
    from latentgen.cli.autoencoder import load_autoencoder

    autoencoder = load_autoencoder(model, device="cpu", dtype="float32", threads=None, tiling="auto")

    def change(number: int, picture: Pixels) -> Pixels:
        return picture if number % RECONSTRUCTED_EVERY else autoencoder.decode(autoencoder.encode(picture))

    return change

"""`latentgen models`: which models are here, what one of them is, and fetching and removing them."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentgen.cli.boundary import escape
from latentgen.cli.console import Console
from latentgen.cli.model_names import EMBEDDED, InstalledModel, look_around, models_folder, own_models, resolve_model
from latentgen.cli.options import Json, NoProgress, Quiet
from latentgen.cli.summary import deep_summary, model_summary, print_summary
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError, RuntimeFailure

if TYPE_CHECKING:
    from latentgen.checkpoints.hub import Pull
    from latentgen.checkpoints.hub_cache import HubName

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="List models, look into one, fetch one from the Hugging Face hub, remove one.\n\n"
    "latentgen models list\n\nlatentgen models pull stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16",
)

Name = Annotated[
    str, typer.Argument(metavar="NAME", help="A name of `models list`, a model folder or a .safetensors file.")
]


@app.command("list")
def list_models(json_output: Json = False) -> None:
    """List the models that are here: names for --model, what each is, its size, where it lies.

    latentgen models list

    latentgen models list --json
    """
    models = list(look_around())
    for line in [json.dumps(_as_json(model)) for model in models] if json_output else _table(models):
        print(line)
    if not models:
        typer.echo("no model is installed; --model takes a model folder", err=True)


@app.command("show")
def show_model(name: Name, json_output: Json = False) -> None:
    """Show a model's parts, its defaults, and what it weighs; `inspect` also compares every tensor.

    latentgen models show embedded
    """
    _print(model_summary(resolve_model(name)), json_output)


@app.command("inspect")
def inspect_model(name: Name, json_output: Json = False) -> None:
    """Look into a model's weights: parts, parameters, dtypes, missing and unexpected tensors, metadata.

    latentgen models inspect embedded

    latentgen models inspect v1-5-pruned-emaonly.safetensors --json
    """
    _print(deep_summary(resolve_model(name)), json_output)


@app.command("pull")
def pull_model(
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="A model of the Hugging Face hub.")],
    revision: Annotated[str | None, typer.Option("--revision", help="A branch, a tag or a commit.")] = None,
    variant: Annotated[str | None, typer.Option("--variant", metavar="fp16", help="Weights in half precision.")] = None,
    file: Annotated[str | None, typer.Option("--file", help="Only this .safetensors file of it.")] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", metavar="HEX", help="What the file must be; else nothing is kept.")
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never go online: pull refuses.")] = False,
    quiet: Quiet = False,
    json_events: Json = False,
    no_progress: NoProgress = False,
) -> None:
    """Fetch a model from the Hugging Face hub: only what is needed of it, and never pickles. Prints its name.

    The files go into the Hugging Face cache. What an interrupted pull has fetched is kept, and the next one goes on
    from there. HF_TOKEN, HF_HOME, HF_ENDPOINT and HF_HUB_OFFLINE are obeyed.

    latentgen models pull stable-diffusion-v1-5/stable-diffusion-v1-5 --variant fp16

    latentgen models pull stabilityai/sd-vae-ft-mse --file diffusion_pytorch_model.safetensors
    """
    console = Console(quiet, False, json_events, not no_progress)
    # Parse
    hub_name = _hub_name(name, revision, file)
    _check_flags(hub_name, variant, sha256)
    if offline:
        raise InputError(f"{hub_name} cannot be pulled with --offline", hint="leave --offline out")
    # Resolve
    from latentgen.checkpoints.hub import check_space, fetch, gigabytes, plan_pull
    from latentgen.checkpoints.hub_cache import cache_folder

    plan = plan_pull(hub_name, variant=variant)
    _check_pin(plan, sha256)
    to_come = plan.bytes_to_come
    coming = f"{gigabytes(to_come)} to come, into {cache_folder()}" if plan.missing else "all here"
    console.note(f"{hub_name}: {len(plan.files)} file(s), {gigabytes(plan.size)}, {coming}")
    check_space(plan)
    # Run
    with console.progress(with_figures=True) as progress:
        arrived = plan.size - sum(each.size for each in plan.missing)

        def report(count: int, path: str) -> None:
            nonlocal arrived
            arrived += count
            progress(arrived, plan.size, path, f"{gigabytes(arrived)} of {gigabytes(plan.size)}")

        path = fetch(plan, report)
    _tell(console, hub_name, path, plan, to_come)


@app.command("remove")
def remove_model(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of `models list`.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    quiet: Quiet = False,
) -> None:
    """Delete a pulled model, or one in latentgen's models folder, after saying what that frees.

    latentgen models remove stable-diffusion-v1-5/stable-diffusion-v1-5

    latentgen models remove my-model --yes
    """
    console = Console(quiet)
    own = own_models().get(name)
    if name == EMBEDDED and own is not None:
        raise InputError("the embedded model is a part of latentgen and is not removed")
    if own is not None:
        _remove_own(console, name, own, yes)
    else:
        _remove_pulled(console, name, yes)


# list


def _as_json(model: InstalledModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "architecture": model.architecture,
        "bytes": model.size,
        "home": model.home,
        "path": str(model.path),
        "problem": model.problem,
    }


def _table(models: list[InstalledModel]) -> list[str]:
    """Aligned columns: name, architecture, size, path; a model that cannot be used says why instead of the second."""
    from latentgen.checkpoints.hub import gigabytes

    rows = [
        (model.name, model.architecture or "cannot be used", gigabytes(model.size), str(model.path)) for model in models
    ]
    widths = [max(len(escape(row[i])) for row in rows) for i in range(3)] if rows else []
    lines = [
        "  ".join((*(escape(cell).ljust(width) for cell, width in zip(row, widths, strict=False)), escape(row[3])))
        for row in rows
    ]
    problems = [f"! {escape(model.name)}: {escape(model.problem)}" for model in models if model.problem is not None]
    return lines + problems


def _print(summary: dict[str, Any], json_output: bool) -> None:
    if json_output:
        print(json.dumps(summary))
    else:
        print_summary(summary)


# pull


def _hub_name(text: str, revision: str | None, file: str | None) -> HubName:
    """The name with the flags in it. Raises InputError for what is no name, and for what is said twice."""
    from latentgen.checkpoints.hub_cache import HubName, parse_hub_name

    found = parse_hub_name(text)
    if found is None:
        raise InputError(f"{text} is no name of the hub", hint="OWNER/NAME, for instance stabilityai/sd-vae-ft-mse")
    if (revision is not None and found.revision is not None) or (file is not None and found.file is not None):
        raise InputError(f"{text} names already what --revision or --file names", hint="give one or the other")
    whole = HubName(found.repository, found.revision or revision, found.file or file)
    if parse_hub_name(str(whole)) != whole:
        flag = f"--revision {revision}" if revision is not None else f"--file {file}"
        raise InputError(f"{flag} cannot be a name on the hub")
    return whole


def _check_flags(name: HubName, variant: str | None, sha256: str | None) -> None:
    from latentgen.checkpoints.hub import VARIANT

    if variant not in (None, VARIANT):
        raise InputError(f"--variant {variant} is not known", hint=f"{VARIANT}, or leave it out")
    if variant is not None and name.file is not None:
        raise InputError("--variant is for a whole model, not for one file", hint="name the file that you want")
    if sha256 is not None and name.file is None:
        raise InputError("--sha256 is for one file: --file is missing", hint="--revision COMMIT pins a whole model")
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 {sha256} is no SHA-256", hint="64 hexadecimal digits")


def _check_pin(plan: Pull, sha256: str | None) -> None:
    """Before a byte of it is fetched: what arrives is held against the hub's own hash."""
    if sha256 is not None and plan.files[0].sha256 != sha256.lower():
        there = plan.files[0].sha256 or "none"
        raise ModelLoadError(f"{plan.name} is not what --sha256 says: the hub's is {there}", hint="nothing was fetched")


def _tell(console: Console, name: HubName, path: Path, plan: Pull, fetched_bytes: int) -> None:
    """The name on stdout, and what to do with it on stderr."""
    if console.json_events:
        console.event("pulled", model=str(name), path=str(path), commit=plan.commit, fetched_bytes=fetched_bytes)
    else:
        print(name)
    if path.is_dir():
        console.note(f'to draw with it: latentgen generate "a lighthouse at sunset" --model {name}')
        return
    from latentgen.cli.weights_info import use_of

    console.note(use_of(path, str(name)))


# remove


def _remove_own(console: Console, name: str, path: Path, yes: bool) -> None:
    """Delete what lies in the models folder; of a link only the link."""
    from latentgen.checkpoints.hub import gigabytes

    if path.is_symlink():
        _ask(console, f"{path} is a link; what it points to stays.", yes)
        path.unlink()
    elif path.is_dir():
        size = sum(each.lstat().st_size for each in path.rglob("*") if not each.is_dir())
        _ask(console, f"{name} in {models_folder()} takes {gigabytes(size)}.", yes)
        shutil.rmtree(path)
    else:
        _ask(console, f"{name} in {models_folder()} takes {gigabytes(path.stat().st_size)}.", yes)
        path.unlink()
    console.note(f"removed {name}")


def _remove_pulled(console: Console, name: str, yes: bool) -> None:
    from latentgen.checkpoints.hub import gigabytes
    from latentgen.checkpoints.hub_cache import parse_hub_name, plan_removal, remove

    hub_name = parse_hub_name(name)
    if hub_name is not None and hub_name.file is not None:
        raise InputError(f"{name} is one file of a model", hint=f"remove it as a whole: {hub_name.repository}")
    removal = None if hub_name is None else plan_removal(hub_name)
    if removal is None:
        if Path(name).exists():
            raise InputError(f"{name} is a path, and latentgen removes only what it keeps", hint="delete it yourself")
        raise ModelNotFoundError(f"there is no model {name} here", hint="see: latentgen models list")
    revisions = f"{len(removal.commits)} revision(s)" if removal.commits else "a pull that was not finished"
    _ask(console, f"{name}: {revisions} in the Hugging Face cache, {gigabytes(removal.freed_bytes)} are freed.", yes)
    remove(removal)
    console.note(f"removed {name}")


def _ask(console: Console, fact: str, yes: bool) -> None:
    """Say what will be deleted, and ask on a terminal. Raises InputError where nobody can answer, or for a no."""
    console.note(fact)
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():  # pyright: ignore[reportUnnecessaryComparison]  None if closed
        raise InputError("nothing was removed: there is no terminal to ask on", hint="--yes removes without asking")
    print("Remove it? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise RuntimeFailure("nothing was removed")

"""`latentgen data`: make training pictures from the built-in scene corpus."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, cast

import typer

from latentgen.cli.console import Console
from latentgen.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Make training pictures with exact captions from the built-in scene corpus.\n\n"
        "latentgen data render --out scenes --count 20000 --vocabulary heroes\n\n"
        "latentgen data fetch-assets"
    ),
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures; an interrupted one is finished.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="How many pictures.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, help="Seed of the first picture; the next ones count up.")]
Size = Annotated[int, typer.Option("--size", min=16, help="Width and height in pixels.")]
Vocabulary = Annotated[
    str, typer.Option("--vocabulary", help="heroes: ten drawn nouns; full: 402 nouns, needs artwork (fetch-assets).")
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes; changes the speed only.")]
Format = Annotated[str, typer.Option("--format", help="webdataset: tar shards of 1000; folder: .png with .txt beside.")]
Captions = Annotated[int, typer.Option("--captions-per-image", min=1, help="Captions stored with each picture.")]
HeldOutOption = Annotated[
    str, typer.Option("--held-out", help="Compositions kept from training: include, exclude, or only.")
]
Assets = Annotated[Path | None, typer.Option("--assets", help="Artwork folder (default: in the user's cache folder).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


@app.command("render")
def render(
    out: Out,
    count: Count,
    seed: Seed = 0,
    size: Size = 256,
    vocabulary: Vocabulary = "heroes",
    workers: Workers = 1,
    format: Format = "webdataset",
    captions_per_image: Captions = 3,
    held_out: HeldOutOption = "include",
    assets: Assets = None,
    quiet: Quiet = False,
) -> None:
    """Render scenes with captions and labels; the same arguments always give the same bytes.

    latentgen data render --out scenes --count 20000 --vocabulary heroes --workers 4

    latentgen data render --out test --count 500 --seed 1000000 --held-out only
    """
    _require_renderer()
    from latentgen.corpus.render import CorpusArguments, render_corpus

    arguments = CorpusArguments(
        count=count,
        seed=seed,
        size_px=size,
        vocabulary=cast("Any", vocabulary),
        format=cast("Any", format),
        captions_per_image=captions_per_image,
        held_out=cast("Any", held_out),
    )
    console = Console(quiet=quiet)
    with console.progress() as report:
        result = render_corpus(
            out,
            arguments,
            workers=workers,
            artwork_folder=assets,
            on_progress=lambda done, total: report(done, total, "rendering"),
        )
    console.result(result)


@app.command("fetch-assets")
def fetch_assets(assets: Assets = None) -> None:
    """Fetch the artwork of the full vocabulary with the npm client (19 MB, of which 5 are kept), checked by sha256.

    latentgen data fetch-assets --assets artwork
    """
    _require_renderer()
    from latentgen.corpus.artwork import default_artwork_folder, fetch_artwork

    Console().result(fetch_artwork(default_artwork_folder() if assets is None else assets))


def _require_renderer() -> None:
    """Drawing needs the `corpus` extra; say so before anything is imported from it."""
    from importlib.util import find_spec

    missing = [module for module in ("skia", "cv2") if find_spec(module) is None]
    if missing:
        raise InputError(
            f"rendering needs {' and '.join(missing)}, not installed here", hint='pip install "latentgen[corpus]"'
        )

"""`latentgen data`: look at training pictures before they are trained on, or make some from the built-in corpus."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from latentgen.cli.console import Console
from latentgen.cli.options import Json
from latentgen.errors import InputError

if TYPE_CHECKING:
    from latentgen.data.scan import Scan

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Check and count training pictures, or make some with exact captions from the built-in scene corpus.\n\n"
        "latentgen data check my-pictures\n\n"
        "latentgen data stats my-pictures\n\n"
        "latentgen data render --out scenes --count 20000 --vocabulary heroes\n\n"
        "latentgen data sheet --out sheets\n\n"
        "latentgen data fetch-assets"
    ),
)

Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures; an interrupted one is finished.")]
Count = Annotated[int, typer.Option("--count", "-n", min=1, help="How many pictures.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, help="Seed of the first picture; the next ones count up.")]
Size = Annotated[int, typer.Option("--size", min=16, help="Width and height in pixels.")]
Vocabulary = Annotated[
    str,
    typer.Option(
        "--vocabulary", help="heroes: ten drawn nouns; heroes20: twenty; full: 402 nouns, needs artwork (fetch-assets)."
    ),
]
Workers = Annotated[int, typer.Option("--workers", min=1, help="Processes; changes the speed only.")]
Format = Annotated[str, typer.Option("--format", help="webdataset: tar shards of 1000; folder: .png with .txt beside.")]
Captions = Annotated[int, typer.Option("--captions-per-image", min=1, help="Captions stored with each picture.")]
HeldOutOption = Annotated[
    str, typer.Option("--held-out", help="Compositions kept from training: include, exclude, or only.")
]
Several = Annotated[
    str,
    typer.Option("--several", help="Pictures of more than one thing, counted or in pairs: include, exclude, or only."),
]
Large = Annotated[str, typer.Option("--large", help="Pictures of one thing drawn large: include, exclude, or only.")]
Aside = Annotated[
    str, typer.Option("--aside", help="Pictures of one thing on the left or on the right: include, exclude, or only.")
]
Colours = Annotated[
    str, typer.Option("--colours", help="Of drawn things: usual, each noun in its own, or any, each in all of them.")
]
Settings = Annotated[
    str,
    typer.Option("--settings", help="Of drawn things: usual, each where it belongs, or any, wherever it fits."),
]
Assets = Annotated[Path | None, typer.Option("--assets", help="Artwork folder (default: in the user's cache folder).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]


Folder = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="Tar shards, or pictures with a .txt beside each or a metadata.jsonl.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Accept a set with faulty pictures, and list them in the file --out.")
]
SkippedOut = Annotated[
    Path, typer.Option("--out", "-o", help="Where --skip-bad lists them, a JSON line each; an older list is replaced.")
]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="Pictures decoded at once (default: all cores).")]


@app.command("check")
def check(
    folder: Folder,
    skip_bad: SkipBad = False,
    out: SkippedOut = Path("skipped.jsonl"),
    json_output: Json = False,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Decode every picture and read every caption, as training would; exit code 2 if any cannot be used.

    latentgen data check my-pictures

    latentgen data check my-pictures --skip-bad --out skipped.jsonl
    """
    from latentgen.data.scan import scan

    with Console(quiet=quiet).progress() as report:
        scanned = scan(folder, threads=threads, on_progress=lambda done, total: report(done, total, "checking"))
    summary = {
        "found": scanned.found,
        "used": len(scanned.used),
        "skipped": len(scanned.skipped),
        "reasons": scanned.reasons,
        "identical": scanned.identical,
        **({} if scanned.unread is None else {"not read": scanned.unread.count}),
    }
    if json_output:
        files = [{"file": each.file, "reason": each.reason} for each in scanned.skipped]
        print(json.dumps({**summary, "files": files}))
    else:
        _print_table(summary)
    _tell_of_unread(scanned, quiet=quiet)
    scanned.require(skip_bad=skip_bad)
    if scanned.skipped:
        scanned.write_skipped(out)
        Console(quiet=quiet).note(f"the skipped ones and why: {out}")


@app.command("stats")
def stats(folder: Folder, json_output: Json = False, threads: Threads = None, quiet: Quiet = False) -> None:
    """Count sizes, aspect ratios, caption lengths in CLIP tokens, words and labels; what is faulty is left out.

    latentgen data stats my-pictures

    latentgen data stats my-pictures --json
    """
    from latentgen.data.scan import scan
    from latentgen.data.stats import data_stats

    with Console(quiet=quiet).progress() as report:
        scanned = scan(
            folder, whole=False, threads=threads, on_progress=lambda done, total: report(done, total, "reading")
        )
    _tell_of_unread(scanned, quiet=quiet)
    scanned.require(skip_bad=True)
    from latentgen.models.tokenizer import Tokenizer  # torch is loaded only for a set that is there

    tokenizer = Tokenizer.published()
    figures = data_stats(scanned, lambda caption: len(tokenizer.tokenize(caption)))
    if json_output:
        print(json.dumps(figures))
    else:
        _print_table(figures)


def _tell_of_unread(scanned: Scan, *, quiet: bool) -> None:
    if scanned.unread is not None:
        Console(quiet=quiet).warn(f"{scanned.folder}: {scanned.unread}")


def _print_table(values: Mapping[str, Any], indent: str = "") -> None:
    """Names and values in two columns on stdout; nested ones below their name, further in."""
    from latentgen.cli.boundary import escape

    width = max((len(escape(name)) for name, value in values.items() if not isinstance(value, dict)), default=0)
    for name, value in values.items():
        if not isinstance(value, dict):
            print(f"{indent}{escape(name):{width}}  {value:>8{'d' if isinstance(value, int) else 'g'}}")
        elif value:
            print(f"{indent}{escape(name)}")
            _print_table(cast("dict[str, Any]", value), indent + "  ")


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
    several: Several = "include",
    large: Large = "include",
    aside: Aside = "include",
    colours: Colours = "usual",
    settings: Settings = "usual",
    assets: Assets = None,
    quiet: Quiet = False,
) -> None:
    """Render scenes with captions and labels; the same arguments always give the same bytes.

    latentgen data render --out scenes --count 20000 --vocabulary heroes --workers 4

    latentgen data render --out test --count 500 --seed 1000000 --held-out only
    """
    require_renderer()
    from latentgen.corpus.render import CorpusArguments, render_corpus

    arguments = CorpusArguments(
        count=count,
        seed=seed,
        size_px=size,
        vocabulary=cast("Any", vocabulary),
        format=cast("Any", format),
        captions_per_image=captions_per_image,
        held_out=cast("Any", held_out),
        several=cast("Any", several),
        large=cast("Any", large),
        aside=cast("Any", aside),
        colours=cast("Any", colours),
        settings=cast("Any", settings),
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


Sheets = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="nouns, weathers, styles, counts, records (default: all)."),
]
SheetFolder = Annotated[Path, typer.Option("--out", "-o", help="Folder for the sheets, a JPEG each.")]
SheetSeed = Annotated[int, typer.Option("--seed", "-s", min=0, help="Seed of the first of the records.")]


@app.command("sheet")
def sheet(
    names: Sheets = None,
    out: SheetFolder = Path("sheets"),
    vocabulary: Vocabulary = "heroes20",
    seed: SheetSeed = 0,
    assets: Assets = None,
) -> None:
    """Draw contact sheets of the corpus: its nouns, weathers, styles and counts, and records with their captions.

    latentgen data sheet --out sheets

    latentgen data sheet records --vocabulary full --seed 1000
    """
    require_renderer()
    from latentgen.corpus.sheets import SHEET_NAMES, write_sheets

    console = Console()
    for file in write_sheets(
        out, names or SHEET_NAMES, vocabulary=cast("Any", vocabulary), seed=seed, artwork_folder=assets
    ):
        console.result(file)


@app.command("fetch-assets")
def fetch_assets(assets: Assets = None) -> None:
    """Fetch the artwork of the full vocabulary with the npm client (19 MB, of which 5 are kept), checked by sha256.

    latentgen data fetch-assets --assets artwork
    """
    require_renderer()
    from latentgen.corpus.artwork import default_artwork_folder, fetch_artwork

    Console().result(fetch_artwork(default_artwork_folder() if assets is None else assets))


def require_renderer() -> None:
    """Drawing needs the `corpus` extra; say so before anything is imported from it."""
    from importlib.util import find_spec

    missing = [module for module in ("skia", "cv2") if find_spec(module) is None]
    if missing:
        raise InputError(
            f"rendering needs {' and '.join(missing)}, not installed here", hint='pip install "latentgen[corpus]"'
        )

"""`latentgen evaluate words`: which words of a caption a model takes notice of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli import options
from latentgen.cli.console import Console
from latentgen.cli.drawable import read_drawable
from latentgen.cli.model_names import resolve_model
from latentgen.errors import InputError, ShapeError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from latentgen.data.record import Record
    from latentgen.evaluation.words import Exchange, Pair
    from latentgen.models.tokenizer import Tokenizer


def words(
    data: Annotated[
        Path, typer.Option("--data", help="Pictures with captions, best of those that it was not trained on.")
    ],
    exchange: Annotated[
        list[str],
        typer.Option("--exchange", metavar="A:B", help="Two words that are put in each other's place; repeatable."),
    ],
    model: options.Model = None,
    size: Annotated[
        int | None, typer.Option("--size", min=16, help="Side in pixels; others are cut to a square (the model's).")
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, metavar="N", help="At most the first N pictures of each exchange.")
    ] = 200,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    json_events: options.Json = False,
) -> None:
    """Measure which words a model takes notice of: is its loss lower under a caption than with two words exchanged?

    Of a word that it passes over half of the pictures are right; nothing is drawn, and no judge is needed.

    latentgen evaluate words -m my-model --data test-pictures --exchange left:right --exchange red:blue
    """
    console = Console(quiet, json_events=json_events)
    pairs_of_words = [_two_words(text) for text in exchange]
    folder = resolve_model(model)
    config = read_drawable(folder)
    if config.unet.in_channels != config.vae.latent_channels:
        raise InputError(f"{folder.name} is for inpainting: it is not told by a caption alone what is in a picture")
    multiple_px = config.size_multiple_px
    side_px = config.unet.sample_size * config.vae.downscale if size is None else size
    if side_px % multiple_px:
        raise ShapeError(f"--size {side_px} does not fit this model", hint=f"a multiple of {multiple_px}")
    from latentgen.data.decode import decode, ordered_map
    from latentgen.data.records import list_records

    records = list_records(data)
    import torch

    from latentgen.checkpoints.folder import load_model
    from latentgen.evaluation.words import Exchange, Pair, measure_words
    from latentgen.pipeline import choose_device, choose_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = choose_device(device)
    bundle = load_model(folder, device=chosen, dtype=choose_dtype(dtype, chosen, fast=False))
    exchanges = [Exchange(*each) for each in pairs_of_words]
    found = [_pairs(records, each, bundle.tokenizer, limit) for each in exchanges]
    for each, pairs in zip(exchanges, found, strict=True):
        if not pairs:
            raise InputError(f"no caption of {data} holds {each.first!r} or {each.second!r}")
    if not json_events:
        print(
            f"{folder.resolve().name}, {side_px} px: loss under the caption against the loss with two words exchanged"
        )
        print(f"{'exchanged':<28}{'pictures':>9}  {'lower in':<18}lower by, from nearly clean to noise")
    for each, pairs in zip(exchanges, found, strict=True):
        with console.progress() as report:

            def told(pairs: Sequence[tuple[Record, str, str]] = pairs, name: str = each.first) -> Iterator[Pair]:
                pictures = ordered_map(lambda pair: decode(pair[0], (side_px, side_px)), pairs, 1)
                for done, (picture, (_, caption, other)) in enumerate(zip(pictures, pairs, strict=True)):
                    yield Pair(picture, caption, other)
                    report(done + 1, len(pairs), name)

            heard = measure_words(bundle, told())
        if json_events:
            console.event("words", exchange=[each.first, each.second], **heard.share.to_json(), gains=heard.gains)
            continue
        low, high = heard.share.interval()
        shown = f"{heard.share.value:.0%} ({low:.0%} to {high:.0%})"
        gains = " ".join(f"{gain:7.2%}" for gain in heard.gains)
        print(f"{f'{each.first} / {each.second}':<28}{heard.share.total:>9}  {shown:<18}{gains}")


def _two_words(text: str) -> tuple[str, str]:
    first, colon, second = (part.strip() for part in text.partition(":"))
    if not (first and colon and second) or ":" in second or first.casefold() == second.casefold():
        raise InputError(f"--exchange {text!r} is not two words", hint="as left:right")
    return first, second


def _pairs(
    records: Sequence[Record], exchange: Exchange, tokenizer: Tokenizer, limit: int
) -> list[tuple[Record, str, str]]:
    """Of each record its first caption that the exchange changes within what the encoder sees, up to the limit."""
    pairs: list[tuple[Record, str, str]] = []
    for record in records:
        for caption in record.captions:
            other = exchange.apply(caption)
            if other is not None and not bool(tokenizer.encode([caption]).equal(tokenizer.encode([other]))):
                pairs.append((record, caption, other))
                break
        if len(pairs) == limit:
            break
    return pairs

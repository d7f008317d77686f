"""`latentgen generate`: prompts to picture files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from latentgen.cli import options
from latentgen.cli.account import Account, read_account
from latentgen.cli.add_ons import AddOnOptions, AddOns
from latentgen.cli.autoencoder import telling_warnings
from latentgen.cli.console import Console, Progress
from latentgen.cli.drawable import read_drawable
from latentgen.cli.embeddings import load_embeddings, look_at_embeddings, warn_of_unused, with_embeddings
from latentgen.cli.generate_options import (
    ComputerOptions,
    DrawingOptions,
    FileOptions,
    MessageOptions,
    PromptOptions,
)
from latentgen.cli.groups import grouped
from latentgen.cli.init_options import InitOptions
from latentgen.cli.init_pictures import InitFiles, pass_notes, size_in_words, size_notes, steps_in_words
from latentgen.cli.memory import check_memory
from latentgen.cli.model_names import models_folder, resolve_model
from latentgen.cli.option_file import with_config
from latentgen.cli.output import PictureFiles
from latentgen.cli.plan import Entry, Flags, plan_requests
from latentgen.cli.prompt_syntax import SyntaxOptions, plain_entries, tell_of_lone_words, tell_of_prompts
from latentgen.cli.ranks import Alone, Share, join_ranks
from latentgen.cli.seeing import Seeing, SeeingOptions
from latentgen.cli.seen_words import tell_of_unseen_words
from latentgen.cli.sheets import SWEEP_FOLDER, Album, Grid, NoAlbum, open_sweep
from latentgen.cli.sweep import parse_axes
from latentgen.cli.sweep_options import SweepOptions, WildcardOptions
from latentgen.cli.wildcards import Wildcards, wildcard_folders
from latentgen.diffusion.strength import total_steps
from latentgen.errors import InputError, LatentgenError, PartialFailure
from latentgen.request import GenerationRequest

if TYPE_CHECKING:
    from latentgen.pipeline import GenerationResult, TextToImage
    from latentgen.samplers.step import Step


@with_config
@grouped
def generate(
    *,
    words: PromptOptions,
    model: options.Model = None,
    syntax: SyntaxOptions,
    wildcard: WildcardOptions,
    drawing: DrawingOptions,
    init: InitOptions,
    adding: AddOnOptions,
    file: FileOptions,
    sweeping: SweepOptions,
    watching: SeeingOptions,
    computer: ComputerOptions,
    messages: MessageOptions,
) -> None:
    """Draw pictures from prompts.

    latentgen generate "a lighthouse at sunset" --seed 42

    latentgen generate --prompts prompts.txt --count 4 --guidance 5 --output balloons/

    latentgen generate --from outputs/2026-01-31-00001-42.png --steps 30

    latentgen generate "a {red|blue} fox" --sweep guidance=3:12:3 --sweep sampler=euler,dpmpp_2m
    """
    ranks = join_ranks(computer.processes)
    console = Console(
        messages.quiet or not ranks.is_first,
        messages.verbose,
        messages.json_events,
        not messages.no_progress,
    )
    if messages.dry_run and not ranks.is_first:
        return
    ranks.follow()
    if ranks.count > 1:
        _check_together(words, watching)
    # Parse
    axes, swept_prompts = parse_axes(sweeping.sweep or [])
    account = None if words.from_picture is None else read_account(words.from_picture, model)
    flags = _flags(words, drawing, init, account)
    entries = _entries(words, swept_prompts, flags, account)
    if syntax.plain_prompt:
        entries = plain_entries(entries)
    output = SWEEP_FOLDER if axes and file.output is None else file.output
    files = PictureFiles(output, file.format, overwrite=file.overwrite)
    if files.to_stdout and messages.json_events:
        raise InputError("--output - and --json contradict each other: both write to stdout")
    sweep = None
    if axes:
        sweep = open_sweep(sweeping, wildcard, file, files.folder)
        entries = sweep.plan(axes, entries)
    entries = ranks.with_seeds(entries)
    # Resolve: everything that can be wrong is found before torch is imported
    folder = resolve_model(model) if account is None else account.folder
    config, init_files = read_drawable(folder), InitFiles()
    add_ons = AddOns.find(adding, config, None if account is None else account.named.scales)
    expansions, recorded = _wildcards(words, syntax, wildcard, account), _recorded(drawing, account)
    requests = plan_requests(entries, config, expansions, init_files, recorded)
    requests = add_ons.with_loras(requests)
    embeddings = look_at_embeddings(syntax.embedding or (), config)
    requests = with_embeddings(requests, embeddings)
    if ranks.is_first:
        if account is not None and (left_out := account.left_out(add_ons, embeddings, init.init_image, init.mask)):
            account.tell(console, left_out)
        tell_of_lone_words(console, words.prompts or ())
        warn_of_unused(console, requests, embeddings)
        tell_of_prompts(console, requests, folder, embeddings, strict=syntax.strict_prompt)
        tell_of_unseen_words(console, requests, folder, [file.name for file in embeddings])
    check_memory(requests, config, computer.device, computer.dtype)
    undrawn = requests if sweep is None else sweep.undrawn(requests)
    paths = files.check(undrawn)
    # Which pictures of a sweep are there is known once the model is: until then there may be as many as all.
    expected = len(undrawn) if sweep is None else len(requests)
    seeing = Seeing(watching, pictures=len(requests), overwrite=file.overwrite, low_memory=computer.low_memory)
    seeing.expect(_numbers(undrawn, requests))
    for note in [*size_notes(undrawn, config, folder), *init_files.notes, *pass_notes(undrawn, config)]:
        console.note(note)
    if messages.dry_run:
        _tell_of_drawn(console, requests, undrawn, files.folder)
        _print_plan(console, undrawn, paths, config.size_multiple_px)
        return
    if not ranks.has_share(expected):
        return
    with ranks.together(expected):
        # Build
        from latentgen.cli.loading import load_model

        device, threads = ranks.device(computer.device), ranks.threads(computer.threads)
        pipeline, load_s = load_model(
            folder,
            device=device,
            dtype=computer.dtype,
            threads=threads,
            fast=computer.fast,
            int8=computer.int8,
            low_memory=computer.low_memory,
            compile=computer.compile,
        )
        pipeline.vae_tiling = computer.vae_tiling
        console.detail(f"loaded {pipeline.name} on {pipeline.device} in {load_s:.2f} s")
        if pipeline.compiled:
            console.note("the first picture of a size takes a minute or more: the networks are compiled for it")
        load_embeddings(console, pipeline, requests, embeddings)
        add_ons.add_to(pipeline, requests, console)
        if flags.seed is None or flags.seed == options.RANDOM_SEED:
            seeds = list(dict.fromkeys(str(request.seed) for request in requests))
            console.note(f"seed {', '.join(seeds[:8])}{' …' if len(seeds) > 8 else ''}")
        album: Album = NoAlbum()
        if sweep is not None:
            undrawn = sweep.begin(requests, pipeline)
            _tell_of_drawn(console, requests, undrawn, files.folder)
            files.check(undrawn)
            seeing.expect(_numbers(undrawn, requests))
            album, requests = sweep, undrawn
        elif sweeping.grid and not files.to_stdout:
            album = Grid(files.folder, with_prompts=not file.no_metadata)
        ranks.meet()
        # Run and save
        seeing.begin(pipeline, console)
        _draw(
            console,
            pipeline,
            requests,
            files,
            album,
            seeing,
            init_files,
            ranks,
            batch_size=computer.batch_size,
            with_metadata=not file.no_metadata,
            load_s=load_s,
        )


def _numbers(undrawn: Sequence[GenerationRequest], requests: Sequence[GenerationRequest]) -> list[int]:
    """Which of the requests these are, from 1."""
    number = {id(request): k for k, request in enumerate(requests, start=1)}
    return [number[id(request)] for request in undrawn]


def _tell_of_drawn(
    console: Console, requests: Sequence[GenerationRequest], undrawn: Sequence[GenerationRequest], folder: Path
) -> None:
    if len(undrawn) < len(requests):
        console.note(f"{len(requests) - len(undrawn)} of {len(requests)} pictures are in {folder} already")


def _check_together(words: PromptOptions, watching: SeeingOptions) -> None:
    """Raise InputError for what several processes cannot do."""
    if "-" in [*(words.prompts or []), *(words.prompt or [])]:
        raise InputError("several processes cannot read one standard input", hint="name a file: --prompts FILE")
    if watching != SeeingOptions():
        raise InputError("--preview, --gif and --save-steps are for one process")


def _flags(words: PromptOptions, drawing: DrawingOptions, init: InitOptions, account: Account | None) -> Flags:
    """What is said of every prompt, else what a picture's file says; a line of a `.jsonl` file may say otherwise."""
    width_px, height_px = drawing.sides()
    said = {
        "negative_prompt": words.negative_prompt,
        "seed": drawing.seed,
        "count": drawing.count,
        "steps": drawing.steps,
        "guidance": drawing.guidance,
        "guidance_rescale": drawing.guidance_rescale,
        "guidance_interval": drawing.guidance_interval,
        "deep_cache": drawing.deep_cache,
        "sampler": drawing.sampler,
        "schedule": drawing.schedule,
        "eta": drawing.eta,
        "clip_skip": drawing.clip_skip,
        "rng": drawing.rng,
        "width_px": width_px,
        "height_px": height_px,
        **vars(init),
        "invert_mask": init.invert_mask or None,
    }
    flags = Flags() if account is None else account.flags_with(init.init_image, init.mask)
    return replace(flags, **{name: value for name, value in said.items() if value is not None})


def _recorded(drawing: DrawingOptions, account: Account | None) -> Flags | None:
    """What a picture's file says and the command line does not."""
    if account is None:
        return None
    flags = account.flags
    return replace(
        flags,
        schedule=None if drawing.schedule is not None else flags.schedule,
        eta=None if drawing.eta is not None else flags.eta,
    )


def _wildcards(
    words: PromptOptions, syntax: SyntaxOptions, wildcard: WildcardOptions, account: Account | None
) -> Wildcards:
    folders = wildcard_folders(wildcard.wildcards, words.prompt_file, models_folder().parent)
    settled = () if account is None else (account.prompt, account.flags.negative_prompt)
    return Wildcards(folders, combinatorial=wildcard.combinatorial, literal=syntax.plain_prompt, settled=settled)


def _entries(
    words: PromptOptions, swept_prompts: Sequence[str], flags: Flags, account: Account | None
) -> Sequence[Entry]:
    from latentgen.cli.prompt_files import read_prompt_file, read_standard_input

    entries: list[Entry] = []
    for prompt in [*(words.prompts or []), *(words.prompt or []), *swept_prompts]:
        entries.extend(read_standard_input(flags) if prompt == "-" else [Entry(prompt, flags)])
    if words.prompt_file is not None:
        entries.extend(read_prompt_file(words.prompt_file, flags))
    if not entries and account is not None:
        entries.append(Entry(account.prompt, flags))
    if not entries:
        raise InputError("there is no prompt", hint='for instance: latentgen generate "a lighthouse at sunset"')
    return entries


def _print_plan(
    console: Console, requests: Sequence[GenerationRequest], paths: Sequence[Path], multiple_px: int
) -> None:
    for request, path in zip(requests, paths, strict=True):
        if console.json_events:
            console.event("plan", path=str(path), steps_drawn=total_steps(request), request=request.to_json())
        else:
            print(
                f"{path}  {size_in_words(request, multiple_px)}  seed {request.seed}  {steps_in_words(request)} "
                f"{request.sampler} {request.schedule}  guidance {request.guidance:g}  {request.prompt!r}"
            )


def _draw(
    console: Console,
    pipeline: TextToImage,
    requests: Sequence[GenerationRequest],
    files: PictureFiles,
    album: Album,
    seeing: Seeing,
    init_files: InitFiles,
    ranks: Alone,
    *,
    batch_size: int | None,
    with_metadata: bool,
    load_s: float,
) -> None:
    """Draw and save this process's pictures, each as it comes; one that fails does not stop the others."""
    started = time.perf_counter()
    share = range(ranks.index, len(requests), ranks.count)
    numbers = iter(share)
    paths: dict[int, Path] = {}
    failures: dict[int, LatentgenError] = {}
    files.take_turns(ranks.index, ranks.count)

    def failed(request: GenerationRequest, failure: LatentgenError) -> None:
        failures[next(numbers)] = failure
        files.skip()
        seeing.skip()
        console.event("failed", seed=request.seed, error=str(failure))

    shown = replace(console, progress_bar=console.progress_bar and not seeing.fills_terminal)
    with telling_warnings(console), shown.progress() as progress:
        count = _step_counter(console, progress, ranks, sum(map(total_steps, requests)))

        def on_step(step: Step) -> None:
            count(step)
            seeing.on_step(step)

        own = [requests[k] for k in share]
        results = pipeline.generate(own, pictures=init_files, batch_size=batch_size, on_step=on_step, on_failure=failed)
        for result in results:
            try:
                data = result.encode(files.format, with_metadata=with_metadata)
            except InputError as failure:  # its words do not fit into a JPEG
                failed(result.request, failure)
                continue
            path = files.save(result.request, data)
            paths[next(numbers)] = path
            album.add(path, result)
            console.result(path, seed=result.seed, **_seconds(result))
            for kept in seeing.keep(result.pixels):
                console.result(kept, "steps")
    done = ranks.collect(Share(paths, failures))
    if not ranks.is_first:
        return
    for sheet in album.finish([(path, requests[k]) for k, path in done.drawn.items()]):
        console.result(sheet, "sheet")
    total_s = time.perf_counter() - started
    drawn, failed_ones = len(done.drawn), list(done.failures.values())
    console.event("done", pictures=drawn, failed=len(failed_ones), load_s=round(load_s, 4), draw_s=round(total_s, 4))
    console.detail(f"{drawn} of {len(requests)} pictures in {total_s:.2f} s")
    if failed_ones and drawn:
        first = failed_ones[0]
        raise PartialFailure(f"{len(failed_ones)} of {len(requests)} pictures failed: {first.message}", hint=first.hint)
    if failed_ones:
        raise failed_ones[0]


def _step_counter(console: Console, progress: Progress, ranks: Alone, total: int) -> Callable[[Step], None]:
    """A callback that reports picture steps: `total` is steps times pictures, a step of a batch counts each picture."""

    def on_step(step: Step) -> None:
        done = ranks.count_steps(len(step.x))
        progress(done, total, "drawing")
        console.event("step", done=done, total=total)

    return on_step


def _seconds(result: GenerationResult) -> dict[str, float]:
    timings = result.timings
    return {
        "text_s": round(timings.text_s, 4),
        "denoise_s": round(timings.denoise_s, 4),
        "decode_s": round(timings.decode_s, 4),
    }

"""`latentgen generate`: prompts to picture files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli import options
from latentgen.cli.console import Console, Progress
from latentgen.cli.model_names import resolve_model
from latentgen.cli.options import COMPUTER, DRAWING, WORDS
from latentgen.cli.output import PictureFiles
from latentgen.cli.plan import Entry, Flags, plan_requests
from latentgen.errors import InputError, LatentgenError, PartialFailure
from latentgen.request import GenerationRequest
from latentgen.samplers.registry import SAMPLERS, SCHEDULES

if TYPE_CHECKING:
    from latentgen.pipeline import GenerationResult, TextToImage
    from latentgen.samplers.step import Step


def generate(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; each prompt is a picture of its own.")
    ] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", rich_help_panel=DRAWING, help="The same as an option; - reads standard input."),
    ] = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            "--from-file",
            metavar="FILE",
            rich_help_panel=DRAWING,
            help="A prompt a line, or .jsonl with flags. Also --from-file.",
        ),
    ] = None,
    negative_prompt: Annotated[
        str,
        typer.Option(
            "--negative-prompt", "--negative", rich_help_panel=DRAWING, help="What to steer away from. Also --negative."
        ),
    ] = "",
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            parser=options.parse_seed,
            metavar="N",
            rich_help_panel=DRAWING,
            help="0 to 4294967295; -1 or nothing is a random one, which is printed and stored.",
        ),
    ] = None,
    count: Annotated[
        int,
        typer.Option(
            "--count",
            "-n",
            "--repeats",
            "--batch-count",
            rich_help_panel=DRAWING,
            help="Pictures per prompt: seed, seed+1 ... Also --repeats, --batch-count.",
        ),
    ] = 1,
    guidance: Annotated[
        float | None,
        typer.Option(
            "--guidance",
            "-g",
            "--guidance-scale",
            "--cfg-scale",
            "--cfg",
            "--scale",
            rich_help_panel=DRAWING,
            help="How closely to follow the prompt; 1 is off. Default: the model's. Also --cfg-scale, --cfg, --scale.",
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=DRAWING, help="Sampler steps. Default: the model's.")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            rich_help_panel=DRAWING,
            help=f"{', '.join(SAMPLERS)}, or A1111's names. Default: the model's.",
        ),
    ] = None,
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", metavar="NAME", rich_help_panel=DRAWING, help=f"{', '.join(SCHEDULES)}. Default: the model's."
        ),
    ] = None,
    eta: Annotated[
        float | None,
        typer.Option("--eta", rich_help_panel=DRAWING, help="Fresh noise in a DDIM step, 0 to 1. Default: 0."),
    ] = None,
    width: Annotated[
        int | None, typer.Option("--width", "-W", metavar="PX", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None,
    height: Annotated[
        int | None, typer.Option("--height", "-H", metavar="PX", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", rich_help_panel=DRAWING, help="Both at once: 512x768.")
    ] = None,
    model: options.Model = None,
    output: options.Output = None,
    format: options.Format = None,
    overwrite: options.Overwrite = False,
    no_metadata: options.NoMetadata = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            "--batch-size",
            parser=options.parse_batch_size,
            metavar="N",
            rich_help_panel=COMPUTER,
            help="Pictures computed together: faster on a GPU; the last bit may differ. Default: 1, on a GPU 4.",
        ),
    ] = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    json_events: options.Json = False,
    no_progress: options.NoProgress = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", rich_help_panel=WORDS, help="Check everything, print what would be drawn, and stop."),
    ] = False,
) -> None:
    """Draw pictures from prompts.

    latentgen generate "a lighthouse at sunset" --seed 42

    latentgen generate --prompts prompts.txt --count 4 --guidance 5 --output balloons/
    """
    console = Console(quiet, verbose, json_events, not no_progress)
    # Parse
    width_px, height_px = _sides(size, width, height)
    flags = Flags(
        negative_prompt=negative_prompt,
        seed=seed,
        count=count,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        schedule=schedule,
        eta=eta,
        width_px=width_px,
        height_px=height_px,
    )
    entries = _entries([*(prompts or []), *(prompt or [])], prompt_file, flags)
    files = PictureFiles(output, format, overwrite=overwrite)
    # Resolve: everything that can be wrong is found before torch is imported
    folder = resolve_model(model)
    from latentgen.checkpoints.layout import read_config

    requests = plan_requests(entries, read_config(folder))
    paths = files.check(requests)
    if dry_run:
        _print_plan(console, requests, paths)
        return
    # Build
    from latentgen.cli.loading import load_model

    pipeline, load_s = load_model(folder, device=device, dtype=dtype, threads=threads)
    console.detail(f"loaded {pipeline.name} on {pipeline.device} in {load_s:.2f} s")
    if seed is None or seed == options.RANDOM_SEED:
        seeds = list(dict.fromkeys(str(request.seed) for request in requests))
        console.note(f"seed {', '.join(seeds[:8])}{' …' if len(seeds) > 8 else ''}")
    # Run and save
    _draw(console, pipeline, requests, files, batch_size=batch_size, with_metadata=not no_metadata, load_s=load_s)


def _sides(size: str | None, width: int | None, height: int | None) -> tuple[int | None, int | None]:
    if size is None:
        return width, height
    if width is not None or height is not None:
        raise InputError("--size and --width or --height contradict each other", hint="give one or the other")
    return options.parse_size(size)


def _entries(prompts: Sequence[str], prompt_file: Path | None, flags: Flags) -> list[Entry]:
    from latentgen.cli.prompt_files import read_prompt_file, read_standard_input

    entries: list[Entry] = []
    for prompt in prompts:
        entries.extend(read_standard_input(flags) if prompt == "-" else [Entry(prompt, flags)])
    if prompt_file is not None:
        entries.extend(read_prompt_file(prompt_file, flags))
    if not entries:
        raise InputError("there is no prompt", hint='for instance: latentgen generate "a lighthouse at sunset"')
    return entries


def _print_plan(console: Console, requests: Sequence[GenerationRequest], paths: Sequence[Path]) -> None:
    for request, path in zip(requests, paths, strict=True):
        if console.json_events:
            console.event("plan", path=str(path), request=request.to_json())
        else:
            print(
                f"{path}  {request.width_px}x{request.height_px}  seed {request.seed}  {request.steps} steps "
                f"{request.sampler} {request.schedule}  guidance {request.guidance:g}  {request.prompt!r}"
            )


def _draw(
    console: Console,
    pipeline: TextToImage,
    requests: Sequence[GenerationRequest],
    files: PictureFiles,
    *,
    batch_size: int | None,
    with_metadata: bool,
    load_s: float,
) -> None:
    """Draw and save each picture as it comes; one that fails does not stop the others."""
    started = time.perf_counter()
    failures: list[LatentgenError] = []

    def failed(request: GenerationRequest, failure: LatentgenError) -> None:
        failures.append(failure)
        console.event("failed", seed=request.seed, error=str(failure))

    with console.progress() as progress:
        on_step = _step_counter(console, progress, sum(request.steps for request in requests))
        results = pipeline.generate(
            requests, batch_size=batch_size, on_step=on_step, on_failure=failed, on_cut=console.warn_of_cut
        )
        for result in results:
            path = files.save(result.request, result.encode(files.format, with_metadata=with_metadata))
            console.result(path, seed=result.seed, **_seconds(result))
    total_s = time.perf_counter() - started
    drawn = len(requests) - len(failures)
    console.event("done", pictures=drawn, failed=len(failures), load_s=round(load_s, 4), draw_s=round(total_s, 4))
    console.detail(f"{drawn} of {len(requests)} pictures in {total_s:.2f} s")
    if failures and drawn:
        raise PartialFailure(
            f"{len(failures)} of {len(requests)} pictures failed: {failures[0].message}", hint=failures[0].hint
        )
    if failures:
        raise failures[0]


def _step_counter(console: Console, progress: Progress, total: int):
    """A callback that reports picture steps: `total` is steps times pictures, a step of a batch counts each picture."""
    done = 0

    def on_step(step: Step) -> None:
        nonlocal done
        done += len(step.x)
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

"""What `generate` is told, in groups. An alias of another tool is named in the help."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli import options
from latentgen.cli.init_options import VaeTiling
from latentgen.cli.options import COMPUTER, DRAWING, WORDS
from latentgen.errors import InputError
from latentgen.samplers.registry import SAMPLERS, SCHEDULES


@dataclass(frozen=True, kw_only=True)
class PromptOptions:
    """The words: at least one of the first three, or a picture that has some."""

    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; each prompt is a picture of its own.")
    ] = None
    prompt: Annotated[
        list[str] | None,
        typer.Option("--prompt", "-p", rich_help_panel=DRAWING, help="The same as an option; - reads standard input."),
    ] = None
    prompt_file: Annotated[
        Path | None,
        typer.Option(
            "--prompts",
            "--from-file",
            metavar="FILE",
            rich_help_panel=DRAWING,
            help="A prompt a line, or .jsonl with flags. Also --from-file.",
        ),
    ] = None
    negative_prompt: Annotated[
        str | None,
        typer.Option(
            "--negative-prompt", "--negative", rich_help_panel=DRAWING, help="What to steer away from. Also --negative."
        ),
    ] = None
    from_picture: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="PICTURE",
            rich_help_panel=DRAWING,
            help="Prompts, settings and model as in a picture's file, ours or another tool's, where nothing else is"
            " said. Its LoRAs, --init-image and the like are given again.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class DrawingOptions:
    """How every prompt is drawn; None is the model's default."""

    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            "-s",
            parser=options.parse_seed,
            metavar="N",
            rich_help_panel=DRAWING,
            help="0 to 2^64 - 1, of which the low 32 bits count; -1 or nothing is a random one, printed and stored.",
        ),
    ] = None
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
    ] = 1
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
    ] = None
    guidance_rescale: Annotated[
        float | None,
        typer.Option(
            "--guidance-rescale",
            rich_help_panel=DRAWING,
            help="0 to 1: undo the contrast that strong guidance adds. Default: 0.",
        ),
    ] = None
    guidance_interval: Annotated[
        options.Interval | None,
        typer.Option(
            "--guidance-interval",
            parser=options.parse_interval,
            metavar="A,B",
            rich_help_panel=DRAWING,
            help="Guide only from this share of the steps to that one, for instance 0.1,0.8. Default: the model's.",
        ),
    ] = None
    deep_cache: Annotated[
        int | None,
        typer.Option(
            "--deep-cache",
            metavar="N",
            rich_help_panel=DRAWING,
            help="Faster, another picture: compute the whole U-Net at one step of N only (DeepCache); 2 or 3 is good."
            " Default: 1, off.",
        ),
    ] = None
    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=DRAWING, help="Sampler steps. Default: the model's.")
    ] = None
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            metavar="NAME",
            rich_help_panel=DRAWING,
            help=f"{', '.join(SAMPLERS)}, or A1111's names. Default: the model's.",
        ),
    ] = None
    schedule: Annotated[
        str | None,
        typer.Option(
            "--schedule", metavar="NAME", rich_help_panel=DRAWING, help=f"{', '.join(SCHEDULES)}. Default: the model's."
        ),
    ] = None
    eta: Annotated[
        float | None,
        typer.Option("--eta", rich_help_panel=DRAWING, help="Fresh noise in a DDIM step, 0 to 1. Default: 0."),
    ] = None
    clip_skip: Annotated[
        int | None,
        typer.Option(
            "--clip-skip",
            rich_help_panel=DRAWING,
            help="Text encoder layer: 1 the one that the model reads (default), 2 the one before.",
        ),
    ] = None
    rng: Annotated[
        str | None,
        typer.Option(
            "--rng",
            metavar="NAME",
            rich_help_panel=DRAWING,
            help="Whose noise a seed stands for: cpu (default), or nv, an NVIDIA GPU's, for A1111's seeds.",
        ),
    ] = None
    width: Annotated[
        int | None, typer.Option("--width", "-W", metavar="PX", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None
    height: Annotated[
        int | None, typer.Option("--height", "-H", metavar="PX", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", rich_help_panel=DRAWING, help="Both at once: 512x768.")
    ] = None

    def sides(self) -> tuple[int | None, int | None]:
        """Width and height in pixels, where they are given."""
        if self.size is None:
            return self.width, self.height
        if self.width is not None or self.height is not None:
            raise InputError("--size and --width or --height contradict each other", hint="give one or the other")
        return options.parse_size(self.size)


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    output: options.Output = None
    format: options.Format = None
    overwrite: options.Overwrite = False
    no_metadata: options.NoMetadata = False


@dataclass(frozen=True, kw_only=True)
class ComputerOptions:
    batch_size: options.BatchSize = None
    processes: Annotated[
        int | None,
        typer.Option(
            "--processes",
            parser=options.parse_processes,
            metavar="N",
            rich_help_panel=COMPUTER,
            help="Draw many pictures in so many processes, each with its GPU or its share of the CPU's threads, and the"
            " model in its memory. The pictures are the same.",
        ),
    ] = None
    device: options.Device = "auto"
    dtype: options.Dtype = "auto"
    fast: options.Fast = True
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            rich_help_panel=COMPUTER,
            help="Faster, another picture: the U-Net in 8-bit integers, on a CPU that has bfloat16 and VNNI.",
        ),
    ] = False
    low_memory: options.LowMemory = False
    compile: Annotated[
        bool,
        typer.Option(
            "--compile",
            rich_help_panel=COMPUTER,
            help="On a GPU: torch.compile. The first picture of a size takes a minute or more, the others less time.",
        ),
    ] = False
    threads: options.Threads = None
    vae_tiling: VaeTiling = "auto"


@dataclass(frozen=True, kw_only=True)
class MessageOptions:
    quiet: options.Quiet = False
    verbose: options.Verbose = False
    json_events: options.Json = False
    no_progress: options.NoProgress = False
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", rich_help_panel=WORDS, help="Check everything, print what would be drawn, and stop."),
    ] = False

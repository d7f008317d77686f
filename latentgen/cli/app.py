"""The front door: which commands there are, and how one is started.

A command's module is imported when the command is named, and nothing else of size before that: `latentgen --help` is
written from the table below in a few hundredths of a second.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

from latentgen import __version__
from latentgen.cli.boundary import INTERRUPTED, TERMINATED, run_guarded
from latentgen.errors import InputError


@dataclass(frozen=True, slots=True)
class Command:
    target: str
    """`module:attribute`, a function for one command or a `typer.Typer` for a family of them."""
    help: str


COMMANDS: dict[str, dict[str, Command]] = {
    "Pictures": {
        "generate": Command("latentgen.cli.generate:generate", "Draw pictures from prompts."),
        "serve": Command("latentgen.cli.serve:serve", "Keep a model loaded, and draw for a page or a program."),
        "replay": Command("latentgen.cli.replay:replay", "Draw a picture again from its file alone, and compare."),
        "compare": Command("latentgen.cli.compare:compare", "Say how alike pictures are, and what made them differ."),
        "tokens": Command("latentgen.cli.tokens:tokens", "Show how a prompt is read: tokens, weights, chunks."),
        "encode": Command("latentgen.cli.encode:encode", "Turn pictures into a model's latents."),
        "decode": Command("latentgen.cli.decode:decode", "Turn latents back into pictures."),
        "reconstruct": Command(
            "latentgen.cli.reconstruct:reconstruct", "Encode and decode pictures, and say what that loses."
        ),
        "info": Command("latentgen.cli.info:info", "Say what a picture, a weights file or a model folder holds."),
    },
    "Models": {
        "models": Command("latentgen.cli.models:app", "Models by name: list, show, inspect, pull, remove."),
        "convert": Command("latentgen.cli.convert:convert", "Turn a single weights file into a model folder, or back."),
        "export": Command("latentgen.cli.export:export", "Put trained parts together into a model folder."),
    },
    "Training": {
        "data": Command(
            "latentgen.cli.data:app",
            "Look at training pictures, or make some: check, stats, render, sheet, fetch-assets.",
        ),
        "train-clip": Command("latentgen.cli.train_clip:train_clip", "Train the CLIP text encoder."),
        "train-vae": Command("latentgen.cli.train_vae:train_vae", "Train the autoencoder."),
        "train-unet": Command("latentgen.cli.train_unet:train_unet", "Train the diffusion network."),
        "train-lora": Command("latentgen.cli.train_lora:train_lora", "Train a LoRA for a model."),
        "evaluate": Command(
            "latentgen.cli.evaluate:app", "Measure a model: what its pictures show, what its autoencoder loses."
        ),
        "report": Command("latentgen.cli.report:report", "Show a run as one page: curves, samples, settings."),
    },
    "Help": {
        "doctor": Command("latentgen.cli.doctor:doctor", "Check this installation: versions, devices, the model."),
    },
}
"""A new command is a line here and a file of its name."""

_INTRODUCTION = f"""\
latentgen {__version__}: draws pictures from text on your own machine, and trains the models that do it.

Usage: latentgen COMMAND [OPTIONS]

Examples:
  latentgen generate "a lighthouse at sunset" --seed 42
  latentgen generate "a red balloon over snow" --count 4 --guidance 5 --output balloons/
"""

_END = """
  latentgen COMMAND --help   the options of one command
  latentgen --version        the version
"""


def run() -> NoReturn:
    """The program: the command line of this process, and its end with the exit code."""
    code: list[int] = []
    # The last comes first: what was registered before, by a coverage tool or a tracer, would not be called.
    if atexit._ncallbacks() == 0:  # pyright: ignore[reportPrivateUsage]
        atexit.register(_end_at_once, code)
    code.append(main(sys.argv[1:]))
    if code[0] in (INTERRUPTED, TERMINATED):
        os._exit(code[0])  # here already: another signal, while others are called, would change the code
    sys.exit(code[0])


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line, this process's own if none is given, and give back its exit code; nothing is raised."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    return run_guarded(lambda: _dispatch(arguments), arguments)


def _end_at_once(code: Sequence[int]) -> None:
    """Leave out the interpreter's own end where torch is loaded: half a second to free what the process's end frees.

    Threads have been waited for by now, and what was to be done at the end is done.
    """
    if not code or "torch" not in sys.modules:
        return
    try:
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:  # pyright: ignore[reportUnnecessaryComparison]  None where the caller closed it
                stream.flush()
    except (OSError, ValueError):
        return  # the interpreter tells of it in its own way
    os._exit(code[0])


def _dispatch(arguments: list[str]) -> int | None:
    first = arguments[0] if arguments else "--help"
    if first in ("--help", "-h", "help"):
        print(overview(), end="")
        return 0
    if first in ("--version", "-V"):
        print(f"latentgen {__version__}")
        return 0
    return _start(first, _find(first), arguments[1:])


def overview() -> str:
    """The text of `latentgen --help`."""
    width = max(len(name) for group in COMMANDS.values() for name in group)
    lines = [_INTRODUCTION]
    for title, group in COMMANDS.items():
        lines.append(f"{title}:")
        lines.extend(f"  {name:{width}}  {command.help}" for name, command in group.items())
    return "\n".join(lines) + "\n" + _END


def _find(name: str) -> Command:
    commands = {name: command for group in COMMANDS.values() for name, command in group.items()}
    if name in commands:
        return commands[name]
    from difflib import get_close_matches

    close = get_close_matches(name, commands, n=1)
    hint = f"did you mean {close[0]}?" if close else "see: latentgen --help"
    kind = "option" if name.startswith("-") else "command"
    raise InputError(f"there is no {kind} {name}", hint=hint)


def _start(name: str, command: Command, arguments: list[str]) -> int | None:
    from importlib import import_module

    import typer
    from typer.main import get_command

    module, _, attribute = command.target.partition(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        family, arguments = target, arguments or ["--help"]
    else:
        family = typer.Typer(add_completion=False, context_settings={"help_option_names": ["-h", "--help"]})
        family.command()(target)
    return get_command(family).main(arguments, prog_name=f"latentgen {name}", standalone_mode=False)

"""What `generate` is told of the picture it starts from, and of a second pass."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import typer

from latentgen.cli.options import COMPUTER, DRAWING
from latentgen.errors import InputError

INIT = "Starting from a picture"
"""Panel of the help page."""


class Borders(NamedTuple):
    """Widths in pixels. Not a plain tuple, which typer would read from four arguments."""

    left: int
    top: int
    right: int
    bottom: int


def parse_outpaint(text: str) -> Borders:
    """`64,0,64,0` to four widths; how wide they may be is the request's business."""
    match = re.fullmatch(r"([0-9]{1,6}),([0-9]{1,6}),([0-9]{1,6}),([0-9]{1,6})", text.replace(" ", ""))
    if match is None:
        raise InputError(
            f"--outpaint {text} is not four widths", hint="left,top,right,bottom in pixels, for instance 64,0,64,0"
        )
    return Borders(*(int(each) for each in match.groups()))


def parse_scale(text: str) -> float:
    """`2x`, `1.5x` or `1.5` to a number."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)[xX×]?", text.strip())
    if match is None:
        raise InputError(f"--hires {text} is not a scale", hint="for instance 2x or 1.5x")
    return float(match[1])


def parse_tiling(text: str) -> Literal["auto", "on", "off"]:
    if text not in ("auto", "on", "off"):
        raise InputError(f"--vae-tiling {text} is not known", hint="auto, on or off")
    return text


VaeTiling = Annotated[
    Literal["auto", "on", "off"],
    typer.Option(
        "--vae-tiling",
        parser=parse_tiling,
        metavar="auto|on|off",
        rich_help_panel=COMPUTER,
        help="Encode and decode in overlapping tiles: less memory, nearly the same picture. Default: large pictures.",
    ),
]


@dataclass(frozen=True, kw_only=True)
class InitOptions:
    """Each is also a key of a `.jsonl` line."""

    init_image: Annotated[
        Path | None,
        typer.Option(
            "--init-image",
            "-i",
            "--init-img",
            metavar="FILE",
            rich_help_panel=INIT,
            help="Draw from this picture. Size: its own, or the model's in its proportions. Also --init-img.",
        ),
    ] = None
    strength: Annotated[
        float | None,
        typer.Option(
            "--strength",
            "--denoise",
            rich_help_panel=INIT,
            help="Share of the steps that redraw it: near 0 hardly changes it, 1 ignores it."
            " Default: 0.75, with --outpaint 1. Also --denoise.",
        ),
    ] = None
    mask: Annotated[
        Path | None,
        typer.Option(
            "--mask",
            metavar="FILE",
            rich_help_panel=INIT,
            help="White is redrawn, the rest stays but for the seam of --mask-blur; as large as the picture. "
            "'alpha': its transparent part.",
        ),
    ] = None
    invert_mask: Annotated[
        bool, typer.Option("--invert-mask", rich_help_panel=INIT, help="Black is redrawn instead.")
    ] = False
    mask_blur: Annotated[
        int | None,
        typer.Option(
            "--mask-blur", metavar="PX", rich_help_panel=INIT, help="Soften the edge of what is redrawn. Default: 4."
        ),
    ] = None
    outpaint: Annotated[
        Borders | None,
        typer.Option(
            "--outpaint",
            parser=parse_outpaint,
            metavar="L,T,R,B",
            rich_help_panel=INIT,
            help="Draw on beyond its edges, so many pixels left, top, right, bottom; the picture stays exact.",
        ),
    ] = None
    hires: Annotated[
        str | None,
        typer.Option(
            "--hires",
            metavar="SCALE",
            rich_help_panel=DRAWING,
            help="Draw it again larger, for instance 2x: the first picture is enlarged and redrawn.",
        ),
    ] = None
    hires_strength: Annotated[
        float | None,
        typer.Option(
            "--hires-strength",
            rich_help_panel=DRAWING,
            help="Share of the steps that redraw that. Default: 0.5.",
        ),
    ] = None

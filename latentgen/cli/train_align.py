"""`train-unet --align`: the options, what the file or folder is, and the network that sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from latentgen.cli.train_noise import NOISE
from latentgen.errors import InputError, ModelNotFoundError

if TYPE_CHECKING:
    import torch

    from latentgen.training.alignment import FrozenNetwork

DEFAULT_WEIGHT = 0.25
"""Of the alignment beside the U-Net's own loss. (REPA's default is 0.5, for a loss of about 1; ours is 0.2 to 0.3.)"""

Align = Annotated[
    Path | None,
    typer.Option(
        "--align",
        rich_help_panel=NOISE,
        help="A network that sees the clean pictures, for the U-Net's features to follow (REPA): a probe of `evaluate "
        "train-probe`, or the model/ of a train-clip run.",
    ),
]
AlignWeight = Annotated[
    float | None,
    typer.Option(
        "--align-weight",
        rich_help_panel=NOISE,
        help=f"Weight of --align beside the loss (default: {DEFAULT_WEIGHT}).",
    ),
]


@dataclass(frozen=True, slots=True)
class AlignChoice:
    """What the U-Net's features are to follow."""

    kind: Literal["probe", "clip"]
    path: Path
    """The probe's file, or the folder with both towers."""

    def load(self, device: torch.device) -> FrozenNetwork:
        from latentgen.training.alignment import FrozenNetwork
        from latentgen.training.caches import weights_fingerprint

        if self.kind == "probe":
            from latentgen.evaluation.probe import load_probe

            probe = load_probe(self.path, device=device)
            return FrozenNetwork(
                lambda pictures: probe.features(pictures.to(device)), f"probe-{weights_fingerprint(probe)}"
            )
        from latentgen.training.perceptual import PatchStates

        patches = PatchStates.load(self.path).to(device)
        return FrozenNetwork(lambda pictures: patches(pictures.to(device))[-1], f"clip-{weights_fingerprint(patches)}")


def weight_of(path: Path | None, weight: float | None) -> float:
    """The loss's. Raises InputError for one without `--align`."""
    if path is None and weight is not None:
        raise InputError(f"--align-weight {weight} weighs nothing", hint="give --align too")
    return DEFAULT_WEIGHT if weight is None else weight


def choose_alignment(path: Path | None, weight: float, levels: int) -> AlignChoice | None:
    """What `--align` comes to, told without torch; levels: of the U-Net.

    Raises InputError or ModelNotFoundError for what is neither a probe nor a CLIP image tower, or a useless weight.
    """
    if path is None:
        return None
    if not 0 < weight < math.inf:
        raise InputError(f"--align-weight {weight} must be positive and finite", hint=f"{DEFAULT_WEIGHT} is usual")
    if levels < 2:
        raise InputError("--align needs a U-Net of two levels or more", hint="leave it out")
    from latentgen.checkpoints.identify import identify
    from latentgen.training.perceptual_files import find_clip

    if not path.exists():
        raise ModelNotFoundError(f"there is nothing at --align {path}")
    if path.is_dir() and (folder := find_clip(path)) is not None:
        return AlignChoice("clip", folder)
    if path.is_file() and identify(path).kind == "probe":
        return AlignChoice("probe", path)
    what = "holds no CLIP model with an image tower" if path.is_dir() else f"is {identify(path).title}"
    hint = "a probe of `latentgen evaluate train-probe`, or the model/ of a train-clip run"
    raise InputError(f"--align {path} {what}", hint=hint)

"""Which perceptual loss train-vae can have: where its weights are on this machine. No torch; nothing is downloaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from latentgen.checkpoints.layout import CONFIG, part_folder
from latentgen.errors import InputError, ModelNotFoundError
from latentgen.jsonfile import read_json
from latentgen.user_folders import cache_home

PerceptualKind = Literal["lpips", "clip", "none"]

VGG16_FILE = "vgg16-397923af.pth"
"""torchvision's ImageNet weights, under the name by which torch.hub keeps them."""
LPIPS_FILE = "vgg.pth"
"""LPIPS 0.1's weights of VGG16's channels (`lpips/weights/v0.1` of the lpips package)."""


@dataclass(frozen=True, slots=True)
class PerceptualChoice:
    """A perceptual loss and the files it is made from."""

    kind: PerceptualKind
    files: tuple[Path, ...] = ()
    """lpips: VGG16 and the channel weights; clip: the folder of a CLIP model."""
    explanation: str = ""
    """What decided, for the user to read."""


def choose_perceptual(asked: Literal["auto", "lpips", "clip", "none"], folder: Path | None) -> PerceptualChoice:
    """What `--perceptual` and `--perceptual-model` come to.

    auto: what lies in the folder; without a folder, LPIPS if torch.hub's cache holds it, else none.
    Raises InputError when LPIPS or CLIP is asked for and its files are not there, naming the places looked at.
    """
    if asked == "none":
        if folder is not None:
            raise InputError("--perceptual none uses no --perceptual-model", hint="leave one of them out")
        return PerceptualChoice("none", (), "none")
    if folder is not None and not folder.is_dir():
        raise ModelNotFoundError(f"no folder at --perceptual-model {folder}")
    lpips, clip = find_lpips(folder), find_clip(folder)
    if asked in ("auto", "lpips") and lpips is not None:
        return PerceptualChoice("lpips", lpips, f"LPIPS with {lpips[0]}")
    if asked in ("auto", "clip") and clip is not None:
        return PerceptualChoice("clip", (clip,), f"features of the CLIP image tower in {clip}")
    if asked == "auto" and folder is None:
        return PerceptualChoice("none", (), f"none: no LPIPS weights in {hub_folder()}, and no --perceptual-model")
    lpips_hint = f"--perceptual-model takes a folder with {VGG16_FILE} and {LPIPS_FILE}, as torchvision and lpips have"
    if asked == "clip":
        where = "there is no --perceptual-model" if folder is None else f"{folder} holds no CLIP model"
        raise InputError(f"--perceptual clip: {where}", hint="give the model/ of a train-clip run")
    if asked == "lpips":
        raise InputError(f"--perceptual lpips: its weights are not in {folder or hub_folder()}", hint=lpips_hint)
    raise InputError(f"--perceptual-model {folder} holds neither a CLIP model nor LPIPS weights", hint=lpips_hint)


def find_lpips(folder: Path | None) -> tuple[Path, Path] | None:
    """VGG16's file and the channel weights': in `folder`, or in torch.hub's cache and an installed lpips package."""
    if folder is not None:
        vgg16, heads = folder / VGG16_FILE, [folder / LPIPS_FILE]
    else:
        package = find_spec("lpips")
        origin = [] if package is None or package.origin is None else [Path(package.origin).parent / "weights" / "v0.1"]
        vgg16, heads = hub_folder() / VGG16_FILE, [place / LPIPS_FILE for place in (hub_folder(), *origin)]
    found = next((path for path in heads if path.is_file()), None)
    return None if found is None or not vgg16.is_file() else (vgg16, found)


def find_clip(folder: Path | None) -> Path | None:
    """The folder of a CLIP model with both towers: `folder`, or the `clip` in it."""
    if folder is None:
        return None
    place = part_folder(folder, "clip")
    is_clip = (place / CONFIG).is_file() and read_json(place / CONFIG).get("model_type") == "clip"
    return place if is_clip else None


def hub_folder() -> Path:
    """Where torch.hub keeps what it downloaded (`torch.hub.get_dir`, told here without torch)."""
    torch_home = os.environ.get("TORCH_HOME")
    home = cache_home() / "torch" if not torch_home else Path(os.path.expanduser(torch_home))
    return home / "hub" / "checkpoints"

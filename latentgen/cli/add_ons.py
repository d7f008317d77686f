"""What is put into a model for a run: LoRAs from files, by name or by a prompt's tags, and another autoencoder.

All of it is found and looked at before torch is imported; `AddOns.add_to` then loads what is used.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.cli.console import Console
from latentgen.cli.model_names import SAFETENSORS, models_folder
from latentgen.cli.options import MODEL
from latentgen.config import ModelConfig
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError
from latentgen.prompts.syntax import parse_prompt
from latentgen.request import GenerationRequest, LoRAUse, RequestError

if TYPE_CHECKING:
    from latentgen.pipeline import TextToImage

FINGERPRINT_DIGITS = 10
"""As of a model (`checkpoints/folder.py`), which is not imported here: it imports torch."""


@dataclass(frozen=True, kw_only=True)
class AddOnOptions:
    lora: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="FILE[:SCALE]",
            rich_help_panel=MODEL,
            help="A LoRA for every picture, kohya's or diffusers'; <lora:NAME:0.8> in a prompt is for that alone. "
            "May be repeated.",
        ),
    ] = None
    vae: Annotated[
        Path | None,
        typer.Option("--vae", metavar="FILE|FOLDER", rich_help_panel=MODEL, help="Another VAE instead of the model's."),
    ] = None


@dataclass(frozen=True, slots=True)
class LoRAFile:
    """A LoRA that was found."""

    path: Path
    use: LoRAUse


def loras_folder() -> Path:
    """Where a user may put LoRAs under names of their own: `$XDG_DATA_HOME/latentgen/loras`."""
    return models_folder().with_name("loras")


def loras_in_folder() -> dict[str, Path]:
    """The LoRAs in that folder and below it, by name, the last path first; of two of one name the first path counts."""
    return {path.stem: path for path in sorted(loras_folder().rglob(f"*{SAFETENSORS}"), reverse=True)}


@dataclass(slots=True)
class LoRAFiles:
    """The LoRAs of `--lora`, and those that the prompts name."""

    given: dict[str, LoRAFile] = field(default_factory=dict[str, LoRAFile])
    """Of every picture, by name."""
    tagged: dict[str, LoRAFile] = field(default_factory=dict[str, LoRAFile])
    """Of the folder, by name, as prompts asked for them."""

    @classmethod
    def find(cls, texts: Sequence[str], recorded: Mapping[str, float] | None = None) -> LoRAFiles:
        """The files of `--lora`. Raises InputError for one that is given twice; ModelNotFoundError, ModelLoadError.

        recorded: scales of a picture's LoRAs by name, for those that are given without one.
        """
        files, recorded = cls(), {} if recorded is None else recorded
        for text in texts:
            path, scale = parse_lora(text)
            found = _look_at(_find_file(path))
            if found.use.name in files.given:
                raise InputError(f"--lora {found.use.name} is given twice", hint="one name, one file and scale")
            scale = recorded.get(found.use.name, scale) if path == text else scale
            files.given[found.use.name] = replace(found, use=replace(found.use, scale=scale))
        return files

    def of_prompt(self, prompt: str, negative_prompt: str) -> tuple[LoRAUse, ...]:
        """What a picture is drawn with: those of `--lora`, then those that its prompt alone names, in its order.

        A tag that names a file of `--lora` gives the scale for this prompt. Raises RequestError for a tag in the
        negative prompt, ModelNotFoundError for a name that is not there.
        """
        if tags := parse_prompt(negative_prompt).loras:
            problem = f"holds <lora:{tags[0].name}>, but a LoRA acts on the whole picture"
            raise RequestError(
                "negative-prompt", problem, hint="put it into the prompt, with a scale below 0 to subtract"
            )
        tags = parse_prompt(prompt).loras
        named = {tag.name for tag in tags}
        of_all = (file.use for name, file in self.given.items() if name not in named)
        return (*of_all, *(replace(self.named(tag.name).use, scale=tag.scale) for tag in tags))

    def named(self, name: str) -> LoRAFile:
        """The LoRA of that name: of `--lora`, else of the folder of LoRAs. Raises ModelNotFoundError."""
        if name in self.given:
            return self.given[name]
        if name not in self.tagged:
            self.tagged[name] = _look_at(_find_in_folder(name, f"<lora:{name}>", tuple(self.given)))
        return self.tagged[name]

    def path(self, name: str) -> Path:
        """The file of a LoRA that is in use."""
        return self.named(name).path


@dataclass(frozen=True, slots=True)
class AddOns:
    """Everything that is put into a model, found and looked at."""

    loras: LoRAFiles
    vae: Path | None

    @classmethod
    def find(cls, options: AddOnOptions, config: ModelConfig, recorded: Mapping[str, float] | None = None) -> AddOns:
        """Raises ModelNotFoundError or ModelLoadError for a file that is not there or is something else.

        recorded: as of `LoRAFiles.find`.
        """
        from latentgen.checkpoints.other_vae import read_other_vae

        if options.vae is not None:
            read_other_vae(options.vae, config)
        return cls(LoRAFiles.find(options.lora or (), recorded), options.vae)

    def with_loras(self, requests: Sequence[GenerationRequest]) -> list[GenerationRequest]:
        """Requests with their LoRAs. Raises InputError or ModelNotFoundError for a tag that stands for none."""
        try:
            return [replace(each, loras=self.loras.of_prompt(each.prompt, each.negative_prompt)) for each in requests]
        except RequestError as error:
            raise InputError(f"--{error.field} {error.problem}", hint=error.hint) from None

    def add_to(self, pipeline: TextToImage, requests: Sequence[GenerationRequest], console: Console) -> None:
        """Load what the requests use, and say what became of every LoRA.

        Raises ModelLoadError if one of them does not fit the model.
        """
        if self.vae is not None:
            pipeline.use_vae(self.vae)
        used = dict.fromkeys(use.name for request in requests for use in request.loras)
        for name in used:
            use = pipeline.add_lora(self.loras.path(name))
            report = pipeline.adapters.report(use)
            (console.warn if report.unmatched else console.note)(f"lora {name}: {report}")
            console.event("lora", lora=name, applied=report.applied, modules=report.total)
        sets = {request.loras for request in requests}
        if used and len(sets) == 1:
            pipeline.adapters.use_for_good(sets.pop())


def parse_lora(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:SCALE`: the last colon parts them if a number follows it, so `C:/loras/ink` is whole."""
    name, _, scale = text.rpartition(":")
    is_scale = re.fullmatch(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)", scale) is not None
    if not name or not is_scale or os.path.isfile(os.path.expanduser(text)):
        return text, 1.0
    return name, float(scale)


def _find_file(text: str) -> Path:
    """A file by its path, or by its name in the folder of LoRAs."""
    path = Path(os.path.expanduser(text))
    try:
        if path.is_file():
            return path
        if path.is_dir():
            raise InputError(f"--lora {text} is a folder", hint="name the .safetensors file in it")
    except (OSError, ValueError) as error:
        raise ModelNotFoundError(f"--lora {text}: {getattr(error, 'strerror', None) or error}") from None
    return _find_in_folder(text, f"--lora {text}", ())


def _find_in_folder(name: str, what: str, others: Sequence[str]) -> Path:
    """The LoRA of that name in the folder of LoRAs, or below it. Raises ModelNotFoundError that lists what is there."""
    found = loras_in_folder()
    name = name.removesuffix(SAFETENSORS)
    if name in found:
        return found[name]
    there = sorted({*found, *others})
    listed = ", ".join(there[:8]) + (" ..." if len(there) > 8 else "")
    close = get_close_matches(name, there, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known: {listed}" if there else "give its file with --lora"
    raise ModelNotFoundError(f"{what}: there is no such LoRA", hint=hint)


def _look_at(path: Path) -> LoRAFile:
    """Raise ModelLoadError for a file that is no LoRA, from its header alone."""
    from latentgen.checkpoints.hashes import sha256
    from latentgen.checkpoints.identify import identify

    identity = identify(path)
    if identity.kind != "lora":
        raise ModelLoadError(f"{path} is {identity.title}, not a LoRA")
    if identity.format != "safetensors":
        raise ModelLoadError(f"{path} is a pickle, which is never opened here", hint="a .safetensors file is needed")
    if not identity.is_supported:
        raise ModelLoadError(f"{path} is {identity.title}", hint="LoRAs for Stable Diffusion 1.x and 2.x can be used")
    try:
        fingerprint = sha256(path, remembered=True)[:FINGERPRINT_DIGITS]
    except OSError as error:
        raise ModelLoadError(f"{path} cannot be read: {error.strerror}") from None
    return LoRAFile(path, LoRAUse(name=path.stem, fingerprint=fingerprint))

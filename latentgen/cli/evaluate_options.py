"""What the `evaluate` commands share: the vocabulary, the probe that comes with latentgen, how pictures are drawn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen import embedded_model_path
from latentgen.cli import options
from latentgen.cli.options import DRAWING
from latentgen.errors import InputError, ModelNotFoundError
from latentgen.request import RequestFields, complete_request
from latentgen.samplers.registry import resolve_sampling

if TYPE_CHECKING:
    from latentgen.config import ModelConfig
    from latentgen.corpus.records import VocabularyName


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    """How every prompt is drawn; None is the model's default. The options are those of `generate`."""

    steps: Annotated[
        int | None, typer.Option("--steps", rich_help_panel=DRAWING, help="Sampler steps. Default: the model's.")
    ] = None
    sampler: Annotated[
        str | None, typer.Option("--sampler", metavar="NAME", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None
    schedule: Annotated[
        str | None, typer.Option("--schedule", metavar="NAME", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None
    guidance: Annotated[
        float | None, typer.Option("--guidance", "-g", rich_help_panel=DRAWING, help="Default: the model's.")
    ] = None
    guidance_interval: Annotated[
        options.Interval | None,
        typer.Option(
            "--guidance-interval",
            parser=options.parse_interval,
            metavar="A,B",
            rich_help_panel=DRAWING,
            help="Guide only from this share of the steps to that one. Default: the model's.",
        ),
    ] = None

    def resolve(self, config: ModelConfig) -> RequestFields:
        """What is given, in canonical names. Raises InputError if the model cannot draw so; torch is not needed."""
        sampler, schedule = resolve_sampling(self.sampler, self.schedule, config)
        given = RequestFields(
            steps=self.steps,
            sampler=sampler,
            schedule=schedule,
            guidance=self.guidance,
            guidance_interval=self.guidance_interval,
        )
        complete_request(config, prompt="a trial", seed=0, **given)
        return given


def check_vocabulary_name(name: str) -> VocabularyName:
    """Raises InputError unless it is a vocabulary that is drawn without artwork."""
    from latentgen.corpus.records import SCENE_SOURCES

    drawn: dict[str, VocabularyName] = {
        known: known for known, source in SCENE_SOURCES.items() if not source.needs_artwork
    }
    if name in drawn:
        return drawn[name]
    raise InputError(f"--vocabulary {name} cannot be evaluated", hint=f"one of {', '.join(sorted(drawn))}")


def find_probe(path: Path | None, vocabulary: str) -> Path:
    """The probe's file: the one that is named, else the one that comes with latentgen for this vocabulary."""
    found = embedded_model_path().parent / "probe" / f"{vocabulary}.safetensors" if path is None else path
    if not found.is_file():
        what = "is no file" if path is not None else "does not come with this latentgen"
        hint = (
            f"make it: latentgen evaluate train-probe --vocabulary {vocabulary} --render 20000 --out probe.safetensors"
        )
        raise ModelNotFoundError(f"the probe {found} {what}", hint=hint)
    return found

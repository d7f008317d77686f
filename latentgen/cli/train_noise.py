"""What train-unet and train-lora share: the options of a denoising objective, and the lists read from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from latentgen.cli.text_lines import check_printable, numbered_lines
from latentgen.cli.train_options import one_of
from latentgen.config import DiffusionConfig
from latentgen.errors import InputError
from latentgen.prompts.syntax import parse_prompt

NOISE = "The objective"

CaptionDropout = Annotated[
    float,
    typer.Option(
        "--caption-dropout", min=0, max=1, rich_help_panel=NOISE, help="Share of samples without their caption."
    ),
]
TimestepSampling = Annotated[
    str, typer.Option("--timestep-sampling", rich_help_panel=NOISE, help="uniform or logit-normal.")
]
LogitMean = Annotated[
    float | None,
    typer.Option(
        "--logit-mean", rich_help_panel=NOISE, help="Mean of logit-normal timesteps: above 0 more noise (default: 0)."
    ),
]
LogitStd = Annotated[
    float | None,
    typer.Option("--logit-std", rich_help_panel=NOISE, help="Standard deviation of logit-normal timesteps (1)."),
]
MinSNRGamma = Annotated[
    float | None,
    typer.Option("--min-snr-gamma", "--snr-gamma", rich_help_panel=NOISE, help="Min-SNR weighting; 5 is usual."),
]
NoiseOffset = Annotated[
    float,
    typer.Option(
        "--noise-offset", min=0, rich_help_panel=NOISE, help="Offset noise, for darker and brighter pictures; 0.05."
    ),
]
GradientCheckpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="Less memory for a third more computing; same numbers.")
]
SamplePrompts = Annotated[
    Path | None,
    typer.Option("--sample-prompts", "--validation-prompts", help="A prompt a line, drawn as it trains."),
]
Cache = Annotated[
    Path | None, typer.Option("--cache", help="Folder of the caches: pictures, latents, captions (default: OUT/cache).")
]


def objective_settings(
    *,
    caption_dropout: float,
    noise_offset: float,
    timestep_sampling: str,
    logit_mean: float | None,
    logit_std: float | None,
    min_snr_gamma: float | None,
) -> dict[str, Any]:
    """The fields of `UNetObjectiveConfig`. Raises InputError naming the option that is out of range."""
    if min_snr_gamma is not None and not 0 < min_snr_gamma < math.inf:
        raise InputError(
            f"--min-snr-gamma {min_snr_gamma} must be positive and finite", hint="leave it out for plain MSE"
        )
    if noise_offset == math.inf:
        raise InputError(f"--noise-offset {noise_offset} must be finite", hint="0.05 is usual")
    sampling = one_of("--timestep-sampling", timestep_sampling, ("uniform", "logit-normal"))
    if sampling == "uniform" and (logit_mean, logit_std) != (None, None):
        hint = "add --timestep-sampling logit-normal"
        raise InputError("--logit-mean and --logit-std are of logit-normal timesteps", hint=hint)
    if logit_mean is not None and not math.isfinite(logit_mean):
        raise InputError(f"--logit-mean {logit_mean} must be finite", hint="-1 to 1 is usual")
    if logit_std is not None and not 0 < logit_std < math.inf:
        raise InputError(f"--logit-std {logit_std} must be positive and finite", hint="1 is usual")
    return {
        "caption_dropout": caption_dropout,
        "timestep_sampling": sampling,
        "logit_mean": 0.0 if logit_mean is None else logit_mean,
        "logit_std": 1.0 if logit_std is None else logit_std,
        "min_snr_gamma": min_snr_gamma,
        "noise_offset": noise_offset,
    }


RARE = 0.2
"""Of a timestep's share among all of them, where uniform ones have 1."""


def tell_of_weights(settings: Mapping[str, Any], diffusion: DiffusionConfig, say: Callable[[str], None]) -> None:
    """Say so where the timestep that drawing begins with is not trained: with min-SNR weights one of SNR 0 counts
    nothing, and logit-normal timesteps may be near to everything but the ends.
    """
    if settings["min_snr_gamma"] is not None and diffusion.rescale_betas_zero_snr:
        say("--min-snr-gamma weighs the last timestep, all noise with zero terminal SNR, with 0: it is not learnt")
    if settings["timestep_sampling"] == "logit-normal" and diffusion.rescale_betas_zero_snr:
        steps = diffusion.num_train_timesteps
        from_mean = (math.log(steps - 1) - settings["logit_mean"]) / settings["logit_std"]
        share = math.erfc(from_mean / math.sqrt(2)) / 2
        if share * steps < RARE:
            say(
                f"only one in {1 / max(share, 1e-12):,.0f} timesteps is the last, all noise with zero terminal SNR: "
                "where drawing begins is hardly learnt (a larger --logit-mean or --logit-std, or uniform timesteps)"
            )


def prompt_lines(file: Path | None) -> tuple[str, ...]:
    """The prompts of a file, a line each; empty lines and # comments left out; none without a file.

    They are read as `generate` reads prompts, with emphasis and in chunks; wildcards are words.
    Raises InputError for a file that cannot be read or holds none, and for what cannot be drawn in training.
    """
    if file is None:
        return ()
    source = f"--sample-prompts {file}"
    if file.suffix.lower() == ".jsonl":
        raise InputError(f"{source}: sheets are drawn with the model's settings", hint="a text file, a prompt a line")
    try:
        lines = numbered_lines(file.read_bytes(), source)
    except OSError as error:
        raise InputError(f"{source} cannot be read: {error.strerror}") from error
    if not lines:
        raise InputError(f"{source} holds no prompts")
    check_printable(lines, source)
    for number, line in lines:
        try:
            parsed = parse_prompt(line)
        except InputError as error:
            raise InputError(f"{source}, line {number}: {error.message}", hint=error.hint) from None
        if parsed.loras:
            raise InputError(f"{source}, line {number}: no LoRA is applied in training", hint="leave its tag out")
    return tuple(line for _, line in lines)

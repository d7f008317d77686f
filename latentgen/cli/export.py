"""`export`: put trained parts together into a model folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli.console import Console
from latentgen.cli.model_names import named_folder, named_text_encoder
from latentgen.cli.options import Interval, parse_interval
from latentgen.errors import InputError


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    unet: Annotated[
        Path,
        typer.Option("--unet", callback=named_folder, help="Folder with unet/ and scheduler/, such as a run's model/."),
    ],
    vae: Annotated[Path, typer.Option("--vae", callback=named_folder, help="Folder with vae/.")],
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            callback=named_text_encoder,
            help="What train-unet was given: a folder, or a name of a model, the hub or open_clip (default: the one "
            "beside --unet's, if it was trained along).",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch --text-encoder from the hub if it is not in its local cache.")
    ] = False,
    dtype: Annotated[str, typer.Option("--dtype", help="Precision of the files: float16 or float32.")] = "float16",
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, help="Steps to draw with by default (default: as --unet says).")
    ] = None,
    guidance: Annotated[
        float | None, typer.Option("--guidance", min=0, help="Its default guidance (default: as --unet says).")
    ] = None,
    guidance_interval: Annotated[
        Interval | None,
        typer.Option(
            "--guidance-interval",
            parser=parse_interval,
            metavar="A,B",
            help="The share of the steps that it guides by default, for instance 0.2,1 (default: as --unet says).",
        ),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option("--sampler", help="Its default sampler (default: as --unet says).")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option("--schedule", help="Its default spacing of noise levels (default: as --unet says).")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the model that --out names.")] = False,
) -> None:
    """Put a U-Net, a VAE and a text encoder together into a model folder that `generate -m` and diffusers open.

    The words that the U-Net's captions held go with it (vocabulary.json): `generate` tells which of a prompt's are new.

    Example: latentgen export --unet runs/unet/model --vae runs/vae/model --text-encoder runs/clip/model -o my-model
    """
    from latentgen.checkpoints.layout import (
        VOCABULARY,
        check_replaceable,
        find_defaults,
        read_diffusion,
        read_unet_part,
        read_vae_part,
    )
    from latentgen.checkpoints.text_encoder_names import find_text_encoder
    from latentgen.config import ModelConfig
    from latentgen.prompts.vocabulary import read_vocabulary
    from latentgen.samplers.registry import resolve_sampler, resolve_schedule

    if dtype not in ("float16", "float32"):
        raise InputError(f"--dtype {dtype} is not one of float16, float32")
    given = {
        "steps": steps,
        "guidance": guidance,
        "guidance_interval": None if guidance_interval is None else tuple(guidance_interval),
        "sampler": None if sampler is None else resolve_sampler(sampler)[0],
        "schedule": None if schedule is None else resolve_schedule(schedule),
    }
    check_replaceable(out)
    if not overwrite and out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out} exists", hint="--overwrite replaces it")
    if text_encoder is None:
        if not (unet / "text_encoder").is_dir():
            raise InputError("--text-encoder is not given", hint="name what train-unet was given")
        text_encoder = str(unet)
    elif (unet / "text_encoder").is_dir() and not (unet / "vae").is_dir() and Path(text_encoder) != unet:
        Console().note(f"{unet} has a text encoder that was trained with its U-Net; {text_encoder} takes its place")
    unet_shape, vae_shape = read_unet_part(unet), read_vae_part(vae)
    found = find_text_encoder(text_encoder, download=download)
    defaults = find_defaults(unet, unet_shape.sample_size * vae_shape.downscale)
    defaults = replace(defaults, **{name: value for name, value in given.items() if value is not None})
    config = ModelConfig(unet_shape, vae_shape, found.config, read_diffusion(unet), defaults)
    seen = read_vocabulary(unet / VOCABULARY)
    import torch

    from latentgen.checkpoints.folder import ModelBundle, load_unet, load_vae, save_model
    from latentgen.checkpoints.text_encoders import load_found

    encoder, tokenizer = load_found(found)
    bundle = ModelBundle(load_unet(unet), load_vae(vae), encoder, tokenizer, config)
    save_model(
        bundle,
        out,
        dtype=torch.float16 if dtype == "float16" else torch.float32,
        vocabulary=None if seen is None else seen.to_json(),
    )
    print(out)

"""`export`: put trained parts together into a model folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from latentgen.errors import InputError
from latentgen.presets import EMBEDDED


def export(
    out: Annotated[Path, typer.Option("--out", "-o", help="The model folder to write.")],
    unet: Annotated[Path, typer.Option("--unet", help="Folder with unet/ and scheduler/, such as a run's model/.")],
    vae: Annotated[Path, typer.Option("--vae", help="Folder with vae/.")],
    text_encoder: Annotated[Path, typer.Option("--text-encoder", help="Folder with text_encoder/ and tokenizer/.")],
    dtype: Annotated[str, typer.Option("--dtype", help="Precision of the files: float16 or float32.")] = "float16",
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Steps the model draws with by default.")
    ] = EMBEDDED.defaults.steps,
    guidance: Annotated[
        float, typer.Option("--guidance", min=0, help="Its default guidance.")
    ] = EMBEDDED.defaults.guidance,
    sampler: Annotated[str, typer.Option("--sampler", help="Its default sampler.")] = EMBEDDED.defaults.sampler,
    schedule: Annotated[
        str, typer.Option("--schedule", help="Its default spacing of noise levels.")
    ] = EMBEDDED.defaults.schedule,
) -> None:
    """Put a U-Net, a VAE and a text encoder together into a model folder that `generate -m` and diffusers open.

    Example: latentgen export --unet runs/unet/model --vae runs/vae/model --text-encoder runs/clip/model -o my-model
    """
    from latentgen.samplers.registry import resolve_sampler, resolve_schedule

    if dtype not in ("float16", "float32"):
        raise InputError(f"--dtype {dtype} is not one of float16, float32")
    sampler, _ = resolve_sampler(sampler)
    schedule = resolve_schedule(schedule)
    import torch

    from latentgen.checkpoints import folder

    folder.check_replaceable(out)
    from latentgen.config import GenerationDefaults, ModelConfig

    network, autoencoder = folder.load_unet(unet), folder.load_vae(vae)
    encoder, tokenizer = folder.load_text_encoder(text_encoder), folder.load_tokenizer(text_encoder)
    side_px = network.config.sample_size * autoencoder.config.downscale
    config = ModelConfig(
        unet=network.config,
        vae=autoencoder.config,
        text_encoder=encoder.config,
        diffusion=folder.load_diffusion(unet),
        defaults=GenerationDefaults(side_px, side_px, steps, guidance, sampler, schedule),
    )
    bundle = folder.ModelBundle(network, autoencoder, encoder, tokenizer, config)
    folder.save_model(bundle, out, dtype=torch.float16 if dtype == "float16" else torch.float32)
    print(out)

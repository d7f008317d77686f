"""`train-vae`: parse, build the objective, fit, write the autoencoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from latentgen.cli.train_data import open_pictures
from latentgen.cli.train_held_out import ValidationPictures, items_set_aside, open_held_out
from latentgen.cli.train_options import Init, Resolution, RunOptions, one_of, print_settings, run_command
from latentgen.cli.train_run import finish, run_training, say_in, start_process
from latentgen.config import VAEConfig
from latentgen.errors import InputError
from latentgen.presets import EMBEDDED

LOSS = "The loss"

Crop = Annotated[
    int, typer.Option("--crop", min=16, help="Side of the crops trained on; the resolution: whole pictures.")
]
Channels = Annotated[
    str | None,
    typer.Option("--channels", help="Widths per level, finest first; four levels make f8 latents, five f16."),
]
LatentChannels = Annotated[int | None, typer.Option("--latent-channels", min=1, help="Channels of the latents.")]
DecoderOnly = Annotated[bool, typer.Option("--decoder-only", help="Keep the encoder, and so the latents, as they are.")]
Scaling = Annotated[
    str | None,
    typer.Option(
        "--scaling",
        help="How latents come to unit size: fold each channel's mean and spread into the weights, scaling_factor 1; "
        "energy: fold in a rotation too, to components as large as what they change in the picture; measured: one "
        "scaling_factor in config.json, as SD has it; or keep: as the U-Net of --init knows them. Default: fold, where "
        "there is a quant_conv, and keep with --init.",
    ),
]
Reconstruction = Annotated[
    str, typer.Option("--reconstruction", rich_help_panel=LOSS, help="Error of the pixels: l1 or l2.")
]
GradientWeight = Annotated[
    float, typer.Option("--gradient-weight", min=0, rich_help_panel=LOSS, help="Weight of the edge term.")
]
KLWeight = Annotated[float, typer.Option("--kl-weight", min=0, rich_help_panel=LOSS, help="Weight of the KL term.")]
LogvarWeight = Annotated[
    float,
    typer.Option(
        "--logvar-weight",
        min=0,
        rich_help_panel=LOSS,
        help="Weight of what the posterior's log-variance is above 0; on whole pictures it runs off at rare places.",
    ),
]
Equivariance = Annotated[
    float,
    typer.Option(
        "--equivariance",
        min=0,
        max=1,
        rich_help_panel=LOSS,
        help="Share of the batches whose latents are decoded at a smaller size: a U-Net learns such latents "
        "sooner (EQ-VAE); 0.5 is usual.",
    ),
]
LatentNoise = Annotated[
    float,
    typer.Option(
        "--latent-noise",
        min=0,
        rich_help_panel=LOSS,
        help="With --decoder-only: largest spread of noise added to the latents before they are decoded (their own is "
        "about 1): the decoder learns to draw well what a U-Net gets a little wrong.",
    ),
]
CacheLatents = Annotated[
    bool,
    typer.Option(
        "--cache-latents",
        help="With --decoder-only and whole pictures: encode each picture once, and mirror none. Pays where pictures "
        "are met more than once, or a U-Net's cache of them is there.",
    ),
]
Perceptual = Annotated[
    str,
    typer.Option(
        "--perceptual",
        rich_help_panel=LOSS,
        help="lpips (VGG16), clip (an image tower of train-clip) or none; auto: what --perceptual-model holds, else "
        "lpips if torch.hub's cache has its weights, else none. Nothing is downloaded.",
    ),
]
PerceptualModel = Annotated[
    Path | None,
    typer.Option(
        "--perceptual-model",
        rich_help_panel=LOSS,
        help="The model/ of a train-clip run or a CLIP model folder; or a folder with vgg16-397923af.pth and vgg.pth.",
    ),
]
PerceptualWeight = Annotated[
    float, typer.Option("--perceptual-weight", min=0, rich_help_panel=LOSS, help="Weight of the perceptual loss.")
]
DiscWeight = Annotated[
    float,
    typer.Option(
        "--disc-weight",
        min=0,
        rich_help_panel=LOSS,
        help="Weight of the patch discriminator, times VQGAN's adaptive weight; 0: none; 0.5 is usual.",
    ),
]
DiscStart = Annotated[
    int, typer.Option("--disc-start", min=0, rich_help_panel=LOSS, help="Steps before the discriminator takes part.")
]
DiscWidth = Annotated[
    int | None,
    typer.Option(
        "--disc-width",
        min=8,
        rich_help_panel=LOSS,
        help="Channels of the discriminator's first layer (default: 64); half as many take a quarter of the time.",
    ),
]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", help="Folder of the decoded pictures and, with --cache-latents, the latents (default: OUT/cache)."
    ),
]

MUON_LR_FROM_SCRATCH = 0.02


@run_command(batch_size=8, lr=5e-4, init_lr=1e-5, save_every=1000, log_every=100)
def train_vae(
    run: RunOptions,
    *,
    init: Init = None,
    resolution: Resolution = 256,
    crop: Crop = 96,
    channels: Channels = None,
    latent_channels: LatentChannels = None,
    decoder_only: DecoderOnly = False,
    cache_latents: CacheLatents = False,
    scaling: Scaling = None,
    reconstruction: Reconstruction = "l1",
    gradient_weight: GradientWeight = 1.0,
    kl_weight: KLWeight = 1e-6,
    logvar_weight: LogvarWeight = 1.0,
    equivariance: Equivariance = 0.0,
    latent_noise: LatentNoise = 0.0,
    perceptual: Perceptual = "auto",
    perceptual_model: PerceptualModel = None,
    perceptual_weight: PerceptualWeight = 1.0,
    disc_weight: DiscWeight = 0.0,
    disc_start: DiscStart = 0,
    disc_width: DiscWidth = None,
    validation_pictures: ValidationPictures = None,
    cache: Cache = None,
) -> None:
    """Train the autoencoder, from scratch or from --init; writes OUT/model/vae.

    From scratch Muon takes the matrices, at --muon-lr 0.02; with --init, or --muon-lr 0, AdamW takes all.

    latentgen train-vae --data corpus --out runs/vae --max-minutes 60 --mixed-precision bf16

    latentgen train-vae --data photos --out runs/decoder --init sd15 --decoder-only --resolution 512 --crop 256
    --lr 1e-5 --disc-weight 0.5 --disc-start 1000 --max-steps 5000
    """
    from latentgen.training.perceptual_files import choose_perceptual
    from latentgen.training.sizes import (
        DISCRIMINATOR_NORM_GROUPS,
        DISCRIMINATOR_WIDTH,
        check_vae_settings,
    )
    from latentgen.training.vae_settings import VAELossWeights

    fresh_muon_lr = MUON_LR_FROM_SCRATCH if init is None else None
    run = replace(run, muon_lr=fresh_muon_lr if run.muon_lr is None else run.muon_lr or None)
    config = run.train_config()
    weights = VAELossWeights(
        reconstruction=one_of("--reconstruction", reconstruction, ("l1", "l2")),
        gradient=gradient_weight,
        kl=kl_weight,
        logvar=logvar_weight,
        equivariance=equivariance,
        latent_noise=latent_noise,
        perceptual=perceptual_weight,
        adversarial=disc_weight,
        adversarial_from=disc_start,
    )
    if scaling is not None:
        one_of("--scaling", scaling, ("fold", "energy", "measured", "keep"))
        if scaling == "keep" and init is None:
            raise InputError("--scaling keep has nothing to keep", hint="leave it out, or go on from --init MODEL")
        if decoder_only:
            raise InputError("--decoder-only keeps the latents as they are", hint="leave --scaling out")
    if cache_latents and not (decoder_only and crop == resolution and not run.aspect_buckets):
        raise InputError(
            "--cache-latents needs an encoder that stays as it is, and square crops that are whole pictures",
            hint=f"--decoder-only --crop {resolution}, without --aspect-buckets",
        )
    if latent_noise and not decoder_only:
        raise InputError(
            f"--latent-noise {latent_noise} needs --decoder-only: an encoder that learns outgrows it",
            hint="give that, too",
        )
    if config.compile and disc_weight:
        raise InputError(
            "--compile and --disc-weight do not go together: the adaptive weight asks for gradients by the way",
            hint="leave one of them out",
        )
    if disc_width is not None and not disc_weight:
        raise InputError(f"--disc-width {disc_width} makes nothing wide", hint="give --disc-weight too")
    if disc_width is not None and disc_width % DISCRIMINATOR_NORM_GROUPS:
        raise InputError(
            f"--disc-width {disc_width} is not a multiple of {DISCRIMINATOR_NORM_GROUPS}", hint="such as 32"
        )
    choice = choose_perceptual(one_of("--perceptual", perceptual, ("auto", "lpips", "clip", "none")), perceptual_model)
    shape = _vae_shape(channels, latent_channels, resolution)
    checked: Any = {
        "crop_px": crop,
        "side_px": resolution,
        "discriminator": disc_weight > 0,
        "lpips": choice.kind == "lpips",  # computed whatever its weight
        "equivariance": equivariance > 0,
    }
    if init is None:
        check_vae_settings(shape, **checked)
        if decoder_only:
            raise InputError("--decoder-only keeps an encoder, but there is none", hint="give it with --init MODEL")
    elif channels is not None or latent_channels is not None:
        raise InputError("--channels and --latent-channels are --init's own", hint="leave them out")
    if run.dry_run:
        settings = {"vae": shape} if init is None else {"init": init, "decoder_only": decoder_only}
        shown = {"resolution": resolution, "crop": crop, **settings, "weights": weights, "perceptual": choice}
        if cache_latents:
            shown["cache_latents"] = True
        if disc_weight:
            shown["disc_width"] = disc_width or DISCRIMINATOR_WIDTH
        return print_settings(config, run, shown)
    import torch

    from latentgen.checkpoints.folder import load_vae, save_vae
    from latentgen.checkpoints.io import load_strict
    from latentgen.data.records import fingerprint
    from latentgen.training.alignment import part_of
    from latentgen.training.caches import AUTOCAST, LatentCache
    from latentgen.training.discriminator import PatchDiscriminator
    from latentgen.training.latent_statistics import scale_latents
    from latentgen.training.perceptual import load_perceptual, perceptual_identity
    from latentgen.training.processes import device_of
    from latentgen.training.vae import VALIDATION_PICTURES, VAENetwork, VAEObjective
    from latentgen.training.vae_start import prepare_from_scratch

    process = start_process(config, run)
    start = load_vae(init) if init is not None else None
    if start is not None:
        shape = start.config
        check_vae_settings(shape, **checked)
    method = _scaling_method(scaling, shape, goes_on=init is not None)
    distance, identity = load_perceptual(choice), perceptual_identity(choice)
    say = say_in(process, run)
    say(f"perceptual loss: {choice.explanation}")
    if init is not None and method != "keep":
        say(f"--scaling {method}: the U-Net of {init} does not know the new latents (--scaling keep)")
    folder = cache if cache is not None else run.out / "cache"
    records, pixels, keep = open_pictures(
        run, resolution, folder, process, size_multiple_px=shape.downscale, captions=False
    )
    held_out = open_held_out(run, resolution, folder, process, count=VALIDATION_PICTURES, captions=False)
    validation = items_set_aside(
        validation_pictures, len(records), run, process, most=VALIDATION_PICTURES, held_out=held_out is not None
    )
    latents: LatentCache | None = None
    if cache_latents and start is not None:
        precision = AUTOCAST[config.mixed_precision]
        with process.main_process_first():
            encoder = start.to(process.device)
            latents = LatentCache(records, pixels, encoder, folder, say_in(process, run), autocast=precision)
    torch.manual_seed(run.seed)
    objective = VAEObjective(
        shape,
        pixels,
        fingerprint(records),
        crop_px=crop,
        side_px=resolution,
        weights=weights,
        decoder_only=decoder_only,
        perceptual=distance,
        perceptual_identity=identity,
        discriminator=PatchDiscriminator(disc_width or DISCRIMINATOR_WIDTH) if disc_weight else None,
        held_out=None if held_out is None else held_out[1],
        validation=validation,
        latents=latents,
    )
    if start is not None:
        objective.network.vae.load_state_dict(start.state_dict())
    else:
        prepare_from_scratch(objective.network.vae, pixels)
    trained = run_training(objective, config, run, keep)
    if trained is None:
        return
    # A new network: the one that was trained may lie in parts, one in each process.
    whole = VAENetwork(objective.network.vae.config, decoder_only=decoder_only).eval()
    vae = whole.vae
    load_strict(vae, part_of(trained.weights, "vae."), f"{run.out}'s last checkpoint", device=device_of(process))
    if method != "keep":
        measured_on = sorted({i * (len(pixels) - 1) // 199 for i in range(200)})
        vae.config = scale_latents(vae, pixels, measured_on, method)
    with torch.inference_mode():
        figures = objective.validate(whole)
    save_vae(vae, run.out / "model" / "vae")
    finish(run, trained.outcome, figures)


def _scaling_method(
    asked: str | None, shape: VAEConfig, *, goes_on: bool
) -> Literal["fold", "energy", "measured", "keep"]:
    """How the latents of a VAE of this shape are scaled. Raises InputError for a fold into convolutions it has not."""
    foldable = shape.use_quant_conv and shape.use_post_quant_conv
    if asked in ("fold", "energy") and not foldable:
        what = f"--scaling {asked} needs a VAE with quant_conv and post_quant_conv"
        raise InputError(what, hint="--scaling measured")
    if asked == "keep" or (asked is None and goes_on):
        return "keep"
    if asked == "measured" or not foldable:
        return "measured"
    return "energy" if asked == "energy" else "fold"


def _vae_shape(channels: str | None, latent_channels: int | None, resolution: int) -> VAEConfig:
    """The embedded VAE's shape, with widths and latents as asked for."""
    shape = EMBEDDED.vae
    if channels is not None:
        try:
            widths = tuple(int(part) for part in channels.split(","))
        except ValueError:
            raise InputError(f"--channels {channels} is not a list of widths like 16,32,64,128,256") from None
        if min(widths) < 1:
            raise InputError(f"--channels {channels}: widths are at least 1")
        shape = replace(shape, block_out_channels=widths)
    if latent_channels is not None:
        shape = replace(shape, latent_channels=latent_channels)
    return replace(shape, sample_size=resolution)

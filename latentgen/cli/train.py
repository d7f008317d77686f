"""`train-vae`, `train-clip`, `train-unet`: parse, build the objective, fit, write the trained part."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from latentgen.cli.train_options import (
    BatchSize,
    Data,
    DryRun,
    Ema,
    EmaDecay,
    GradAccum,
    Init,
    Keep,
    LearningRate,
    LogEvery,
    MaxMinutes,
    MaxSteps,
    MuonLR,
    Out,
    Precision,
    Resolution,
    Resume,
    SampleEvery,
    SaveEvery,
    Scheduler,
    Seed,
    Threads,
    Warmup,
    WeightDecay,
    one_of,
    print_settings,
    train_config,
)
from latentgen.cli.train_run import finish, run_training, say_in, start_process
from latentgen.config import ModelConfig, VAEConfig
from latentgen.errors import InputError
from latentgen.presets import EMBEDDED


def train_vae(
    data: Data,
    out: Out,
    init: Init = None,
    resolution: Resolution = 256,
    crop: Annotated[
        int, typer.Option("--crop", min=16, help="Side of the crops trained on; the resolution: whole pictures.")
    ] = 96,
    channels: Annotated[
        str | None, typer.Option("--channels", help="Widths per level, finest first; the depth sets f8, f16 …")
    ] = None,
    latent_channels: Annotated[
        int | None, typer.Option("--latent-channels", min=1, help="Channels of the latents.")
    ] = None,
    kl_weight: Annotated[float, typer.Option("--kl-weight", min=0, help="Weight of the KL term.")] = 1e-6,
    gradient_weight: Annotated[float, typer.Option("--gradient-weight", min=0, help="Weight of the edge term.")] = 1.0,
    decoder_only: Annotated[
        bool, typer.Option("--decoder-only", help="Keep the encoder, and so the latents, as they are.")
    ] = False,
    resume: Resume = None,
    seed: Seed = 0,
    batch_size: BatchSize = 8,
    grad_accum: GradAccum = 1,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    mixed_precision: Precision = "no",
    threads: Threads = None,
    dry_run: DryRun = False,
    lr: LearningRate = 5e-4,
    muon_lr: MuonLR = 0.02,
    lr_scheduler: Scheduler = "constant",
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = True,
    ema_decay: EmaDecay = 0.999,
    save_every: SaveEvery = 1000,
    keep: Keep = 2,
    sample_every: SampleEvery = 0,
    log_every: LogEvery = 100,
) -> None:
    """Train the autoencoder, from scratch or from --init; writes OUT/model/vae.

    latentgen train-vae --data corpus --out runs/vae --max-minutes 60 --mixed-precision bf16

    latentgen train-vae --data corpus --out runs/vae --max-minutes 60 --mixed-precision bf16 --resume latest
    """
    from latentgen.training.sizes import check_vae_settings

    config = train_config(
        resume=resume, lr=lr, batch_size=batch_size, seed=seed, grad_accum=grad_accum, max_steps=max_steps,
        max_minutes=max_minutes, muon_lr=muon_lr, lr_scheduler=lr_scheduler, warmup=warmup, weight_decay=weight_decay,
        ema=ema, ema_decay=ema_decay, mixed_precision=mixed_precision, save_every=save_every, keep=keep,
        sample_every=sample_every, log_every=log_every,
    )  # fmt: skip
    shape = _vae_shape(channels, latent_channels, resolution)
    if init is None:
        check_vae_settings(shape, crop_px=crop, side_px=resolution, decoder_only=decoder_only)
        if decoder_only:
            raise InputError("--decoder-only keeps an encoder, but there is none", hint="give it with --init MODEL")
    elif channels is not None or latent_channels is not None:
        raise InputError("--channels and --latent-channels are --init's own", hint="leave them out")
    if dry_run:
        settings = {"vae": shape} if init is None else {"init": init, "decoder_only": decoder_only}
        return print_settings(config, {"data": data, "out": out, "resolution": resolution, "crop": crop, **settings})
    import torch

    from latentgen.checkpoints.folder import load_vae, save_vae
    from latentgen.data.pixels import PixelCache
    from latentgen.data.records import fingerprint, list_records
    from latentgen.training import vae as training

    process = start_process(config, out, resume, threads)
    start = load_vae(init) if init is not None else None
    if start is not None:
        shape = start.config
        check_vae_settings(shape, crop_px=crop, side_px=resolution, decoder_only=decoder_only)
    records = list_records(data, held_out=False)
    with process.main_process_first():
        pixels = PixelCache(records, resolution, out / "cache", say_in(process))
    torch.manual_seed(seed)
    objective = training.VAEObjective(
        shape,
        pixels,
        fingerprint(records),
        crop_px=crop,
        side_px=resolution,
        weights=training.VAELossWeights(gradient=gradient_weight, kl=kl_weight),
        decoder_only=decoder_only,
    )
    if start is not None:
        objective.network.vae.load_state_dict(start.state_dict())
    else:
        training.prepare_from_scratch(objective.network.vae, pixels)
    trained = run_training(objective, config, out, resume)
    if trained is None:
        return
    objective.network.load_state_dict(trained.weights)
    vae = objective.network.vae.eval()
    checked = [i * (len(pixels) - 1) // 199 for i in range(200)]
    written = vae.config
    if not decoder_only:
        written = training.fold_latent_statistics(vae, *training.latent_statistics(vae, pixels, checked))
    psnr_db = training.reconstruction_psnr_db(vae, pixels, checked[::4])
    vae.config = written
    save_vae(vae, out / "model" / "vae")
    finish(out, trained.outcome, {"psnr_db": round(psnr_db, 3)})


def train_clip(
    data: Data,
    out: Out,
    resolution: Annotated[
        int, typer.Option("--resolution", min=16, help="Side of the pictures the image tower sees.")
    ] = 128,
    merges: Annotated[
        int,
        typer.Option("--merges", min=0, max=48894, help="Merges of CLIP's BPE kept: the vocabulary's size less 514."),
    ] = 7680,
    resume: Resume = None,
    seed: Seed = 0,
    batch_size: BatchSize = 128,
    grad_accum: GradAccum = 1,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    mixed_precision: Precision = "no",
    threads: Threads = None,
    dry_run: DryRun = False,
    lr: LearningRate = 1e-3,
    muon_lr: MuonLR = None,
    lr_scheduler: Scheduler = "constant",
    warmup: Warmup = 50,
    weight_decay: WeightDecay = 0.05,
    ema: Ema = True,
    ema_decay: EmaDecay = 0.99,
    save_every: SaveEvery = 500,
    keep: Keep = 2,
    sample_every: SampleEvery = 0,
    log_every: LogEvery = 20,
) -> None:
    """Train the text encoder against an image tower; writes OUT/model/text_encoder and OUT/model/tokenizer.

    latentgen train-clip --data corpus --out runs/clip --max-minutes 10 --mixed-precision bf16
    """
    from latentgen.training.sizes import check_patches

    config = train_config(
        resume=resume, lr=lr, batch_size=batch_size, seed=seed, grad_accum=grad_accum, max_steps=max_steps,
        max_minutes=max_minutes, muon_lr=muon_lr, lr_scheduler=lr_scheduler, warmup=warmup, weight_decay=weight_decay,
        ema=ema, ema_decay=ema_decay, mixed_precision=mixed_precision, save_every=save_every, keep=keep,
        sample_every=sample_every, log_every=log_every,
    )  # fmt: skip
    check_patches(resolution, IMAGE_PATCH_PX)
    entries = 2 * 256 + merges  # each byte alone and at a word's end, and the merges; then the two specials
    shape = replace(
        EMBEDDED.text_encoder,
        vocab_size=entries + 2,
        bos_token_id=entries,
        eos_token_id=entries + 1,
        pad_token_id=entries + 1,
    )
    if dry_run:
        return print_settings(config, {"data": data, "out": out, "resolution": resolution, "text_encoder": shape})
    import torch

    from latentgen.checkpoints.folder import save_text_encoder
    from latentgen.data.pixels import PixelCache
    from latentgen.data.records import fingerprint, list_records
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.training.clip import CLIPObjective, ImageTowerConfig, text_encoder_of

    process = start_process(config, out, resume, threads)
    records = list_records(data, held_out=False)
    with process.main_process_first():
        pixels = PixelCache(records, resolution, out / "cache", say_in(process))
    tokenizer = Tokenizer.published(merges)
    torch.manual_seed(seed)
    image = ImageTowerConfig(side_px=resolution, patch_px=IMAGE_PATCH_PX)
    objective = CLIPObjective(shape, image, records, pixels, tokenizer, fingerprint(records))
    trained = run_training(objective, config, out, resume)
    if trained is None:
        return
    objective.network.load_state_dict(trained.weights)
    retrieval = objective.retrieval(64)
    save_text_encoder(text_encoder_of(trained.weights, shape), out / "model" / "text_encoder")
    tokenizer.save(out / "model" / "tokenizer")
    finish(out, trained.outcome, {"retrieval_top1_of_64": round(retrieval, 4)})


def train_unet(
    data: Data,
    out: Out,
    vae: Annotated[Path, typer.Option("--vae", help="Folder with the trained VAE (a run's model/ or a model folder).")],
    text_encoder: Annotated[Path, typer.Option("--text-encoder", help="Folder with text_encoder/ and tokenizer/.")],
    init: Init = None,
    resolution: Resolution = 256,
    prediction_type: Annotated[
        str | None, typer.Option("--prediction-type", help="epsilon, v_prediction or sample.")
    ] = None,
    caption_dropout: Annotated[
        float, typer.Option("--caption-dropout", min=0, max=1, help="Share of samples without their caption.")
    ] = 0.1,
    timestep_sampling: Annotated[str, typer.Option("--timestep-sampling", help="uniform or logit-normal.")] = "uniform",
    min_snr_gamma: Annotated[
        float | None, typer.Option("--min-snr-gamma", "--snr-gamma", help="Min-SNR weighting; 5 is usual.")
    ] = None,
    sample_prompts: Annotated[
        Path | None,
        typer.Option("--sample-prompts", "--validation-prompts", help="A prompt a line, drawn as it trains."),
    ] = None,
    cache: Annotated[
        Path | None, typer.Option("--cache", help="Folder of the latent and text caches (default: OUT/cache).")
    ] = None,
    resume: Resume = None,
    seed: Seed = 0,
    batch_size: BatchSize = 32,
    grad_accum: GradAccum = 1,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    mixed_precision: Precision = "no",
    threads: Threads = None,
    dry_run: DryRun = False,
    lr: LearningRate = 5e-4,
    muon_lr: MuonLR = None,
    lr_scheduler: Scheduler = "constant",
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = True,
    ema_decay: EmaDecay = 0.999,
    save_every: SaveEvery = 500,
    keep: Keep = 2,
    sample_every: SampleEvery = 0,
    log_every: LogEvery = 50,
) -> None:
    """Train the diffusion network on a frozen VAE and text encoder; writes OUT/model/unet and OUT/model/scheduler.

    latentgen train-unet --data corpus --vae runs/vae/model --text-encoder runs/clip/model --out runs/unet
    --max-minutes 60
    """
    from latentgen.training.sizes import check_unet_side

    config = train_config(
        resume=resume, lr=lr, batch_size=batch_size, seed=seed, grad_accum=grad_accum, max_steps=max_steps,
        max_minutes=max_minutes, muon_lr=muon_lr, lr_scheduler=lr_scheduler, warmup=warmup, weight_decay=weight_decay,
        ema=ema, ema_decay=ema_decay, mixed_precision=mixed_precision, save_every=save_every, keep=keep,
        sample_every=sample_every, log_every=log_every,
    )  # fmt: skip
    timesteps = one_of("--timestep-sampling", timestep_sampling, ("uniform", "logit-normal"))
    if prediction_type is not None:
        one_of("--prediction-type", prediction_type, ("epsilon", "v_prediction", "sample"))
    if min_snr_gamma is not None and not min_snr_gamma > 0:
        raise InputError(f"--min-snr-gamma {min_snr_gamma} must be positive", hint="leave it out for plain MSE")
    prompts = _prompt_lines(sample_prompts) if sample_prompts is not None else ()
    if dry_run:
        parts = {"data": data, "vae": vae, "text_encoder": text_encoder, "init": init, "out": out}
        return print_settings(config, {**parts, "resolution": resolution, "prompts": prompts})
    import torch

    from latentgen.checkpoints.folder import (
        load_diffusion,
        load_text_encoder,
        load_tokenizer,
        load_unet,
        load_vae,
        save_diffusion,
        save_unet,
    )
    from latentgen.data.pixels import PixelCache
    from latentgen.data.records import fingerprint, list_records
    from latentgen.diffusion.latents import LatentSpace
    from latentgen.models.unet import UNet
    from latentgen.training import unet as training
    from latentgen.training.caches import ContextCache, LatentCache, weights_fingerprint

    process = start_process(config, out, resume, threads)
    autoencoder, encoder = load_vae(vae).to(process.device), load_text_encoder(text_encoder).to(process.device)
    tokenizer = load_tokenizer(text_encoder)
    space = LatentSpace.from_config(autoencoder.config)
    torch.manual_seed(seed)
    if init is not None:
        network, diffusion = load_unet(init), load_diffusion(init)
    else:
        shape = replace(
            EMBEDDED.unet,
            in_channels=space.channels,
            out_channels=space.channels,
            cross_attention_dim=encoder.config.hidden_size,
            sample_size=resolution // space.downscale,
        )
        network, diffusion = UNet(shape), EMBEDDED.diffusion
    if prediction_type is not None:
        diffusion = replace(diffusion, prediction_type=prediction_type)
    defaults = replace(EMBEDDED.defaults, width_px=resolution, height_px=resolution)
    check_unet_side(ModelConfig(network.config, autoencoder.config, encoder.config, diffusion, defaults), resolution)
    records = list_records(data, held_out=False)
    folder, say = cache if cache is not None else out / "cache", say_in(process)
    precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.mixed_precision]
    with process.main_process_first():
        pixels = PixelCache(records, resolution, folder, say)
        latents = LatentCache(records, pixels, autoencoder, folder, say, autocast=precision)
        contexts = ContextCache(records, tokenizer, encoder, folder, say, autocast=precision)
    objective = training.UNetObjective(
        network,
        diffusion,
        space,
        records,
        latents,
        contexts,
        training.UNetObjectiveConfig(caption_dropout, timesteps, min_snr_gamma),
        training.SamplePlan(prompts, defaults, tokenizer, encoder, autoencoder) if prompts else None,
        {
            "data": fingerprint(records),
            "vae": weights_fingerprint(autoencoder),
            "text_encoder": weights_fingerprint(encoder),
        },
    )
    trained = run_training(objective, config, out, resume)
    if trained is None:
        return
    network.load_state_dict(trained.weights)
    save_unet(network, out / "model" / "unet")
    save_diffusion(diffusion, out / "model" / "scheduler")
    finish(out, trained.outcome, {"parameters": sum(parameter.numel() for parameter in network.parameters())})


IMAGE_PATCH_PX = 16
"""Patches of the image tower that train-clip trains against."""


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


def _prompt_lines(file: Path) -> tuple[str, ...]:
    """The prompts of a file, a line each; empty lines and # comments left out."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise InputError(f"--sample-prompts {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"--sample-prompts {file} is not UTF-8: {error}") from error
    prompts = tuple(line for line in lines if line and not line.startswith("#"))
    if not prompts:
        raise InputError(f"--sample-prompts {file} holds no prompts")
    return prompts

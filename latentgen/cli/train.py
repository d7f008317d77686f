"""`train-clip`, `train-vae`, `train-unet`: parse, build the objective, fit, write the trained part."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latentgen.config import TrainConfig
from latentgen.errors import InputError

if TYPE_CHECKING:
    from latentgen.training.loop import Objective, Outcome

Data = Annotated[
    Path, typer.Option("--data", "--train-data-dir", help="Folder of tar shards, or of pictures with a .txt beside each.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="Run folder: log, checkpoints, sample pictures, the trained part.")]
Init = Annotated[Path | None, typer.Option("--init", help="Start from this model folder's weights.")]
Resume = Annotated[str | None, typer.Option("--resume", help="latest: continue the run in --out; auto: if there is one.")]
Seed = Annotated[int, typer.Option("--seed", "-s", min=0, max=2**32 - 1, help="Fixes every random draw of the run.")]
Resolution = Annotated[int, typer.Option("--resolution", min=16, help="Side of the training pictures, in pixels.")]
BatchSize = Annotated[int, typer.Option("--batch-size", "--train-batch-size", min=1, help="Samples a forward pass.")]
GradAccum = Annotated[
    int, typer.Option("--grad-accum", "--gradient-accumulation-steps", min=1, help="Forward passes an optimizer step.")
]
MaxSteps = Annotated[int | None, typer.Option("--max-steps", "--max-train-steps", min=1, help="Optimizer steps in all.")]
MaxMinutes = Annotated[float | None, typer.Option("--max-minutes", min=0, help="Save and end after this time.")]
LearningRate = Annotated[float, typer.Option("--lr", "--learning-rate", help="Peak learning rate (AdamW).")]
MuonLR = Annotated[float | None, typer.Option("--muon-lr", help="Muon's rate on matrices; leave out for AdamW on all.")]
Scheduler = Annotated[str, typer.Option("--lr-scheduler", help="constant, or cosine to 0 over --max-steps.")]
Warmup = Annotated[int, typer.Option("--warmup", "--lr-warmup-steps", min=0, help="Steps of linear warm-up.")]
WeightDecay = Annotated[float, typer.Option("--weight-decay", min=0, help="On matrices and kernels only.")]
EmaDecay = Annotated[float, typer.Option("--ema-decay", help="Decay of the averaged weights.")]
Ema = Annotated[bool, typer.Option("--ema/--no-ema", help="Keep averaged weights, and export them.")]
Precision = Annotated[str, typer.Option("--mixed-precision", help="no, bf16 or fp16.")]
SaveEvery = Annotated[int, typer.Option("--save-every", "--checkpointing-steps", min=1, help="Steps between checkpoints.")]
Keep = Annotated[int, typer.Option("--keep", "--checkpoints-total-limit", min=1, help="Checkpoints kept.")]
SampleEvery = Annotated[int, typer.Option("--sample-every", min=0, help="Steps between sample sheets; 0: only at the end.")]
LogEvery = Annotated[int, typer.Option("--log-every", min=1, help="Steps between log lines.")]
Threads = Annotated[int | None, typer.Option("--threads", min=1, help="CPU threads (default: all cores).")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved settings and stop.")]


def train_vae(
    data: Data,
    out: Out,
    init: Init = None,
    resume: Resume = None,
    seed: Seed = 0,
    resolution: Resolution = 256,
    crop: Annotated[int, typer.Option("--crop", min=16, help="Side of the crops trained on; the resolution: whole pictures.")] = 96,
    channels: Annotated[str | None, typer.Option("--channels", help="Widths per level, finest first; the depth sets f8, f16 …")] = None,
    latent_channels: Annotated[int | None, typer.Option("--latent-channels", min=1, help="Channels of the latents.")] = None,
    kl_weight: Annotated[float, typer.Option("--kl-weight", min=0, help="Weight of the KL term.")] = 1e-6,
    gradient_weight: Annotated[float, typer.Option("--gradient-weight", min=0, help="Weight of the edge term.")] = 1.0,
    decoder_only: Annotated[bool, typer.Option("--decoder-only", help="Keep the encoder, and so the latents, as they are.")] = False,
    batch_size: BatchSize = 8,
    grad_accum: GradAccum = 1,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    lr: LearningRate = 5e-4,
    muon_lr: MuonLR = 0.02,
    lr_scheduler: Scheduler = "constant",
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = True,
    ema_decay: EmaDecay = 0.999,
    mixed_precision: Precision = "no",
    save_every: SaveEvery = 1000,
    keep: Keep = 2,
    sample_every: SampleEvery = 0,
    log_every: LogEvery = 100,
    threads: Threads = None,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the autoencoder, from scratch or from --init; writes OUT/model/vae.

    Example: latentgen train-vae --data corpus --out runs/vae --max-minutes 60 --mixed-precision bf16
    """
    config = _train_config(locals())
    shape = _vae_shape(channels, latent_channels, resolution)
    if decoder_only and init is None:
        raise InputError("--decoder-only keeps an encoder, but there is none", hint="give it with --init MODEL")
    if dry_run:
        return _print_settings(config, {"data": str(data), "out": str(out), "vae": shape, "crop": crop})
    import torch

    from latentgen.checkpoints.folder import load_vae, save_vae
    from latentgen.data.pixels import PixelCache
    from latentgen.data.records import fingerprint, list_records
    from latentgen.training import vae as training

    _use_threads(threads)
    records = list_records(data, held_out=False)
    pixels = PixelCache(records, resolution, out / "cache", _say)
    torch.manual_seed(seed)
    start = load_vae(init) if init is not None else None
    objective = training.VAEObjective(
        start.config if start is not None else shape, pixels, fingerprint(records), crop_px=crop, side_px=resolution,
        weights=training.VAELossWeights(gradient=gradient_weight, kl=kl_weight), decoder_only=decoder_only,
    )  # fmt: skip
    if start is not None:
        objective.network.vae.load_state_dict(start.state_dict())
    else:
        training.prepare_from_scratch(objective.network.vae, pixels)
    outcome, weights = _fit(objective, config, out, resume)
    objective.network.load_state_dict(weights)
    trained = objective.network.vae.eval()
    checked = [i * (len(pixels) - 1) // 199 for i in range(200)]
    written = trained.config
    if not decoder_only:
        written = training.fold_latent_statistics(trained, *training.latent_statistics(trained, pixels, checked))
    psnr = training.reconstruction_psnr_db(trained, pixels, checked[::4])
    trained.config = written
    save_vae(trained, out / "model" / "vae")
    _finish(out, outcome, {"psnr_db": round(psnr, 3)})


def train_clip(
    data: Data,
    out: Out,
    resume: Resume = None,
    seed: Seed = 0,
    resolution: Annotated[int, typer.Option("--resolution", min=16, help="Side of the pictures the image tower sees.")] = 128,
    merges: Annotated[int, typer.Option("--merges", min=0, max=48894, help="Merges of CLIP's BPE kept: the vocabulary's size less 514.")] = 7680,
    batch_size: BatchSize = 128,
    grad_accum: GradAccum = 1,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    lr: LearningRate = 1e-3,
    muon_lr: MuonLR = None,
    lr_scheduler: Scheduler = "constant",
    warmup: Warmup = 50,
    weight_decay: WeightDecay = 0.05,
    ema: Ema = True,
    ema_decay: EmaDecay = 0.99,
    mixed_precision: Precision = "no",
    save_every: SaveEvery = 500,
    keep: Keep = 2,
    sample_every: SampleEvery = 0,
    log_every: LogEvery = 20,
    threads: Threads = None,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the text encoder against an image tower; writes OUT/model/text_encoder and tokenizer.

    Example: latentgen train-clip --data corpus --out runs/clip --max-minutes 10 --mixed-precision bf16
    """
    from dataclasses import replace

    from latentgen.presets import EMBEDDED

    config = _train_config(locals())
    vocab_size = 514 + merges
    shape = replace(
        EMBEDDED.text_encoder, vocab_size=vocab_size, bos_token_id=vocab_size - 2, eos_token_id=vocab_size - 1, pad_token_id=vocab_size - 1
    )
    if dry_run:
        return _print_settings(config, {"data": str(data), "out": str(out), "text_encoder": shape})
    import torch

    from latentgen.checkpoints.folder import save_text_encoder
    from latentgen.data.pixels import PixelCache
    from latentgen.data.records import fingerprint, list_records
    from latentgen.models.tokenizer import Tokenizer
    from latentgen.training.clip import CLIPObjective, ImageTowerConfig, text_encoder_of

    _use_threads(threads)
    records = list_records(data, held_out=False)
    pixels = PixelCache(records, resolution, out / "cache", _say)
    tokenizer = Tokenizer.published(merges)
    torch.manual_seed(seed)
    objective = CLIPObjective(
        shape, ImageTowerConfig(side_px=resolution), records, pixels, tokenizer, fingerprint(records)
    )
    outcome, weights = _fit(objective, config, out, resume)
    objective.network.load_state_dict(weights)
    retrieval = objective.retrieval(64)
    save_text_encoder(text_encoder_of(weights, shape), out / "model" / "text_encoder")
    tokenizer.save(out / "model" / "tokenizer")
    _finish(out, outcome, {"retrieval_top1_of_64": round(retrieval, 4)})


def train_unet(
    data: Data,
    out: Out,
    vae: Annotated[Path, typer.Option("--vae", help="Folder with the trained VAE (a run's model/ or a model folder).")],
    text_encoder: Annotated[Path, typer.Option("--text-encoder", help="Folder with text_encoder/ and tokenizer/.")],
    init: Init = None,
    resume: Resume = None,
    seed: Seed = 0,
    resolution: Resolution = 256,
    prediction_type: Annotated[str | None, typer.Option("--prediction-type", help="epsilon, v_prediction or sample.")] = None,
    caption_dropout: Annotated[float, typer.Option("--caption-dropout", min=0, max=1, help="Share of samples without their caption.")] = 0.1,
    timestep_sampling: Annotated[str, typer.Option("--timestep-sampling", help="uniform or logit-normal.")] = "uniform",
    min_snr_gamma: Annotated[float | None, typer.Option("--min-snr-gamma", "--snr-gamma", help="Min-SNR weighting; 5 is usual.")] = None,
    sample_prompts: Annotated[Path | None, typer.Option("--sample-prompts", "--validation-prompts", help="A prompt a line, drawn as it trains.")] = None,
    cache: Annotated[Path | None, typer.Option("--cache", help="Folder of the latent and text caches (default: OUT/cache).")] = None,
    batch_size: BatchSize = 32,
    grad_accum: GradAccum = 1,
    max_steps: MaxSteps = None,
    max_minutes: MaxMinutes = None,
    lr: LearningRate = 5e-4,
    muon_lr: MuonLR = None,
    lr_scheduler: Scheduler = "constant",
    warmup: Warmup = 200,
    weight_decay: WeightDecay = 0.01,
    ema: Ema = True,
    ema_decay: EmaDecay = 0.999,
    mixed_precision: Precision = "no",
    save_every: SaveEvery = 500,
    keep: Keep = 2,
    sample_every: SampleEvery = 0,
    log_every: LogEvery = 50,
    threads: Threads = None,
    dry_run: DryRun = False,
) -> None:  # fmt: skip
    """Train the diffusion network on a frozen VAE and text encoder; writes OUT/model/unet and scheduler.

    Example: latentgen train-unet --data corpus --vae runs/vae/model --text-encoder runs/clip/model --out runs/unet
    """
    from dataclasses import replace

    from latentgen.presets import EMBEDDED

    config = _train_config(locals())
    if timestep_sampling not in ("uniform", "logit-normal"):
        raise InputError(f"--timestep-sampling {timestep_sampling} is not one of uniform, logit-normal")
    if prediction_type not in (None, "epsilon", "v_prediction", "sample"):
        raise InputError(f"--prediction-type {prediction_type} is not one of epsilon, v_prediction, sample")
    prompts = _prompt_lines(sample_prompts) if sample_prompts is not None else ()
    if dry_run:
        return _print_settings(config, {"data": str(data), "out": str(out), "unet": EMBEDDED.unet, "prompts": prompts})
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

    _use_threads(threads)
    records = list_records(data, held_out=False)
    autoencoder, encoder, tokenizer = load_vae(vae), load_text_encoder(text_encoder), load_tokenizer(text_encoder)
    space = LatentSpace.from_config(autoencoder.config)
    folder = cache if cache is not None else out / "cache"
    precision = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}[mixed_precision]
    pixels = PixelCache(records, resolution, folder, _say)
    latents = LatentCache(records, pixels, autoencoder, folder, _say, autocast=precision)
    contexts = ContextCache(records, tokenizer, encoder, folder, _say, autocast=precision)
    torch.manual_seed(seed)
    if init is not None:
        network, diffusion = load_unet(init), load_diffusion(init)
    else:
        network = UNet(
            replace(
                EMBEDDED.unet, in_channels=space.channels, out_channels=space.channels,
                cross_attention_dim=encoder.config.hidden_size, sample_size=resolution // space.downscale,
            )
        )  # fmt: skip
        diffusion = EMBEDDED.diffusion
    if prediction_type is not None:
        diffusion = replace(diffusion, prediction_type=prediction_type)
    defaults = replace(EMBEDDED.defaults, width_px=resolution, height_px=resolution)
    plan = training.SamplePlan(prompts, defaults, tokenizer, encoder, autoencoder) if prompts else None
    objective = training.UNetObjective(
        network, diffusion, space, records, latents, contexts,
        training.UNetObjectiveConfig(caption_dropout, timestep_sampling, min_snr_gamma), plan,
        {"data": fingerprint(records), "vae": weights_fingerprint(autoencoder), "text_encoder": weights_fingerprint(encoder)},
    )  # fmt: skip
    outcome, weights = _fit(objective, config, out, resume)
    network.load_state_dict(weights)
    save_unet(network, out / "model" / "unet")
    save_diffusion(diffusion, out / "model" / "scheduler")
    _finish(out, outcome, {"parameters": sum(parameter.numel() for parameter in network.parameters())})


def _prompt_lines(file: Path) -> tuple[str, ...]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} is not a readable list of prompts: {error}") from error
    return tuple(line for line in lines if line and not line.startswith("#"))


def _train_config(options: Mapping[str, Any]) -> TrainConfig:
    precision, scheduler = options["mixed_precision"], options["lr_scheduler"]
    if precision not in ("no", "bf16", "fp16"):
        raise InputError(f"--mixed-precision {precision} is not one of no, bf16, fp16")
    if scheduler not in ("constant", "cosine"):
        raise InputError(f"--lr-scheduler {scheduler} is not one of constant, cosine")
    if options["resume"] not in (None, "latest", "auto"):
        raise InputError(f"--resume {options['resume']} is not one of latest, auto")
    return TrainConfig(
        lr=options["lr"],
        batch_size=options["batch_size"],
        seed=options["seed"],
        grad_accum=options["grad_accum"],
        max_steps=options["max_steps"],
        max_minutes=options["max_minutes"],
        muon_lr=options["muon_lr"],
        lr_scheduler=scheduler,
        warmup_steps=options["warmup"],
        weight_decay=options["weight_decay"],
        ema_decay=options["ema_decay"] if options["ema"] else None,
        mixed_precision=precision,
        save_every_steps=options["save_every"],
        keep=options["keep"],
        sample_every_steps=options["sample_every"],
        log_every_steps=options["log_every"],
    )


def _vae_shape(channels: str | None, latent_channels: int | None, resolution: int) -> Any:
    from dataclasses import replace

    from latentgen.presets import EMBEDDED

    shape = EMBEDDED.vae
    if channels is not None:
        try:
            widths = tuple(int(part) for part in channels.split(","))
        except ValueError:
            raise InputError(f"--channels {channels} is not a list of widths like 16,32,64,128,256") from None
        shape = replace(shape, block_out_channels=widths)
    if latent_channels is not None:
        shape = replace(shape, latent_channels=latent_channels)
    return replace(shape, sample_size=resolution)


def _fit(objective: Objective, config: TrainConfig, out: Path, resume: str | None) -> tuple[Outcome, dict[str, Any]]:
    """Run the loop; gives back how it ended and the weights to export (the EMA's where there is one)."""
    from latentgen.training.loop import fit
    from latentgen.training.run_dir import RunDir

    run = RunDir(out)
    outcome = fit(objective, config, run, resume=resume, report=_progress_line(config))
    checkpoint = run.latest()
    assert checkpoint is not None, "fit saves at its end"
    return outcome, checkpoint.ema or checkpoint.model


def _progress_line(config: TrainConfig) -> Callable[[Mapping[str, Any]], None]:
    def show(event: Mapping[str, Any]) -> None:
        end = f"/{config.max_steps}" if config.max_steps else ""
        shown = "  ".join(f"{k} {v:.4g}" for k, v in event.items() if k not in ("step", "elapsed_s") and isinstance(v, float))
        _say(f"step {event['step']}{end}  {shown}  {event['elapsed_s'] / 60:.1f} min")

    return show


def _finish(out: Path, outcome: Outcome, figures: Mapping[str, Any]) -> None:
    from latentgen.training.run_dir import RunDir

    RunDir(out).log({"end": True, "step": outcome.step, "images_seen": outcome.images_seen, **figures})
    _say(f"{outcome.step} steps, {outcome.images_seen} samples" + "".join(f", {k} {v}" for k, v in figures.items()))
    print(out / "model")
    if outcome.interrupted_by is not None:
        raise SystemExit(128 + outcome.interrupted_by)


def _print_settings(config: TrainConfig, more: Mapping[str, Any]) -> None:
    import json
    from dataclasses import asdict, is_dataclass

    shown = {name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value for name, value in more.items()}
    print(json.dumps({**asdict(config), **shown}, indent=2))


def _use_threads(threads: int | None) -> None:
    if threads is not None:
        import torch

        torch.set_num_threads(threads)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)

"""`train-lora`: parse, load the model, put adapters beside its layers, fit, write them in both forms."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from latentgen.checkpoints.layout import read_config
from latentgen.checkpoints.lora_names import TARGETS, Targets, is_target, narrowest_layer
from latentgen.cli.model_names import resolve_model
from latentgen.cli.train_data import open_pictures
from latentgen.cli.train_held_out import ValidationPictures, check_can_sample, check_can_validate, items_set_aside
from latentgen.cli.train_noise import (
    Cache,
    CaptionDropout,
    GradientCheckpointing,
    LogitMean,
    LogitStd,
    MinSNRGamma,
    NoiseOffset,
    SamplePrompts,
    TimestepSampling,
    objective_settings,
    prompt_lines,
    tell_of_weights,
)
from latentgen.cli.train_options import RunOptions, one_of, print_settings, run_command
from latentgen.cli.train_run import finish, run_training, say_in, start_process
from latentgen.config import ModelConfig
from latentgen.data.records import check_data_folder
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError
from latentgen.training.sizes import check_unet_side

if TYPE_CHECKING:
    from latentgen.checkpoints.folder import ModelBundle
    from latentgen.models.lora import LoRANetwork

RANK = 8
TARGET: Targets = "attention+ff"


@run_command(batch_size=4, lr=1e-4, warmup=0)
def train_lora(
    run: RunOptions,
    *,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Model folder to adapt (default: the embedded model).")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, help=f"Rank of the updates: their size (default: {RANK}).")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option("--alpha", help="Updates are scaled by alpha / rank (default: the rank).")
    ] = None,
    targets: Annotated[
        str | None,
        typer.Option(
            "--targets",
            help="Layers of the U-Net: attention (diffusers' default), attention+ff (kohya's, and ours), "
            "all (convolutions too).",
        ),
    ] = None,
    train_text_encoder: Annotated[
        bool, typer.Option("--train-text-encoder", help="Adapt the text encoder's attention and MLPs too.")
    ] = False,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this LoRA file's adapters, of either form.")
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option("--resolution", min=16, help="Side of the training pictures, in pixels (default: the model's)."),
    ] = None,
    caption_dropout: CaptionDropout = 0.0,
    noise_offset: NoiseOffset = 0.0,
    timestep_sampling: TimestepSampling = "uniform",
    logit_mean: LogitMean = None,
    logit_std: LogitStd = None,
    min_snr_gamma: MinSNRGamma = None,
    gradient_checkpointing: GradientCheckpointing = False,
    validation_pictures: ValidationPictures = None,
    sample_prompts: SamplePrompts = None,
    cache: Cache = None,
) -> None:
    """Train a LoRA: low-rank updates of a model's weights, which stay as they are.

    OUT/model holds it in kohya's form (lora.safetensors) and in diffusers' (pytorch_lora_weights.safetensors).

    latentgen train-lora --data pictures --model sd15 --out runs/lora --max-steps 1000
    """
    config = run.train_config()
    settings = objective_settings(
        caption_dropout=caption_dropout,
        noise_offset=noise_offset,
        timestep_sampling=timestep_sampling,
        logit_mean=logit_mean,
        logit_std=logit_std,
        min_snr_gamma=min_snr_gamma,
    )
    if alpha is not None and not 0 < alpha < math.inf:
        raise InputError(f"--alpha {alpha} must be positive and finite", hint="leave it out for the rank")
    if init is not None and (train_text_encoder or any(each is not None for each in (rank, alpha, targets))):
        raise InputError("--rank, --alpha, --targets and --train-text-encoder are --init's own", hint="leave them out")
    chosen: Targets = one_of("--targets", TARGET if targets is None else targets, tuple(TARGETS))
    rank = RANK if rank is None else rank
    alpha = float(rank) if alpha is None else alpha
    prompts = prompt_lines(sample_prompts)
    check_can_sample(run, prompts)
    if run.dry_run:
        adapters = {"rank": rank, "alpha": alpha, "targets": chosen, "train_text_encoder": train_text_encoder}
        whole = {"model": model, "init": init, **adapters, "resolution": resolution, **settings, "prompts": prompts}
        return print_settings(config, run, whole)
    folder = resolve_model(model)
    shape = read_config(folder)
    side_px = shape.defaults.width_px if resolution is None else resolution
    _check_model(shape, folder)
    check_unet_side(shape, side_px)
    if init is None:
        _check_rank(shape, rank, chosen, text_encoder=train_text_encoder)
    elif not init.exists():
        raise ModelNotFoundError(f"no LoRA file at {init}")
    check_data_folder(run.data)
    import torch

    from latentgen.checkpoints.folder import load_model
    from latentgen.checkpoints.lora import FILE_NAMES, LoRAWeights, base_metadata, write_lora
    from latentgen.data.records import fingerprint
    from latentgen.diffusion.latents import LatentSpace
    from latentgen.training.caches import AUTOCAST, ContextCache, LatentCache, weights_fingerprint
    from latentgen.training.captions import cut_captions
    from latentgen.training.lora import LoRAObjective, TokenIds
    from latentgen.training.processes import device_of
    from latentgen.training.unet import SamplePlan, UNetObjective, UNetObjectiveConfig

    process = start_process(config, run)
    bundle = load_model(folder, device=device_of(process))
    shape = bundle.config  # what a network predicts is sometimes known by asking it only
    torch.manual_seed(run.seed)
    if init is None:
        network = _fresh_adapters(bundle, rank, alpha, chosen, text_encoder=train_text_encoder)
    else:
        network = _adapters_of(init, bundle)
    if gradient_checkpointing:
        bundle.unet.enable_gradient_checkpointing()
    store = run.out / "cache" if cache is None else cache
    records, pixels, keep = open_pictures(run, side_px, store, process, size_multiple_px=shape.size_multiple_px)
    say = say_in(process, run)
    tell_of_weights(settings, shape.diffusion, say)
    validation = items_set_aside(validation_pictures, len(records), run, process)
    check_can_validate(run, validation, len(records))
    cut_captions(records, bundle.tokenizer, say)
    precision = AUTOCAST[config.mixed_precision]
    with process.main_process_first():
        latents = LatentCache(records, pixels, bundle.vae, store, say, autocast=precision)
        contexts = (
            TokenIds(records, bundle.tokenizer)
            if network.adapts_text
            else ContextCache(records, bundle.tokenizer, bundle.text_encoder, store, say, autocast=precision)
        )
    defaults = replace(shape.defaults, width_px=side_px, height_px=side_px)
    denoising = UNetObjective(
        bundle.unet,
        shape.diffusion,
        LatentSpace.from_config(shape.vae),
        records,
        latents,
        contexts,
        UNetObjectiveConfig(**settings),
        SamplePlan(prompts, defaults, bundle.tokenizer, bundle.text_encoder, bundle.vae) if prompts else None,
        {
            "data": fingerprint(records),
            "vae": weights_fingerprint(bundle.vae),
            "base_unet": weights_fingerprint(bundle.unet),
            "text_encoder": weights_fingerprint(bundle.text_encoder),
        },
        validation=validation,
    )
    trained = run_training(LoRAObjective(network, denoising), config, run, keep)
    if trained is None:
        return
    metadata = {**base_metadata(shape), "latentgen_base": bundle.fingerprint()}
    for form, name in FILE_NAMES.items():
        write_lora(run.out / "model" / name, LoRAWeights(network.updates(trained.weights), form, metadata), form)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    finish(run, trained.outcome, {"modules": len(network.sizes), "parameters": parameters})


def _check_model(shape: ModelConfig, folder: Path) -> None:
    """Raise InputError for a U-Net that takes more than noisy latents, as those for inpainting do."""
    if shape.unet.in_channels != shape.vae.latent_channels:
        raise InputError(
            f"{folder.name} is not a text-to-image model: its U-Net takes {shape.unet.in_channels} channels, "
            f"the latents have {shape.vae.latent_channels}"
        )


def _check_rank(shape: ModelConfig, rank: int, targets: Targets, *, text_encoder: bool) -> None:
    narrowest = narrowest_layer(shape, targets, text_encoder=text_encoder)
    if rank > narrowest:
        raise InputError(f"--rank {rank} is larger than this model's narrowest layer, {narrowest} wide")


def _fresh_adapters(
    bundle: ModelBundle, rank: int, alpha: float, targets: Targets, *, text_encoder: bool
) -> LoRANetwork:
    from latentgen.models.lora import AdapterSize, LoRANetwork, layers_of

    encoder = bundle.text_encoder if text_encoder else None
    names = [name for name in layers_of(bundle.unet, encoder) if is_target(name, targets)]
    return LoRANetwork(bundle.unet, encoder, dict.fromkeys(names, AdapterSize(rank, alpha)))


def _adapters_of(init: Path, bundle: ModelBundle) -> LoRANetwork:
    """A network with the adapters of a LoRA file, all of which must be this model's."""
    from latentgen.checkpoints.lora import match_lora, read_lora
    from latentgen.models.lora import AdapterSize, LoRANetwork

    lora = read_lora(init)
    report = match_lora(bundle, lora)
    if report.unmatched:
        raise ModelLoadError(f"--init {init}: {report}", hint="it was made for another base model")
    adapts_text = any(name.startswith("text_encoder.") for name in lora.modules)
    sizes = {name: AdapterSize(update.rank, update.alpha) for name, update in lora.modules.items()}
    network = LoRANetwork(bundle.unet, bundle.text_encoder if adapts_text else None, sizes)
    network.load_updates(lora.modules)
    return network

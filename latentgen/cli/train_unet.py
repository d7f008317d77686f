"""`train-unet`: parse, build the objective, fit, write the diffusion network."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from latentgen.cli.model_names import named_folder, named_text_encoder
from latentgen.cli.train_align import Align, AlignWeight, choose_alignment, weight_of
from latentgen.cli.train_data import open_pictures
from latentgen.cli.train_held_out import ValidationPictures, check_can_sample, check_can_validate, items_set_aside
from latentgen.cli.train_noise import (
    NOISE,
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
from latentgen.cli.train_options import Init, RunOptions, one_of, print_settings, run_command
from latentgen.cli.train_run import finish, run_training, say_in, start_process
from latentgen.config import BetaSchedule, PredictionType
from latentgen.data.records import check_data_folder
from latentgen.errors import InputError
from latentgen.presets import EMBEDDED

if TYPE_CHECKING:
    from latentgen.training.alignment import AlignedObjective
    from latentgen.training.text_tuning import PromptedObjective
    from latentgen.training.unet import UNetObjective

PredictionTypeOption = Annotated[
    str | None,
    typer.Option(
        "--prediction-type",
        rich_help_panel=NOISE,
        help="epsilon, v_prediction or sample (default: --init's, else v_prediction).",
    ),
]
BetaScheduleOption = Annotated[
    str | None,
    typer.Option(
        "--beta-schedule",
        rich_help_panel=NOISE,
        help="linear, scaled_linear or squaredcos_cap_v2 (default: --init's, else squaredcos_cap_v2).",
    ),
]
ZeroTerminalSNR = Annotated[
    bool,
    typer.Option(
        "--zero-terminal-snr",
        rich_help_panel=NOISE,
        help="Rescale the betas so that the last step is all noise; with v_prediction or sample.",
    ),
]
DEFAULT_TEXT_RATE = 0.3
"""Of the text encoder's learning rate beside the U-Net's: what it knows is to be added to, not written over."""
TrainTextEncoder = Annotated[
    bool,
    typer.Option(
        "--train-text-encoder",
        rich_help_panel=NOISE,
        help="Train the text encoder along, for words that it passes over; writes OUT/model/text_encoder too.",
    ),
]
AttentionCap = Annotated[
    float | None,
    typer.Option(
        "--attention-cap",
        rich_help_panel=NOISE,
        help="Keep attention heads alive: the log-odds that a head may give one token against all others, as 10 "
        "(default: no cap).",
    ),
]
TextEncoderRate = Annotated[
    float | None,
    typer.Option(
        "--text-encoder-rate",
        rich_help_panel=NOISE,
        help=f"Its learning rate, as a share of --lr and --muon-lr (default: {DEFAULT_TEXT_RATE}).",
    ),
]


@run_command(batch_size=32, lr=5e-4, init_lr=1e-5)
def train_unet(
    run: RunOptions,
    *,
    vae: Annotated[
        Path | None,
        typer.Option(
            "--vae", callback=named_folder, help="Where the VAE is: a run's model/, or a model (default: --init's)."
        ),
    ] = None,
    text_encoder: Annotated[
        str | None,
        typer.Option(
            "--text-encoder",
            callback=named_text_encoder,
            help="A run's model/, a model or transformers folder, a hub id such as openai/clip-vit-large-patch14, or "
            "open_clip's ViT-H-14/laion2b_s32b_b79k (default: --init's).",
        ),
    ] = None,
    download: Annotated[
        bool, typer.Option("--download", help="Fetch --text-encoder from the hub if it is not in its local cache.")
    ] = False,
    init: Init = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            "--resolution", min=16, help="Side of the training pictures, in pixels (default: --init's; without, 256)."
        ),
    ] = None,
    prediction_type: PredictionTypeOption = None,
    beta_schedule: BetaScheduleOption = None,
    zero_terminal_snr: ZeroTerminalSNR = False,
    caption_dropout: CaptionDropout = 0.1,
    noise_offset: NoiseOffset = 0.0,
    timestep_sampling: TimestepSampling = "uniform",
    logit_mean: LogitMean = None,
    logit_std: LogitStd = None,
    min_snr_gamma: MinSNRGamma = None,
    attention_cap: AttentionCap = None,
    align: Align = None,
    align_weight: AlignWeight = None,
    train_text_encoder: TrainTextEncoder = False,
    text_encoder_rate: TextEncoderRate = None,
    gradient_checkpointing: GradientCheckpointing = False,
    validation_pictures: ValidationPictures = None,
    sample_prompts: SamplePrompts = None,
    cache: Cache = None,
) -> None:
    """Train the diffusion network on a frozen VAE and text encoder; writes OUT/model/unet and OUT/model/scheduler.

    With --train-text-encoder that too, to OUT/model/text_encoder and OUT/model/tokenizer.
    OUT/model/vocabulary.json lists the words of the captions with their counts, for `export` to take along.

    latentgen train-unet --data corpus --vae runs/vae/model --text-encoder runs/clip/model --out runs/unet
    --max-minutes 60

    latentgen train-unet --data pictures --init sd15 --resolution 512 --gradient-checkpointing --out runs/sd15
    --max-steps 5000
    """
    config = replace(run.train_config(), attention_cap=attention_cap)
    settings = objective_settings(
        caption_dropout=caption_dropout,
        noise_offset=noise_offset,
        timestep_sampling=timestep_sampling,
        logit_mean=logit_mean,
        logit_std=logit_std,
        min_snr_gamma=min_snr_gamma,
    )
    process_settings: dict[str, Any] = {
        "prediction_type": _choice("--prediction-type", prediction_type, get_args(PredictionType)),
        "beta_schedule": _choice("--beta-schedule", beta_schedule, get_args(BetaSchedule)),
        "zero_terminal_snr": zero_terminal_snr,
    }
    if init is not None and init.is_file():
        raise InputError(
            f"--init {init} is a file, and training goes on from a folder", hint=f"latentgen convert {init} FOLDER"
        )
    vae = init if vae is None else vae
    text_encoder = (None if init is None else str(init)) if text_encoder is None else text_encoder
    if vae is None or text_encoder is None:
        missing = "--vae" if vae is None else "--text-encoder"
        raise InputError(f"{missing} is not given", hint="name one, or a whole model with --init")
    weight = weight_of(align, align_weight)
    text_rate = _text_rate(text_encoder_rate, trained=train_text_encoder)
    prompts = prompt_lines(sample_prompts)
    check_can_sample(run, prompts)
    if run.dry_run:
        parts = {"vae": vae, "text_encoder": text_encoder, "init": init, "resolution": resolution}
        more: dict[str, Any] = {"align": align, "align_weight": weight} if align is not None else {}
        if text_rate is not None:
            more["text_encoder_rate"] = text_rate
        return print_settings(config, run, {**parts, **process_settings, **settings, **more, "prompts": prompts})
    check_data_folder(run.data)
    from latentgen.checkpoints.layout import VOCABULARY, read_vae_part
    from latentgen.checkpoints.text_encoder_names import find_text_encoder
    from latentgen.prompts.vocabulary import count_words, read_vocabulary
    from latentgen.training.unet_plan import plan_model

    vae_shape = read_vae_part(vae)
    found = find_text_encoder(text_encoder, download=download)
    model = plan_model(EMBEDDED, init, vae_shape, found.config, resolution=resolution, **process_settings)
    side_px = model.defaults.width_px
    followed = choose_alignment(align, weight, len(model.unet.block_out_channels))
    known_before = None if init is None else read_vocabulary(init / VOCABULARY)
    import torch

    from latentgen.checkpoints.folder import (
        build_network,
        load_unet,
        load_vae,
        save_defaults,
        save_diffusion,
        save_text_encoder,
        save_unet,
        save_vocabulary,
    )
    from latentgen.checkpoints.text_encoders import load_found
    from latentgen.data.records import fingerprint
    from latentgen.diffusion.latents import LatentSpace
    from latentgen.models.clip_text import CLIPTextModel
    from latentgen.models.unet import UNet
    from latentgen.training import alignment, text_tuning
    from latentgen.training import unet as training
    from latentgen.training.caches import AUTOCAST, ContextCache, LatentCache, weights_fingerprint
    from latentgen.training.captions import cut_captions
    from latentgen.training.processes import device_of

    process = start_process(config, run)
    folder = cache if cache is not None else run.out / "cache"
    encoder, tokenizer = load_found(found)
    autoencoder, encoder = load_vae(vae).to(process.device), encoder.to(process.device)
    torch.manual_seed(run.seed)
    network = UNet(model.unet) if init is None else load_unet(init)
    network.config = model.unet
    if gradient_checkpointing:
        network.enable_gradient_checkpointing()
    records, pixels, keep = open_pictures(run, side_px, folder, process, size_multiple_px=model.size_multiple_px)
    say = say_in(process, run)
    tell_of_weights(settings, model.diffusion, say)
    validation = items_set_aside(validation_pictures, len(records), run, process)
    check_can_validate(run, validation, len(records))
    cut = cut_captions(records, tokenizer, say)
    precision = AUTOCAST[config.mixed_precision]
    with process.main_process_first():
        latents = LatentCache(records, pixels, autoencoder, folder, say, autocast=precision)
        contexts = (
            ContextCache(records, tokenizer, encoder, folder, say, autocast=precision)
            if text_rate is None
            else text_tuning.TokenContexts(tokenizer)
        )
        frozen = None if followed is None else followed.load(device_of(process))
        features = None if frozen is None else alignment.FeatureCache(pixels, frozen, folder, say)
    denoising = training.UNetObjective(
        network,
        model.diffusion,
        LatentSpace.from_config(model.vae),
        records,
        latents,
        contexts,
        training.UNetObjectiveConfig(**settings),
        training.SamplePlan(prompts, model.defaults, tokenizer, encoder, autoencoder) if prompts else None,
        {
            "data": fingerprint(records),
            "vae": weights_fingerprint(autoencoder),
            "text_encoder": weights_fingerprint(encoder),
            **({} if frozen is None else {"align": frozen.identity}),
        },
        validation=validation,
    )
    objective: UNetObjective | AlignedObjective | PromptedObjective = denoising
    if features is not None:
        torch.manual_seed(run.seed)
        aligned = alignment.AlignedUNet(network, features.channels)
        objective = alignment.AlignedObjective(aligned, denoising, features, weight)
    if text_rate is not None:
        prompted = text_tuning.PromptedUNet(objective.network, encoder, text_rate)
        objective = text_tuning.PromptedObjective(prompted, objective, denoising)
    trained = run_training(objective, config, run, keep)
    if trained is None:
        return
    # New networks: those that were trained may lie in parts, one in each process.
    weights, source = trained.weights, f"{run.out}'s last checkpoint"
    if text_rate is not None:
        taught = alignment.part_of(weights, text_tuning.TEXT_ENCODER)
        save_text_encoder(
            build_network(CLIPTextModel, encoder.config, taught, source), run.out / "model" / "text_encoder"
        )
        tokenizer.save(run.out / "model" / "tokenizer")
        weights = alignment.part_of(weights, text_tuning.DENOISER)
    weights = weights if features is None else alignment.unet_tensors(weights)
    unet = build_network(UNet, model.unet, weights, source)
    save_unet(unet, run.out / "model" / "unet")
    save_diffusion(model.diffusion, run.out / "model" / "scheduler")
    save_defaults(model.defaults, run.out / "model")
    if init is None or known_before is not None:  # what else an --init without a list has seen nobody knows
        aside = frozenset(validation)
        trained_on = [record for item, record in enumerate(records) if item not in aside]
        seen = count_words(
            (cut.get(caption, caption) for record in trained_on for caption in record.captions),
            (record.labels for record in trained_on),
        )
        save_vocabulary((seen if known_before is None else known_before + seen).to_json(), run.out / "model")
    finish(run, trained.outcome, {"parameters": sum(parameter.numel() for parameter in unet.parameters())})


def _text_rate(rate: float | None, *, trained: bool) -> float | None:
    """Of a text encoder that is trained; None for a frozen one. Raises InputError for a useless rate."""
    if not trained:
        if rate is not None:
            raise InputError(
                "--text-encoder-rate is of a text encoder that is trained", hint="add --train-text-encoder"
            )
        return None
    if rate is None:
        return DEFAULT_TEXT_RATE
    if not 0 < rate <= 1:
        raise InputError(
            f"--text-encoder-rate {rate} must be above 0 and at most 1", hint=f"{DEFAULT_TEXT_RATE} is usual"
        )
    return rate


def _choice(option: str, value: str | None, choices: tuple[str, ...]) -> Any:
    return None if value is None else one_of(option, value, choices)

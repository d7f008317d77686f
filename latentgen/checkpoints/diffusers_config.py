"""The JSON files of a diffusers model folder, to and from our config classes. No torch, no weights.

Reading is strict: a key that would change the network must have the value that ours is built for, and a key nobody has
heard of must be off (null or false), else the error names file and key. Keys that change nothing here are listed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, cast, get_args

from latentgen.checkpoints.config_file import ConfigFile, is_int, shown
from latentgen.config import (
    Activation,
    BetaSchedule,
    DiffusionConfig,
    GenerationDefaults,
    PredictionType,
    TextEncoderConfig,
    TimestepSpacing,
    UNetConfig,
    VAEConfig,
)
from latentgen.errors import ModelLoadError
from latentgen.jsonfile import read_json

DIFFUSERS_VERSION: Final = "0.35.0"
"""Written into our files: the release whose config keys they use."""

CLIP_VOCAB_SIZE: Final = 49408
"""OpenAI's and OpenCLIP's, specials included."""

PIPELINES: Final = frozenset(
    {"StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline"}
)

Content = Mapping[str, Any] | None
"""What a file holds, if it is not to be read: the single-file format keeps the same objects in its header."""


def read_unet(path: Path, content: Content = None) -> UNetConfig:
    """`unet/config.json`. Raises ModelLoadError for any other network than that of SD 1.x / 2.x and its smaller kin."""
    file = ConfigFile(path, content)
    file.choice("_class_name", ("UNet2DConditionModel",), "UNet2DConditionModel")
    file.must_be(_UNET_FIXED)
    widths = file.integers("block_out_channels")
    down = _block_types(file, "down_block_types", {"CrossAttnDownBlock2D": True, "DownBlock2D": False}, len(widths))
    up = _block_types(file, "up_block_types", {"CrossAttnUpBlock2D": True, "UpBlock2D": False}, len(widths))
    if up != down[::-1]:
        raise file.wrong("up_block_types", "it must mirror down_block_types")
    # diffusers' attention_head_dim has always been the number of heads; num_attention_heads, where given, says so too.
    heads_key = "attention_head_dim" if file.get("num_attention_heads") is None else "num_attention_heads"
    file.get("attention_head_dim")
    is_list = isinstance(file.get(heads_key), list)
    heads = file.integers(heads_key) if is_list else (file.integer(heads_key, 8),) * len(widths)
    config = file.build(
        UNetConfig,
        in_channels=file.integer("in_channels", 4),
        out_channels=file.integer("out_channels", 4),
        block_out_channels=widths,
        attention_levels=down,
        num_attention_heads=heads,
        cross_attention_dim=file.one_integer("cross_attention_dim", 1280),
        layers_per_block=file.one_integer("layers_per_block", 2),
        transformer_layers_per_block=file.one_integer("transformer_layers_per_block", 1),
        use_linear_projection=file.flag("use_linear_projection", False),
        norm_num_groups=file.integer("norm_num_groups", 32),
        norm_eps=file.number("norm_eps", 1e-5),
        sample_size=file.one_integer("sample_size", 64),
    )
    file.close(_UNET_IRRELEVANT)
    return config


def write_unet(config: UNetConfig) -> dict[str, Any]:
    """The `unet/config.json` that diffusers builds the same network from."""
    down = ["CrossAttnDownBlock2D" if attends else "DownBlock2D" for attends in config.attention_levels]
    up = ["CrossAttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(config.attention_levels)]
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": DIFFUSERS_VERSION,
        **_UNET_FIXED,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": list(config.num_attention_heads),
        "cross_attention_dim": config.cross_attention_dim,
        "layers_per_block": config.layers_per_block,
        "transformer_layers_per_block": config.transformer_layers_per_block,
        "use_linear_projection": config.use_linear_projection,
        "norm_num_groups": config.norm_num_groups,
        "norm_eps": config.norm_eps,
        "sample_size": config.sample_size,
    }


def read_vae(path: Path, content: Content = None) -> VAEConfig:
    """`vae/config.json`. Raises ModelLoadError for anything but a convolutional KL autoencoder."""
    file = ConfigFile(path, content)
    file.choice("_class_name", ("AutoencoderKL",), "AutoencoderKL")
    file.must_be(_VAE_FIXED)
    widths = file.integers("block_out_channels")
    _block_types(file, "down_block_types", {"DownEncoderBlock2D": False}, len(widths))
    _block_types(file, "up_block_types", {"UpDecoderBlock2D": False}, len(widths))
    config = file.build(
        VAEConfig,
        block_out_channels=widths,
        latent_channels=file.integer("latent_channels", 4),
        scaling_factor=file.number("scaling_factor", 0.18215),  # absent from files older than diffusers 0.13
        shift_factor=file.number("shift_factor", 0.0),
        in_channels=file.integer("in_channels", 3),
        out_channels=file.integer("out_channels", 3),
        layers_per_block=file.one_integer("layers_per_block", 1),
        norm_num_groups=file.integer("norm_num_groups", 32),
        sample_size=file.one_integer("sample_size", 32),
        use_quant_conv=file.flag("use_quant_conv", True),
        use_post_quant_conv=file.flag("use_post_quant_conv", True),
        mid_block_add_attention=file.flag("mid_block_add_attention", True),
    )
    file.close(_VAE_IRRELEVANT)
    return config


def write_vae(config: VAEConfig) -> dict[str, Any]:
    """The `vae/config.json` that diffusers builds the same autoencoder from."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": DIFFUSERS_VERSION,
        **_VAE_FIXED,
        **asdict(config),
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "shift_factor": config.shift_factor or None,
    }


def read_text_encoder(path: Path, content: Content = None) -> TextEncoderConfig:
    """`text_encoder/config.json`, or the text half of a whole CLIP's (`openai/clip-vit-large-patch14`).

    Raises ModelLoadError for anything but a CLIP text transformer.
    """
    file = ConfigFile(path, content)
    if file.choice("model_type", ("clip_text_model", "clip"), "clip_text_model") == "clip":
        file = file.section("text_config", "text_config_dict")  # transformers, too, lets the second have its way
        file.choice("model_type", ("clip_text_model",), "clip_text_model")
    vocab_size = file.integer("vocab_size", CLIP_VOCAB_SIZE)
    # CLIP's last two entries, also where tokens were added behind them
    last = min(vocab_size, CLIP_VOCAB_SIZE) - 1
    bos = file.integer("bos_token_id", last - 1, minimum=0)
    eos = file.integer("eos_token_id", last, minimum=0)
    pad = file.integer("pad_token_id", eos, minimum=0)
    if (bos, eos) == (0, 2):
        # Files older than transformers 4.30 state ids that CLIP's vocabulary never had.
        beside = path.parent.parent / "tokenizer"
        pad = _pad_token_id(beside if beside.is_dir() else path.parent, last)
        bos, eos = last - 1, last
    config = file.build(
        TextEncoderConfig,
        vocab_size=vocab_size,
        hidden_size=file.integer("hidden_size", 512),
        intermediate_size=file.integer("intermediate_size", 2048),
        num_hidden_layers=file.integer("num_hidden_layers", 12),
        num_attention_heads=file.integer("num_attention_heads", 8),
        hidden_act=file.choice("hidden_act", get_args(Activation), "quick_gelu"),
        max_position_embeddings=file.integer("max_position_embeddings", 77),
        layer_norm_eps=file.number("layer_norm_eps", 1e-5),
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
        projection_dim=file.integer("projection_dim", 512),
    )
    file.close(_TEXT_IRRELEVANT)
    return config


def write_text_encoder(config: TextEncoderConfig, dtype: str) -> dict[str, Any]:
    """The `text_encoder/config.json` that transformers builds the same network from; dtype as torch spells it."""
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "attention_dropout": 0.0,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "torch_dtype": dtype,
        **asdict(config),
    }


def read_scheduler(path: Path, content: Content = None) -> DiffusionConfig:
    """The forward process in `scheduler/scheduler_config.json`; which sampler it names is no part of the model."""
    file = ConfigFile(path, content)
    kind = file.choice("_class_name", tuple(DEFAULT_SPACING))
    file.must_be(_SCHEDULER_FIXED)
    spacing: TimestepSpacing = file.choice("timestep_spacing", get_args(TimestepSpacing), DEFAULT_SPACING[kind])
    offset = file.integer("steps_offset", 0, minimum=0)
    if file.get("variance_type", "") in ("learned", "learned_range"):
        raise file.wrong("variance_type", "networks that predict a variance are not supported")
    config = file.build(
        DiffusionConfig,
        num_train_timesteps=file.integer("num_train_timesteps", 1000),
        beta_schedule=file.choice("beta_schedule", get_args(BetaSchedule)),
        beta_start=file.number("beta_start"),
        beta_end=file.number("beta_end"),
        prediction_type=file.choice("prediction_type", get_args(PredictionType), "epsilon"),
        timestep_spacing=spacing,
        steps_offset=offset if spacing == "leading" else 0,
        rescale_betas_zero_snr=file.flag("rescale_betas_zero_snr", False),
    )
    file.close(_SCHEDULER_IRRELEVANT)
    return config


def write_scheduler(config: DiffusionConfig) -> dict[str, Any]:
    """A DDIM scheduler of diffusers with our forward process that, as we do, ends at the clean estimate."""
    return {
        "_class_name": "DDIMScheduler",
        "_diffusers_version": DIFFUSERS_VERSION,
        **asdict(config),
        # Only leading timesteps are offset; elsewhere 1 keeps diffusers from warning of an outdated file.
        "steps_offset": config.steps_offset if config.timestep_spacing == "leading" else 1,
        "clip_sample": False,
        "set_alpha_to_one": True,
        "thresholding": False,
        "trained_betas": None,
    }


def check_pipeline(path: Path, content: Content = None) -> None:
    """Raise ModelLoadError if a `model_index.json` is of a pipeline that draws with other networks than ours."""
    name = ConfigFile(path, content).get("_class_name", "")
    if name not in PIPELINES:
        raise ModelLoadError(
            f"{path}: the model is a {shown(name)}", hint="only Stable Diffusion 1.x and 2.x can be used"
        )


def read_defaults(path: Path, size_px: int, diffusion: DiffusionConfig, content: Content = None) -> GenerationDefaults:
    """What `model_index.json` says of drawing under `_latentgen`, or `size_px` squared and our usual settings."""
    file = ConfigFile(path, content)
    check_pipeline(path, content)
    return _drawing_defaults(file, size_px, diffusion)


def read_run_defaults(path: Path, size_px: int, diffusion: DiffusionConfig) -> GenerationDefaults:
    """The same out of a training run's `defaults.json`."""
    return _drawing_defaults(ConfigFile(path), size_px, diffusion)


def write_run_defaults(defaults: GenerationDefaults) -> dict[str, Any]:
    """`defaults.json`, for the model that a run's U-Net will be exported into."""
    return {"_latentgen": _defaults_to_json(defaults)}


def _drawing_defaults(file: ConfigFile, size_px: int, diffusion: DiffusionConfig) -> GenerationDefaults:
    content = file.get("_latentgen", {})
    types = {field.name: cast(str, field.type) for field in fields(GenerationDefaults)}
    if not isinstance(content, dict) or set(content) - set(types):
        raise file.wrong("_latentgen", f"only {', '.join(types)} are known")
    values = {"width_px": size_px, "height_px": size_px, "schedule": diffusion.usual_schedule, **content}
    accepted = {
        "int": is_int,
        "float": lambda v: is_int(v) or isinstance(v, float),
        "str": lambda v: isinstance(v, str),
        "tuple[float, float]": lambda v: isinstance(v, list) and len(v) == 2 and all(map(accepted["float"], v)),
    }
    for key, value in values.items():
        if not accepted[types[key]](value):
            raise file.wrong("_latentgen", f"{key} must be of type {types[key]}")
    values = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return file.build(GenerationDefaults, **values)


def _defaults_to_json(defaults: GenerationDefaults) -> dict[str, Any]:
    """Without the interval where guidance acts throughout, so that versions that know none read the rest."""
    content = asdict(defaults)
    if defaults.guidance_interval == (0.0, 1.0):
        del content["guidance_interval"]
    return content


def write_model_index(defaults: GenerationDefaults) -> dict[str, Any]:
    """`model_index.json`. diffusers ignores keys that begin with an underscore, so ours live under `_latentgen`."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "_latentgen": _defaults_to_json(defaults),
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _block_types(file: ConfigFile, key: str, known: Mapping[str, bool], levels: int) -> tuple[bool, ...]:
    """Per level, what a block type's name says about attention."""
    names = file.get(key)
    if not isinstance(names, list) or any(name not in known for name in names):
        raise file.wrong(key, f"only {' and '.join(known)} are supported")
    if len(names) != levels:
        raise file.wrong(key, f"block_out_channels has {levels} levels")
    return tuple(known[name] for name in names)


def _pad_token_id(tokenizer: Path, eos: int) -> int:
    """0 if the tokenizer folder beside says that `!` pads, as in SD 2.x; else eos."""
    path = tokenizer / "special_tokens_map.json"
    pad: object = read_json(path).get("pad_token") if path.exists() else None
    content = cast("dict[str, object]", pad).get("content") if isinstance(pad, dict) else pad
    return 0 if content == "!" else eos


_UNET_FIXED: Final[dict[str, Any]] = {
    "act_fn": "silu",
    "attention_type": "default",
    "center_input_sample": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_type": "positional",
}
_UNET_IRRELEVANT: Final = frozenset(
    {
        "addition_embed_type_num_heads",  # of an embedding that must be off
        "dropout",  # training only
        "upcast_attention",  # a precision of theirs; our attention accumulates in float32
    }
)
_VAE_FIXED: Final[dict[str, Any]] = {"act_fn": "silu"}
_VAE_IRRELEVANT: Final = frozenset({"force_upcast"})
_TEXT_IRRELEVANT: Final = frozenset(
    {
        "architectures", "attention_dropout", "dropout", "dtype", "initializer_factor", "initializer_range",
        "torch_dtype", "transformers_version",
        # What transformers before 4.30 wrote into the text half of every CLIP: settings of generating text
        "chunk_size_feed_forward", "diversity_penalty", "encoder_no_repeat_ngram_size", "id2label", "label2id",
        "length_penalty", "max_length", "min_length", "no_repeat_ngram_size", "num_beam_groups", "num_beams",
        "num_return_sequences", "pruned_heads", "repetition_penalty", "return_dict", "temperature",
        "tie_word_embeddings", "top_k", "top_p", "typical_p",
    }
)  # fmt: skip
DEFAULT_SPACING: Final[dict[str, TimestepSpacing]] = {
    "DDIMScheduler": "leading",
    "DDIMInverseScheduler": "leading",
    "DDIMParallelScheduler": "leading",
    "DDPMScheduler": "leading",
    "DDPMParallelScheduler": "leading",
    "LCMScheduler": "leading",
    "PNDMScheduler": "leading",
    "TCDScheduler": "leading",
    "DEISMultistepScheduler": "linspace",
    "DPMSolverMultistepScheduler": "linspace",
    "DPMSolverMultistepInverseScheduler": "linspace",
    "DPMSolverSDEScheduler": "linspace",
    "DPMSolverSinglestepScheduler": "linspace",
    "EulerAncestralDiscreteScheduler": "linspace",
    "EulerDiscreteScheduler": "linspace",
    "HeunDiscreteScheduler": "linspace",
    "KDPM2AncestralDiscreteScheduler": "linspace",
    "KDPM2DiscreteScheduler": "linspace",
    "LMSDiscreteScheduler": "linspace",
    "SASolverScheduler": "linspace",
    "UniPCMultistepScheduler": "linspace",
}
"""Schedulers of Stable Diffusion folders and the timesteps each takes when its file does not say."""
_SCHEDULER_FIXED: Final[dict[str, Any]] = {
    "thresholding": False,
    "timestep_type": "discrete",
    "trained_betas": None,
    "use_flow_sigmas": False,
}
_SCHEDULER_IRRELEVANT: Final = frozenset(
    {
        # Choices of sampler, which a request makes
        "algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector",
        "dynamic_thresholding_ratio", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type",
        "lambda_min_clipped", "lower_order_final", "noise_sampler_seed", "original_inference_steps", "predict_x0",
        "predictor_order", "sample_max_value", "set_alpha_to_one", "sigma_max", "sigma_min", "skip_prk_steps",
        "solver_order", "solver_p", "solver_type", "time_shift_type", "timestep_scaling", "use_beta_sigmas",
        "use_exponential_sigmas", "use_karras_sigmas", "use_lu_lambdas", "variance_type",
    }
)  # fmt: skip

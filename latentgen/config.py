"""What a model is, in numbers: frozen dataclasses, checked at birth.

Field names follow the published configs of diffusers and transformers, because these classes are what a model folder's
`config.json` files say. `checkpoints/diffusers_config.py` reads and writes those files; nothing here touches a file.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from latentgen.errors import ConfigError

PredictionType = Literal["epsilon", "v_prediction", "sample"]
BetaSchedule = Literal["linear", "scaled_linear", "squaredcos_cap_v2"]
TimestepSpacing = Literal["leading", "trailing", "linspace"]
Activation = Literal["quick_gelu", "gelu"]


@dataclass(frozen=True, slots=True)
class UNetConfig:
    """The conditional U-Net (SD 1.x, 2.x and anything smaller of the same family)."""

    in_channels: int
    """Channels of the noisy latents (9 for inpainting: latents, mask, masked latents)."""
    out_channels: int
    block_out_channels: tuple[int, ...]
    """Width of each resolution level, finest first."""
    attention_levels: tuple[bool, ...]
    """Whether a level's blocks carry cross-attention transformers, finest first."""
    num_attention_heads: tuple[int, ...]
    """Heads of each level (diffusers writes this as `attention_head_dim` for historical reasons)."""
    cross_attention_dim: int
    """Width D of the text context (B, 77, D)."""
    layers_per_block: int = 2
    transformer_layers_per_block: int = 1
    use_linear_projection: bool = False
    """proj_in and proj_out of a transformer: linear (SD 2.x) or 1x1 convolution (SD 1.x)."""
    norm_num_groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int = 64
    """Side of the latents it was trained at, in latent pixels."""

    def __post_init__(self) -> None:
        levels = len(self.block_out_channels)
        if not (len(self.attention_levels) == len(self.num_attention_heads) == levels) or levels == 0:
            raise ConfigError(
                f"U-Net config: {levels} widths, {len(self.attention_levels)} attention flags and "
                f"{len(self.num_attention_heads)} head counts; all three must have one entry per level"
            )
        # The middle block attends with the last level's heads whether or not that level's own blocks do.
        attends_at = (*self.attention_levels[:-1], True)
        for width, heads, attends in zip(self.block_out_channels, self.num_attention_heads, attends_at, strict=True):
            if width % self.norm_num_groups:
                raise ConfigError(
                    f"U-Net config: width {width} is not a multiple of norm_num_groups {self.norm_num_groups}"
                )
            if attends and (heads < 1 or width % heads):
                raise ConfigError(f"U-Net config: width {width} does not split over {heads} attention heads")

    @property
    def time_embed_dim(self) -> int:
        return 4 * self.block_out_channels[0]


@dataclass(frozen=True, slots=True)
class VAEConfig:
    """The KL autoencoder; its depth fixes the downscale: 2 ** (levels - 1)."""

    block_out_channels: tuple[int, ...]
    """Width of each resolution level, finest first."""
    latent_channels: int
    scaling_factor: float
    """latents = scaling_factor * (z - shift_factor); makes the latents' standard deviation about 1."""
    shift_factor: float = 0.0
    in_channels: int = 3
    out_channels: int = 3
    layers_per_block: int = 2
    norm_num_groups: int = 32
    sample_size: int = 512
    """Side of the pictures it was trained on, in pixels."""
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        for width in self.block_out_channels:
            if width % self.norm_num_groups:
                raise ConfigError(
                    f"VAE config: width {width} is not a multiple of norm_num_groups {self.norm_num_groups}"
                )
        if self.scaling_factor <= 0:
            raise ConfigError(f"VAE config: scaling_factor {self.scaling_factor} must be positive")

    @property
    def downscale(self) -> int:
        """Pixels per latent pixel along one side."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass(frozen=True, slots=True)
class TextEncoderConfig:
    """A CLIP text transformer."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    hidden_act: Activation = "quick_gelu"
    max_position_embeddings: int = 77
    layer_norm_eps: float = 1e-5
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407
    projection_dim: int = 512

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"text encoder config: width {self.hidden_size} does not split over {self.num_attention_heads} heads"
            )


@dataclass(frozen=True, slots=True)
class ImageTowerConfig:
    """CLIP's vision transformer: what a text tower learns against, and what a perceptual loss looks through."""

    side_px: int = 128
    patch_px: int = 16
    width: int = 192
    layers: int = 4
    head_width: int = 64
    mlp_ratio: float = 4.0
    hidden_act: Activation = "gelu"

    def __post_init__(self) -> None:
        if self.width % self.head_width:
            raise ConfigError(f"image tower config: width {self.width} does not split over heads of {self.head_width}")
        if self.side_px % self.patch_px:
            raise ConfigError(
                f"image tower config: pictures of {self.side_px} px do not split into patches of {self.patch_px}"
            )


@dataclass(frozen=True, slots=True)
class DiffusionConfig:
    """The forward process and what the network predicts (diffusers' `scheduler_config.json`)."""

    num_train_timesteps: int = 1000
    beta_schedule: BetaSchedule = "scaled_linear"
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction_type: PredictionType = "epsilon"
    timestep_spacing: TimestepSpacing = "leading"
    steps_offset: int = 1
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.num_train_timesteps < 1:
            raise ConfigError(f"diffusion config: num_train_timesteps {self.num_train_timesteps} must be at least 1")
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ConfigError(
                f"diffusion config: betas {self.beta_start}..{self.beta_end} must lie in (0, 1), ascending"
            )
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ConfigError(
                "diffusion config: with a zero-terminal-SNR schedule the last step holds no signal, so eps is "
                "undefined there; use v_prediction or sample"
            )

    @property
    def usual_schedule(self) -> str:
        """Where to take steps if nobody says: karras, which would take most of them above any sigma that matters where
        the noise levels go into the thousands."""
        is_endless = self.rescale_betas_zero_snr or self.beta_schedule == "squaredcos_cap_v2"
        return "trailing" if is_endless else "karras"


@dataclass(frozen=True, slots=True)
class GenerationDefaults:
    """What a model draws with when the user says nothing (`model_index.json`, key `_latentgen`)."""

    width_px: int
    height_px: int
    steps: int = 20
    guidance: float = 7.5
    sampler: str = "dpmpp_2m"
    schedule: str = "karras"
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Where in the run guidance acts, as fractions of its steps (arXiv:2404.07724)."""

    def __post_init__(self) -> None:
        for name, side_px in (("width", self.width_px), ("height", self.height_px)):
            if side_px < 1:
                raise ConfigError(f"drawing defaults: {name} {side_px} must be at least 1")
        if not 1 <= self.steps <= 1000:
            raise ConfigError(f"drawing defaults: steps {self.steps} must lie between 1 and 1000")
        if not 0 <= self.guidance < math.inf:
            raise ConfigError(f"drawing defaults: guidance {self.guidance} must be a number from 0")
        start, end = self.guidance_interval
        if not 0 <= start < end <= 1:
            raise ConfigError(f"drawing defaults: guidance_interval {start}, {end} must rise within 0 and 1")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole model folder in numbers."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: TextEncoderConfig
    diffusion: DiffusionConfig
    defaults: GenerationDefaults

    def __post_init__(self) -> None:
        if self.unet.cross_attention_dim != self.text_encoder.hidden_size:
            raise ConfigError(
                f"the U-Net attends to a context {self.unet.cross_attention_dim} wide, "
                f"but the text encoder's is {self.text_encoder.hidden_size}"
            )
        if self.unet.out_channels != self.vae.latent_channels:
            raise ConfigError(
                f"the U-Net predicts {self.unet.out_channels} channels, "
                f"but the VAE's latents have {self.vae.latent_channels}"
            )

    @property
    def size_multiple_px(self) -> int:
        """Picture sides must be multiples of this: the VAE's downscale times the U-Net's."""
        return self.vae.downscale * 2 ** (len(self.unet.block_out_channels) - 1)


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training run, whatever is trained. A "step" is one optimizer step."""

    lr: float
    batch_size: int
    """Samples of one process in one forward pass."""
    seed: int = 0
    grad_accum: int = 1
    """Forward passes per optimizer step."""
    max_steps: int | None = None
    max_minutes: float | None = None
    """Limit of this start's training, on the wall's clock; what comes before it, decoding and encoding, is not counted.
    The run saves and ends cleanly at it."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = 100
    muon_lr: float | None = None
    """Peak learning rate of Muon on matrices and kernels; None: AdamW for all."""
    weight_decay: float = 0.01
    adam_beta2: float = 0.99
    max_grad_norm: float = 1.0
    ema_decay: float | None = 0.999
    attention_cap: float | None = None
    """Log-odds that one key of an attention head may have against all others (`training.attention_cap`).
    None: no cap."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    compile: bool = False
    """torch.compile the network: slower to start, faster on a GPU."""
    save_every_steps: int = 1000
    keep: int = 2
    """Checkpoints kept; older ones are removed after a newer one is published."""
    sample_every_steps: int = 0
    """0: no pictures while training."""
    validate_every_steps: int = 0
    """0: figures on the fixed samples only at the end."""
    log_every_steps: int = 50

    def __post_init__(self) -> None:
        if self.max_steps is None and self.max_minutes is None:
            raise ConfigError("a run needs an end: give --max-steps or --max-minutes")
        if self.lr_scheduler != "constant" and self.max_steps is None:
            raise ConfigError(f"--lr-scheduler {self.lr_scheduler} decays over --max-steps: give --max-steps")
        for name in ("batch_size", "grad_accum", "save_every_steps", "keep", "log_every_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} {getattr(self, name)} must be at least 1")
        for name in ("lr", "muon_lr", "max_grad_norm"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {rate} must be positive")
        for name in ("max_minutes", "weight_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} {value} must be a number, 0 or more")
        if self.attention_cap is not None and not 0 < self.attention_cap < math.inf:
            raise ConfigError(f"--attention-cap {self.attention_cap} must be a number above 0")
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"--ema-decay {self.ema_decay} must lie in (0, 1)", hint="--no-ema keeps no average")

    def lr_factor(self, step: int) -> float:
        """Share of the peak rate at optimizer step `step` (0 for the first): warm-up, then flat, or falling to 0."""
        ramp = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        if self.lr_scheduler == "constant":
            return ramp
        assert self.max_steps is not None, "checked at birth"
        done = min(1.0, max(0.0, (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)))
        return ramp * (1 - done if self.lr_scheduler == "linear" else 0.5 * (1 + math.cos(math.pi * done)))

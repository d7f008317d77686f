"""The KL autoencoder between pixels and latents, of any depth (f8 with four levels, f16 with five).

Parameter names are those of diffusers' `AutoencoderKL`, so its state dicts load strictly and without a key map.
Architecture: latent diffusion, arXiv:2112.10752, section 3.1 and appendix G, after VQGAN, arXiv:2012.09841.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn

from latentgen.config import VAEConfig
from latentgen.errors import ShapeError
from latentgen.models.attention import PixelSelfAttention
from latentgen.models.layers import Downsample, PointwiseConv2d, ResnetBlock, Upsample, silu_

VAE_NORM_EPS = 1e-6
"""Every norm of the autoencoder (CompVis `ldm/modules/diffusionmodules/model.py`)."""

LOGVAR_RANGE = (-30.0, 20.0)
"""The encoder's log-variance is clamped to this (CompVis `ldm/modules/distributions/distributions.py`)."""


def _resnet(config: VAEConfig, in_channels: int, out_channels: int) -> ResnetBlock:
    return ResnetBlock(in_channels, out_channels, num_groups=config.norm_num_groups, norm_eps=VAE_NORM_EPS)


class EncoderBlock(nn.Module):
    """One level of the encoder: residual blocks, then half the size unless it is the coarsest."""

    def __init__(self, config: VAEConfig, level: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        in_channels = widths[max(level - 1, 0)]
        self.resnets = nn.ModuleList(
            _resnet(config, in_channels if layer == 0 else widths[level], widths[level])
            for layer in range(config.layers_per_block)
        )
        is_coarsest = level == len(widths) - 1
        self.downsamplers = nn.ModuleList([] if is_coarsest else [Downsample(widths[level], pad_all_sides=False)])

    def layers(self) -> tuple[nn.Module, ...]:
        """In order, each (B, C, h, w) -> (B, C', h, w), the last -> (B, C, h/2, w/2) unless at the coarsest level."""
        return *self.resnets, *self.downsamplers


class DecoderBlock(nn.Module):
    """One level of the decoder: one residual block more than the encoder's, then twice the size unless the finest."""

    def __init__(self, config: VAEConfig, level: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        in_channels = widths[min(level + 1, len(widths) - 1)]
        self.resnets = nn.ModuleList(
            _resnet(config, in_channels if layer == 0 else widths[level], widths[level])
            for layer in range(config.layers_per_block + 1)
        )
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(widths[level])])

    def layers(self) -> tuple[nn.Module, ...]:
        """In order, each (B, C, h, w) -> (B, C', h, w), the last -> (B, C, 2h, 2w) unless at the finest level."""
        return *self.resnets, *self.upsamplers


class MidBlock(nn.Module):
    """The coarsest features: residual block, self-attention if the config asks for it, residual block."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList(
            [PixelSelfAttention(width, num_groups=config.norm_num_groups, norm_eps=VAE_NORM_EPS)]
            if config.mid_block_add_attention
            else []
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    """Pixels to the mean and log-variance of raw latents, stacked along the channels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(EncoderBlock(config, level) for level in range(len(widths)))
        self.mid_block = MidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[-1], eps=VAE_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, 2C, h, w)."""
        x = self.conv_in(pixels)
        for block in cast("Iterable[EncoderBlock]", self.down_blocks):
            for layer in block.layers():  # here: a block's own call would hold its input while it computes
                x = layer(x)
        x = self.mid_block(x)
        return self.conv_out(silu_(self.conv_norm_out(x)))


class Decoder(nn.Module):
    """Raw latents to pixels."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.block_out_channels
        self.conv_in = nn.Conv2d(config.latent_channels, widths[-1], 3, padding=1)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(DecoderBlock(config, level) for level in reversed(range(len(widths))))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=VAE_NORM_EPS)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, H, W)."""
        x = self.mid_block(self.conv_in(z))
        for block in cast("Iterable[DecoderBlock]", self.up_blocks):
            for layer in block.layers():  # here: a block's own call would hold its input while it computes
                x = layer(x)
        return self.conv_out(silu_(self.conv_norm_out(x)))


class AutoencoderKL(nn.Module):
    """Pixels to raw latents z and back; `diffusion/latents.py` owns the scaling between z and latents."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quant_conv = PointwiseConv2d(2 * channels, 2 * channels) if config.use_quant_conv else None
        self.post_quant_conv = PointwiseConv2d(channels, channels) if config.use_post_quant_conv else None

    def encode(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The distribution of raw latents for pictures: mean and log-variance; z = mean + exp(logvar / 2) * eps.

        Shapes: pixels (B, 3, H, W) in [-1, 1], sides multiples of the downscale; returns two (B, C, h, w), unscaled,
        logvar clamped to [-30, 20].
        Raises ShapeError when the pictures do not fit.
        """
        mean, logvar = self.moments(pixels)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def moments(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """As `encode`, but the log-variance as it comes: what is clamped has no gradient to lead it back."""
        config = self.config
        if pixels.ndim != 4 or pixels.shape[1] != config.in_channels:
            raise ShapeError(f"VAE: pixels are {tuple(pixels.shape)}, but it takes (B, {config.in_channels}, H, W)")
        height, width = pixels.shape[-2:]
        if height % config.downscale or width % config.downscale:
            raise ShapeError(
                f"VAE: pictures are {height} px high and {width} px wide, "
                f"but both sides must be multiples of {config.downscale}"
            )
        moments = self.encoder(pixels)  # (B, 2C, h, w)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, logvar = moments.chunk(2, dim=1)
        return mean, logvar

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of raw latents.

        Shapes: z (B, C, h, w), unscaled; returns (B, 3, H, W) around [-1, 1], not clipped.
        Raises ShapeError when z has another number of channels.
        """
        if z.ndim != 4 or z.shape[1] != self.config.latent_channels:
            raise ShapeError(f"VAE: z is {tuple(z.shape)}, but it decodes (B, {self.config.latent_channels}, h, w)")
        if self.post_quant_conv is not None:
            z = self.post_quant_conv(z)
        return self.decoder(z)

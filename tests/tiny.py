"""Tiny configs and networks that the tests share: everything of the real ones but the size."""

from __future__ import annotations

import torch
from torch import nn

from latentgen.config import (
    DiffusionConfig,
    GenerationDefaults,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL

TINY_UNET = UNetConfig(
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32),
    attention_levels=(True, False),
    num_attention_heads=(2, 2),
    cross_attention_dim=24,
    layers_per_block=1,
    norm_num_groups=8,
    sample_size=8,
)
TINY_VAE = VAEConfig(
    block_out_channels=(8, 16, 16, 16),
    latent_channels=4,
    scaling_factor=0.18215,
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=64,
)
TINY_TEXT = TextEncoderConfig(
    vocab_size=600,
    hidden_size=24,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    bos_token_id=598,
    eos_token_id=599,
    pad_token_id=599,
    projection_dim=16,
)
TINY_MODEL = ModelConfig(
    unet=TINY_UNET,
    vae=TINY_VAE,
    text_encoder=TINY_TEXT,
    diffusion=DiffusionConfig(),
    defaults=GenerationDefaults(width_px=64, height_px=64, steps=4, guidance=3.0),
)
"""The parts above as one model: f8 latents, 8x8 at 64 px."""


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter a random value, in place: a fresh U-Net's zeros and the norms' ones and zeros hide mistakes.

    Matrices and kernels keep the scale of their input; norm weights lie about 1; biases are about 0.1.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
            else:
                parameter.normal_(1.0 if name.endswith("weight") else 0.0, 0.1, generator=generator)
    return module


def tiny_unet(config: UNetConfig = TINY_UNET, *, seed: int = 0) -> UNet:
    unet = UNet(config).eval()
    randomize(unet, seed)
    return unet


def tiny_vae(config: VAEConfig = TINY_VAE, *, seed: int = 0) -> AutoencoderKL:
    vae = AutoencoderKL(config).eval()
    randomize(vae, seed)
    return vae


def tiny_text_encoder(config: TextEncoderConfig = TINY_TEXT, *, seed: int = 0) -> CLIPTextModel:
    text_encoder = CLIPTextModel(config).eval()
    randomize(text_encoder, seed)
    return text_encoder

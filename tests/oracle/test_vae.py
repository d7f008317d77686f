"""Our autoencoder against diffusers' AutoencoderKL: same weights, same input, same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL as DiffusersAutoencoderKL

from latentgen.config import VAEConfig
from latentgen.models.vae import AutoencoderKL
from tests.tiny import randomize

F8 = VAEConfig(
    block_out_channels=(8, 16, 16, 24),
    latent_channels=4,
    scaling_factor=0.18215,
    norm_num_groups=4,
    sample_size=32,
)
F16 = replace(F8, block_out_channels=(8, 8, 16, 16, 24), latent_channels=16, layers_per_block=1)

VARIANTS = {
    "f8": F8,
    "f8-no-mid-attention": replace(F8, mid_block_add_attention=False),
    "f8-no-quant-convs": replace(F8, use_quant_conv=False, use_post_quant_conv=False),
    "f8-one-quant-conv": replace(F8, use_post_quant_conv=False, layers_per_block=1),
    "f16": F16,
    "f16-no-mid-attention": replace(F16, mid_block_add_attention=False),
    "f16-two-layers-no-quant-convs": replace(F16, layers_per_block=2, use_quant_conv=False, use_post_quant_conv=False),
}

# float64 rounds at 1e-16; a wrong norm epsilon, which float32 would drown, shows at 1e-6.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def diffusers_vae(config: VAEConfig) -> DiffusersAutoencoderKL:
    levels = len(config.block_out_channels)
    return DiffusersAutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_num_groups,
        sample_size=config.sample_size,
        scaling_factor=config.scaling_factor,
        use_quant_conv=config.use_quant_conv,
        use_post_quant_conv=config.use_post_quant_conv,
        mid_block_add_attention=config.mid_block_add_attention,
    ).eval()


def build_pair(config: VAEConfig) -> tuple[AutoencoderKL, DiffusersAutoencoderKL]:
    theirs = diffusers_vae(config).double()
    randomize(theirs)
    ours = AutoencoderKL(config).eval().double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_encode_equals_diffusers(config: VAEConfig) -> None:
    ours, theirs = build_pair(config)
    pixels = torch.rand(2, 3, 32, 48, dtype=torch.float64) * 2 - 1
    mean, logvar = ours.encode(pixels)
    expected = theirs.encode(pixels).latent_dist
    torch.testing.assert_close(mean, expected.mean, **TOLERANCE)
    torch.testing.assert_close(logvar, expected.logvar, **TOLERANCE)


@torch.no_grad()
def test_log_variance_is_clamped_as_in_diffusers() -> None:
    ours, theirs = build_pair(F8)
    weights = theirs.state_dict()
    weights["quant_conv.weight"] *= 1000.0
    ours.load_state_dict(weights, strict=True)
    pixels = torch.rand(1, 3, 32, 32, dtype=torch.float64) * 2 - 1
    _, logvar = ours.encode(pixels)
    assert (logvar.min(), logvar.max()) == (-30.0, 20.0), "the input must reach both ends"
    torch.testing.assert_close(logvar, theirs.encode(pixels).latent_dist.logvar, **TOLERANCE)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_decode_equals_diffusers(config: VAEConfig) -> None:
    ours, theirs = build_pair(config)
    z = torch.randn(2, config.latent_channels, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(ours.decode(z), theirs.decode(z).sample, **TOLERANCE)

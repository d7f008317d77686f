"""Our U-Net against diffusers' UNet2DConditionModel: same weights, same input, same numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from latentgen.config import UNetConfig
from latentgen.models.unet import UNet
from latentgen.presets import SD15
from tests.tiny import randomize

SD1_LIKE = UNetConfig(
    in_channels=4,
    out_channels=4,
    block_out_channels=(16, 32, 32),
    attention_levels=(True, True, False),
    num_attention_heads=(4, 4, 4),
    cross_attention_dim=24,
    norm_num_groups=8,
    sample_size=8,
)
SD2_LIKE = replace(SD1_LIKE, num_attention_heads=(2, 4, 8), use_linear_projection=True)
EMBEDDED_LIKE = replace(
    SD2_LIKE,
    in_channels=6,
    out_channels=6,
    block_out_channels=(16, 32, 48),
    attention_levels=(True, True, True),
    num_attention_heads=(2, 2, 3),
)
INPAINTING = replace(SD1_LIKE, in_channels=9)
SHALLOW_AND_DEEP = replace(
    SD1_LIKE,
    block_out_channels=(16, 32),
    attention_levels=(False, True),
    num_attention_heads=(2, 2),
    layers_per_block=1,
    transformer_layers_per_block=2,
    norm_eps=1e-4,
)

VARIANTS = {
    "sd1": SD1_LIKE,
    "sd2": SD2_LIKE,
    "embedded": EMBEDDED_LIKE,
    "inpainting": INPAINTING,
    "shallow-and-deep": SHALLOW_AND_DEEP,
}

# float64 rounds at 1e-16, so what is left is a few hundred operations of it; a wrong norm epsilon, which float32 would
# drown, shows at 1e-6.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-10}


def diffusers_unet(config: UNetConfig) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention_levels),
        up_block_types=tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention_levels)),
        layers_per_block=config.layers_per_block,
        transformer_layers_per_block=config.transformer_layers_per_block,
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        use_linear_projection=config.use_linear_projection,
        norm_num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
    ).eval()


def build_pair(config: UNetConfig) -> tuple[UNet, UNet2DConditionModel]:
    theirs = diffusers_unet(config).double()
    randomize(theirs)
    ours = UNet(config).eval().double()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def inputs(config: UNetConfig, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Latents that are not square, unlike timesteps, fewer tokens than 77."""
    x = torch.randn(batch, config.in_channels, 8, 12, dtype=torch.float64)
    context = torch.randn(batch, 7, config.cross_attention_dim, dtype=torch.float64)
    return x, torch.tensor([999, 17])[:batch], context


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_forward_equals_diffusers(config: UNetConfig) -> None:
    ours, theirs = build_pair(config)
    x, t, context = inputs(config)
    torch.testing.assert_close(ours(x, t, context), theirs(x, t, context).sample, **TOLERANCE)


@torch.no_grad()
def test_fractional_timesteps_equal_diffusers() -> None:
    ours, theirs = build_pair(SD1_LIKE)
    x, _, context = inputs(SD1_LIKE)
    t = torch.tensor([3.25, 812.5], dtype=torch.float64)
    torch.testing.assert_close(ours(x, t, context), theirs(x, t, context).sample, **TOLERANCE)


def test_gradients_equal_diffusers() -> None:
    ours, theirs = build_pair(EMBEDDED_LIKE)
    x, t, context = inputs(EMBEDDED_LIKE)
    target = torch.randn_like(x)
    (ours(x, t, context) - target).square().mean().backward()
    (theirs(x, t, context).sample - target).square().mean().backward()
    their_gradients = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in ours.named_parameters():
        expected = their_gradients[name]
        assert parameter.grad is not None, name
        assert expected is not None, name
        assert expected.abs().max() > 0, f"{name}: a zero gradient proves nothing"
        torch.testing.assert_close(
            parameter.grad, expected, **TOLERANCE, msg=lambda m, name=name: f"gradient of {name}: {m}"
        )


@torch.no_grad()
def test_full_size_sd15_equals_diffusers() -> None:
    """The real shape, in float32 as it is used. Both networks hold the same tensors, so they cost 3.4 GB once."""
    with torch.device("meta"):
        theirs = diffusers_unet(SD15.unet)
        ours = UNet(SD15.unet).eval()
    theirs.to_empty(device="cpu")
    randomize(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    x = torch.randn(1, 4, 16, 16)
    context = torch.randn(1, 77, SD15.unet.cross_attention_dim)
    expected = theirs(x, 500, context).sample
    error = (ours(x, 500, context) - expected).abs().max() / expected.abs().max()
    # Attention tokens may be laid out differently in memory, so float32 sums run in another order.
    assert error <= 1e-4, f"largest error relative to the largest output: {error:.2e}"

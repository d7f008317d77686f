"""Gradient checkpointing: the same gradients to the last bit, and a fraction of what is kept for the backward pass."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from latentgen.config import UNetConfig
from latentgen.models.unet import UNet
from tests.tiny import TINY_UNET, tiny_unet

CONFIGS = {
    "sd1": replace(TINY_UNET, layers_per_block=2, attention_levels=(True, False)),
    "sd2": replace(TINY_UNET, use_linear_projection=True, num_attention_heads=(2, 4)),
    "deep": replace(
        TINY_UNET,
        block_out_channels=(16, 16, 32),
        attention_levels=(False, True, True),
        **{
            "num_attention_heads": (2, 2, 2),
            "transformer_layers_per_block": 2,
        },
    ),
}


def gradients(config: UNetConfig, *, checkpointing: bool, precision: torch.dtype | None) -> tuple[Tensor, int]:
    """All gradients of one backward pass, and the bytes that were kept for it."""
    network = tiny_unet(config).train()
    if checkpointing:
        network.enable_gradient_checkpointing()
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, config.in_channels, 8, 12, generator=generator)
    context = torch.randn(3, 77, config.cross_attention_dim, generator=generator)
    weights = {parameter.untyped_storage().data_ptr() for parameter in network.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other takes its place
        return tensor

    autocast = nullcontext() if precision is None else torch.autocast("cpu", precision)
    with saved_tensors_hooks(keep, lambda tensor: tensor), autocast:
        answer = network(x, torch.tensor([3, 500, 999]), context)
    answer.float().square().mean().backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in network.parameters() if parameter.grad is not None])
    assert len(gradient) == sum(parameter.numel() for parameter in network.parameters())
    return gradient, sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@pytest.mark.parametrize("precision", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_gradients_are_the_same_bit_for_bit(config: UNetConfig, precision: torch.dtype | None) -> None:
    plain, all_bytes = gradients(config, checkpointing=False, precision=precision)
    recomputed, few_bytes = gradients(config, checkpointing=True, precision=precision)
    assert torch.equal(recomputed, plain)
    assert plain.abs().max() > 0
    assert few_bytes * 4 < all_bytes, f"{few_bytes} bytes are kept instead of {all_bytes}"


def test_nothing_is_recomputed_without_gradients() -> None:
    network = tiny_unet()
    network.enable_gradient_checkpointing()
    passes: list[int] = []
    network.mid_block.resnets[0].register_forward_hook(lambda *args: passes.append(1))
    x, context = torch.randn(1, 4, 8, 8), torch.randn(1, 77, 24)
    with torch.no_grad():
        answer = network(x, 5, context)
    assert passes == [1]
    plain = UNet(TINY_UNET).eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(x, 5, context), answer)
    network(x, 5, context).sum().backward()
    assert passes == [1, 1, 1], "once forward, once more on the way back"

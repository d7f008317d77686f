"""A U-Net turned to rotated latents predicts what it did before, rotated."""

from __future__ import annotations

import torch

from scripts.energy_scale import nearest_rotation, turn
from tests.tiny import TINY_UNET, tiny_unet


def test_a_turned_unet_predicts_the_same_rotated() -> None:
    torch.manual_seed(0)
    rotation = nearest_rotation(torch.randn(4, 4))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(4))
    unet = tiny_unet()
    x, t, context = torch.randn(2, 4, 8, 8), torch.tensor([10, 900]), torch.randn(2, 77, TINY_UNET.cross_attention_dim)
    with torch.no_grad():
        expected = torch.einsum("ji,bihw->bjhw", rotation, unet(x, t, context))
        turn(unet, rotation)
        answer = unet(torch.einsum("ji,bihw->bjhw", rotation, x), t, context)
    torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)

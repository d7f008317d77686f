from __future__ import annotations

import pytest
import torch

from latentgen.diffusion.latents import LatentSpace
from latentgen.errors import ShapeError
from latentgen.presets import SD_VAE


def test_normalize_and_back() -> None:
    space = LatentSpace(channels=4, downscale=8, scale=0.5, shift=3.0)
    z = torch.tensor([3.0, 5.0])
    assert space.normalize(z).tolist() == [0.0, 1.0]
    assert space.denormalize(space.normalize(z)).tolist() == z.tolist()


def test_stable_diffusions_latents() -> None:
    space = LatentSpace.from_config(SD_VAE)
    assert space == LatentSpace(channels=4, downscale=8, scale=0.18215, shift=0.0)
    assert space.shape(height_px=512, width_px=768) == (4, 64, 96)


@pytest.mark.parametrize(
    ("height_px", "width_px", "message"),
    [(500, 512, "height 500 .*nearest: 496, 504"), (512, 7, "width 7 .*nearest: 8, 16"), (0, 8, "height 0")],
)
def test_a_size_that_does_not_fit(height_px: int, width_px: int, message: str) -> None:
    with pytest.raises(ShapeError) as caught:
        LatentSpace.from_config(SD_VAE).shape(height_px, width_px)
    assert caught.match(message)

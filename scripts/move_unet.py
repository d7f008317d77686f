"""A trained U-Net brought to other latents than those it was trained on, for `train-unet --init` to go on from there.

    python scripts/move_unet.py weights/embedded runs/scenes runs/scaled
    python scripts/move_unet.py weights/embedded runs/scenes runs/moved --vae runs/vae/model

The first gives the model's own autoencoder energy-scaled latents (`train-vae --scaling energy`), the second gives the
model another autoencoder, and says how much of its latents the U-Net knows. The pictures are what latents are measured
on: a data set as for training. The U-Net's first and last convolution are turned by the rotation nearest to the map
between both spaces: some hundred steps to be where it was, instead of a training anew.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from latentgen.checkpoints.folder import copied_without, load_unet, load_vae, save_unet, save_vae
from latentgen.data.pixels import Pictures, PixelCache, to_float
from latentgen.data.records import list_records
from latentgen.diffusion.latents import LatentSpace
from latentgen.errors import InputError, LatentgenError
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.training.latent_statistics import scale_latents

PICTURES = 96


def rotation_between(before: Tensor, after: Tensor) -> tuple[Tensor, float]:
    """The rotation (C, C) that takes one autoencoder's latents (N, C) nearest to another's of the same places, and the
    share of the latter's energy that it tells.

    A rotation, because a diffusion model's noise stays what it was under it. Source: the orthogonal Procrustes problem,
    Schoenemann 1966, doi:10.1007/BF02289451.
    """
    left, _, right = torch.linalg.svd(after.T @ before)
    rotation = left @ right
    untold = after - before @ rotation.T
    return rotation, 1 - float(untold.square().sum() / after.square().sum())


def turn(unet: UNet, rotation: Tensor) -> None:
    """Make the U-Net predict rotation(y) for rotation(x) where it predicted y for x, in place; rotation (C, C)."""
    first, last = unet.conv_in, unet.conv_out
    assert last.bias is not None, "a U-Net's last convolution has a bias"
    first.weight.data = torch.einsum("oihw,ji->ojhw", first.weight.data, rotation).contiguous()
    last.weight.data = torch.einsum("oihw,jo->jihw", last.weight.data, rotation).contiguous()
    last.bias.data = rotation @ last.bias.data


def latents_of(vae: AutoencoderKL, pixels: Pictures) -> Tensor:
    """As the U-Net sees them, at all places of all pictures, (N, C)."""
    space = LatentSpace.from_config(vae.config)
    means = [space.normalize(vae.encode(to_float(pixels.batch([item])))[0]) for item in range(len(pixels))]
    return torch.cat([mean.movedim(1, -1).flatten(0, -2) for mean in means])


def energy_scaled(folder: Path, pixels: Pictures) -> AutoencoderKL:
    """A model's autoencoder, its latents energy-scaled."""
    vae = load_vae(folder)
    vae.config = scale_latents(vae, pixels, range(len(pixels)), "energy")
    return vae


@torch.no_grad()
def move(model: Path, pictures: Path, out: Path, other: Path | None) -> None:
    """Write the model with the other autoencoder, by default its own energy-scaled, and its U-Net turned.

    Raises LatentgenError for what cannot be read, InputError for an autoencoder whose latents have another shape, and
    for an out that is there already.
    """
    if out.exists():
        raise InputError(f"{out} is there already", hint="name a new folder")
    before, unet = load_vae(model), load_unet(model)
    with tempfile.TemporaryDirectory() as cache:
        side_px = unet.config.sample_size * before.config.downscale
        pixels = PixelCache(list_records(pictures)[:PICTURES], side_px, Path(cache), print)
        after = energy_scaled(model, pixels) if other is None else load_vae(other)
        shapes = [(vae.config.latent_channels, vae.config.downscale) for vae in (before, after)]
        if shapes[0] != shapes[1]:
            raise InputError("latents of {} channels at 1/{} cannot become {} at 1/{}".format(*shapes[0], *shapes[1]))
        rotation, share = rotation_between(latents_of(before, pixels), latents_of(after, pixels))
    print(f"the old latents, turned, tell {share:.0%} of the new ones")
    turn(unet, rotation)
    # Weights may have had other names than ours.
    with copied_without(model, out, "vae", "unet") as aside:
        save_vae(after, aside / "vae")
        save_unet(unet, aside / "unet")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vae", type=Path, help="a model folder, or the model/ of a train-vae run")
    options = parser.parse_args()
    try:
        move(options.model, options.pictures, options.out, options.vae)
    except (LatentgenError, OSError) as error:
        sys.exit(f"move_unet.py: {error}")


if __name__ == "__main__":
    main()

"""A model moved to energy-scaled latents (`train-vae --scaling energy`) after its U-Net was trained on others.

    python scripts/energy_scale.py weights/embedded runs/scenes runs/moved

The autoencoder reconstructs as before, from latents whose components are as large as what they show. The U-Net's first
and last convolution are turned by the rotation nearest to the map between both spaces, so that `train-unet --init`
goes on from what it knew: 50 steps to be where it was, instead of a training anew.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from latentgen.checkpoints.folder import load_unet, load_vae, save_unet, save_vae
from latentgen.data.pixels import PixelCache
from latentgen.data.records import list_records
from latentgen.errors import LatentgenError
from latentgen.models.unet import UNet
from latentgen.training.latent_statistics import energy_map, fold_latent_map, latent_geometry

PICTURES = 24


def nearest_rotation(linear: Tensor) -> Tensor:
    """The orthogonal matrix nearest to this one, (C, C): a diffusion model's noise stays what it was under it."""
    left, _, right = torch.linalg.svd(linear)
    return left @ right


def turn(unet: UNet, rotation: Tensor) -> None:
    """Make the U-Net predict rotation(y) for rotation(x) where it predicted y for x, in place; rotation (C, C)."""
    first, last, rotation = unet.conv_in, unet.conv_out, rotation.float()
    assert last.bias is not None, "a U-Net's last convolution has a bias"
    first.weight.data = torch.einsum("oihw,ji->ojhw", first.weight.data, rotation).contiguous()
    last.weight.data = torch.einsum("oihw,jo->jihw", last.weight.data, rotation).contiguous()
    last.bias.data = rotation @ last.bias.data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("pictures", type=Path, help="what the latents are measured on: a data set as for training")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    try:
        move(options.model, options.pictures, options.out)
    except LatentgenError as error:
        sys.exit(f"energy_scale.py: {error}")


@torch.no_grad()
def move(model: Path, pictures: Path, out: Path) -> None:
    """Write to out the model folder with its autoencoder scaled and its U-Net turned. Raises LatentgenError."""
    vae, unet = load_vae(model), load_unet(model)
    records = list_records(pictures)[:PICTURES]
    with tempfile.TemporaryDirectory() as cache:
        pixels = PixelCache(records, unet.config.sample_size * vae.config.downscale, Path(cache), print)
        geometry = latent_geometry(vae, pixels, range(len(records)))
    linear, logvar = energy_map(geometry)
    vae.config = fold_latent_map(vae, geometry.mean, linear, logvar)
    turn(unet, nearest_rotation(linear))
    shutil.copytree(model, out, dirs_exist_ok=True)
    save_vae(vae, out / "vae")
    save_unet(unet, out / "unet")


if __name__ == "__main__":
    main()

"""What `encode`, `decode` and `reconstruct` share: the autoencoder alone, pictures on its grid, where results go."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from latentgen.cli.console import Console
from latentgen.cli.model_names import resolve_model
from latentgen.cli.output import missing_folder
from latentgen.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from latentgen.diffusion.latents import LatentSpace
    from latentgen.images.pixels import Pixels
    from latentgen.models.vae import AutoencoderKL

PICTURE_ENDINGS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@dataclass(frozen=True, slots=True, eq=False)
class Autoencoder:
    """A model's autoencoder on a device."""

    vae: AutoencoderKL
    space: LatentSpace
    model: str
    fingerprint: str
    tiling: Literal["auto", "on", "off"]

    def encode(self, pixels: Pixels) -> Tensor:
        """(H, W, 3) to latents (1, C, h, w)."""
        from latentgen.pipeline.decoding import encode
        from latentgen.pipeline.init_picture import as_tensor

        return encode(self.vae, self.space, as_tensor(pixels), self.tiling)

    def decode(self, latents: Tensor) -> Pixels:
        """Latents (1, C, h, w) to (H, W, 3)."""
        from latentgen.pipeline.decoding import decode

        return decode(self.vae, self.space, latents.to(next(self.vae.parameters()).device), self.tiling)


def load_autoencoder(
    model: str | None, *, device: str, dtype: str, threads: int | None, tiling: Literal["auto", "on", "off"]
) -> Autoencoder:
    """The VAE of a model, in float32 on a CPU unless told otherwise. Raises as `load_vae` does."""
    path = resolve_model(model)
    import torch

    from latentgen.checkpoints.folder import load_vae
    from latentgen.checkpoints.hashes import sha256
    from latentgen.checkpoints.identify import identify
    from latentgen.checkpoints.layout import part_folder, read_config, weight_files
    from latentgen.diffusion.latents import LatentSpace
    from latentgen.kernels.vae import speed_up_vae
    from latentgen.pipeline import choose_device, choose_dtype

    if threads is not None:
        torch.set_num_threads(threads)
    chosen = choose_device(device)
    precision = choose_dtype(dtype, chosen, fast=False)
    if path.is_file() and identify(path).kind == "model":
        read_config(path)  # raises for models of others, whose VAE may have the same shape
    vae = load_vae(path, device=chosen, dtype=precision)
    weights = weight_files(part_folder(path, "vae"), "vae") if path.is_dir() else (path,)
    speed_up_vae(vae)
    return Autoencoder(vae, LatentSpace.from_config(vae.config), path.resolve().name, sha256(*weights)[:10], tiling)


@contextmanager
def telling_warnings(console: Console) -> Generator[None]:
    """What the library warns of, such as memory that was not enough, in our words' form: no file name and line."""
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: console.warn(str(message))  # pyright: ignore[reportUnknownLambdaType]
        yield


def read_pictures(paths: Sequence[Path]) -> list[Pixels]:
    """Every picture upright and without alpha. Raises before anything is computed if one cannot be read."""
    from latentgen.images.inputs import read_input

    return [read_input(path) for path in paths]


def on_grid(pixels: Pixels, name: str, multiple_px: int, console: Console) -> Pixels:
    """A picture cut in its middle to sides the autoencoder takes, which is said. Raises InputError if it is smaller."""
    import numpy as np

    height, width = pixels.shape[:2]
    inner_height, inner_width = height - height % multiple_px, width - width % multiple_px
    if not (inner_height and inner_width):
        raise InputError(f"{name} is {width}x{height}: this model's smallest side is {multiple_px}")
    if (inner_height, inner_width) == (height, width):
        return pixels
    console.note(f"{name} {width}x{height}, of which the middle {inner_width}x{inner_height}")
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    return np.ascontiguousarray(pixels[top : top + inner_height, left : left + inner_width])


def picture_paths(output: Path, names: Sequence[str], *, overwrite: bool) -> list[Path]:
    """A file for each picture: `output` itself for one with a picture's ending, else PNGs of these names in a folder.

    Raises InputError if a folder is missing, or a file is there and may not be replaced.
    """
    if len(names) == 1 and output.suffix.lower() in PICTURE_ENDINGS and not output.is_dir():
        paths = [output]
    elif output.suffix.lower() in PICTURE_ENDINGS and not output.is_dir():
        raise InputError(f"--output {output} is one file for {len(names)} pictures", hint="name a folder")
    else:
        stems = [Path(name).stem for name in names]
        count = Counter(stems)
        paths = [
            output / f"{stem if count[stem] == 1 else f'{stem}-{i:05}'}.png" for i, stem in enumerate(stems, start=1)
        ]
    for path in paths:
        check_output(path, overwrite=overwrite, may_create_folder=path != output)
    return paths


def check_output(path: Path, *, overwrite: bool, may_create_folder: bool = False) -> None:
    """Raise InputError if a file cannot be written there as asked."""
    if path.is_dir():
        raise InputError(f"--output {path} is a folder")
    if path.exists() and not overwrite:
        raise InputError(f"--output {path} exists", hint="--overwrite replaces it")
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--output: {folder} is a file, not a folder")
    if not folder.exists() and not may_create_folder:
        raise missing_folder("--output", folder)


def write_picture(path: Path, pixels: Pixels, *, overwrite: bool) -> None:
    """Pixels alone, in the format that the name ends with."""
    from latentgen.images.files import encode_picture, write_file

    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, encode_picture(pixels, PICTURE_ENDINGS[path.suffix.lower()], None), overwrite=overwrite)

"""A VAE from elsewhere for a model: which it may be, and what tells it from others. No torch here."""

from __future__ import annotations

from pathlib import Path

from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.layout import CONFIG, as_text, part_folder, read_vae_part, weight_files
from latentgen.config import ModelConfig, VAEConfig
from latentgen.errors import ModelLoadError, ModelNotFoundError


def read_other_vae(path: Path, config: ModelConfig) -> VAEConfig:
    """The VAE of a file, of a folder that holds just it or of another model, for use with the U-Net of `config`.

    Raises ModelNotFoundError or ModelLoadError if there is none, or if its latents have another form than the model's.
    """
    if not path.exists():
        raise ModelNotFoundError(f"there is no VAE {path}", hint="a .safetensors file, or a diffusers folder")
    vae = read_vae_part(path)
    theirs, ours = (f"{v.latent_channels} channels at 1/{v.downscale} of the size" for v in (vae, config.vae))
    if theirs != ours:
        raise ModelLoadError(
            f"the VAE {path.name} does not fit this model: its latents have {theirs}, the model's {ours}",
            hint="a VAE for the same family of models is needed",
        )
    return vae


def other_vae_name(path: Path) -> str:
    """What pictures call it: the file's name without its ending, or the folder's; never a path."""
    path = path.resolve()
    if path.is_file():
        return as_text(path.stem)
    return as_text(path.parent.name if path.name == "vae" else path.name)


def other_vae_fingerprint(path: Path) -> str:
    """Ten hexadecimal digits of the SHA-256: of the file itself, or of a folder's weights and config together."""
    own = None if path.is_file() else part_folder(path, "vae")
    files = (path,) if own is None else (*weight_files(own, "vae"), own / CONFIG)
    return sha256(*files, remembered=True)[:10]

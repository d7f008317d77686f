"""Drawing with little memory: of a model's three networks one is in memory at a time.

Prompts need the text encoder, steps the U-Net, pixels the VAE. Each is read from the model's files when it is asked
for, after the one before it was let go. So memory is that of the largest part and its feature maps, and what it costs
is reading: of a 2 GB model in the page cache seconds a picture. On a CPU what is computed is the same, to the bit. On a
GPU, where the bits depend on the batch anyway, both passes of guidance go through the U-Net one after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from latentgen.checkpoints.folder import (
    ModelBundle,
    load_config,
    load_text_encoder,
    load_unet,
    load_vae,
    predicted_type,
)
from latentgen.checkpoints.io import without_numbers
from latentgen.kernels.memory import return_freed_memory
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL

Part = Literal["unet", "vae", "text_encoder"]

LOADERS: dict[Part, Callable[..., nn.Module]] = {
    "text_encoder": load_text_encoder,
    "vae": load_vae,
    "unet": load_unet,
}
"""In the order in which they are read first, to find damage before anything is drawn."""


class OnDemandBundle(ModelBundle):
    """A model whose networks are read from its files when they are asked for, and let go for the next.

    `unet`, `vae` and `text_encoder` are as a `ModelBundle`'s, but whoever holds one of them for longer than he computes
    with it keeps it in memory.
    """

    def __init__(self, path: Path, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> None:
        """Read every part once, strictly, and keep the last one. Raises as `load_model`."""
        self.folder, self._fingerprint = path, None
        self.config, self.tokenizer = load_config(path)
        self._device, self._dtype = torch.device(device), dtype
        self._present: tuple[Part, nn.Module] | None = None
        self._given: AutoencoderKL | None = None
        self._came: Callable[[Part, nn.Module], None] = lambda part, network: None
        self._goes: Callable[[Part], None] = lambda part: None
        for part in LOADERS:
            self._need(part)
        self.config = predicted_type(path, self.config, self.unet)

    def follow(self, came: Callable[[Part, nn.Module], None], goes: Callable[[Part], None]) -> None:
        """came: called with every network that is read from now on; goes: before one is let go."""
        self._came, self._goes = came, goes

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def unet(self) -> UNet:  # pyright: ignore[reportIncompatibleVariableOverride]  a field of the base
        return self._need("unet")

    @property
    def text_encoder(self) -> CLIPTextModel:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._need("text_encoder")

    @property
    def vae(self) -> AutoencoderKL:
        return self._need("vae") if self._given is None else self._given

    @vae.setter
    def vae(self, vae: AutoencoderKL) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """A VAE from elsewhere stays in memory."""
        self._given = vae

    def read_anew(self) -> None:
        """Let go of what is in memory."""
        if self._present is not None:
            self._goes(self._present[0])
            self._present = None
            return_freed_memory()
            if self._device.type == "cuda":
                torch.cuda.empty_cache()

    def outline(self) -> ModelBundle:
        """The networks' layers and shapes, without numbers."""
        with without_numbers():
            networks = (UNet(self.config.unet), AutoencoderKL(self.config.vae), CLIPTextModel(self.config.text_encoder))
        return ModelBundle(*networks, self.tokenizer, replace(self.config), self.folder)

    def _need(self, part: Part) -> Any:
        if self._present is None or self._present[0] != part:
            self.read_anew()
            assert self.folder is not None, "it was opened from its files"
            network = LOADERS[part](self.folder, device=self._device, dtype=self._dtype)
            self._present = (part, network)
            self._came(part, network)
        return self._present[1]

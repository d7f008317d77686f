"""Training the text encoder along with the U-Net: what CLIP's loss does not ask of it, the denoising loss does.

CLIP tells a picture's caption from those of other pictures. Words that seldom decide that, as left and right, it may
pass over: their states come out nearly alike, and a U-Net that is given frozen states cannot make up for it. Here the
network is given tokens, and the encoder's weights are trained by the same loss as the U-Net's, at a rate of their own.
Imagen (arXiv:2205.11487) and Stable Diffusion freeze the encoder; DreamBooth (arXiv:2208.12242, section 3.2) trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.training.alignment import AlignedObjective, AlignedUNet
from latentgen.training.optimizer import RatedModule
from latentgen.training.rng import Draw, Order
from latentgen.training.unet import UNetObjective

DENOISER, TEXT_ENCODER = "denoiser.", "text_encoder."
"""What the names of their tensors begin with in a `PromptedUNet`."""


class TokenContexts:
    """In place of a caption's states its token ids, for the network to encode itself."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def context(self, caption: str) -> Tensor:
        """(77,) int64; the empty string is the unconditional context."""
        return self._tokenizer.encode([caption])[0]


class PromptedUNet(RatedModule):
    """A U-Net, with or without a head for alignment, and the text encoder before it: both are trained."""

    def __init__(self, denoiser: UNet | AlignedUNet, text_encoder: CLIPTextModel, text_rate: float) -> None:
        """text_rate: the text encoder's learning rate, as a share of the U-Net's."""
        super().__init__({TEXT_ENCODER: text_rate})
        self.denoiser = denoiser
        self.text_encoder = text_encoder

    def forward(self, x: Tensor, t: Tensor, token_ids: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """As the denoiser, of token ids (B, 77) where that takes their states."""
        return self.denoiser(x, t, self.text_encoder(token_ids))

    def without_head(self) -> PromptedUNet:
        """The same weights, without the head for alignment: it gives the prediction alone."""
        if isinstance(self.denoiser, UNet):
            return self
        return PromptedUNet(self.denoiser.unet, self.text_encoder, self.rates[TEXT_ENCODER])


class PromptedObjective:
    """The loss of a `UNetObjective` or an `AlignedObjective`, of a network that encodes the captions itself."""

    def __init__(
        self, network: PromptedUNet, objective: UNetObjective | AlignedObjective, denoising: UNetObjective
    ) -> None:
        """objective: what `network.denoiser` is trained for, with `TokenContexts`; denoising: itself, or its own.

        The text encoder of the denoising objective's sample plan is the network's.
        """
        self._network, self.objective, self.denoising = network, objective, denoising

    @property
    def network(self) -> PromptedUNet:
        return self._network

    def order(self, seed: int, samples_per_step: int) -> Order:
        return self.objective.order(seed, samples_per_step)

    def describe(self) -> Mapping[str, Any]:
        described = self.objective.describe()
        rate = self._network.rates[TEXT_ENCODER]
        return {**described, "objective": f"{described['objective']} and text encoder", "text_encoder_rate": rate}

    def batch(self, draws: Sequence[Draw]) -> Any:
        return self.objective.batch(draws)

    def loss(self, network: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        return self.objective.loss(network, batch, step)

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        return self.denoising.validate(_prompted(network).without_head())

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        unet = _prompted(network).without_head().denoiser
        assert isinstance(unet, UNet), "a network without a head is a U-Net"
        self.denoising.write_samples(unet, folder, step)


def _prompted(network: nn.Module) -> PromptedUNet:
    assert isinstance(network, PromptedUNet), "the loop hands back the network it was given"
    return network

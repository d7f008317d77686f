"""Low-rank adaptation (LoRA, arXiv:2106.09685): a frozen layer W learns delta W = alpha / rank * up @ down."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentgen.errors import ShapeError
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.unet import UNet

Layer = nn.Linear | nn.Conv2d


@dataclass(frozen=True, slots=True, eq=False)
class LowRankUpdate:
    """What a LoRA adds to one layer.

    Shapes: down (r, in) and up (out, r) of a linear layer; down (r, in, kh, kw) and up (out, r, 1, 1) of a convolution.
    """

    down: Tensor
    up: Tensor
    alpha: float

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def is_whole(self) -> bool:
        """Whether down and up are of one rank and make one layer."""
        up, down = self.up, self.down
        if down.ndim not in (2, 4) or up.ndim != down.ndim or 0 in (*up.shape, *down.shape):
            return False
        return up[0].numel() == up.shape[1] == self.rank

    def fits(self, weight: Tensor) -> bool:
        """Whether it is for a layer of this weight. A 1x1 convolution and a linear layer take each other's."""
        sides, kernel = (self.up.shape[0], self.down.shape[1]), self.down.shape[2:].numel()
        return sides == weight.shape[:2] and kernel == weight.shape[2:].numel()

    def delta(self, shape: torch.Size) -> Tensor:
        """alpha / rank * up @ down in float32, in the shape of the layer's weight."""
        product = self.up.float().flatten(1) @ self.down.float().flatten(1)  # (out, in * kh * kw)
        return (product * (self.alpha / self.rank)).reshape(shape)


class Adapter(nn.Module):
    """The low-rank path beside one layer: alpha / rank * up(down(x)), 0 until it is trained.

    `down` starts as a layer of its shape does and `up` as zeros, as in the reference (`loralib/layers.py`). No dropout:
    the network may be computed twice (`UNet.enable_gradient_checkpointing`), and must be the same both times.
    """

    def __init__(self, layer: Layer, *, rank: int, alpha: float) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.down: Layer = nn.Linear(layer.in_features, rank, bias=False)
            self.up: Layer = nn.Linear(rank, layer.out_features, bias=False)
        else:
            assert isinstance(layer.padding, tuple), "our convolutions pad by numbers"
            self.down = nn.Conv2d(
                layer.in_channels, rank, _pair(layer.kernel_size), _pair(layer.stride), _pair(layer.padding), bias=False
            )
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.zeros_(self.up.weight)
        self.rank, self.alpha = rank, alpha

    def forward(self, x: Tensor) -> Tensor:
        """The layer's input -> what is added to its output."""
        return self.up(self.down(x)) * (self.alpha / self.rank)


@dataclass(frozen=True, slots=True)
class AdapterSize:
    """Of one adapter."""

    rank: int
    alpha: float


class LoRANetwork(nn.Module):
    """A frozen U-Net, and where it is adapted too a frozen text encoder, with an adapter beside some of their layers.

    Its parameters, and its state dict, are the adapters alone. They are active in the frozen networks themselves, so
    that whatever draws with those draws with the adapters. Moving this module moves the adapters only.
    """

    def __init__(self, unet: UNet, text_encoder: CLIPTextModel | None, sizes: Mapping[str, AdapterSize]) -> None:
        """sizes: of the adapters, by their layers' names (`layers_of`).

        Raises ShapeError for an adapter that no layer of these networks can have.
        """
        super().__init__()
        # In a tuple, so that the frozen networks are no submodules.
        self._frozen = (unet, text_encoder)
        for network in (unet, text_encoder):
            if network is not None:
                network.requires_grad_(False).eval()
        layers = layers_of(unet, text_encoder)
        self.adapters = nn.ModuleDict()
        self._keys: dict[str, str] = {}
        for name, size in sizes.items():
            if name not in layers:
                raise ShapeError(f"these networks have no layer {name} to adapt")
            layer = layers[name]
            if not 1 <= size.rank <= min(layer.weight.shape[:2]):
                raise ShapeError(f"{name}: rank {size.rank} is not between 1 and {min(layer.weight.shape[:2])}")
            adapter = Adapter(layer, rank=size.rank, alpha=size.alpha).to(layer.weight.device)
            self._keys[name] = name.replace(".", "_")  # a submodule's name has no dots
            self.adapters[self._keys[name]] = adapter
            layer.register_forward_hook(_add(adapter))

    @property
    def unet(self) -> UNet:
        """The frozen U-Net, with the adapters active."""
        return self._frozen[0]

    @property
    def adapts_text(self) -> bool:
        """Whether the text encoder is adapted, and computed here."""
        return self._frozen[1] is not None

    @property
    def sizes(self) -> dict[str, AdapterSize]:
        """The adapters by the names of their layers."""
        return {name: AdapterSize(self._adapter(name).rank, self._adapter(name).alpha) for name in self._keys}

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        """The U-Net's prediction.

        Shapes: as `UNet.forward`; where the text encoder is adapted too, `context` holds token ids (B, 77) int64.
        """
        unet, text_encoder = self._frozen
        return unet(x, t, context if text_encoder is None else text_encoder(context))

    def updates(self, weights: Mapping[str, Tensor] | None = None) -> dict[str, LowRankUpdate]:
        """The low-rank updates by the names of their layers: of this network, or of another state dict of it."""
        state = self.state_dict() if weights is None else weights
        return {
            name: LowRankUpdate(
                state[f"adapters.{key}.down.weight"], state[f"adapters.{key}.up.weight"], self._adapter(name).alpha
            )
            for name, key in self._keys.items()
        }

    @torch.no_grad()
    def load_updates(self, updates: Mapping[str, LowRankUpdate]) -> None:
        """Take up updates, one for each adapter and of its size. Raises ShapeError for one that does not fit."""
        for name in self._keys:
            adapter, update = self._adapter(name), updates[name]
            pairs = ((adapter.down.weight, update.down), (adapter.up.weight, update.up))
            if any(weight.numel() != value.numel() for weight, value in pairs):
                raise ShapeError(f"{name} is adapted from {tuple(update.down.shape)} to {tuple(update.up.shape)}")
            for weight, value in pairs:
                weight.copy_(value.reshape(weight.shape))

    def _adapter(self, name: str) -> Adapter:
        adapter = self.adapters[self._keys[name]]
        assert isinstance(adapter, Adapter), "this module put it there"
        return adapter


def layers_of(unet: UNet, text_encoder: CLIPTextModel | None) -> dict[str, Layer]:
    """Every linear layer and convolution by its part and path: `unet.conv_in`, `text_encoder.text_model. ...`."""
    text = {} if text_encoder is None else layers_in("text_encoder", text_encoder)
    return {**layers_in("unet", unet), **text}


def layers_in(part: str, network: nn.Module) -> dict[str, Layer]:
    """Those of one part, by names as in `layers_of`."""
    layers = {f"{part}.{path}": layer for path, layer in network.named_modules()}
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear | nn.Conv2d)}


def _add(adapter: Adapter) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    """A layer's forward hook: its output, and what the adapter makes of its input."""

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + adapter(inputs[0])

    return add


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    height, width = sizes
    return height, width

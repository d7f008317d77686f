"""Perceptual losses of train-vae: LPIPS on VGG16's features, or the same distance on a CLIP image tower's."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import TypeVar, cast
from zipfile import BadZipFile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.checkpoints.clip_folder import CLIP_MEAN, CLIP_STD, load_image_tower
from latentgen.checkpoints.hashes import sha256
from latentgen.checkpoints.io import load_strict
from latentgen.checkpoints.layout import find_weights
from latentgen.errors import ModelLoadError
from latentgen.models.clip_image import CLIPImageModel
from latentgen.training.perceptual_files import PerceptualChoice

M = TypeVar("M", bound=nn.Module)

VGG16_TAPS = (3, 8, 15, 22, 29)
"""relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3 among torchvision's `vgg16().features`."""
VGG16_WIDTHS = (64, 128, 256, 512, 512)
LPIPS_SHIFT, LPIPS_SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""ImageNet's mean and standard deviation for pixels in [-1, 1], as LPIPS 0.1 rounds them."""


class LPIPS(nn.Module):
    """Learned perceptual distance: differences of VGG16's unit-length features, weighted by channel.

    Source: arXiv:1801.03924, eq. 1, version 0.1 of its weights (which are the w squared of the equation).
    """

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models import vgg16

        with torch.device("meta"):  # its classifier has 124 M parameters that nobody needs
            self.features = cast(nn.Sequential, vgg16(weights=None, init_weights=False).features)[: VGG16_TAPS[-1] + 1]
            for module in self.features:
                if isinstance(module, nn.ReLU):
                    module.inplace = False
        self.heads = nn.ParameterList(torch.zeros(width) for width in VGG16_WIDTHS)
        self.register_buffer("shift", torch.tensor(LPIPS_SHIFT)[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor(LPIPS_SCALE)[:, None, None], persistent=False)

    @classmethod
    def load(cls, vgg16: Path, heads: Path) -> LPIPS:
        """From the published files. Raises ModelLoadError when they are not those."""
        module = cls()
        wanted = module.features.state_dict()
        # conv5_3 is the last convolution, so all of `features` is there; the classifier is not.
        features = {name.removeprefix("features."): value for name, value in _read_pickle(vgg16).items()}
        load_strict(module.features, {name: value for name, value in features.items() if name in wanted}, vgg16)
        linear = {
            name.removeprefix("lin").removesuffix(".model.1.weight"): value.flatten()
            for name, value in _read_pickle(heads).items()
        }
        load_strict(module.heads, linear, heads)
        return _frozen(module)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean distance of the pictures a and b, (B, 3, H, W) in [-1, 1] with sides of at least 16: a scalar."""
        x = (torch.cat([a, b]) - self.shift) / self.scale
        total = torch.zeros((), device=a.device)
        heads = iter(self.heads)
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in VGG16_TAPS:
                first, second = unit_length(x).chunk(2)
                weighted = (first - second).square() * next(heads)[:, None, None]
                total = total + weighted.sum(dim=1).mean()
        return total


class PatchStates(nn.Module):
    """What a CLIP image tower makes of each patch of a picture, after each of its layers.

    Pictures of any size are resized to the side that the tower was trained on.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, tower: CLIPImageModel) -> None:
        super().__init__()
        self.tower = tower
        self.side_px = tower.config.side_px
        self.register_buffer("mean", torch.tensor(CLIP_MEAN)[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP_STD)[:, None, None], persistent=False)

    @classmethod
    def load(cls, folder: Path) -> PatchStates:
        """From the folder of a CLIP model. Raises ModelLoadError as `load_image_tower` does."""
        return _frozen(cls(load_image_tower(folder)))

    def forward(self, pictures: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> a (B, D, rows, columns) for each layer."""
        x = (pictures + 1) / 2
        if x.shape[-2:] != (self.side_px, self.side_px):
            x = F.interpolate(x, (self.side_px, self.side_px), mode="bilinear", antialias=True, align_corners=False)
        rows = self.side_px // self.tower.config.patch_px
        states = self.tower((x - self.mean) / self.std)  # (B, 1 + patches, D), the class token first
        return [tokens[:, 1:].mT.unflatten(2, (rows, rows)) for tokens in states]


class CLIPDistance(nn.Module):
    """LPIPS' distance on the patches of a CLIP image tower, after each of its layers, all channels counting alike."""

    def __init__(self, patches: PatchStates) -> None:
        super().__init__()
        self.patches = patches

    @classmethod
    def load(cls, folder: Path) -> CLIPDistance:
        """From the folder of a CLIP model. Raises ModelLoadError as `load_image_tower` does."""
        return cls(PatchStates.load(folder))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Mean distance of the pictures a and b, (B, 3, H, W) in [-1, 1]: a scalar."""
        distances: list[Tensor] = []
        for states in self.patches(torch.cat([a, b])):
            first, second = unit_length(states).chunk(2)
            distances.append((first - second).square().sum(dim=1).mean())
        return torch.stack(distances).mean()


def unit_length(features: Tensor) -> Tensor:
    """(B, C, ...) divided by its length over C, in float32; features of all zeros stay zero, with a finite gradient."""
    features = features.float()
    return features * torch.rsqrt(features.square().sum(dim=1, keepdim=True) + 1e-20)


def load_perceptual(choice: PerceptualChoice) -> nn.Module | None:
    """The frozen distance of two batches of pictures; None for none."""
    if choice.kind == "lpips":
        return LPIPS.load(*choice.files)
    return CLIPDistance.load(*choice.files) if choice.kind == "clip" else None


def perceptual_identity(choice: PerceptualChoice) -> str:
    """What a resumed run must share: the kind, and a hash of the weights."""
    if choice.kind == "none":
        return "none"
    paths = [find_weights(path, "clip") if path.is_dir() else path for path in choice.files]
    return f"{choice.kind}-{hashlib.sha256(sha256(*paths).encode()).hexdigest()[:16]}"


def _frozen(module: M) -> M:
    return module.eval().requires_grad_(False)


def _read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a torch file, read as data only."""
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, pickle.UnpicklingError, BadZipFile, RuntimeError, EOFError, ValueError, KeyError):
        raise ModelLoadError(f"{path} is damaged, or not a file of tensors", hint="copy or download it again") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ModelLoadError(f"{path} holds something else than tensors by name")
    return cast("dict[str, Tensor]", content)

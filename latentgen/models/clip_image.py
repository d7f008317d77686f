"""CLIP's vision transformer: a picture to the states of its patches, layer by layer.

Parameter names are those under `vision_model.` in the published CLIP folders (transformers' `CLIPModel`).
Architecture: CLIP, arXiv:2103.00020, section 2.4, after ViT, arXiv:2010.11929; pre-norm, no causal mask.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.config import Activation, ImageTowerConfig
from latentgen.errors import ShapeError
from latentgen.models.attention import attention
from latentgen.models.clip_text import quick_gelu

NORM_EPS = 1e-5


class PatchEmbeddings(nn.Module):
    """Class token, then patches from left to right and top to bottom; each with its position."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        patches = (config.side_px // config.patch_px) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(config.width))
        self.patch_embedding = nn.Conv2d(3, config.width, config.patch_px, stride=config.patch_px, bias=False)
        self.position_embedding = nn.Embedding(1 + patches, config.width)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) -> (B, 1 + patches, D)."""
        patches = self.patch_embedding(pixels).flatten(2).mT  # (B, patches, D)
        first = self.class_embedding.expand(len(pixels), 1, -1).to(patches.dtype)
        return torch.cat([first, patches], dim=1) + self.position_embedding.weight


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.heads = config.width // config.head_width
        self.q_proj = nn.Linear(config.width, config.width)
        self.k_proj = nn.Linear(config.width, config.width)
        self.v_proj = nn.Linear(config.width, config.width)
        self.out_proj = nn.Linear(config.width, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads))


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.hidden_act: Activation = config.hidden_act
        inner = int(config.width * config.mlp_ratio)
        self.fc1 = nn.Linear(config.width, inner)
        self.fc2 = nn.Linear(inner, config.width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        h = self.fc1(x)
        return self.fc2(quick_gelu(h) if self.hidden_act == "quick_gelu" else F.gelu(h))


class Layer(nn.Module):
    """Self-attention and MLP, each normed before and added after."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.self_attn = SelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))


class CLIPImageModel(nn.Module):
    """A normalised picture to the states after each layer."""

    def __init__(self, config: ImageTowerConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = PatchEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.width, eps=NORM_EPS)  # the published spelling
        self.encoder = Encoder(config)
        self.post_layernorm = nn.LayerNorm(config.width, eps=NORM_EPS)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(B, 3, S, S), normalised as CLIP's -> a (B, 1 + patches, D) for each layer, the class token first.

        Raises ShapeError for pictures of another side than the positions are for.
        """
        side = self.config.side_px
        if pixels.shape[1:] != (3, side, side):
            raise ShapeError(f"image tower: pixels are {tuple(pixels.shape)}, but it takes (B, 3, {side}, {side})")
        x = self.pre_layrnorm(self.embeddings(pixels))
        states: list[Tensor] = []
        for layer in self.encoder.layers:
            x = layer(x)
            states.append(x)
        return states

    def pooled(self, states: list[Tensor]) -> Tensor:
        """The class token after the last layer, normed: what is projected into CLIP's space, (B, D)."""
        return self.post_layernorm(states[-1][:, 0])

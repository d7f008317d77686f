"""CLIP's text transformer, as Stable Diffusion conditions on it.

Parameter names are those of the published `text_encoder` folders (transformers' `CLIPTextModel`, with its `text_model.`
prefix), so their files load strictly and without a key map.
Architecture: CLIP, arXiv:2103.00020, section 2.4: a pre-norm transformer with causal attention.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.config import Activation, TextEncoderConfig
from latentgen.errors import ShapeError
from latentgen.models.attention import attention


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x): the approximation that OpenAI's CLIP was trained with (arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


class TextEmbeddings(nn.Module):
    """Token plus position embeddings."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        # OpenAI's CLIP (`clip/model.py`, initialize_parameters): the default of 1 would drown the first layers.
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.position_embedding.weight, std=0.01)

    def forward(self, token_ids: Tensor, token_vectors: Tensor | None = None) -> Tensor:
        """(B, N) int64 -> (B, N, D). token_vectors (B, N, D): in place of the tokens' own, as in textual inversion."""
        vectors = self.token_embedding(token_ids) if token_vectors is None else token_vectors
        return vectors + self.position_embedding.weight[: token_ids.shape[1]]


class CausalSelfAttention(nn.Module):
    """Multi-head self-attention; a token sees itself and those before it."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        dim = config.hidden_size
        self.heads = config.num_attention_heads
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        return self.out_proj(attention(self.q_proj(x), self.k_proj(x), self.v_proj(x), self.heads, causal=True))


class MLP(nn.Module):
    """Linear, activation, linear."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.hidden_act: Activation = config.hidden_act
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        h = self.fc1(x)
        return self.fc2(quick_gelu(h) if self.hidden_act == "quick_gelu" else F.gelu(h))


class EncoderLayer(nn.Module):
    """Self-attention and MLP, each normed before and added after."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self_attn = CausalSelfAttention(config)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, D)."""
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, skip_last: int) -> Tensor:
        """(B, N, D) -> (B, N, D), without the last `skip_last` layers."""
        for layer in self.layers[: len(self.layers) - skip_last]:
            x = layer(x)
        return x


class TextTransformer(nn.Module):
    """Embeddings, layers and the final norm: what the `text_model.` prefix of the published files holds."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, token_ids: Tensor, skip_last: int, token_vectors: Tensor | None = None) -> Tensor:
        """(B, N) int64 -> (B, N, D)."""
        return self.final_layer_norm(self.encoder(self.embeddings(token_ids, token_vectors), skip_last))


class CLIPTextModel(nn.Module):
    """Token ids to one state a token: the U-Net's context."""

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)

    def forward(self, token_ids: Tensor, *, skip_last: int = 0, token_vectors: Tensor | None = None) -> Tensor:
        """Encode tokens.

        Shapes: token_ids (B, N) int64, N at most max_position_embeddings (77); returns (B, N, D), after
        final_layer_norm. `skip_last`: layers left out at the end, before that norm (A1111's clip skip less one).
        token_vectors (B, N, D): what is read in place of the tokens' own embeddings (`look_up`).
        Raises ShapeError for more tokens than there are positions, or fewer layers than are to be left out.
        """
        positions, layers = self.config.max_position_embeddings, self.config.num_hidden_layers
        if token_ids.ndim != 2 or token_ids.shape[1] > positions:
            raise ShapeError(
                f"text encoder: token ids are {tuple(token_ids.shape)}, but it takes (B, up to {positions})"
            )
        if not 0 <= skip_last < layers:
            raise ShapeError(f"text encoder: {skip_last} of its {layers} layers cannot be left out")
        return self.text_model(token_ids, skip_last, token_vectors)

    def look_up(self, token_ids: Tensor) -> Tensor:
        """The tokens' own embeddings: (B, N) int64 -> (B, N, D)."""
        return self.text_model.embeddings.token_embedding(token_ids)

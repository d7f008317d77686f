"""Attention: the function itself, the U-Net's text-conditioned transformer, the autoencoder's single self-attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.models.layers import PointwiseConv2d, is_drawing_on_cpu, zero_init

TRANSFORMER_GROUP_NORM_EPS = 1e-6
"""The norm around a spatial transformer; the U-Net's residual blocks use 1e-5 (CompVis `ldm/modules/attention.py`)."""

_EXPLICIT_SCORES_LIMIT = 1 << 20
"""Largest queries x keys product for which the scores are written out in CPU bf16 training: 1024x1024 fits."""

_QUERIES_AT_A_TIME = 32
_FLOATS_OF_A_CACHE_LINE = 16

_ROWS_THAT_DEPEND_ON_THREADS = range(5, 12)
"""MKL's product of so few rows sums in another order on 2 or 8 threads (5, 6, 7, 9, 10 and 11; measured)."""


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int, *, causal: bool = False) -> Tensor:
    """Multi-head attention softmax(q k^T / sqrt(C / heads)) v, by the fastest of two equal ways.

    Shapes: q (B, N, C); k and v (B, M, C) -> (B, N, C). `causal`: token n sees tokens 0 .. n only.
    Source: arXiv:1706.03762, eq. 1.

    `scaled_dot_product_attention` everywhere, except in bf16 training on a CPU with few tokens: there two batched
    matrix products around a softmax take less time. Forward and backward under bf16 autocast, ms, one core of an AMD
    EPYC with AVX512-BF16, torch 2.14, batch 16, 4 heads of 64:

        queries x keys          16x16   16x77   64x64   64x77   256x256   256x77   1024x77
        SDPA                    3.1     3.9     8.8     10.1    50        26       75
        products and softmax    0.6     2.6     2.5     3.1     29        7.9      37

    1024x1024 at batch 4: 164 against 138. What the products cost is memory: the softmax is kept for the backward pass,
    2 bytes x heads x queries x keys a sample and layer. Larger products stay with SDPA, whatever they would save.
    In float32 SDPA is as fast or faster. Without gradients the difference is a fraction of a millisecond a call, and
    SDPA keeps the scores in float32 and never holds an (N, M) matrix.

    And except for few queries drawn on a CPU in float32, where SDPA's last bits would depend on the threads.
    """
    if (_explicit_scores_are_faster(q, k) or _depends_on_threads(q)) and not causal:
        q, k, v = (_heads_to_batch(tokens, heads) for tokens in (q, k, v))  # (B * heads, N or M, C / heads)
        scores = torch.bmm(q * q.shape[-1] ** -0.5, k.transpose(1, 2))  # (B * heads, N, M)
        out = torch.bmm(scores.softmax(dim=-1).to(v.dtype), v)
        return out.unflatten(0, (-1, heads)).transpose(1, 2).flatten(2)
    q, k, v = (tokens.unflatten(-1, (heads, -1)).transpose(1, 2) for tokens in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B, heads, N, C / heads)
    return out.transpose(1, 2).flatten(2)


def _explicit_scores_are_faster(q: Tensor, k: Tensor) -> bool:
    return (
        q.device.type == "cpu"
        and q.dtype == torch.bfloat16
        and q.requires_grad
        and q.shape[1] * k.shape[1] <= _EXPLICIT_SCORES_LIMIT
    )


def _depends_on_threads(q: Tensor) -> bool:
    """Whether SDPA gives other last bits on other threads.

    On a CPU it takes up to 32 queries at a time through a buffer for each thread, one behind the other. Where a buffer
    ends within a cache line, the next one is aligned differently, and MKL sums in another order: of 1 to 31 queries it
    does so for those that are no multiple of 4 (measured), and never where 16 divides them. So it is for pictures with
    few pixels at the coarsest level, and the products take some 20 us longer there.
    """
    queries = q.shape[1]
    is_torn = queries < _QUERIES_AT_A_TIME and queries % _FLOATS_OF_A_CACHE_LINE != 0
    return is_torn and q.dtype == torch.float32 and is_drawing_on_cpu(q)


def repeated(x: Tensor, rows: int) -> Tensor:
    """x (B, ...) as often as makes it `rows` rows, one copy behind the other; where it has them, x itself."""
    assert rows % len(x) == 0, f"{rows} rows are no multiple of {len(x)}"
    return x if rows == len(x) else torch.cat([x] * (rows // len(x)))  # cat keeps the layout


def _heads_to_batch(tokens: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B * heads, N, C / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2).flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention of image tokens to a context: themselves, or the text."""

    def __init__(self, query_dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        assert query_dim % heads == 0, f"attention: width {query_dim} does not split over {heads} heads"
        self.heads = heads
        self.to_q = nn.Linear(query_dim, query_dim, bias=False)
        self.to_k = nn.Linear(context_dim, query_dim, bias=False)
        self.to_v = nn.Linear(context_dim, query_dim, bias=False)
        self.to_out = nn.ModuleList([nn.Linear(query_dim, query_dim)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, N, query_dim), context (B, M, context_dim) -> (B, N, query_dim)."""
        out = attention(self.to_q(x), self.to_k(context), self.to_v(context), self.heads)
        return self.to_out[0](out)


class GEGLU(nn.Module):
    """value * gelu(gate), both projected from x at once (arXiv:2002.05202, eq. 6); the value is the first half."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Linear(in_dim, 2 * out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in_dim) -> (B, N, out_dim)."""
        value, gate = self.proj(x).chunk(2, dim=-1)
        if is_drawing_on_cpu(x):
            gate = gate.contiguous()  # oneDNN's gelu, which does not depend on the threads; of a view it is torch's own
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        # Index 1 is where the published networks keep a dropout that they never use; it has no parameters.
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the text, feed-forward: each normed before and added after.

    Source: latent diffusion, arXiv:2112.10752, section 3.3 and appendix E.2.1.
    """

    def __init__(self, dim: int, context_dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn1 = Attention(dim, dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.attn2 = Attention(dim, context_dim, heads)
        self.norm3 = nn.LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, N, dim), context (k B, M, context_dim) -> (k B, N, dim), as of x repeated k times."""
        h = self.norm1(x)
        x = x + self.attn1(h, h)
        x = repeated(x, len(context))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the pixels of a feature map, as a residual around it."""

    def __init__(
        self, channels: int, context_dim: int, heads: int, *, depth: int, num_groups: int, use_linear_projection: bool
    ) -> None:
        """`use_linear_projection`: SD 2.x stores proj_in and proj_out as linear layers, SD 1.x as 1x1 convolutions."""
        super().__init__()
        self.use_linear_projection = use_linear_projection
        self.norm = nn.GroupNorm(num_groups, channels, eps=TRANSFORMER_GROUP_NORM_EPS)
        if use_linear_projection:
            self.proj_in = nn.Linear(channels, channels)
            proj_out = nn.Linear(channels, channels)
        else:
            self.proj_in = PointwiseConv2d(channels, channels)
            proj_out = PointwiseConv2d(channels, channels)
        self.transformer_blocks = nn.ModuleList(TransformerBlock(channels, context_dim, heads) for _ in range(depth))
        self.proj_out = zero_init(proj_out)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, C, h, w), context (k B, M, context_dim) -> (k B, C, h, w), as of x repeated k times."""
        height, width = x.shape[-2:]
        rows = {len(each) * height * width for each in (x, context)}
        if is_drawing_on_cpu(x) and any(count in _ROWS_THAT_DEPEND_ON_THREADS for count in rows):
            x = repeated(x, len(context))
            return self(x.repeat(4, 1, 1, 1), context.repeat(4, 1, 1))[: len(context)]
        h = self.norm(x)
        if not self.use_linear_projection:
            h = self.proj_in(h)
        h = h.flatten(2).transpose(1, 2)  # (B, h * w, C)
        if self.use_linear_projection:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            h = block(h, context)
        if self.use_linear_projection:
            h = self.proj_out(h)
        h = h.transpose(1, 2).unflatten(2, (height, width))  # (B, C, h, w)
        if not self.use_linear_projection:
            h = self.proj_out(h)
        return repeated(x, len(context)) + h


class PixelSelfAttention(nn.Module):
    """One head of self-attention over the pixels of a feature map, as a residual: the autoencoder's middle."""

    def __init__(self, channels: int, *, num_groups: int, norm_eps: float) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(num_groups, channels, eps=norm_eps)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = self.group_norm(x).flatten(2).transpose(1, 2)  # (B, h * w, C)
        out = self.to_out[0](attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), heads=1))
        return x + out.transpose(1, 2).unflatten(2, x.shape[-2:])

"""The U-Net's layers in the form that is fast on a CPU in bfloat16; each knows its way back, to the bit.

oneDNN multiplies by weights in blocks that suit the CPU. Given plain weights it lays them out anew at every call; here
that is done once. A product by itself is the same numbers (tested), for every shape of the input; one that takes in a
sum or a gate rounds once where two operations round twice, a convolution of a very small map sums in another order, and
one of a large map, where the compiled kernels are, goes Winograd's way (`winograd.cpp`).
`plain` gives back the very weights. Only one copy of them is in memory (but for upsampling, `upsampling.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.kernels.crowding import make_room
from latentgen.kernels.library import (
    can_attend,
    can_convolve,
    can_norm,
    fused_attention,
    fused_group_norm,
    winograd_convolution,
)
from latentgen.kernels.memory import large_tensors_mapped
from latentgen.kernels.winograd import lay_back, lay_out
from latentgen.models.attention import GEGLU, Attention, TransformerBlock, repeated
from latentgen.models.layers import PointwiseConv2d, ResnetBlock, silu_

_onednn = torch.ops.mkldnn

_SMALL_MAP = 16
"""Pixels up to which a convolution is faster as a product."""
_SCORES_AT_A_TIME = 1 << 22
"""Of the plain-torch attention: few enough to stay near the caches, enough for the products to be worth starting."""


def why_no_onednn() -> str | None:
    """Why weights cannot be laid out for oneDNN, by torch's own way to it; None if they can."""
    if not torch.backends.mkldnn.is_available() or not hasattr(_onednn, "_reorder_linear_weight"):
        return "this torch has no oneDNN"
    if hasattr(_onednn, "_is_mkldnn_bf16_supported") and not _onednn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this CPU"
    return None


class PackedLinear(nn.Module):
    """x W^T + b with the weights of one linear layer, or of several side by side that see the same x."""

    def __init__(self, *layers: nn.Linear) -> None:
        """The layers are not used afterwards: their weights are taken out of them."""
        super().__init__()
        self.out_features = [layer.out_features for layer in layers]
        self.packed = _onednn._reorder_linear_weight(torch.cat([layer.weight.data for layer in layers]))
        biases = [layer.bias for layer in layers if layer.bias is not None]  # pyright: ignore[reportUnnecessaryComparison]
        assert len(biases) in (0, len(layers)), "all of them have a bias, or none"
        self.bias = nn.Parameter(torch.cat([bias.data for bias in biases]), False) if biases else None
        for layer in layers:
            layer.weight.data = layer.weight.data.new_empty(0)

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """(..., in) -> (..., out); activation: none, or gelu (the exact one)."""
        algorithm = "none" if activation == "gelu" else ""
        return _onednn._linear_pointwise(x, self.packed, self.bias, activation, [], algorithm)

    def combined(self, x: Tensor, other: Tensor, how: Literal["add", "mul"]) -> Tensor:
        """The product of x (..., in) plus or times other (..., out), rounded once."""
        return _onednn._linear_pointwise.binary(x, other, self.packed, self.bias, how)

    def plain(self) -> list[nn.Linear]:
        weights = self.packed.to_dense().split(self.out_features)
        biases = [None] * len(weights) if self.bias is None else self.bias.data.split(self.out_features)
        return [_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)]


ConvolutionForm = Literal["given", "oneDNN", "product", "Winograd"]


class PackedConv2d(nn.Module):
    """A convolution; its input is best channels_last, and so is its output then.

    Its weights lie as the faster way for the map's size wants them, from the first call on. A 3x3 convolution of a
    large map goes Winograd's way, with less than half of the products (`winograd.cpp`); that of a very small map is
    computed as the product of the patches and the kernel that it is: oneDNN multiplies matrices of 32 rows 1.6 times as
    fast as it convolves two maps of 4x4. Of what differs from call to call, the way depends on the map's size alone, so
    that a picture does not depend on what is drawn with it.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        """The layer is not used afterwards: its weights are taken out of it."""
        super().__init__()
        self.arguments = [cast("tuple[int, int]", each) for each in (layer.padding, layer.stride, layer.dilation)]
        self.channels = (layer.in_channels, layer.out_channels)
        self.kernel_size = cast("tuple[int, int]", layer.kernel_size)
        self.groups, self.bias = layer.groups, layer.bias
        self.can_be_product = self.kernel_size == (3, 3) and self.groups == 1 and self.arguments[2] == (1, 1)
        self.can_be_winograd = self.can_be_product and self.arguments[:2] == [(1, 1), (1, 1)]
        self.form: ConvolutionForm = "given"
        self.packed = layer.weight.data
        layer.weight.data = layer.weight.data.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, h, w) -> (B, Cout, h', w')."""
        if x.dtype != torch.bfloat16:
            return self._convolved(x)
        self._take_form(x)
        if self.form == "Winograd":
            return winograd_convolution(_channels_last(x), self.packed, self.bias)
        if self.form == "product":
            return _onednn._linear_pointwise(self._patches(x), self.packed, self.bias, "none", [], "").movedim(-1, 1)
        return _onednn._convolution_pointwise(x, self.packed, self.bias, *self.arguments, self.groups, "none", [], "")

    def plus(self, x: Tensor, residual: Tensor, *, in_place: bool = False) -> Tensor:
        """The convolution of x (B, Cin, h, w) plus (B, Cout, h', w'), in bfloat16 rounded once.

        in_place: the residual is not needed afterwards, and the answer may take its place.
        """
        if x.dtype != torch.bfloat16:
            return self._convolved(x).add_(residual)
        self._take_form(x)
        if self.form == "Winograd":
            residual = _channels_last(residual)
            out = residual if in_place else None
            return winograd_convolution(_channels_last(x), self.packed, self.bias, residual, out=out)
        if self.form == "product":
            addend = residual.movedim(1, -1).contiguous()
            product = _onednn._linear_pointwise.binary(self._patches(x), addend, self.packed, self.bias, "add")
            return product.movedim(-1, 1)
        weights = (self.packed, self.bias, *self.arguments, self.groups)
        if in_place:
            return _onednn._convolution_pointwise_.binary(residual, x, *weights, "add", 1.0, None, [], None)
        return _onednn._convolution_pointwise.binary(x, residual, *weights, "add", 1.0, None, [], None)

    def plain(self) -> nn.Conv2d:
        padding, stride, dilation = self.arguments
        with torch.device("meta"):
            layer = nn.Conv2d(
                *self.channels, self.kernel_size, stride, padding, dilation, self.groups, self.bias is not None
            )
        layer.weight, layer.bias = _parameter(self._dense()), self.bias
        return layer

    def _convolved(self, x: Tensor) -> Tensor:
        """In another precision: as the plain layer does it."""
        padding, stride, dilation = self.arguments
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.conv2d(x, self._dense().to(x.dtype), bias, stride, padding, dilation, self.groups)

    def _take_form(self, x: Tensor) -> None:
        """Lay the weights out where they lie otherwise than this size of map wants it."""
        form = self._form_for(x)
        if form != self.form:
            # The weights may be wanted for training again.
            with torch.inference_mode(False), torch.no_grad(), large_tensors_mapped():
                weight = self._dense()
                self.form, self.packed = form, self._packed(weight, form)

    def _form_for(self, x: Tensor) -> ConvolutionForm:
        if self.can_be_product and x.shape[2] * x.shape[3] <= _SMALL_MAP:
            return "product"
        return "Winograd" if self.can_be_winograd and can_convolve(x, self.channels[1]) else "oneDNN"

    def _packed(self, weight: Tensor, form: ConvolutionForm) -> Tensor:
        if form == "Winograd":
            return lay_out(weight)
        if form == "product":  # (Cout, 3, 3, Cin): beside each other what lies so in a channels_last map
            return _onednn._reorder_linear_weight(weight.permute(0, 2, 3, 1).flatten(1))
        return _onednn._reorder_convolution_weight(weight, *self.arguments, self.groups)

    def _dense(self) -> Tensor:
        """The very weights (Cout, Cin, h, w)."""
        into, out = self.channels
        if self.form == "given":
            return self.packed
        if self.form == "Winograd":
            return lay_back(self.packed, into)
        if self.form == "product":
            return self.packed.to_dense().view(out, *self.kernel_size, into).permute(0, 3, 1, 2).contiguous()
        return self.packed.to_dense()

    def _patches(self, x: Tensor) -> Tensor:
        """(B, Cin, h, w) -> (B, h', w', 9 Cin): under each of the kernel's places, the map that it meets."""
        (above, left), (down, across), _ = self.arguments
        pixels = F.pad(x.movedim(1, -1), (0, 0, left, left, above, above))  # (B, H, W, Cin)
        batch, height, width, channels = pixels.shape
        of_picture, of_row = height * width * channels, width * channels
        places = ((height - 3) // down + 1, (width - 3) // across + 1)
        windows = pixels.contiguous().as_strided(
            (batch, *places, 3, 3 * channels), (of_picture, down * of_row, across * channels, of_row, 1)
        )
        return windows.flatten(3)


class PackedPointwiseConv2d(nn.Module):
    """A 1x1 convolution as the matrix product that it is, of pixels whose channels lie beside each other."""

    def __init__(self, layer: PointwiseConv2d) -> None:
        """The layer is not used afterwards: its weights are taken out of it."""
        super().__init__()
        product = _linear(layer.weight.data.flatten(1), None if layer.bias is None else layer.bias.data)
        layer.weight.data = layer.weight.data.new_empty(0)
        self.product = PackedLinear(product)

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, h, w) -> (B, Cout, h, w)."""
        return self.product(x.movedim(1, -1)).movedim(-1, 1)

    def plain(self) -> PointwiseConv2d:
        (product,) = self.product.plain()
        with torch.device("meta"):
            layer = PointwiseConv2d(product.in_features, product.out_features)
        layer.weight = _parameter(product.weight.data[:, :, None, None])
        layer.bias = product.bias
        return layer


class FastGroupNorm(nn.Module):
    """Group normalisation of a channels_last map, with what comes before and after it."""

    def __init__(self, layer: nn.GroupNorm) -> None:
        super().__init__()
        self.norm = layer
        self.weight, self.bias = layer.weight.data.float(), layer.bias.data.float()

    def forward(self, x: Tensor, *, addend: Tensor | None = None, silu: bool = False, in_place: bool = False) -> Tensor:
        """x (B, C, h, w), addend (B, C) -> norm(x + addend), and its SiLU if asked for.

        in_place: x is not needed afterwards, and the answer may take its place.
        """
        norm = self.norm
        if can_norm(x, norm.num_groups):
            sizes = (norm.num_groups, self.weight, self.bias, norm.eps)
            return fused_group_norm(x, *sizes, addend=addend, silu=silu, in_place=in_place)
        x = norm(x if addend is None else x + addend[:, :, None, None])
        return silu_(x) if silu else x

    def plain(self) -> nn.GroupNorm:
        return self.norm


class FastResnetBlock(nn.Module):
    """The residual block: the timestep's shift and SiLU within the norms, the sum within the last convolution."""

    def __init__(self, layer: ResnetBlock) -> None:
        super().__init__()
        self.norm1, self.norm2 = FastGroupNorm(layer.norm1), FastGroupNorm(layer.norm2)
        self.conv1, self.conv2 = PackedConv2d(layer.conv1), PackedConv2d(layer.conv2)
        time, shortcut = layer.time_emb_proj, layer.conv_shortcut
        self.time_emb_proj = None if time is None else PackedLinear(time)
        self.conv_shortcut = None if shortcut is None else PackedPointwiseConv2d(shortcut)

    def forward(self, x: Tensor, time_emb: Tensor | None = None) -> Tensor:
        """x (B, Cin, h, w), time_emb (B, time_embed_dim) -> (B, Cout, h, w)."""
        make_room()
        shift = None
        if self.time_emb_proj is not None:
            assert time_emb is not None, "this residual block was built with a timestep embedding"
            shift = self.time_emb_proj(F.silu(time_emb))
        h = self.conv1(self.norm1(x, silu=True))
        h = self.norm2(h, addend=shift, silu=True, in_place=True)
        return self.conv2.plus(h, x if self.conv_shortcut is None else self.conv_shortcut(x))

    def plain(self) -> ResnetBlock:
        conv1, conv2 = self.conv1.plain(), self.conv2.plain()
        norm1, norm2 = self.norm1.plain(), self.norm2.plain()
        (time,) = (None,) if self.time_emb_proj is None else self.time_emb_proj.plain()
        with torch.device("meta"):
            layer = ResnetBlock(
                conv1.in_channels,
                conv2.out_channels,
                num_groups=norm1.num_groups,
                norm_eps=norm1.eps,
                time_embed_dim=None if time is None else time.in_features,
            )
        layer.norm1, layer.norm2, layer.conv1, layer.conv2, layer.time_emb_proj = norm1, norm2, conv1, conv2, time
        layer.conv_shortcut = None if self.conv_shortcut is None else self.conv_shortcut.plain()
        return layer


class FastSelfAttention(nn.Module):
    """Attention of tokens to themselves: q, k and v from one product, the residual added within the last."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.heads = layer.heads
        self.to_qkv = PackedLinear(layer.to_q, layer.to_k, layer.to_v)
        self.to_out = PackedLinear(cast("nn.Linear", layer.to_out[0]))

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """x (B, N, C), residual (B, N, C) -> (B, N, C)."""
        q, k, v = self.to_qkv(x).chunk(3, dim=-1)
        return self.to_out.combined(attention(q, k, v, self.heads), residual, "add")

    def plain(self) -> Attention:
        return _attention(self.heads, *self.to_qkv.plain(), *self.to_out.plain())


class FastCrossAttention(nn.Module):
    """Attention of tokens to the text, whose keys and values are computed once for all steps of a picture."""

    def __init__(self, layer: Attention) -> None:
        super().__init__()
        self.heads = layer.heads
        self.to_q = PackedLinear(layer.to_q)
        self.to_kv = PackedLinear(layer.to_k, layer.to_v)
        self.to_out = PackedLinear(cast("nn.Linear", layer.to_out[0]))
        self._context: Tensor | None = None
        self._kv: tuple[Tensor, Tensor] | None = None

    def forward(self, x: Tensor, context: Tensor, residual: Tensor) -> Tensor:
        """x and residual (B, N, C), context (k B, M, D), which nobody changes in place -> (k B, N, C).

        x and residual count k times, one copy behind the other.
        """
        if self._kv is None or context is not self._context:
            k, v = self.to_kv(context).chunk(2, dim=-1)
            self._context, self._kv = context, (k, v)
        q, residual = (repeated(each, len(context)) for each in (self.to_q(x), residual))
        return self.to_out.combined(attention(q, *self._kv, self.heads), residual, "add")

    def plain(self) -> Attention:
        return _attention(self.heads, *self.to_q.plain(), *self.to_kv.plain(), *self.to_out.plain())


class FastTransformerBlock(nn.Module):
    """The transformer block: each of its three sums is made by the product before it, and rounded once."""

    def __init__(self, layer: TransformerBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = layer.norm1, layer.norm2, layer.norm3
        self.attn1, self.attn2 = FastSelfAttention(layer.attn1), FastCrossAttention(layer.attn2)
        geglu, _, out = layer.ff.net
        self.geglu, self.out = FastGEGLU(cast("GEGLU", geglu)), PackedLinear(cast("nn.Linear", out))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, N, dim), context (k B, M, context_dim) -> (k B, N, dim), as of x repeated k times."""
        x = self.attn1(self.norm1(x), x)
        x = self.attn2(self.norm2(x), context, x)
        return self.out.combined(self.geglu(self.norm3(x)), x, "add")

    def plain(self) -> TransformerBlock:
        attn1, attn2 = self.attn1.plain(), self.attn2.plain()
        with torch.device("meta"):
            layer = TransformerBlock(attn1.to_q.in_features, attn2.to_k.in_features, attn1.heads)
        layer.norm1, layer.norm2, layer.norm3 = self.norm1, self.norm2, self.norm3
        layer.attn1, layer.attn2, layer.ff.net[0] = attn1, attn2, self.geglu.plain()
        (layer.ff.net[2],) = self.out.plain()
        return layer


class FastGEGLU(nn.Module):
    """value * gelu(gate), the GELU in the product that makes the gate."""

    def __init__(self, layer: GEGLU) -> None:
        super().__init__()
        weights, biases = layer.proj.weight.data.chunk(2), layer.proj.bias.data.chunk(2)
        value, gate = (_linear(weight, bias) for weight, bias in zip(weights, biases, strict=True))
        self.value, self.gate = PackedLinear(value), PackedLinear(gate)
        layer.proj.weight.data = layer.proj.weight.data.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out)."""
        return self.value.combined(x, self.gate(x, "gelu"), "mul")

    def plain(self) -> GEGLU:
        (value,), (gate,) = self.value.plain(), self.gate.plain()
        with torch.device("meta"):
            layer = GEGLU(value.in_features, value.out_features)
        weight = torch.cat([value.weight.data, gate.weight.data])
        layer.proj = _linear(weight, torch.cat([value.bias.data, gate.bias.data]))
        return layer


def attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention, q (B, N, C), k and v (B, M, C) -> (B, N, C): compiled, or else `by_products`."""
    if can_attend(q, k, v, heads):
        return fused_attention(q, k, v, heads)
    return by_products(q, k, v, heads)


def by_products(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """The same by products around a softmax, some queries at a time: half the time of torch's own in bfloat16."""
    q, k, v = (each.unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))  # (B, heads, N or M, D)
    run = max(1, _SCORES_AT_A_TIME // (math.prod(k.shape[:3])))
    scaled, keys = q * q.shape[-1] ** -0.5, k.transpose(2, 3)
    parts = [(part @ keys).softmax(dim=-1) @ v for part in scaled.split(run, dim=2)]
    return torch.cat(parts, dim=2).transpose(1, 2).flatten(2)


@torch.inference_mode(False)  # tensors made in inference mode could never be trained
@torch.no_grad()
def exchange(network: nn.Module, other: Callable[[nn.Module], nn.Module | None]) -> None:
    """Put other(layer) in the place of every layer within that has one, in place; in what was put there it looks no
    further.
    """
    for name, layer in network.named_children():
        replacement = other(layer)
        if replacement is None:
            exchange(layer, other)
        else:
            network.register_module(name, replacement)


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer of these very tensors, weight (out, in) and bias (out,)."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = _parameter(weight)
    if bias is not None:
        layer.bias = _parameter(bias)
    return layer


def _parameter(value: Tensor) -> nn.Parameter:
    """One that can be trained, unless the network was made in inference mode."""
    return nn.Parameter(value, requires_grad=not value.is_inference())


def _attention(heads: int, to_q: nn.Linear, to_k: nn.Linear, to_v: nn.Linear, to_out: nn.Linear) -> Attention:
    with torch.device("meta"):
        layer = Attention(to_q.in_features, to_k.in_features, heads)
    layer.to_q, layer.to_k, layer.to_v, layer.to_out[0] = to_q, to_k, to_v, to_out
    return layer

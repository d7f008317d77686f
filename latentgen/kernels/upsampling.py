"""A map made twice as large and then convolved, without the larger map and with less than half of the products.

Winograd's way (`winograd.cpp`) does so by itself: 4 products a pixel, of a map that is read as if it were larger.
Without compiled kernels, or beside AMX, oneDNN can be brought to it: where every pixel stands twice in each
direction, a kernel of 3x3 meets only 2x2 different pixels, so that its columns, and its rows, that meet the same ones
can be added up beforehand: [a, b, c] meets [p, q, q] or [p, p, q] and is [a, b + c] or [a + b, c]. Each of the four
pixels that one pixel becomes has such a kernel: 4 products instead of 9.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.kernels.layers import PackedConv2d
from latentgen.kernels.library import convolves, winograd_convolution
from latentgen.kernels.winograd import lay_back, lay_out
from latentgen.models.layers import Upsample

_PLACES = tuple(itertools.product((0, 1), repeat=2))
"""Of the four pixels that one becomes: 1 for below, 1 for right."""
_LOST, _CORNERS = [1, 3, 4, 5, 7], (0, 2, 6, 8)
"""Of a kernel's nine weights, row by row: those that are found in sums only, and those that a pixel's kernel holds."""
_NUMBERS_AT_A_TIME = 1 << 24
"""Of the convolution's output: of a large map a few rows at a time, so that it is not in memory twice."""
_CHANNELS_AT_A_TIME = 64
"""Whose weights are added up together, in float32: a whole layer of SD's would take 59 MB for that, several times."""


class WinogradUpsample(nn.Module):
    """`Upsample` in bfloat16, by Winograd's way; in another precision it is the layer itself."""

    def __init__(self, layer: Upsample) -> None:
        """The layer is not used afterwards: its weights are taken out of it."""
        super().__init__()
        conv = layer.conv
        self.in_channels, self.bias = conv.in_channels, conv.bias
        self.kernels = lay_out(conv.weight.data)
        conv.weight.data = conv.weight.data.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w), channels_last."""
        if x.dtype != torch.bfloat16:
            return self.plain().to(x.dtype)(x)
        x = x.contiguous(memory_format=torch.channels_last)
        return winograd_convolution(x, self.kernels, self.bias, doubled=True)

    def plain(self) -> Upsample:
        """The layer with its very weights."""
        return _upsample(lay_back(self.kernels, self.in_channels), self.bias)


class FastUpsample(nn.Module):
    """`Upsample` in bfloat16, by one convolution of the smaller map by oneDNN; in another precision the layer itself.

    The numbers are those of `Upsample` but for one rounding of each sum of weights.
    """

    def __init__(self, layer: Upsample) -> None:
        """The layer is not used afterwards: its weights are taken out of it."""
        super().__init__()
        weight = layer.conv.weight.data  # (C, C, 3, 3)
        self.lost = weight.flatten(2)[:, :, _LOST]
        self.to_pixels = _convolution(layer.conv)
        layer.conv.weight.data = weight.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w), channels_last."""
        if x.dtype != torch.bfloat16:
            return self.plain().to(x.dtype)(x)
        batch, channels, height, width = x.shape
        size = (batch, channels, 2 * height, 2 * width)
        larger = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
        # Padded here: oneDNN, asked to pad by itself, sums such kernels in an order that depends on the threads.
        padded = F.pad(x.contiguous(memory_format=torch.channels_last), (1, 1, 1, 1))
        rows = max(1, _NUMBERS_AT_A_TIME // (batch * 4 * channels * (width + 1)))
        for first in range(0, height, rows):
            end = min(first + rows, height)
            corners = self.to_pixels(padded[:, :, first : end + 2])  # (B, 4C, rows + 1, w + 1): at a pixel's corners
            for (below, right), part in zip(_PLACES, corners.split(channels, dim=1), strict=True):
                pixels = part[:, :, below : below + end - first, right : right + width]
                larger[:, :, 2 * first + below : 2 * end : 2, right::2] = pixels
        return larger

    def plain(self) -> Upsample:
        """The layer with its very weights: the kernels' corners are weights that were not added to others."""
        kernels = self.to_pixels.plain().weight.data.chunk(4)
        weight = self.lost.new_empty(*self.lost.shape[:2], 9)
        weight[:, :, _LOST] = self.lost
        for place, (below, right), kernel in zip(_CORNERS, _PLACES, kernels, strict=True):
            weight[:, :, place] = kernel[:, :, below, right]
        return _upsample(weight.unflatten(2, (3, 3)), self.to_pixels.bias)


def fast_upsample(layer: Upsample) -> WinogradUpsample | FastUpsample:
    """The faster of both forms on this machine. The layer is not used afterwards."""
    channels = layer.conv.in_channels
    return WinogradUpsample(layer) if convolves(channels, channels) else FastUpsample(layer)


def _upsample(weight: Tensor, bias: Tensor | None) -> Upsample:
    """Of weight (C, C, 3, 3) and, if there is one, the first C numbers of bias."""
    with torch.device("meta"):
        layer = Upsample(len(weight))
    layer.conv.weight = nn.Parameter(weight, requires_grad=not weight.is_inference())
    if bias is not None:
        layer.conv.bias = nn.Parameter(bias.data[: len(weight)].clone(), requires_grad=not bias.is_inference())
    return layer


def kernels_of_pixels(weight: Tensor) -> list[Tensor]:
    """(Cout, Cin, 3, 3) -> four (Cout, Cin, 2, 2): of the pixels top left, top right, bottom left and bottom right."""
    of_rows = _sums(weight.float(), dim=2)
    return [each.to(weight.dtype) for rows in of_rows for each in _sums(rows, dim=3)]


def _sums(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """[a, b, c] along a dimension -> [a, b + c] and [a + b, c]."""
    a, b, c = weight.split(1, dim)
    return torch.cat([a, b + c], dim), torch.cat([a + b, c], dim)


def _convolution(conv: nn.Conv2d) -> PackedConv2d:
    """With the four kernels, one behind the other."""
    weight, into, out = conv.weight.data, conv.in_channels, conv.out_channels
    kernels = weight.new_empty(4, out, into, 2, 2)
    for first in range(0, out, _CHANNELS_AT_A_TIME):
        channels = slice(first, first + _CHANNELS_AT_A_TIME)
        kernels[:, channels] = torch.stack(kernels_of_pixels(weight[channels]))
    with torch.device("meta"):
        layer = nn.Conv2d(into, 4 * out, 2, bias=conv.bias is not None)
    layer.weight = nn.Parameter(kernels.flatten(0, 1), requires_grad=False)
    if conv.bias is not None:
        layer.bias = nn.Parameter(conv.bias.data.repeat(4), requires_grad=False)
    return PackedConv2d(layer)

"""A map made twice as large and then convolved, without the larger map and with less than half of the products.

Where every pixel stands twice in each direction, a kernel of 3x3 meets only 2x2 different pixels, so that its columns,
and its rows, that meet the same ones can be added up beforehand: [a, b, c] meets [p, q, q] or [p, p, q] and is
[a, b + c] or [a + b, c]. Each of the four pixels that one pixel becomes has such a kernel: 4 products instead of 9.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from latentgen.kernels.layers import PackedConv2d
from latentgen.models.layers import Upsample


class FastUpsample(nn.Module):
    """`Upsample` in bfloat16, by four convolutions of the smaller map; in another precision it is the layer itself.

    The numbers are those of `Upsample` but for one rounding of each sum of weights.
    """

    def __init__(self, layer: Upsample) -> None:
        """The layer's weights are kept beside what is made of them: sums cannot be taken apart again."""
        super().__init__()
        self.layer = layer
        conv = layer.conv
        self.to_pixels = nn.ModuleList(_convolution(kernel, conv) for kernel in kernels_of_pixels(conv.weight.data))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, 2h, 2w), channels_last."""
        if x.dtype != torch.bfloat16:
            return self.layer(x)
        batch, channels, height, width = x.shape
        size = (batch, channels, 2 * height, 2 * width)
        larger = torch.empty(size, dtype=x.dtype, memory_format=torch.channels_last)
        for (below, right), convolve in zip(itertools.product((0, 1), repeat=2), self.to_pixels, strict=True):
            windows = convolve(x)  # (B, C, h + 1, w + 1): one at each corner of a pixel
            larger[:, :, below::2, right::2] = windows[:, :, below : below + height, right : right + width]
        return larger

    def plain(self) -> Upsample:
        return self.layer


def kernels_of_pixels(weight: Tensor) -> list[Tensor]:
    """(Cout, Cin, 3, 3) -> four (Cout, Cin, 2, 2): of the pixels top left, top right, bottom left and bottom right."""
    of_rows = _sums(weight.float(), dim=2)
    return [each.to(weight.dtype) for rows in of_rows for each in _sums(rows, dim=3)]


def _sums(weight: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """[a, b, c] along a dimension -> [a, b + c] and [a + b, c]."""
    a, b, c = weight.split(1, dim)
    return torch.cat([a, b + c], dim), torch.cat([a + b, c], dim)


def _convolution(kernel: Tensor, conv: nn.Conv2d) -> PackedConv2d:
    """With one of the four kernels: it begins and ends one pixel outside the map."""
    with torch.device("meta"):
        layer = nn.Conv2d(conv.in_channels, conv.out_channels, 2, padding=1, bias=conv.bias is not None)
    layer.weight, layer.bias = nn.Parameter(kernel, requires_grad=False), conv.bias
    return PackedConv2d(layer)

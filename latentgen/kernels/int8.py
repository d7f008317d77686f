"""Layers of the fast form that multiply 8-bit integers instead of bfloat16 (W8A8): faster, another picture.

q = round(x / s), and x w = s_x s_w (q_x q_w). Weights have a scale for each output channel, fixed; activations have one
for the whole tensor, from its largest magnitude at every call; a map that is enlarged in parts has one for each. Both
are symmetric about 0 and use -127 .. 127. oneDNN multiplies unsigned by signed bytes fast (VNNI), so activations are
handed over with 128 added and 128 as their zero. Sums are of integers, hence exact and in no order.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from latentgen.kernels.layers import FastGEGLU, PackedConv2d, PackedLinear

LARGEST = 127
_ZERO = 128
"""The byte that stands for 0."""
_OPERATORS = ("qlinear_prepack", "qlinear_pointwise", "qconv_prepack", "qconv2d_pointwise")
_RUN = 1 << 16
"""Numbers made bytes at a time: their float32 stays in the cache."""

_onednn = torch.ops.onednn


def why_not_int8() -> str | None:
    """Why there are no such layers on this machine; None if there are."""
    if not torch.cpu._is_vnni_supported():  # pyright: ignore[reportPrivateUsage]
        return "this CPU has no VNNI"
    missing = [name for name in _OPERATORS if not hasattr(_onednn, name)]
    return f"torch {torch.__version__} has no onednn.{missing[0]}" if missing else None


def quantize(x: Tensor) -> tuple[Tensor, float]:
    """A tensor of any shape as bytes, contiguous, 128 for 0; and the scale s of x = s (bytes - 128).

    What is not finite makes the scale so, and with it all that is computed from the bytes: nothing hides it.
    """
    low, high = torch.aminmax(x)
    scale = float(torch.maximum(-low, high)) / LARGEST
    inverse = 0.0 if scale == 0 else 1 / scale
    x = x.contiguous()
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    for part, run in zip(codes.view(-1).split(_RUN), x.view(-1).split(_RUN), strict=True):
        part.copy_(run.float().mul_(inverse).add_(_ZERO + 0.5))  # to a byte by cutting off, so this rounds
    return codes, scale


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight (out, ...) as int8 of its shape, and the scales (out,) float32 of weight = scale * codes."""
    values = weight.float()
    scales = values.flatten(1).abs().amax(dim=1) / LARGEST
    scales = torch.where(scales == 0, 1.0, scales)
    codes = (values / scales.view(-1, *(1,) * (weight.ndim - 1))).round_()
    return codes.to(torch.int8), scales


class Int8Linear(nn.Module):
    """A `PackedLinear` in 8 bits."""

    def __init__(self, exact: PackedLinear) -> None:
        """exact: kept as it is, for the way back."""
        super().__init__()
        self.exact = exact
        codes, self.scales = quantize_weight(exact.packed.to_dense())
        self.packed = _onednn.qlinear_prepack(codes, None)
        self.zeros = torch.zeros(len(codes), dtype=torch.int8)
        self.bias = None if exact.bias is None else exact.bias.data.float()

    def forward(self, x: Tensor, activation: str = "none") -> Tensor:
        """(..., in) -> (..., out) in x's dtype; activation: none, or gelu (the exact one)."""
        return self.of_codes(*quantize(x), x.dtype, activation)

    def of_codes(self, codes: Tensor, scale: float, dtype: torch.dtype, activation: str = "none") -> Tensor:
        """The same of what `quantize` gives, (..., in) -> (..., out) in `dtype`."""
        weight, algorithm = (self.packed, self.scales, self.zeros, self.bias), "none" if activation == "gelu" else ""
        return _onednn.qlinear_pointwise(codes, scale, _ZERO, *weight, 1.0, 0, dtype, activation, [], algorithm)

    def combined(self, x: Tensor, other: Tensor, how: Literal["add"]) -> Tensor:
        """The product of x (..., in) plus other (..., out); how: as `PackedLinear` is told."""
        assert how == "add", "a gate is an Int8GEGLU's"
        return self(x).add_(other)


class Int8GEGLU(nn.Module):
    """A `FastGEGLU` in 8 bits; what both its products read is made bytes once."""

    def __init__(self, exact: FastGEGLU) -> None:
        """exact: kept as it is, for the way back."""
        super().__init__()
        self.exact = exact
        self.value, self.gate = Int8Linear(exact.value), Int8Linear(exact.gate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, in) -> (B, N, out) in x's dtype."""
        codes, scale = quantize(x)
        gate = self.gate.of_codes(codes, scale, x.dtype, "gelu")
        return self.value.of_codes(codes, scale, x.dtype).mul_(gate)


class Int8Conv2d(nn.Module):
    """A `PackedConv2d` in 8 bits."""

    def __init__(self, exact: PackedConv2d) -> None:
        """exact: kept as it is, for the way back."""
        super().__init__()
        self.exact = exact
        padding, stride, dilation = exact.arguments
        self.arguments = (stride, padding, dilation, exact.groups)
        codes, self.scales = quantize_weight(exact.plain().weight.data)
        self.packed = _onednn.qconv_prepack(codes, self.scales, 1.0, _ZERO, *self.arguments, None)
        self.zeros = torch.zeros(len(codes), dtype=torch.int8)
        self.bias = None if exact.bias is None else exact.bias.data.float()

    def forward(self, x: Tensor) -> Tensor:
        """(B, Cin, h, w) -> (B, Cout, h', w') in x's dtype, channels_last."""
        codes, scale = quantize(x.movedim(1, -1))
        weight = (self.packed, self.scales, self.zeros, self.bias)
        return _onednn.qconv2d_pointwise(
            codes.movedim(-1, 1), scale, _ZERO, *weight, *self.arguments, 1.0, 0, x.dtype, "none", [], ""
        )

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The convolution of x (B, Cin, h, w) plus (B, Cout, h', w')."""
        return self(x).add_(residual)

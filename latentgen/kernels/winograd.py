"""How the weights of a Winograd convolution lie in memory: in the order in which `winograd.cpp` reads them, all nine.

They are transformed at every call, which is a small part of a convolution's work; kept transformed they would take 16/9
as much memory, beside what the way back needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

_BLOCK = 64
"""Kernels that are worked on together."""


def lay_out(weight: Tensor) -> Tensor:
    """(Cout, Cin, 3, 3) -> (9 Cin Cout,): of 64 kernels after the other (Cin, 9, 64), of the last ones fewer."""
    kernels, whole = weight.flatten(1), len(weight) // _BLOCK * _BLOCK
    blocks = kernels[:whole].unflatten(0, (-1, _BLOCK)).transpose(1, 2).flatten()
    # Put together only where there is something left: a large layer is not in memory once more.
    return blocks if whole == len(weight) else torch.cat([blocks, kernels[whole:].t().flatten()])


def lay_back(kernels: Tensor, in_channels: int) -> Tensor:
    """What `lay_out` was given."""
    of_kernel = 9 * in_channels
    whole = len(kernels) // (of_kernel * _BLOCK) * of_kernel * _BLOCK
    blocks = kernels[:whole].view(-1, of_kernel, _BLOCK).transpose(1, 2).reshape(-1, of_kernel)
    rest = kernels[whole:].view(of_kernel, -1).t()
    dense = blocks if whole == len(kernels) else torch.cat([blocks, rest])
    return dense.view(-1, in_channels, 3, 3)

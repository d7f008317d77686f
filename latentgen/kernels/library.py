"""The compiled kernels: whether they run here, and calling them with tensors."""

from __future__ import annotations

import ctypes
from functools import cache

import torch
from torch import Tensor

from latentgen.kernels.build import LIBRARY, why_not_here

BUILD_HINT = "python -m latentgen.kernels.build"
_TASKS_OF_A_THREAD = 4
"""So many runs of queries at least, so that no thread waits long for the last one."""
_FEWEST_QUERIES = 256
"""Of a run: laying out the keys and values is then a small part of it."""
LANES = 16
"""Numbers that the kernels take at a time."""


class _Layout(ctypes.Structure):
    _fields_ = (("batch", ctypes.c_long), ("row", ctypes.c_long), ("head", ctypes.c_long))


@cache
def _library() -> ctypes.CDLL | str:
    """The compiled library, or why there is none that runs here."""
    if (reason := why_not_here()) is not None:
        return reason
    if not LIBRARY.exists():
        return f"they were not compiled ({BUILD_HINT})"
    try:
        library = ctypes.CDLL(str(LIBRARY))  # its OpenMP functions are those that torch has brought along
        run_here, attention, norm = (
            library.latentgen_kernels_run_here,
            library.latentgen_attention,
            library.latentgen_group_norm,
        )
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} does not load: {error} ({BUILD_HINT})"
    if not run_here():
        return "this CPU has no AVX512-BF16"
    address, number = ctypes.c_void_p, ctypes.c_long
    attention.argtypes = (*(address, _Layout) * 4, *(number,) * 5, ctypes.c_float, number)
    norm.argtypes = (*(address,) * 5, *(number,) * 4, ctypes.c_float, ctypes.c_int)
    return library


def why_unavailable() -> str | None:
    """Why the kernels cannot be called on this machine; None if they can."""
    library = _library()
    return library if isinstance(library, str) else None


def _called() -> ctypes.CDLL:
    library = _library()
    assert not isinstance(library, str), library
    return library


def _is_fit(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 and x.device.type == "cpu" and not torch.is_grad_enabled()


def can_attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> bool:
    """Whether `fused_attention` takes these: bfloat16 in a CPU's memory, no gradients, an even number of channels."""
    return (
        all(_is_fit(each) and each.stride(-1) == 1 for each in (q, k, v))
        and q.shape[-1] // heads % 2 == 0
        and why_unavailable() is None
    )


def fused_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention softmax(q k^T / sqrt(C / heads)) v without an (N, M) matrix in memory.

    Shapes: q (B, N, C); k and v (B, M, C), channels beside each other, else of any strides -> (B, N, C), contiguous.
    `can_attend` says what it takes. The result is that of float32 arithmetic on bfloat16 numbers, the softmax rounded
    to bfloat16: relative error 0.002, like `scaled_dot_product_attention`'s. It does not depend on the threads.
    Raises MemoryError where there is none.
    Source: arXiv:1706.03762, eq. 1; six queries at a time keep the scores in cache, in the spirit of arXiv:2205.14135.
    """
    batch, queries, channels = q.shape
    keys, width = k.shape[1], channels // heads
    out = q.new_empty(batch, queries, channels)
    tensors = [part for each in (q, k, v, out) for part in (each.data_ptr(), _layout(each, width))]
    runs = max(1, min(-(-_TASKS_OF_A_THREAD * torch.get_num_threads() // (batch * heads)), queries // _FEWEST_QUERIES))
    if _called().latentgen_attention(*tensors, batch, heads, queries, keys, width, width**-0.5, runs):
        raise MemoryError(f"attention of {queries} queries to {keys} keys")
    return out


def can_norm(x: Tensor, groups: int) -> bool:
    """Whether `fused_group_norm` takes this: bfloat16 in a CPU's memory, channels_last, multiples of 16 channels."""
    return (
        _is_fit(x)
        and x.is_contiguous(memory_format=torch.channels_last)
        and x.shape[1] % LANES == 0
        and x.shape[1] % groups == 0
        and why_unavailable() is None
    )


def fused_group_norm(
    x: Tensor,
    groups: int,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    *,
    addend: Tensor | None = None,
    silu: bool,
    in_place: bool = False,
) -> Tensor:
    """Group normalisation of x + addend, and SiLU of that if asked for; in_place: the answer takes x's place.

    Shapes: x (B, C, h, w) channels_last; weight and bias (C,) float32; addend (B, C), bfloat16 -> (B, C, h, w).
    `can_norm` says what it takes. float32 inside, rounded once; it does not depend on the threads.
    Raises MemoryError where there is none.
    Source: arXiv:1803.08494, eq. 1 and 7.
    """
    batch, channels, height, width = x.shape
    out = x if in_place else torch.empty_like(x, memory_format=torch.channels_last)
    told = None if addend is None else addend.contiguous().data_ptr()
    sizes = (batch, height * width, channels, groups)
    if _called().latentgen_group_norm(
        x.data_ptr(), told, weight.data_ptr(), bias.data_ptr(), out.data_ptr(), *sizes, eps, silu
    ):
        raise MemoryError(f"group normalisation of {tuple(x.shape)}")
    return out


def _layout(tokens: Tensor, width: int) -> _Layout:
    return _Layout(tokens.stride(0), tokens.stride(1), width)

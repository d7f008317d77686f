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
_SMALLEST_FILTERED = 256
"""Pixels of a map from which on a Winograd convolution is faster: making its kernels costs as much for small ones."""


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
        winograd, workspace, has_amx = (
            library.latentgen_winograd,
            library.latentgen_winograd_workspace,
            library.latentgen_has_amx,
        )
    except (OSError, AttributeError) as error:
        return f"{LIBRARY.name} does not load: {error} ({BUILD_HINT})"
    if not run_here():
        return "this CPU has no AVX512-BF16"
    address, number = ctypes.c_void_p, ctypes.c_long
    attention.argtypes = (*(address, _Layout) * 4, *(number,) * 5, ctypes.c_float, number)
    norm.argtypes = (*(address,) * 5, *(number,) * 4, ctypes.c_float, ctypes.c_int)
    winograd.argtypes, winograd.restype = (*(address,) * 5, *(number,) * 5, ctypes.c_int, address, number), None
    workspace.argtypes, workspace.restype = (number,) * 6, number
    has_amx.argtypes = ()
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
    addend = None if addend is None else addend.contiguous()
    assert addend is None or addend.dtype == torch.bfloat16, "the addend is bfloat16"
    told = None if addend is None else addend.data_ptr()
    sizes = (batch, height * width, channels, groups)
    if _called().latentgen_group_norm(
        x.data_ptr(), told, weight.data_ptr(), bias.data_ptr(), out.data_ptr(), *sizes, eps, silu
    ):
        raise MemoryError(f"group normalisation of {tuple(x.shape)}")
    return out


@cache
def has_amx() -> bool:
    """Whether the CPU, one on which the kernels run, multiplies matrices in tiles: oneDNN convolves faster then."""
    return bool(_called().latentgen_has_amx())


def convolves(in_channels: int, out_channels: int) -> bool:
    """Whether `winograd_convolution` is the fastest way to convolve large maps of so many channels on this machine:
    multiples of 16, and no AMX.
    """
    return in_channels % LANES == out_channels % LANES == 0 and why_unavailable() is None and not has_amx()


def can_convolve(x: Tensor, out_channels: int) -> bool:
    """Whether `winograd_convolution` takes this, and should: bfloat16 in a CPU's memory, at least 256 pixels, and what
    `convolves` says.
    """
    channels, height, width = x.shape[1:]
    return _is_fit(x) and height * width >= _SMALLEST_FILTERED and convolves(channels, out_channels)


def winograd_convolution(
    x: Tensor,
    kernels: Tensor,
    bias: Tensor | None,
    residual: Tensor | None = None,
    *,
    out: Tensor | None = None,
    doubled: bool = False,
) -> Tensor:
    """The 3x3 convolution of x padded by one pixel of zeros, plus bias and residual, rounded once; out, which may be
    the residual, is where the answer goes. doubled: of x made twice as large, each pixel for 2x2.

    Shapes: x (B, Cin, h, w), or half of that if it is to be doubled, channels_last; kernels as `winograd.lay_out` makes
    them; bias (Cout,); residual and the result (B, Cout, h, w), channels_last; all bfloat16. `can_convolve` says what
    it takes. The result is that of float32 arithmetic on tiles and kernels rounded to bfloat16 after their
    transformation: relative error 0.003 to 0.004, where oneDNN's convolution has 0.002. It does not depend on the
    threads, nor on what else is in the batch.
    Source: arXiv:1509.09308, section 4.1: F(2x2, 3x3), 4 products a pixel instead of 9.
    """
    batch, into, height, width = x.shape
    outs = kernels.numel() // (9 * into)
    if doubled:
        height, width = 2 * height, 2 * width
    if out is None:
        size = (batch, outs, height, width)
        out = torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    parts = [each for each in (x, kernels, bias, residual, out) if each is not None]
    assert all(each.dtype == torch.bfloat16 for each in parts), "all of them are bfloat16"
    assert kernels.ndim == 1, "the kernels are laid out"
    assert out is not x, "a pixel is read after its neighbours are written"
    threads, library = torch.get_num_threads(), _called()
    sizes = (batch, height, width, into, outs)
    workspace = torch.empty(library.latentgen_winograd_workspace(*sizes, threads), dtype=torch.uint8, device=x.device)
    addresses = [None if each is None else each.data_ptr() for each in (x, kernels, bias, residual, out)]
    library.latentgen_winograd(*addresses, *sizes, doubled, workspace.data_ptr(), threads)
    return out


def _layout(tokens: Tensor, width: int) -> _Layout:
    return _Layout(tokens.stride(0), tokens.stride(1), width)

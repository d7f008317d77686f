"""Between pixels and latents, with numbers that are not finite found and told instead of drawn."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from latentgen.diffusion.latents import LatentSpace
from latentgen.errors import RuntimeFailure, is_out_of_memory
from latentgen.images.pixels import Pixels, to_pixels
from latentgen.kernels.memory import large_tensors_mapped, return_freed_memory
from latentgen.kernels.vae import lay_out
from latentgen.models.vae import AutoencoderKL
from latentgen.pipeline.tiling import Tiling, decode_tiled, encode_tiled, needs_tiles

_LARGE = 512 * 512
"""Pixels from which the autoencoder wants so much memory that what the steps have held is given back first, and that
each level's maps, twice as large as those before, leave no holes behind."""


@torch.inference_mode()
def decode(
    vae: AutoencoderKL,
    space: LatentSpace,
    latents: Tensor,
    tiling: Tiling = "auto",
    *,
    whole: Callable[[AutoencoderKL, Tensor], Tensor] | None = None,
) -> Pixels:
    """One picture's latents (1, C, h, w) to (H, W, 3) bytes. Raises RuntimeFailure for numbers that are not finite.

    `whole` decodes what needs no tiles, in place of the autoencoder's own `decode`. Where the memory for that is
    refused, it is tiles after all, with a warning.
    """
    if not bool(torch.isfinite(latents).all()):
        raise RuntimeFailure("the latents are not finite after the last step", hint=_hint(vae))
    height, width = (side * space.downscale for side in latents.shape[-2:])
    in_tiles = tiling == "on" or (tiling == "auto" and needs_tiles(vae, height, width))
    plain = vae.decode if whole is None else partial(whole, vae)
    with _room(latents, height * width):
        pixels = _finite(
            vae,
            space.denormalize(latents),
            lambda z: _in_memory(plain, lambda x: decode_tiled(vae, x), z, in_tiles),
        )
    if not bool(torch.isfinite(pixels).all()):
        raise RuntimeFailure("the decoded picture is not finite", hint=_hint(vae))
    return to_pixels(pixels[0])


@torch.inference_mode()
def encode(vae: AutoencoderKL, space: LatentSpace, pixels: Tensor, tiling: Tiling = "auto") -> Tensor:
    """One picture (1, 3, H, W) in [-1, 1] to latents (1, C, h, w) float32: the encoder's mean, so nothing is random.

    Raises ShapeError for sides that are no multiples of the downscale, RuntimeFailure for numbers that are not finite.
    """
    height, width = pixels.shape[-2:]
    space.shape(height, width)
    in_tiles = tiling == "on" or (tiling == "auto" and needs_tiles(vae, height, width))
    pixels = pixels.to(next(vae.parameters()).device)
    with _room(pixels, height * width):
        z = _finite(
            vae,
            pixels,
            lambda x: _in_memory(lambda each: vae.encode(each)[0], lambda each: encode_tiled(vae, each), x, in_tiles),
        )
    if not bool(torch.isfinite(z).all()):
        raise RuntimeFailure("the picture's latents are not finite", hint=_hint(vae))
    return space.normalize(z.float())


def _room(x: Tensor, pixels: int) -> AbstractContextManager[None]:
    """For maps of a large picture on a CPU: what was freed is given back, and so is each of them."""
    if x.device.type != "cpu" or pixels < _LARGE:
        return nullcontext()
    return_freed_memory()
    return large_tensors_mapped()


def _in_memory(
    whole: Callable[[Tensor], Tensor], tiled: Callable[[Tensor], Tensor], x: Tensor, in_tiles: bool
) -> Tensor:
    """x through `tiled`, or through `whole` and, once more, `tiled` if there is not memory enough for that."""
    if in_tiles:
        return tiled(x)
    try:
        return whole(x)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    warnings.warn("there is not enough memory for the whole picture: the autoencoder works in tiles", stacklevel=2)
    if x.device.type == "cuda":
        torch.cuda.empty_cache()
    return tiled(x)


def _finite(vae: AutoencoderKL, x: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """function(x) in the autoencoder's precision, in float32 if that gives numbers that are not finite.

    Half precision overflows in some published VAEs; float32 does not. Only for this picture: the next one must come
    out as it would alone. The way to float32 and back is exact.
    """
    dtype = next(vae.parameters()).dtype
    answer = function(x.to(dtype))
    if not bool(torch.isfinite(answer).all()) and dtype != torch.float32:
        try:
            lay_out(vae, torch.float32)
            answer = function(x.float())
        finally:
            lay_out(vae, dtype)
    return answer


def _hint(vae: AutoencoderKL) -> str | None:
    is_full = next(vae.parameters()).dtype == torch.float32
    return None if is_full else "--dtype float32 computes with a larger range"

"""The picture that drawing starts from: fitted to the request's size, masked, and what of it must stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor

from latentgen.errors import InputError
from latentgen.images.inputs import MASKED, Mask, check_mask, fit
from latentgen.images.pixels import Pixels, pixels_sha256
from latentgen.request import GenerationRequest, InitPicture

Pictures = Mapping[str, NDArray[np.uint8]]
"""Pictures (H, W, 3) and masks (H, W) by the SHA-256 of their bytes, as requests name them."""

SEAM = 2
"""An outpainted part is blended into what it was filled with over so many times the blur."""
FILL_BLUR = 8
"""Standard deviation, in pixels, of what an outpainted part is filled with before it is drawn."""

CANVASES_KEPT = 8
"""Pictures remembered, fitted and encoded, while drawing: enough for the pictures that a batch starts from."""


@dataclass(frozen=True, slots=True, eq=False)
class Canvas:
    """A picture at the size that is drawn."""

    pixels: Pixels
    """(H, W, 3); where it grew, filled from its edges."""
    redrawn: NDArray[np.bool_] | None = None
    """(H, W): what the network may change; None is all of it."""
    opacity: Mask | None = None
    """(H, W): how much of the drawn picture lies over `pixels`; where it is 0 they stay, byte for byte."""

    def finish(self, drawn: Pixels) -> Pixels:
        """The drawn picture (H, W, 3) laid over this one."""
        if self.opacity is None:
            return drawn
        share = self.opacity[..., None].astype(np.float32) / 255
        before = self.pixels.astype(np.float32)
        return np.rint(before + (drawn.astype(np.float32) - before) * share).astype(np.uint8)

    def redrawn_cells(self, downscale: int) -> Tensor:
        """(1, 1, h, w) bool: latent cells with any pixel that is redrawn, so that nothing of it is held in place.

        The pixels of such a cell that are to stay are put back by `finish`.
        """
        height, width = (side // downscale for side in self.pixels.shape[:2])
        if self.redrawn is None:
            return torch.ones((1, 1, height, width), dtype=torch.bool)
        cells = self.redrawn.reshape(height, downscale, width, downscale).any(axis=(1, 3))
        return torch.from_numpy(cells)[None, None]

    def without_redrawn(self) -> Tensor:
        """(1, 3, H, W) with 0, grey, where the picture is redrawn: what an inpainting U-Net is shown of it."""
        x = as_tensor(self.pixels)
        return torch.zeros_like(x) if self.redrawn is None else x * torch.from_numpy(~self.redrawn)


class InitPictures:
    """The pictures of one run, each fitted and encoded once.

    `encode` is the autoencoder's (1, 3, H, W) in [-1, 1] -> latents (1, C, h, w); `downscale` pixels lie along a cell.
    """

    def __init__(self, pictures: Pictures, encode: Callable[[Tensor], Tensor], downscale: int) -> None:
        self._pictures = pictures
        self._encode = encode
        self._downscale = downscale
        self._canvas = lru_cache(maxsize=CANVASES_KEPT)(self._make_canvas)
        self._latents = lru_cache(maxsize=CANVASES_KEPT)(self._make_latents)
        self._extra = lru_cache(maxsize=CANVASES_KEPT)(self._make_extra)

    def check(self, request: GenerationRequest) -> None:
        """Raise InputError if a picture the request names is not there, is another one, or does not fit its mask."""
        self.canvas(request)

    def canvas(self, request: GenerationRequest) -> Canvas | None:
        """What the request starts from; None for noise."""
        return None if request.init is None else self._canvas(_place(request.init), request.width_px, request.height_px)

    def latents(self, request: GenerationRequest) -> Tensor:
        """(1, C, h, w) float32 of `canvas`: each encoded by itself, so that it does not depend on its batch."""
        assert request.init is not None, "this request starts from noise"
        return self._latents(_place(request.init), request.width_px, request.height_px)

    def redrawn_cells(self, request: GenerationRequest) -> Tensor:
        """(1, 1, h, w) bool: the latent cells that may change."""
        canvas = self.canvas(request)
        assert canvas is not None, "this request starts from noise"
        return canvas.redrawn_cells(self._downscale)

    def extra(self, init: InitPicture | None, width_px: int, height_px: int) -> Tensor:
        """(1, 1+C, h, w): what an inpainting U-Net takes beside the latents, the mask (1: redrawn) and what is kept.

        Without a picture or a mask all is redrawn. In the order of Stable Diffusion's inpainting models.
        """
        return self._extra(None if init is None else _place(init), width_px, height_px)

    def _make_canvas(self, init: InitPicture, width_px: int, height_px: int) -> Canvas:
        picture, mask = self._fetch(init)
        left, top, right, bottom = init.outpaint
        inner = (width_px - left - right, height_px - top - bottom)
        assert min(inner) >= 1, "check_passes sees that a picture has room between its borders"
        pixels, redrawn, opacity = fit(picture, *inner), None, None
        if mask is not None:
            mask = fit(255 - mask if init.invert_mask else mask, *inner)
            redrawn, opacity = mask >= MASKED, _blurred(mask, init.mask_blur_px)
            if not redrawn.any():
                raise InputError(
                    f"the mask is too thin: drawn at {width_px}x{height_px}, nothing of it is left",
                    hint="widen it, or draw at the picture's own size",
                )
        canvas = Canvas(pixels, redrawn, opacity)
        return _grown(canvas, init.outpaint, init.mask_blur_px) if any(init.outpaint) else canvas

    def _make_latents(self, init: InitPicture, width_px: int, height_px: int) -> Tensor:
        return self._encode(as_tensor(self._canvas(init, width_px, height_px).pixels))

    def _make_extra(self, init: InitPicture | None, width_px: int, height_px: int) -> Tensor:
        if init is None:
            canvas = Canvas(np.zeros((height_px, width_px, 3), np.uint8))
        else:
            canvas = self._canvas(init, width_px, height_px)
        kept = self._encode(canvas.without_redrawn())
        return torch.cat([canvas.redrawn_cells(self._downscale).to(kept), kept], dim=1)

    def _fetch(self, init: InitPicture) -> tuple[Pixels, Mask | None]:
        """Picture (H, W, 3) and mask (H, W), proved to be those the request means."""
        picture = self._find(init.sha256, "picture")
        mask = None if init.mask_sha256 is None else self._find(init.mask_sha256, "mask")
        if picture.ndim != 3 or picture.shape[2] != 3:
            raise InputError(f"the picture to start from must be (H, W, 3) bytes, not {picture.shape}")
        if mask is not None:
            check_mask(picture, mask, invert=init.invert_mask)
        return picture, mask

    def _find(self, sha256: str, what: str) -> NDArray[np.uint8]:
        if sha256 not in self._pictures:
            raise InputError(f"the {what} {sha256[:10]} that drawing starts from was not given")
        found = self._pictures[sha256]
        if found.dtype != np.uint8 or pixels_sha256(found) != sha256:
            raise InputError(
                f"the {what} is not the one that was asked for: its bytes do not have the hash {sha256[:10]}"
            )
        return found


def as_tensor(pixels: Pixels) -> Tensor:
    """(H, W, 3) bytes to (1, 3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float() / 127.5 - 1.0


def _place(init: InitPicture) -> InitPicture:
    """What decides a canvas: everything but the strength, so that several share one."""
    return replace(init, strength=1.0)


def _blurred(picture: NDArray[np.uint8], sigma_px: float) -> NDArray[np.uint8]:
    """A picture or mask under a bell of `sigma_px`; its bytes, so it is 0 again some way off."""
    if sigma_px == 0:
        return picture
    return np.array(Image.fromarray(picture).filter(ImageFilter.GaussianBlur(sigma_px)))


def _grown(canvas: Canvas, outpaint: tuple[int, int, int, int], blur_px: int) -> Canvas:
    """A canvas with borders of these widths (left, top, right, bottom), to be drawn.

    They are filled with the picture's edges, blurred. The seam lies in them: the drawn picture fades in over
    SEAM * blur_px from the old edge outwards, so every old pixel stays.
    """
    left, top, right, bottom = outpaint
    borders = ((top, bottom), (left, right))
    pixels = np.pad(canvas.pixels, (*borders, (0, 0)), mode="edge")
    height, width = pixels.shape[:2]
    rows, columns = np.arange(height), np.arange(width)
    above_below = np.maximum(top - rows, rows - (height - bottom - 1))
    beside = np.maximum(left - columns, columns - (width - right - 1))
    distance = np.maximum(above_below[:, None], beside[None, :]).clip(0)  # in pixels from the old edge; 0 within
    fresh = distance > 0
    opacity = np.ceil(255 * (distance / (SEAM * blur_px + 1)).clip(max=1)).astype(np.uint8)
    redrawn = fresh
    if canvas.redrawn is not None and canvas.opacity is not None:
        redrawn = fresh | np.pad(canvas.redrawn, borders)
        opacity = np.maximum(opacity, np.pad(canvas.opacity, borders))
    return Canvas(np.where(fresh[..., None], _blurred(pixels, FILL_BLUR), pixels), redrawn, opacity)

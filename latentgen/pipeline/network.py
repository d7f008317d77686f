"""The U-Net as denoisers call it: its precision, and what goes through it together."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from latentgen.kernels.crowding import make_room
from latentgen.kernels.gpu import predict_compiled
from latentgen.models.attention import repeated
from latentgen.models.unet import DeepFeatures, UNet
from latentgen.pipeline.deep_cache import DeepCache


class Network:
    """network(x_t (B, C, h, w) float32, t (B,), context (k B, L, D)) -> prediction (k B, C, h, w).

    With k = 2, both passes of guidance, x_t and t count twice.
    """

    def __init__(
        self,
        unet: UNet,
        extra: Tensor | None = None,
        *,
        channels_last: bool = False,
        computes_once: bool = False,
        deep_cache: DeepCache | None = None,
        one_by_one: bool = False,
        compiled: bool = False,
        places: tuple[int, int] = (1, 1),
    ) -> None:
        """extra (B, E, h, w): further input channels of every call, as an inpainting U-Net takes them.

        channels_last: the layout of feature maps that the U-Net's fast form wants, and tensor cores.
        computes_once: what both passes of guidance share goes through the U-Net once; for one whose numbers do not
        depend on how many rows it is given.
        deep_cache: what of the U-Net's features is kept from call to call; None is nothing.
        one_by_one: pictures, and both passes of guidance, go through one after the other: half the feature maps.
        compiled: by torch.compile, on a GPU.
        places: how many of a batch's places are taken, and how many there are. A batch that is not full is filled up
        with copies, so that the U-Net is not compiled for its size.
        """
        self.unet = unet
        self.extra = extra
        self.dtype = next(unet.parameters()).dtype
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.computes_once = computes_once and not one_by_one
        self.deep_cache = deep_cache
        self.one_by_one = one_by_one
        self.compiled = compiled
        self.places = places

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        make_room()
        if self.extra is not None:
            x = torch.cat([x, self.extra], dim=1)
        if not self.computes_once:
            x, t = repeated(x, len(context)), repeated(t, len(context))
        if self.one_by_one and len(x) > 1:
            rows = zip(x.split(1), t.split(1), context.split(1), self._kept(context, len(x)), strict=True)
            return torch.cat([self._predict(*row) for row in rows])
        (deep,) = self._kept(context, 1)
        return self._predict(self._filled_up(x), self._filled_up(t), self._filled_up(context), deep)[: len(context)]

    def _filled_up(self, each: Tensor) -> Tensor:
        """(B, ...) to as many rows as a full batch has, by copies of the last."""
        taken, places = self.places
        if taken == places:
            return each
        missing = len(each) * (places - taken) // taken
        return torch.cat([each, each[-1:].expand(missing, *each.shape[1:])])

    def _kept(self, context: Tensor, calls: int) -> Sequence[DeepFeatures | None]:
        """What each of a look's calls of the U-Net keeps or reuses."""
        return [None] * calls if self.deep_cache is None else self.deep_cache.features(context, calls)

    def _predict(self, x: Tensor, t: Tensor, context: Tensor, deep: DeepFeatures | None) -> Tensor:
        x = x.to(self.dtype, memory_format=self.layout)
        if self._depends_on_threads(x):
            return self.unet(x.repeat(2, 1, 1, 1), t.repeat(2), context.repeat(2, 1, 1), deep=deep)[:1]
        if self.compiled:
            return predict_compiled(self.unet, x, t, context, deep=deep)
        return self.unet(x, t, context, deep=deep)

    def _depends_on_threads(self, x: Tensor) -> bool:
        """Whether a CPU would compute one picture alone, without guidance, in an order that depends on its threads.

        Then a feature map of few pixels goes through MKL's product with a picture's pixels as its columns, which
        threads share: of fewer than 64 columns 18, 20, 21, 24, 35 and 42 make a difference (measured, of 30 counts), no
        multiple of 16. Two pictures are shared out differently, and never make one.
        """
        if x.device.type != "cpu" or x.dtype != torch.float32 or len(x) > 1:
            return False
        height, width = x.shape[-2:]
        levels = range(len(self.unet.config.block_out_channels))
        pixels = [(height >> level) * (width >> level) for level in levels]
        return any(count < 64 and count % 16 != 0 for count in pixels)

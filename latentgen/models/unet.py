"""The conditional U-Net of Stable Diffusion 1.x and 2.x, and of anything smaller of the same family.

Parameter names are those of diffusers' `UNet2DConditionModel`, so its state dicts load strictly and without a key map.
Architecture: latent diffusion, arXiv:2112.10752, section 3.3, on the U-Net of DDPM, arXiv:2006.11239, appendix B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentgen.config import UNetConfig
from latentgen.errors import ShapeError
from latentgen.models.attention import SpatialTransformer, repeated
from latentgen.models.embeddings import TimeEmbedding, timestep_embedding
from latentgen.models.layers import Downsample, ResnetBlock, Upsample, recomputed, silu_, zero_init

SHALLOW_LAYERS = 2
"""Of the outermost level's way up: those that are computed at every call, whatever is kept (`DeepFeatures`)."""


@dataclass(slots=True, eq=False)
class DeepFeatures:
    """What one call of a U-Net leaves for later calls with the same context and neighbouring timesteps.

    DeepCache, arXiv:2312.00858, section 3.2, with the skip branch of its experiments: a call that finds features here
    computes the first layer of the way down and the last two of the way up alone.
    """

    features: Tensor | None = None
    """(B, C, h, w) of as many rows as contexts, what enters the last two layers of the way up; None lets the next call
    compute them."""


def _resnet(config: UNetConfig, in_channels: int, out_channels: int) -> ResnetBlock:
    block = ResnetBlock(
        in_channels,
        out_channels,
        num_groups=config.norm_num_groups,
        norm_eps=config.norm_eps,
        time_embed_dim=config.time_embed_dim,
    )
    zero_init(block.conv2)
    return block


def _transformer(config: UNetConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(
        config.block_out_channels[level],
        config.cross_attention_dim,
        config.num_attention_heads[level],
        depth=config.transformer_layers_per_block,
        num_groups=config.norm_num_groups,
        use_linear_projection=config.use_linear_projection,
    )


class Block(nn.Module):
    """Residual blocks, each followed by a transformer where the block attends; one of each is a layer."""

    resnets: nn.ModuleList
    attentions: nn.ModuleList
    recompute = False
    """Keep nothing of a layer but its inputs for the backward pass (`UNet.enable_gradient_checkpointing`)."""

    def layer(self, index: int, time_emb: Tensor, context: Tensor, *inputs: Tensor) -> Tensor:
        """The inputs, side by side along the channels, (B, C, h, w), through one layer: (k B, C', h, w).

        With k contexts for each row the inputs count k times: they are copied where they meet the text, or else behind
        the layer.
        """

        def compute(time_emb: Tensor, context: Tensor, *inputs: Tensor) -> Tensor:
            x = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=1)
            x = self.resnets[index](x, time_emb[: len(x)])
            return self.attentions[index](x, context) if index < len(self.attentions) else repeated(x, len(context))

        if self.recompute:
            return recomputed(compute, time_emb, context, *inputs)
        return compute(time_emb, context, *inputs)


class DownBlock(Block):
    """One level on the way down: layers, then half the size unless it is the coarsest."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        in_channels = widths[max(level - 1, 0)]
        layers = range(config.layers_per_block)
        self.resnets = nn.ModuleList(
            _resnet(config, in_channels if layer == 0 else widths[level], widths[level]) for layer in layers
        )
        # An empty list has no parameters, hence no names: what a level lacks does not appear in its state dict.
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in layers if config.attention_levels[level])
        is_coarsest = level == len(widths) - 1
        self.downsamplers = nn.ModuleList([] if is_coarsest else [Downsample(widths[level], pad_all_sides=True)])

    def forward(self, x: Tensor, time_emb: Tensor, context: Tensor) -> tuple[Tensor, list[Tensor]]:
        """x (B, C, h, w) -> the next level's input, and every feature map to be skipped to the way up, in order.

        x may have fewer rows than there are contexts (`layer`).
        """
        skips: list[Tensor] = []
        for index in range(len(self.resnets)):
            x = self.layer(index, time_emb, context, x)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x, skips


class MidBlock(Block):
    """The coarsest features: residual block, transformer, residual block."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        width = config.block_out_channels[-1]
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(config, len(config.block_out_channels) - 1)])

    def forward(self, x: Tensor, time_emb: Tensor, context: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = self.layer(0, time_emb, context, x)
        return self.layer(1, time_emb, context, x)


class UpBlock(Block):
    """One level on the way up: as on the way down, with one layer more and a skip joined before each."""

    def __init__(self, config: UNetConfig, level: int) -> None:
        super().__init__()
        widths = config.block_out_channels
        width = widths[level]
        coarser = widths[min(level + 1, len(widths) - 1)]
        finer = widths[max(level - 1, 0)]
        layers = range(config.layers_per_block + 1)
        # A level's last skip is what its way down began with, so it has the finer level's width.
        self.resnets = nn.ModuleList(
            _resnet(config, (coarser if layer == 0 else width) + (finer if layer == layers[-1] else width), width)
            for layer in layers
        )
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in layers if config.attention_levels[level])
        self.upsamplers = nn.ModuleList([] if level == 0 else [Upsample(width)])

    def forward(
        self,
        x: Tensor,
        skips: Sequence[Tensor],
        time_emb: Tensor,
        context: Tensor,
        *,
        deep: DeepFeatures | None = None,
    ) -> Tensor:
        """x (B, C, h, w) and one skip a layer, in the order in which they are joined -> the finer level's input.

        Fewer skips than layers are those of the last layers, and x is what enters the first of them. `deep` is given
        what enters the last `SHALLOW_LAYERS`.
        """
        count = len(self.resnets)
        for index, skip in enumerate(skips, count - len(skips)):
            if deep is not None and index == count - SHALLOW_LAYERS:
                deep.features = x
            x = self.layer(index, time_emb, context, x, skip)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class UNet(nn.Module):
    """Noisy latents, timestep and text to the prediction (eps, v or sample: the network does not know which)."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        levels = range(len(widths))
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        self.time_embedding = TimeEmbedding(widths[0], config.time_embed_dim)
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = zero_init(nn.Conv2d(widths[0], config.out_channels, 3, padding=1))

    def enable_gradient_checkpointing(self) -> None:
        """Train with the activations of one layer at a time in memory, for a third more computing."""
        for module in self.modules():
            if isinstance(module, Block):
                module.recompute = True

    def forward(self, x: Tensor, t: Tensor | float, context: Tensor, *, deep: DeepFeatures | None = None) -> Tensor:
        """Predict from noisy latents x at timestep t under the text context.

        Shapes: x (B, in_channels, h, w), sides multiples of 2^(levels - 1); t (B,) or a scalar for all, int or float,
        in timesteps; context (B, M, cross_attention_dim), M = 77 for one chunk of text. Returns (B, out_channels,
        h, w), zero before training. `deep` is filled if it is empty, else used; without it nothing is kept.
        context may have k times as many rows, as guidance has: the answer is then that of x and t repeated k times, one
        copy behind the other, and what the first layer does before it looks at the text is computed once.
        Raises ShapeError when one of them does not fit this network or the others.
        """
        t = torch.as_tensor(t, device=x.device).reshape(-1)
        self._check_shapes(x, t, context)
        sinusoids = timestep_embedding(t, self.config.block_out_channels[0]).to(x.dtype)
        time_emb = repeated(self.time_embedding(sinusoids.expand(len(x), -1)), len(context))  # (k B, time_embed_dim)

        x = self.conv_in(x)
        if deep is not None and deep.features is not None:
            x = self._shallow(x, deep.features, time_emb, context)
        else:
            x = self._all(x, time_emb, context, deep)
        return self.conv_out(silu_(self.conv_norm_out(x)))

    def _all(self, x: Tensor, time_emb: Tensor, context: Tensor, deep: DeepFeatures | None) -> Tensor:
        """Down, through the middle and up: (B, C, h, w) -> (B, C, h, w)."""
        skips = [repeated(x, len(context))]
        for block in self.down_blocks:
            x, block_skips = block(x, time_emb, context)
            skips.extend(block_skips)

        x = self.mid_block(x, time_emb, context)

        layers = self.config.layers_per_block + 1
        *coarser, outermost = self.up_blocks
        for block in coarser:
            skips, block_skips = skips[:-layers], skips[-layers:]
            x = block(x, block_skips[::-1], time_emb, context)
        return outermost(x, skips[::-1], time_emb, context, deep=deep)

    def _shallow(self, x: Tensor, features: Tensor, time_emb: Tensor, context: Tensor) -> Tensor:
        """The same with what enters the last layers already there: those, and what they need of the way down."""
        outermost_down, outermost_up = self.down_blocks[0], self.up_blocks[-1]
        assert isinstance(outermost_down, DownBlock), "a U-Net's way down"
        first = outermost_down.layer(0, time_emb, context, x)
        return outermost_up(features, [first, repeated(x, len(context))], time_emb, context)

    def _check_shapes(self, x: Tensor, t: Tensor, context: Tensor) -> None:
        config = self.config
        if x.ndim != 4 or x.shape[1] != config.in_channels:
            raise ShapeError(
                f"U-Net: latents are {tuple(x.shape)}, but this network takes (B, {config.in_channels}, h, w)"
            )
        height, width = x.shape[-2:]
        multiple = 2 ** (len(config.block_out_channels) - 1)
        if height % multiple or width % multiple:
            raise ShapeError(
                f"U-Net: latents are {height} high and {width} wide, but both sides must be multiples of {multiple}"
            )
        if len(t) not in (1, len(x)):
            raise ShapeError(f"U-Net: {len(t)} timesteps for {len(x)} latents; one for all or one each is needed")
        is_multiple = context.ndim == 3 and len(x) > 0 and len(context) > 0 and len(context) % len(x) == 0
        if not is_multiple or context.shape[2] != config.cross_attention_dim:
            raise ShapeError(
                f"U-Net: context is {tuple(context.shape)}, but {len(x)} latents and this network "
                f"take ({len(x)}, tokens, {config.cross_attention_dim}), or a multiple of {len(x)}"
            )

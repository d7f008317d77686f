"""Parameter names of CompVis' single files for ours, written out from a config: no torch, no tensors.

Each function gives our name -> theirs for every parameter of a network, without the prefix under which a file holds it
(`model.diffusion_model.`, `first_stage_model.`). Source: `ldm/modules/diffusionmodules/openaimodel.py` and `model.py`
of CompVis/stable-diffusion, whose modules are numbered in the order in which they are built.
"""

from __future__ import annotations

from collections.abc import Iterator

from latentgen.config import TextEncoderConfig, UNetConfig, VAEConfig

Pairs = Iterator[tuple[str, str]]
"""Our name of a module, then theirs."""


def unet_names(config: UNetConfig) -> dict[str, str]:
    """The U-Net's parameters."""
    names: dict[str, str] = {}
    for ours, theirs in _unet_modules(config):
        names[f"{ours}.weight"] = f"{theirs}.weight"
        if not ours.endswith((".to_q", ".to_k", ".to_v")):
            names[f"{ours}.bias"] = f"{theirs}.bias"
    return names


def vae_names(config: VAEConfig) -> dict[str, str]:
    """The autoencoder's parameters. Theirs has 1x1 convolutions where our attention has matrices."""
    modules = [*_encoder_modules(config), *_decoder_modules(config)]
    if config.use_quant_conv:
        modules.append(("quant_conv", "quant_conv"))
    if config.use_post_quant_conv:
        modules.append(("post_quant_conv", "post_quant_conv"))
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in modules for kind in ("weight", "bias")}


def text_names(config: TextEncoderConfig) -> list[str]:
    """The text encoder's parameters: SD 1.x files have them under our names, which are transformers'."""
    layers = [f"text_model.encoder.layers.{layer}" for layer in range(config.num_hidden_layers)]
    inner = [*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "layer_norm1", "layer_norm2"]
    modules = [f"{layer}.{name}" for layer in layers for name in (*inner, "mlp.fc1", "mlp.fc2")]
    return [
        "text_model.embeddings.token_embedding.weight",
        "text_model.embeddings.position_embedding.weight",
        *(f"{module}.{kind}" for module in (*modules, "text_model.final_layer_norm") for kind in ("weight", "bias")),
    ]


def _unet_modules(config: UNetConfig) -> Pairs:
    widths, layers = config.block_out_channels, config.layers_per_block
    yield "conv_in", "input_blocks.0.0"
    yield "time_embedding.linear_1", "time_embed.0"
    yield "time_embedding.linear_2", "time_embed.2"
    block = 1
    for level, width in enumerate(widths):
        for layer in range(layers):
            entering = widths[max(level - 1, 0)] if layer == 0 else width
            ours = f"down_blocks.{level}"
            yield from _unet_resnet(f"{ours}.resnets.{layer}", f"input_blocks.{block}.0", entering != width)
            if config.attention_levels[level]:
                yield from _transformer(f"{ours}.attentions.{layer}", f"input_blocks.{block}.1", config)
            block += 1
        if level < len(widths) - 1:
            yield f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{block}.0.op"
            block += 1
    yield from _unet_resnet("mid_block.resnets.0", "middle_block.0", False)
    yield from _transformer("mid_block.attentions.0", "middle_block.1", config)
    yield from _unet_resnet("mid_block.resnets.1", "middle_block.2", False)
    block = 0
    for ours, level in enumerate(reversed(range(len(widths)))):
        attends = config.attention_levels[level]
        for layer in range(layers + 1):
            # The skip that is joined before each makes its input wider than its output, always.
            yield from _unet_resnet(f"up_blocks.{ours}.resnets.{layer}", f"output_blocks.{block}.0", True)
            if attends:
                yield from _transformer(f"up_blocks.{ours}.attentions.{layer}", f"output_blocks.{block}.1", config)
            block += 1
        if level > 0:
            yield f"up_blocks.{ours}.upsamplers.0.conv", f"output_blocks.{block - 1}.{2 if attends else 1}.conv"
    yield "conv_norm_out", "out.0"
    yield "conv_out", "out.2"


def _unet_resnet(ours: str, theirs: str, has_shortcut: bool) -> Pairs:
    yield f"{ours}.norm1", f"{theirs}.in_layers.0"
    yield f"{ours}.conv1", f"{theirs}.in_layers.2"
    yield f"{ours}.time_emb_proj", f"{theirs}.emb_layers.1"
    yield f"{ours}.norm2", f"{theirs}.out_layers.0"
    yield f"{ours}.conv2", f"{theirs}.out_layers.3"
    if has_shortcut:
        yield f"{ours}.conv_shortcut", f"{theirs}.skip_connection"


def _transformer(ours: str, theirs: str, config: UNetConfig) -> Pairs:
    """A spatial transformer: diffusers kept CompVis' names inside it."""
    blocks = [f"transformer_blocks.{index}" for index in range(config.transformer_layers_per_block)]
    inner = [f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")]
    inner += ["ff.net.0.proj", "ff.net.2", "norm1", "norm2", "norm3"]
    for name in ("norm", "proj_in", *(f"{block}.{name}" for block in blocks for name in inner), "proj_out"):
        yield f"{ours}.{name}", f"{theirs}.{name}"


def _encoder_modules(config: VAEConfig) -> Pairs:
    widths = config.block_out_channels
    yield "encoder.conv_in", "encoder.conv_in"
    for level, width in enumerate(widths):
        for layer in range(config.layers_per_block):
            entering = widths[max(level - 1, 0)] if layer == 0 else width
            ours, theirs = f"encoder.down_blocks.{level}.resnets.{layer}", f"encoder.down.{level}.block.{layer}"
            yield from _vae_resnet(ours, theirs, entering != width)
        if level < len(widths) - 1:
            yield f"encoder.down_blocks.{level}.downsamplers.0.conv", f"encoder.down.{level}.downsample.conv"
    yield from _vae_middle("encoder", config)


def _decoder_modules(config: VAEConfig) -> Pairs:
    widths = config.block_out_channels
    yield "decoder.conv_in", "decoder.conv_in"
    yield from _vae_middle("decoder", config)
    for ours, level in enumerate(reversed(range(len(widths)))):
        for layer in range(config.layers_per_block + 1):
            entering = widths[min(level + 1, len(widths) - 1)] if layer == 0 else widths[level]
            name = f"decoder.up_blocks.{ours}.resnets.{layer}"
            yield from _vae_resnet(name, f"decoder.up.{level}.block.{layer}", entering != widths[level])
        if level > 0:
            yield f"decoder.up_blocks.{ours}.upsamplers.0.conv", f"decoder.up.{level}.upsample.conv"


def _vae_middle(side: str, config: VAEConfig) -> Pairs:
    yield from _vae_resnet(f"{side}.mid_block.resnets.0", f"{side}.mid.block_1", False)
    if config.mid_block_add_attention:
        names = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
        for ours, theirs in names.items():
            yield f"{side}.mid_block.attentions.0.{ours}", f"{side}.mid.attn_1.{theirs}"
    yield from _vae_resnet(f"{side}.mid_block.resnets.1", f"{side}.mid.block_2", False)
    yield f"{side}.conv_norm_out", f"{side}.norm_out"
    yield f"{side}.conv_out", f"{side}.conv_out"


def _vae_resnet(ours: str, theirs: str, has_shortcut: bool) -> Pairs:
    for name in ("norm1", "conv1", "norm2", "conv2"):
        yield f"{ours}.{name}", f"{theirs}.{name}"
    if has_shortcut:
        yield f"{ours}.conv_shortcut", f"{theirs}.nin_shortcut"

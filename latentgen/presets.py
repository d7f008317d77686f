"""Model shapes as values, each with its source."""

from __future__ import annotations

from dataclasses import replace

from latentgen.config import (
    DiffusionConfig,
    GenerationDefaults,
    ModelConfig,
    TextEncoderConfig,
    UNetConfig,
    VAEConfig,
)

SD_VAE = VAEConfig(block_out_channels=(128, 256, 512, 512), latent_channels=4, scaling_factor=0.18215)
"""The KL-f8 autoencoder of SD 1.x and 2.x (arXiv:2112.10752, appendix G; `stabilityai/sd-vae-ft-mse/config.json`)."""

SD_DIFFUSION = DiffusionConfig()
"""scaled_linear 0.00085..0.012 over 1000 steps, eps, leading + 1 (`v1-inference.yaml` of CompVis/stable-diffusion)."""

SD15 = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        attention_levels=(True, True, True, False),
        num_attention_heads=(8, 8, 8, 8),
        cross_attention_dim=768,
    ),
    vae=SD_VAE,
    text_encoder=TextEncoderConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        projection_dim=768,
    ),
    diffusion=SD_DIFFUSION,
    defaults=GenerationDefaults(width_px=512, height_px=512, steps=25, guidance=7.5),
)
"""Stable Diffusion 1.5 (`stable-diffusion-v1-5/stable-diffusion-v1-5`, its config.json files)."""

SD21_BASE = ModelConfig(
    unet=UNetConfig(
        in_channels=4,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        attention_levels=(True, True, True, False),
        num_attention_heads=(5, 10, 20, 20),
        cross_attention_dim=1024,
        use_linear_projection=True,
    ),
    vae=SD_VAE,
    text_encoder=TextEncoderConfig(
        vocab_size=49408,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=23,
        num_attention_heads=16,
        hidden_act="gelu",
        pad_token_id=0,
        projection_dim=512,
    ),
    diffusion=SD_DIFFUSION,
    defaults=GenerationDefaults(width_px=512, height_px=512, steps=25, guidance=7.5),
)
"""Stable Diffusion 2.1-base (`stabilityai/stable-diffusion-2-1-base`): OpenCLIP ViT-H without its last layer."""

SD21_V = replace(
    SD21_BASE,
    unet=replace(SD21_BASE.unet, sample_size=96),
    diffusion=replace(SD_DIFFUSION, prediction_type="v_prediction"),
    defaults=replace(SD21_BASE.defaults, width_px=768, height_px=768),
)
"""Stable Diffusion 2.1 (`stabilityai/stable-diffusion-2-1`): the same networks, trained on to predict v at 768 px."""

EMBEDDED = ModelConfig(
    unet=UNetConfig(
        in_channels=16,
        out_channels=16,
        block_out_channels=(128, 224, 256),
        attention_levels=(True, True, True),
        num_attention_heads=(2, 4, 4),
        cross_attention_dim=256,
        layers_per_block=1,
        use_linear_projection=True,
        sample_size=16,
    ),
    vae=VAEConfig(
        block_out_channels=(16, 32, 96, 192, 256),
        latent_channels=16,
        scaling_factor=1.0,
        norm_num_groups=2,
        layers_per_block=1,
        sample_size=256,
        mid_block_add_attention=False,
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=8194,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=4,
        num_attention_heads=4,
        hidden_act="gelu",
        bos_token_id=8192,
        eos_token_id=8193,
        pad_token_id=8193,
        projection_dim=256,
    ),
    diffusion=DiffusionConfig(
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        steps_offset=0,
    ),
    defaults=GenerationDefaults(
        width_px=256, height_px=256, steps=25, guidance=3.5, sampler="dpmpp_2m", schedule="trailing"
    ),
)
"""Our own small model: f16 latents of 16 channels, so a 256 px picture is a 16x16 grid for the U-Net.

Source: `weights/README.md`. `scaling_factor` is 1 because the latents' mean and spread, which differ from channel to
channel, are folded into `quant_conv` and `post_quant_conv` after training (`training/latent_statistics.py`).
"""

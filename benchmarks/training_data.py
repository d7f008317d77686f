"""What both trainers of the comparison are given: one folder of pictures with captions, and one model folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch

from latentgen import embedded_model_path
from latentgen.checkpoints.folder import save_diffusion, save_unet, save_vae
from latentgen.config import UNetConfig
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.presets import EMBEDDED, SD15, SD_DIFFUSION, SD_VAE

SHAPES: dict[str, UNetConfig] = {
    "medium": replace(SD15.unet, block_out_channels=(128, 256, 512), attention_levels=(True, True, True),
                      num_attention_heads=(2, 4, 8), sample_size=32),
    "sd15": SD15.unet,
}  # fmt: skip
"""U-Nets to be timed with random weights, besides the embedded model; their VAE is that of SD 1.5 (f8)."""


def write_pictures(folder: Path, count: int, side_px: int) -> Path:
    """`count` scenes of our corpus in the form that both read: pictures and a metadata.jsonl with their captions."""
    command = ["data", "render", "--format", "folder", "--count", str(count), "--size", str(side_px)]
    subprocess.run([sys.executable, "-m", "latentgen", *command, "--out", folder], check=True, capture_output=True)
    rows: list[str] = []
    for picture in sorted(folder.glob("*.png")):
        captions = picture.with_suffix(".txt")
        rows.append(json.dumps({"file_name": picture.name, "text": captions.read_text().splitlines()[0]}))
    for other in [path for path in folder.iterdir() if path.suffix != ".png"]:
        other.unlink()
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def write_model(folder: Path, shape: str) -> Path:
    """A model folder with random weights: a U-Net of this shape, SD 1.5's VAE, the embedded model's text encoder."""
    embedded = embedded_model_path()
    torch.manual_seed(0)
    config = replace(SHAPES[shape], cross_attention_dim=EMBEDDED.text_encoder.hidden_size)
    save_unet(UNet(config), folder / "unet")
    save_vae(AutoencoderKL(SD_VAE), folder / "vae")
    save_diffusion(SD_DIFFUSION, folder / "scheduler")
    for part in ("text_encoder", "tokenizer"):
        shutil.copytree(embedded / part, folder / part)
    shutil.copy(embedded / "model_index.json", folder)
    return folder

"""Tiny data sets and objectives: everything of a training run but the size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from latentgen.config import DiffusionConfig, TextEncoderConfig, TrainConfig, UNetConfig, VAEConfig
from latentgen.data.pixels import PixelCache
from latentgen.data.records import Record, fingerprint, list_records
from latentgen.diffusion.latents import LatentSpace
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.training.alignment import AlignedObjective, AlignedUNet, FeatureCache, FrozenNetwork
from latentgen.training.caches import ContextCache, LatentCache
from latentgen.training.loop import Objective, Outcome, fit
from latentgen.training.run_dir import MANIFEST, RunDir
from latentgen.training.text_tuning import PromptedObjective, PromptedUNet, TokenContexts
from latentgen.training.unet import UNetObjective, UNetObjectiveConfig
from latentgen.training.vae import VAELossWeights, VAEObjective
from tests.tiny import randomize, tiny_vae

if TYPE_CHECKING:
    from latentgen.training.clip import CLIPObjective

SIDE_PX = 16
ALIGN_WEIGHT = 0.5
WORDS = ("red", "green", "blue", "grey", "dark", "light")

VAE = VAEConfig(
    block_out_channels=(4, 8),
    latent_channels=2,
    scaling_factor=1.0,
    layers_per_block=1,
    norm_num_groups=2,
    sample_size=SIDE_PX,
    mid_block_add_attention=False,
)
TEXT = TextEncoderConfig(
    vocab_size=600,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=1,
    num_attention_heads=2,
    bos_token_id=598,
    eos_token_id=599,
    pad_token_id=599,
    projection_dim=8,
)
UNET = UNetConfig(
    in_channels=2,
    out_channels=2,
    block_out_channels=(8, 16),
    attention_levels=(True, False),
    num_attention_heads=(2, 2),
    cross_attention_dim=16,
    layers_per_block=1,
    norm_num_groups=4,
    sample_size=SIDE_PX // 2,
)


def write_pictures(folder: Path, count: int, side_px: int = SIDE_PX) -> Path:
    """A folder of `count` smooth two-coloured pictures, each with a caption of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    ramp = np.linspace(0.0, 1.0, side_px)
    for i in range(count):
        generator = np.random.default_rng(i)
        first, second = generator.uniform(0, 255, (2, 3))
        across = ramp[None, :, None] if i % 2 else ramp[:, None, None]
        pixels = np.broadcast_to(first * across + second * (1 - across), (side_px, side_px, 3))
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{i:03d}.png")
        caption = f"a {WORDS[i % 6]} picture with {WORDS[i // 6 % 6]}, number {i}"
        (folder / f"{i:03d}.txt").write_text(caption)
    return folder


class TinyData:
    """Records and caches of a tiny data set, and objectives on it. The same seed builds the same network."""

    def __init__(self, folder: Path, count: int) -> None:
        self.records: list[Record] = list_records(write_pictures(folder / "data", count))
        self.cache = folder / "cache"
        self.pixels = PixelCache(self.records, SIDE_PX, self.cache, lambda text: None)
        self.tokenizer = Tokenizer.published(TEXT.vocab_size - 514)

    def vae(self, seed: int = 0, *, crop_px: int = 8) -> VAEObjective:
        torch.manual_seed(seed)
        return VAEObjective(
            VAE,
            self.pixels,
            fingerprint(self.records),
            crop_px=crop_px,
            side_px=SIDE_PX,
            weights=VAELossWeights(kl=1e-4),
        )

    def clip(self, seed: int = 0) -> CLIPObjective:
        from latentgen.training.clip import CLIPObjective, ImageTowerConfig  # open_clip takes seconds

        tower = ImageTowerConfig(side_px=SIDE_PX, patch_px=8, width=64, layers=1)
        torch.manual_seed(seed)
        return CLIPObjective(TEXT, tower, self.records, self.pixels, self.tokenizer, fingerprint(self.records))

    def unet(
        self, seed: int = 0, *, config: UNetObjectiveConfig | None = None, diffusion: DiffusionConfig | None = None
    ) -> UNetObjective:
        frozen_vae = tiny_vae(VAE)
        encoder = self.text_encoder()
        latents = LatentCache(self.records, self.pixels, frozen_vae, self.cache, lambda text: None)
        contexts = ContextCache(self.records, self.tokenizer, encoder, self.cache, lambda text: None)
        torch.manual_seed(seed)
        return UNetObjective(
            UNet(UNET),
            diffusion or DiffusionConfig(),
            LatentSpace.from_config(VAE),
            self.records,
            latents,
            contexts,
            config or UNetObjectiveConfig(),
            None,
            {"data": fingerprint(self.records)},
        )

    def text_encoder(self) -> CLIPTextModel:
        encoder = CLIPTextModel(TEXT).eval()
        randomize(encoder)
        return encoder

    def prompted(self, seed: int = 0, *, aligned: bool = False, rate: float = 0.3) -> PromptedObjective:
        """As `unet` or `aligned`, with the text encoder trained."""
        objective = self.aligned(seed) if aligned else self.unet(seed)
        denoising = objective.denoising if isinstance(objective, AlignedObjective) else objective
        denoising.contexts = TokenContexts(self.tokenizer)
        return PromptedObjective(PromptedUNet(objective.network, self.text_encoder(), rate), objective, denoising)

    def aligned(self, seed: int = 0) -> AlignedObjective:
        """Every caption is kept, so that batches differ by their pictures alone."""
        denoising = self.unet(seed, config=UNetObjectiveConfig(caption_dropout=0.0))
        network = denoising.network
        assert isinstance(network, UNet)
        features = FeatureCache(self.pixels, FrozenNetwork(colours, "colours"), self.cache, lambda note: None)
        return AlignedObjective(AlignedUNet(network, features.channels), denoising, features, ALIGN_WEIGHT)


def colours(pictures: Tensor) -> Tensor:
    """A frozen network of three features at half of the size: the colours, on three scales."""
    return torch.nn.functional.avg_pool2d(pictures, 2) * torch.tensor([1.0, 5.0, 0.2])[:, None, None]


def build(data: TinyData, name: str) -> Objective:
    """The objective of this name: vae, clip, unet, aligned or prompted."""
    makers = {"vae": data.vae, "clip": data.clip, "unet": data.unet, "aligned": data.aligned}
    return {**makers, "prompted": data.prompted}[name]()


SHORT_RUN = TrainConfig(
    lr=1e-3, batch_size=4, grad_accum=2, max_steps=6, warmup_steps=2, save_every_steps=100, log_every_steps=1
)
LAST = 6
"""Its last step."""


def train(
    objective: Objective,
    folder: Path,
    config: TrainConfig = SHORT_RUN,
    *,
    resume: str | None = None,
    override: Sequence[str] = (),
    **changes: Any,
) -> Outcome:
    config = replace(config, **changes)
    return fit(objective, config, RunDir(folder), resume=resume, override=override, report=lambda event: None)


class Killed(BaseException):
    """What ends a run as a SIGKILL would, for all that is on the disk."""


def train_until_killed(objective: Objective, folder: Path, forward_passes: int, **changes: Any) -> None:
    """Train, saving each step, and die after so many forward passes: an odd number is within an accumulation of two."""
    loss, left = objective.loss, forward_passes

    def dying(network: nn.Module, batch: Any, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        nonlocal left
        left -= 1
        if left < 0:
            raise Killed
        return loss(network, batch, step)

    objective.loss = dying  # pyright: ignore[reportAttributeAccessIssue]
    try:
        train(objective, folder, **{**changes, "save_every_steps": 1, "grad_accum": 2})
    except Killed:
        return
    raise AssertionError("the run was done before it could be killed")


def state_hashes(folder: Path, step: int) -> Mapping[str, str]:
    """SHA-256 of the weights, of their average and of the optimizer's state in a checkpoint."""
    manifest = json.loads((folder / f"step_{step:08d}" / MANIFEST).read_text())
    return {name: entry["sha256"] for name, entry in manifest["files"].items()}


def gradient_difference(first: Path, second: Path) -> float:
    """How far two runs' averaged gradients (Adam's first moments) lie apart, relative to their length.

    Not the weights: where a gradient is all but 0, Adam makes of its rounding error a whole step.
    """
    moments: list[Tensor] = []
    for folder in (first, second):
        checkpoint = RunDir(folder).latest()
        assert checkpoint is not None
        names = sorted(name for name in checkpoint.optimizer if name.endswith(":exp_avg"))
        moments.append(torch.cat([checkpoint.optimizer[name].flatten() for name in names]))
    return float((moments[0] - moments[1]).norm() / moments[1].norm())


def log_events(folder: Path) -> list[dict[str, Any]]:
    """The log's lines about steps: without validations."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [event for event in events if not event.get("validation")]

"""Training the text encoder: open_clip's towers and contrastive loss on (picture, caption) pairs.

The text tower is kept, the image tower has done its work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from latentgen.checkpoints.keymap import text_tower_from_open_clip
from latentgen.config import TextEncoderConfig
from latentgen.data.pixels import PixelCache, to_float
from latentgen.data.records import Record
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.training.rng import Draw
from latentgen.training.sizes import check_patches

TOKEN_MULTIPLE = 8
"""Training batches are cut to their longest caption, rounded up to this: a causal tower's states do not look ahead."""


@dataclass(frozen=True, slots=True)
class ImageTowerConfig:
    """The vision transformer that the text tower learns against."""

    side_px: int = 128
    patch_px: int = 16
    width: int = 192
    layers: int = 4


class CLIPBatch(NamedTuple):
    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]"""
    token_ids: Tensor
    """(B, L) int64, L <= 77"""


class CLIPObjective:
    """Symmetric cross-entropy over a batch of pairs. Source: CLIP, arXiv:2103.00020, figure 3.

    The pairs that a pair is held against are those of its own forward pass in its own process: more processes or more
    accumulation give smoother gradients, not more negatives.
    Raises ConfigError when the pictures' side is not a multiple of the image tower's patch.
    """

    def __init__(
        self,
        text: TextEncoderConfig,
        image: ImageTowerConfig,
        records: list[Record],
        pixels: PixelCache,
        tokenizer: Tokenizer,
        data_fingerprint: str,
    ) -> None:
        self.text, self.image, self.records, self.pixels = text, image, records, pixels
        self.tokenizer, self.data_fingerprint = tokenizer, data_fingerprint
        self._network = build_towers(text, image)
        self._loss = ClipLoss()

    @property
    def network(self) -> CLIPTowers:
        return self._network

    @property
    def items(self) -> int:
        return len(self.records)

    def describe(self) -> Mapping[str, Any]:
        return {
            "objective": "clip",
            "text_encoder": asdict(self.text),
            "image_tower": asdict(self.image),
            "data": self.data_fingerprint,
        }

    def batch(self, draws: Sequence[Draw]) -> CLIPBatch:
        captions: list[str] = []
        for draw in draws:
            choices = self.records[draw.item].captions
            captions.append(choices[int(torch.randint(len(choices), (), generator=draw.generator("caption")))])
        return CLIPBatch(self._pixels([draw.item for draw in draws]), self._token_ids(captions))

    def loss(self, network: nn.Module, batch: CLIPBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
        image, text, scale = network(batch.pixels, batch.token_ids)
        image, text = image.float(), text.float()
        loss = cast(Tensor, self._loss(image, text, scale.float()))
        right = (image @ text.T).argmax(dim=1) == torch.arange(len(image), device=image.device)
        return loss, {"top1": right.float().mean(), "logit_scale": scale.detach()}

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """For eight pictures, the best of 64 captions beside the true one; and the retrieval accuracy."""
        lines = [f"image-to-text retrieval among 64: {self.retrieval(64):.3f}"]
        items = [i * (self.items - 1) // 63 for i in range(64)]
        captions = [self.records[i].captions[0] for i in items]
        image, text = self._features(items)
        best: list[int] = (image @ text.T).argmax(dim=1).tolist()
        lines += [f"{captions[k]!r} <- {captions[best[k]]!r}" for k in range(8)]
        (folder / f"step_{step:08d}.txt").write_text("\n".join(lines) + "\n")

    def retrieval(self, among: int, groups: int = 8) -> float:
        """Share of pictures whose own caption ranks first among `among`, averaged over `groups` fixed groups."""
        right = 0.0
        for group in range(groups):
            generator = torch.Generator().manual_seed(group)
            items: list[int] = torch.randperm(self.items, generator=generator)[:among].tolist()
            image, text = self._features(items)
            right += float(((image @ text.T).argmax(dim=1).cpu() == torch.arange(len(items))).float().mean())
        return right / groups

    @torch.inference_mode()
    def _features(self, items: list[int]) -> tuple[Tensor, Tensor]:
        self._network.eval()
        device = next(self._network.parameters()).device
        captions = [self.records[i].captions[0] for i in items]
        image, text, _ = self._network(self._pixels(items).to(device), self._token_ids(captions).to(device))
        return image.float(), text.float()

    def _pixels(self, items: list[int]) -> Tensor:
        pixels = to_float(self.pixels.batch(items))
        if pixels.shape[-1] != self.image.side_px:
            pixels = F.interpolate(pixels, size=(self.image.side_px, self.image.side_px), mode="area")
        return pixels

    def _token_ids(self, captions: list[str]) -> Tensor:
        ids = self.tokenizer.encode(captions)
        longest = int((ids == self.text.eos_token_id).int().argmax(dim=1).max()) + 1
        return ids[:, : -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE]


MAX_LOGIT_SCALE = 100.0
"""CLIP, arXiv:2103.00020, section 2.5: a larger scale makes training unstable."""


class CLIPTowers(CustomTextCLIP):
    """open_clip's two towers, for captions shorter than the context too: its causal mask is not cut by itself."""

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """image (B, 3, S, S), text (B, L) -> normalised features (B, E) of each, and the logit scale."""
        assert image is not None, "both towers are trained together"
        assert text is not None, "both towers are trained together"
        mask = cast(Any, self.text.attn_mask)
        length = text.shape[1]
        self.text.attn_mask = mask[:length, :length]
        try:
            features = cast("tuple[Tensor, Tensor, Tensor]", super().forward(image, text))
            return features[0], features[1], features[2].clamp(max=MAX_LOGIT_SCALE)
        finally:
            self.text.attn_mask = mask


def build_towers(text: TextEncoderConfig, image: ImageTowerConfig) -> CLIPTowers:
    """open_clip's image and text towers at our sizes; the text tower pools the first end token."""
    check_patches(image.side_px, image.patch_px)
    return CLIPTowers(
        embed_dim=text.projection_dim,
        vision_cfg=CLIPVisionCfg(
            layers=image.layers, width=image.width, head_width=64, patch_size=image.patch_px, image_size=image.side_px
        ),
        text_cfg=CLIPTextCfg(
            context_length=text.max_position_embeddings,
            vocab_size=text.vocab_size,
            width=text.hidden_size,
            heads=text.num_attention_heads,
            layers=text.num_hidden_layers,
            mlp_ratio=text.intermediate_size / text.hidden_size,
            pool_type="eos",
            eos_id=text.eos_token_id,
        ),
        quick_gelu=text.hidden_act == "quick_gelu",
    )


def text_encoder_of(towers: Mapping[str, Tensor], config: TextEncoderConfig) -> CLIPTextModel:
    """The text tower of trained CLIP weights, as the frozen encoder that generation uses."""
    text = {name: value for name, value in towers.items() if name.startswith("text.")}
    encoder = CLIPTextModel(config)
    encoder.load_state_dict(text_tower_from_open_clip(text, "the trained towers"), strict=True)
    return encoder.eval()

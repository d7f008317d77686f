"""Training the text encoder: open_clip's towers and contrastive loss on (picture, caption) pairs.

The text tower becomes the frozen encoder of generation; both towers are kept for going on, and for perceptual losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from open_clip.model import CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from torch import Tensor, nn

from latentgen.checkpoints.clip_folder import CLIP_MEAN, CLIP_STD
from latentgen.checkpoints.keymap import text_tower_from_open_clip
from latentgen.config import ImageTowerConfig, TextEncoderConfig
from latentgen.data.pixels import Pictures, to_float
from latentgen.data.record import Record
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.training.rng import Draw, Order, OrderAmong, SampleOrder
from latentgen.training.set_aside import others

TOKEN_MULTIPLE = 8
"""Training batches are cut to their longest caption, rounded up to this: a causal tower's states do not look ahead."""


RETRIEVED_AMONG = 64
"""Pairs among which retrieval looks for the right one."""


class CLIPBatch(NamedTuple):
    pixels: Tensor
    """(B, 3, S, S), normalised by CLIP's mean and standard deviation."""
    token_ids: Tensor
    """(B, L) int64, L <= 77"""
    alike: Tensor
    """(B, B) bool: which other pairs have the same picture or the same caption, and are no wrong answer."""


class CLIPObjective:
    """Symmetric cross-entropy over a batch of pairs. Source: CLIP, arXiv:2103.00020, figure 3.

    The pairs that a pair is held against are those of its own forward pass in its own process: more processes or more
    accumulation give smoother gradients, not more negatives. A pair is not held against another with its own picture or
    caption, as small sets bring into one batch. Pictures are not mirrored: captions say left and right.
    """

    def __init__(
        self,
        text: TextEncoderConfig,
        image: ImageTowerConfig,
        records: list[Record],
        pixels: Pictures,
        tokenizer: Tokenizer,
        data_fingerprint: str,
        *,
        held_out: tuple[list[Record], Pictures] | None = None,
        validation: Sequence[int] = (),
    ) -> None:
        """held_out: pairs beside the set, for `validate`. validation: without them, items of the set that are not
        trained on, for the same. With neither, it looks at pairs that are trained on, spread evenly over the set.
        """
        self.text, self.image = text, replace(image, hidden_act=text.hidden_act)
        self.records, self.pixels = records, pixels
        self.tokenizer, self.data_fingerprint = tokenizer, data_fingerprint
        self.held_out, self.validation = held_out, tuple(validation)
        self._network = build_towers(text, image)
        self._loss = ClipLoss()

    @property
    def network(self) -> CLIPTowers:
        return self._network

    def order(self, seed: int, samples_per_step: int) -> Order:
        trained = others(len(self.pixels), self.validation)
        return self.pixels.follow(OrderAmong(SampleOrder(len(trained), seed), trained))

    def describe(self) -> Mapping[str, Any]:
        return {
            "objective": "clip",
            "text_encoder": asdict(self.text),
            "image_tower": asdict(self.image),
            "data": self.data_fingerprint,
            "pixels": self.pixels.identity,
            "validation_pictures": len(self.validation),
        }

    def batch(self, draws: Sequence[Draw]) -> CLIPBatch:
        captions: list[str] = []
        for draw in draws:
            choices = self.records[draw.item].captions
            captions.append(choices[int(torch.randint(len(choices), (), generator=draw.generator("caption")))])
        items = torch.tensor([draw.item for draw in draws])
        token_ids = self._token_ids(captions)
        _, texts = torch.unique(token_ids, dim=0, return_inverse=True)
        alike = (items[:, None] == items) | (texts[:, None] == texts)
        alike.fill_diagonal_(False)
        return CLIPBatch(self._pictures(self.pixels, items.tolist()), token_ids, alike)

    def loss(self, network: nn.Module, batch: CLIPBatch, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        image, text, scale = network(batch.pixels, batch.token_ids)
        image, text = image.float(), text.float()
        with torch.autocast(image.device.type, enabled=False):  # or the products would be in half precision again
            both_ways = cast("tuple[Tensor, Tensor]", self._loss.get_logits(image, text, scale.float()))
            by_picture, by_caption = (each.masked_fill(batch.alike, -math.inf) for each in both_ways)
            own = torch.arange(len(image), device=image.device)
            loss = (F.cross_entropy(by_picture, own) + F.cross_entropy(by_caption, own)) / 2
            right = by_picture.argmax(dim=1) == own
        return loss, {"top1": right.float().mean(), "logit_scale": scale.detach()}

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """Share of pictures whose own caption ranks first among up to 64, and of captions whose own picture does.

        On pairs of distinct captions: two pictures of one caption could not be told apart by it. Figures of pairs that
        are trained on begin with "training_".
        """
        records, pixels = self.held_out or (self.records, self.pixels)
        prefix = "held_out_" if self.held_out else "" if self.validation else "training_"
        among = self.validation if self.validation and not self.held_out else range(len(records))
        items = _evenly_distinct(records, among, RETRIEVED_AMONG)
        scores = self._scores(network, records, pixels, items)
        diagonal = torch.arange(len(items))
        right = [float((scores.argmax(dim=dim) == diagonal).float().mean()) for dim in (1, 0)]
        by_picture, by_caption = (round(share, 4) for share in right)
        among = f"retrieval_top1_of_{len(items)}"
        return {f"{prefix}{among}": by_picture, f"{prefix}picture_{among}": by_caption}

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """For eight pictures, the best of 64 captions beside the true one; and the retrieval accuracy."""
        items = _evenly_distinct(self.records, range(len(self.records)), RETRIEVED_AMONG)
        best: list[int] = self._scores(network, self.records, self.pixels, items).argmax(dim=1).tolist()
        right = sum(k == found for k, found in enumerate(best)) / len(best)
        captions = [self.records[i].captions[0] for i in items]
        lines = [f"image-to-text retrieval among {len(items)}: {right:.3f}"]
        lines += [f"{captions[k]!r} <- {captions[found]!r}" for k, found in enumerate(best[:8])]
        (folder / f"step_{step:08d}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")

    @torch.inference_mode()
    def _scores(self, network: nn.Module, records: list[Record], pixels: Pictures, items: list[int]) -> Tensor:
        """Cosine of each picture with each first caption, (pictures, captions) on the CPU."""
        device = next(network.parameters()).device
        token_ids = self._token_ids([records[i].captions[0] for i in items])
        image, text, _ = network(self._pictures(pixels, items).to(device), token_ids.to(device))
        return (image.float() @ text.float().T).cpu()

    def _pictures(self, pixels: Pictures, items: list[int]) -> Tensor:
        """(B, 3, S, S) as the image tower takes them; pictures of any shape are squeezed to its square."""
        side = (self.image.side_px, self.image.side_px)
        squares = [F.interpolate(to_float(pixels.batch([item])), size=side, mode="area") for item in items]
        return clip_normalize(torch.cat(squares))

    def _token_ids(self, captions: list[str]) -> Tensor:
        ids = self.tokenizer.encode(captions)
        longest = int((ids == self.text.eos_token_id).int().argmax(dim=1).max()) + 1
        return ids[:, : -(-longest // TOKEN_MULTIPLE) * TOKEN_MULTIPLE]


def clip_normalize(pixels: Tensor) -> Tensor:
    """(B, 3, S, S) in [-1, 1] to what every published CLIP image tower is given."""
    mean, std = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
    return ((pixels + 1) / 2 - mean) / std


def _evenly_distinct(records: Sequence[Record], among: Sequence[int], count: int) -> list[int]:
    """At most `count` of these items, of distinct first captions, spread evenly."""
    first: dict[str, int] = {}
    for item in among:
        first.setdefault(records[item].captions[0], item)
    items = list(first.values())
    count = min(count, len(items))
    return [items[k * len(items) // count] for k in range(count)]


MAX_LOGIT_SCALE = 100.0
"""CLIP, arXiv:2103.00020, section 2.5: a larger scale makes training unstable."""


class CLIPTowers(CustomTextCLIP):
    """open_clip's two towers, for captions shorter than the context too: its causal mask is not cut by itself."""

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """image (B, 3, S, S), text (B, L) -> normalised features (B, E) of each, and the logit scale."""
        assert image is not None, "both towers are trained together"
        assert text is not None, "both towers are trained together"
        # The number itself is kept below it, as open_clip does: a clamp of what comes out would have no gradient there.
        with torch.no_grad():
            self.logit_scale.clamp_(max=math.log(MAX_LOGIT_SCALE))
        mask = cast(Any, self.text.attn_mask)
        length = text.shape[1]
        self.text.attn_mask = mask[:length, :length]
        try:
            return cast("tuple[Tensor, Tensor, Tensor]", super().forward(image, text))
        finally:
            self.text.attn_mask = mask


def build_towers(text: TextEncoderConfig, image: ImageTowerConfig) -> CLIPTowers:
    """open_clip's image and text towers at our sizes, with the text's activation; the first end token is pooled."""
    return CLIPTowers(
        embed_dim=text.projection_dim,
        vision_cfg=CLIPVisionCfg(
            layers=image.layers,
            width=image.width,
            head_width=image.head_width,
            mlp_ratio=image.mlp_ratio,
            patch_size=image.patch_px,
            image_size=image.side_px,
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

"""The contrastive objective: the paper's loss, the tower that is kept, and retrieval."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentgen.checkpoints.clip_folder import CLIP_MEAN, CLIP_STD
from latentgen.data.pixels import PixelCache, to_float
from latentgen.training.clip import CLIPTowers, clip_normalize, text_encoder_of
from latentgen.training.rng import Draw
from tests.training.overfitting import draws, overfit
from tests.training.tiny_runs import SIDE_PX, TEXT, TinyData


def test_overfits_one_batch(tiny_data: TinyData) -> None:
    first, last = overfit(tiny_data.clip(), 40, lr=1e-2)
    assert last * 20.0 < first, f"{first:.4f} -> {last:.4f}"


def test_clip_loss_is_the_papers(tiny_data: TinyData) -> None:
    """arXiv:2103.00020, figure 3, line by line."""
    objective = tiny_data.clip()
    batch = objective.batch(draws(range(6)))
    loss, metrics = objective.loss(objective.network, batch, 0)
    image, text, scale = objective.network(batch.pixels, batch.token_ids)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(6))
    logits = scale * image @ text.T
    labels = torch.arange(6)
    torch.testing.assert_close(loss, (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
    assert float(metrics["top1"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_no_pair_is_held_against_its_own_picture_or_caption(tiny_data: TinyData) -> None:
    """A set smaller than a batch, the turn of an epoch: the loss is that of the other pairs, and can come to 0."""
    objective = tiny_data.clip()
    items = (0, 1, 2, 0, 1, 3)
    objective.records = [*objective.records]
    objective.records[3] = replace(objective.records[3], captions=objective.records[2].captions)
    batch = objective.batch([Draw(0, k, item) for k, item in enumerate(items)])
    alike = {(0, 3), (1, 4), (2, 5)}
    assert {tuple(pair) for pair in batch.alike.nonzero().tolist()} == alike | {(b, a) for a, b in alike}
    image, text, scale = objective.network(batch.pixels, batch.token_ids)
    logits = scale * image @ text.T
    expected = [
        -(table[k, k] - torch.logsumexp(torch.stack([table[k, j] for j in range(6) if (k, j) not in alike | {
            (b, a) for a, b in alike}]), 0)) for table in (logits, logits.T) for k in range(6)
    ]  # fmt: skip
    loss, _ = objective.loss(objective.network, batch, 0)
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    certain, text = torch.eye(16)[[0, 1, 2, 0, 1, 2]], torch.eye(16)[[0, 1, 2, 0, 1, 2]]
    loss, metrics = objective.loss(lambda *_: (certain, text, torch.tensor(100.0)), batch, 0)  # pyright: ignore[reportArgumentType]
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(metrics["top1"]) == 1


def test_a_logit_scale_beyond_its_limit_comes_back(tiny_data: TinyData) -> None:
    """Clamped where it comes out it would have no gradient, and stay there for good."""
    objective = tiny_data.clip()
    towers = objective.network
    with torch.no_grad():
        towers.logit_scale.fill_(5.0)
    loss, metrics = objective.loss(towers, objective.batch(draws(range(6))), 0)
    assert float(metrics["logit_scale"]) == pytest.approx(100)
    assert float(towers.logit_scale.detach()) == pytest.approx(math.log(100))
    loss.backward()
    assert towers.logit_scale.grad is not None
    assert float(towers.logit_scale.grad) != 0


def test_the_kept_text_tower_is_the_trained_one(tiny_data: TinyData) -> None:
    """Its end-token state, projected, is the tower's feature; though it was trained on batches cut to their length."""
    objective = tiny_data.clip()
    batch = objective.batch(draws(range(4)))
    assert batch.token_ids.shape[1] < 77
    towers = objective.network.eval()
    assert isinstance(towers, CLIPTowers)
    _, features, _ = towers(batch.pixels, batch.token_ids)
    weights = towers.state_dict()
    encoder = text_encoder_of(weights, TEXT)
    whole = tiny_data.tokenizer.encode([tiny_data.records[d.item].captions[0] for d in draws(range(4))])
    ends = (whole == TEXT.eos_token_id).int().argmax(dim=1)
    states: Tensor = encoder(whole)[torch.arange(4), ends] @ weights["text.text_projection"]
    torch.testing.assert_close(F.normalize(states, dim=1), features, rtol=1e-4, atol=1e-5)


def test_retrieval_counts_right_pairs(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are pictures, columns captions."""
    objective = tiny_data.clip()
    for scores, by_picture, by_caption in (
        (torch.eye(10), 1.0, 1.0),
        (torch.eye(10).roll(1, 0), 0.0, 0.0),
        (torch.eye(10) + 2 * torch.eye(10)[:, :1], 1.0, 0.1),  # every caption finds the first picture
    ):
        monkeypatch.setattr(objective, "_scores", lambda *arguments, scores=scores: scores)
        figures = objective.validate(objective.network)
        among = f"retrieval_top1_of_{len(scores)}"
        assert figures == {f"training_{among}": by_picture, f"training_picture_{among}": by_caption}


def test_pairs_set_aside_are_not_trained_on_but_ranked(tiny_data: TinyData) -> None:
    objective = tiny_data.clip()
    objective.validation = (2, 5, 7)
    order = objective.order(0, 4)
    assert {order.draw(k).item for k in range(40)} == set(range(10)) - {2, 5, 7}
    figures = objective.validate(objective.network.eval())
    assert set(figures) == {"retrieval_top1_of_3", "picture_retrieval_top1_of_3"}


def test_retrieval_is_of_the_held_out_pairs(tiny_data: TinyData, tmp_path: Path) -> None:
    """Those labelled so, one for each caption; and the cosines are those of the towers' features."""
    objective = tiny_data.clip()
    few = [*tiny_data.records[:4], tiny_data.records[0]]
    pixels = PixelCache(few, SIDE_PX, tmp_path, lambda text: None)
    objective.held_out = (few, pixels)
    network = objective.network.eval()
    figures = objective.validate(network)
    assert set(figures) == {"held_out_retrieval_top1_of_4", "held_out_picture_retrieval_top1_of_4"}
    ids = tiny_data.tokenizer.encode([record.captions[0] for record in few[:4]])
    pictures = clip_normalize(to_float(pixels.batch([0, 1, 2, 3])))
    image, text, _ = network(pictures, ids)
    right = (image @ text.T).argmax(dim=1) == torch.arange(4)
    assert figures["held_out_retrieval_top1_of_4"] == pytest.approx(float(right.float().mean()), abs=1e-4)


def test_pictures_of_any_shape_become_squares(tiny_data: TinyData, tmp_path: Path) -> None:
    """Each value is the mean of the area it covers, normalised as published CLIPs are."""
    shapes = [(32, 16) if item % 2 else (16, 32) for item in range(10)]
    objective = tiny_data.clip()
    objective.pixels = PixelCache(tiny_data.records, shapes, tmp_path, lambda text: None)
    batch = objective.batch([Draw(0, 0, 0), Draw(0, 1, 1)])
    assert batch.pixels.shape == (2, 3, SIDE_PX, SIDE_PX)
    for item, axis in ((0, 1), (1, 0)):
        picture = objective.pixels.batch([item])[0].double() / 255
        height, width = picture.shape[:2]
        halves = picture.reshape((height, width // 2, 2, 3) if axis else (height // 2, 2, width, 3)).mean(dim=axis + 1)
        expected = (halves.permute(2, 0, 1) - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[
            :, None, None
        ]
        torch.testing.assert_close(batch.pixels[item].double(), expected, rtol=1e-4, atol=1e-4)

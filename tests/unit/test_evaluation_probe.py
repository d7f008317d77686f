"""The probe: its targets, its augmentation, its file, and that it learns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from latentgen.checkpoints.io import write_tensors
from latentgen.data.pixels import to_float
from latentgen.errors import InputError, ModelLoadError, ModelNotFoundError
from latentgen.evaluation.augment import Augmentation, augment, shifted, softened, through_jpeg
from latentgen.evaluation.judging import check_vocabulary, read_pictures
from latentgen.evaluation.labelled import LabelledPictures
from latentgen.evaluation.labels import LabelSet
from latentgen.evaluation.probe import Probe, ProbeConfig, load_probe, save_probe
from latentgen.evaluation.probe_training import (
    ProbeTraining,
    default_config,
    measure_probe,
    new_probe,
    probe_loss,
    train_probe,
)
from latentgen.evaluation.prompts import make_items
from latentgen.evaluation.targets import UNKNOWN, Targets, encode_labels

SIDE_PX = 32
SMALL = {"channels": (8, 8, 8), "blocks": (1, 1, 1), "head_channels": 16}


def labelled(noun: str, colour: str | None, count: int = 1, position: str | None = "left") -> dict[str, Any]:
    subject = {"noun": noun, "colour": colour, "count": count, "position": position}
    whole = {"setting": "sea", "time": "day", "weather": "clear", "style": "flat"}
    return {**whole, "time": "day" if noun == "sailboat" else "night", "subjects": [subject]}


def bars() -> LabelledPictures:
    """Red or blue bars on white: the sailboat stands, the castle lies; both on the left or on the right."""
    pixels, labels = [], []
    for k in range(64):
        picture = torch.full((SIDE_PX, SIDE_PX, 3), 255, dtype=torch.uint8)
        stands, is_red, on_left = k % 2 == 0, k // 2 % 2 == 0, k // 4 % 2 == 0
        paint = torch.tensor([220, 20, 20] if is_red else [20, 20, 220], dtype=torch.uint8)
        left, top = (4 if on_left else 20) + k // 16, 8 + k // 8
        height, width = (16, 4) if stands else (4, 10)
        picture[top : top + height, left : left + width] = paint
        pixels.append(picture)
        place = "left" if on_left else "right"
        labels.append(labelled("sailboat" if stands else "castle", "red" if is_red else "blue", position=place))
    return LabelledPictures(torch.stack(pixels), tuple(labels))


@pytest.fixture(scope="module")
def data() -> LabelledPictures:
    return bars()


@pytest.fixture(scope="module")
def config(data: LabelledPictures) -> ProbeConfig:
    return ProbeConfig(LabelSet.of(data.labels), size_px=SIDE_PX, **SMALL)


@pytest.fixture(scope="module")
def trained(config: ProbeConfig, data: LabelledPictures) -> Probe:
    mild = Augmentation(max_softening=1.2, max_noise=0.02)
    return train_probe(new_probe(config, 0), data, ProbeTraining(steps=150, batch_size=32, lr=1e-2, augmentation=mild))


def test_targets_say_what_is_labelled_and_no_more() -> None:
    answers = LabelSet(("castle", "sailboat"), ("blue", "red"), ("sea",), ("day", "night"), ("clear",), ("flat",), 3)
    grey = {**labelled("castle", "red", position=None), "style": "pencil sketch"}
    targets = encode_labels([labelled("sailboat", "red", 2), labelled("castle", None)], answers)
    assert targets.count.tolist() == [[0, 2], [1, 0]]
    assert targets.colour.tolist() == [[UNKNOWN, 1], [UNKNOWN, UNKNOWN]]
    assert targets.position.tolist() == [[UNKNOWN, 0], [0, UNKNOWN]]
    assert targets.factors[:, 1].tolist() == [0, 1]
    sketches = LabelSet.of([grey])
    assert encode_labels([grey], sketches).colour.tolist() == [[UNKNOWN]], "a pencil sketch shows no colour"
    with pytest.raises(InputError, match="no noun 'lion'"):
        encode_labels([labelled("lion", "red")], answers)
    with pytest.raises(InputError, match="no labels"):
        LabelSet.of([{"setting": "sea", "time": "day", "weather": "clear", "style": "flat"}])


def test_a_mirrored_picture_has_left_and_right_exchanged() -> None:
    position = torch.tensor([[0, UNKNOWN], [2, 1]])
    targets = Targets(position, position, position, position)
    assert targets.mirrored(torch.tensor([True, True])).position.tolist() == [[2, UNKNOWN], [0, 1]]
    assert targets.mirrored(torch.tensor([False, True])).position.tolist() == [[0, UNKNOWN], [0, 1]]


def test_augmentation_flips_pictures_with_their_targets_and_leaves_its_arguments(data: LabelledPictures) -> None:
    still = Augmentation(1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    targets = encode_labels(data.labels, LabelSet.of(data.labels))
    pictures = to_float(data.pixels)
    before = pictures.clone()
    flipped, wanted = augment(pictures, targets, torch.Generator().manual_seed(0), still)
    assert torch.equal(flipped, pictures.flip(-1))
    assert torch.equal(wanted.position, targets.mirrored(torch.ones(len(data), dtype=torch.bool)).position)
    augment(pictures, targets, torch.Generator().manual_seed(0), Augmentation())
    assert torch.equal(pictures, before)


def test_softening_takes_detail_and_keeps_the_rest() -> None:
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(8, 8).expand(1, 3, 16, 16)
    assert softened(checks, 2.0).abs().max() < 0.2
    flat = torch.full((1, 3, 16, 16), 0.5)
    assert torch.allclose(softened(flat, 3.0), flat, atol=1e-5)
    assert through_jpeg(flat[0], 90).sub(0.5).abs().max() < 0.05
    moved = shifted(torch.arange(4.0).expand(1, 1, 4, 4), 1, 0)
    assert moved[0, 0, 0].tolist() == [0, 0, 1, 2]


def test_the_loss_ignores_what_is_unknown(config: ProbeConfig) -> None:
    torch.manual_seed(0)
    answers = Probe(config).eval()(torch.randn(2, 3, SIDE_PX, SIDE_PX))
    known = encode_labels([labelled("sailboat", "red"), labelled("castle", "blue")], config.labels)
    blank = torch.full_like(known.colour, UNKNOWN)
    silent = Targets(known.count, blank, blank, known.factors)
    assert torch.isfinite(probe_loss(answers, silent))
    gradient = torch.autograd.grad(probe_loss(answers, silent), answers.colour)[0]
    assert not gradient.any()
    assert probe_loss(answers, known) > probe_loss(answers, silent)


def test_a_picture_is_held_back_whatever_else_is_there(data: LabelledPictures) -> None:
    labels = tuple({**each, "seed": k} for k, each in enumerate(data.labels))
    whole, part = LabelledPictures(data.pixels, labels), LabelledPictures(data.pixels[:40], labels[:40])

    def seeds(pictures: LabelledPictures) -> set[int]:
        return {each["seed"] for each in pictures.labels}

    learnt, held = whole.hold_back(0.25, least=2)
    assert seeds(learnt) | seeds(held) == set(range(64))
    assert len(learnt) + len(held) == 64
    assert 8 <= len(held) <= 24
    of_part = part.hold_back(0.25, least=2)[1]
    assert seeds(of_part) == seeds(held) & set(range(40))
    first = int(held.labels[0]["seed"])
    assert torch.equal(held.pixels[0], data.pixels[first])
    assert len(whole.hold_back(0.0, least=5)[1]) == 5


def test_it_learns_from_labels(trained: Probe, data: LabelledPictures) -> None:
    accuracy = measure_probe(trained, data)
    assert min(accuracy[name] for name in ("nouns", "count", "colour", "position", "time")) > 0.95, accuracy
    first = read_pictures(trained, [data.pixels[0].numpy()])[0]
    assert first.nouns["sailboat"].count == 1
    assert first.nouns["sailboat"].colour == "red"
    assert first.nouns["castle"].count == 0
    assert first.in_words()["nouns"].keys() == {"sailboat"}


def test_training_is_a_function_of_its_arguments(config: ProbeConfig, data: LabelledPictures) -> None:
    training = ProbeTraining(steps=3, batch_size=16)
    first, second = (train_probe(new_probe(config, 0), data, training).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_probe_goes_through_its_file(tmp_path: Path, trained: Probe, data: LabelledPictures) -> None:
    path = tmp_path / "probe.safetensors"
    save_probe(path, trained, {"nouns": 1.0})
    again = load_probe(path)
    assert again.config == trained.config
    assert not again.training
    pictures = [each.numpy() for each in data.pixels[:8]]
    assert [each.in_words() for each in read_pictures(again, pictures)] == [
        each.in_words() for each in read_pictures(trained, pictures)
    ]


def test_the_default_probe_is_small(data: LabelledPictures) -> None:
    parameters = sum(each.numel() for each in Probe(default_config(data)).parameters())
    assert 2 * parameters < 3_000_000, "bytes in half precision"


def test_what_is_no_probe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no probe"):
        load_probe(tmp_path / "none.safetensors")
    other = tmp_path / "other.safetensors"
    write_tensors(other, {"a": torch.zeros(1)})
    with pytest.raises(ModelLoadError, match="not a probe"):
        load_probe(other)
    write_tensors(other, {"a": torch.zeros(1)}, {"latentgen": '{"kind": "scene probe", "format": 1, "config": {}}'})
    with pytest.raises(ModelLoadError, match="damaged config"):
        load_probe(other)


def test_a_probe_must_know_the_vocabulary(config: ProbeConfig) -> None:
    with pytest.raises(InputError, match="does not know"):
        check_vocabulary(config.labels, [item.scene for item in make_items("heroes", 1)])

"""DeepCache: which looks compute what, and that nothing else changes; `tests/oracle` has the numbers."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentgen.kernels.unet import speed_up
from latentgen.models.unet import DeepFeatures, UNet
from latentgen.pipeline import TextToImage
from latentgen.pipeline.deep_cache import DeepCache
from latentgen.pipeline.network import Network
from latentgen.request import GenerationRequest, Hires
from latentgen.samplers.registry import SAMPLERS
from tests.tiny import TINY_UNET, tiny_unet
from tests.tiny_bundle import tiny_bundle

REQUEST = GenerationRequest(
    prompt="a cat",
    seed=3,
    width_px=64,
    height_px=64,
    steps=7,
    guidance=3.0,
    sampler="euler",
    schedule="karras",
)
FORMS = ["float32", "bfloat16", "fast"]


class Counter:
    """The batch sizes of a U-Net's whole calls and of all its calls, by what passes its middle and its end."""

    def __init__(self, unet: UNet) -> None:
        self.whole: list[int] = []
        self.all: list[int] = []
        unet.mid_block.register_forward_hook(self.note(self.whole))
        unet.conv_out.register_forward_hook(self.note(self.all))

    @staticmethod
    def note(sizes: list[int]) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            sizes.append(len(output))

        return hook


@pytest.fixture
def model() -> TextToImage:
    return TextToImage(tiny_bundle())


def network(form: str) -> tuple[UNet, torch.dtype]:
    unet = tiny_unet(replace(TINY_UNET, layers_per_block=2))
    if form == "float32":
        return unet, torch.float32
    unet.bfloat16()
    if form == "fast":
        speed_up(unet)
    return unet, torch.bfloat16


@pytest.mark.parametrize("form", FORMS)
@torch.inference_mode()
def test_features_reused_where_they_were_made_change_no_bit(form: str) -> None:
    unet, dtype = network(form)
    x = torch.randn(2, 4, 8, 8).to(dtype, memory_format=torch.channels_last)
    t, context = torch.tensor([500.0, 20.0]), torch.randn(2, 77, TINY_UNET.cross_attention_dim).to(dtype)
    whole = unet(x, t, context)
    deep = DeepFeatures()
    for _ in range(3):  # made, reused, and still unharmed
        assert torch.equal(unet(x, t, context, deep=deep), whole)
    assert deep.features is not None
    assert deep.features.shape == (2, TINY_UNET.block_out_channels[0], 8, 8)
    assert not torch.equal(unet(x + 1, t, context, deep=deep), unet(x + 1, t, context))


@pytest.mark.parametrize(("interval", "whole"), [(1, 7), (2, 4), (3, 3), (7, 1), (50, 1)])
def test_one_step_in_so_many_is_whole(model: TextToImage, interval: int, whole: int) -> None:
    counter = Counter(model.bundle.unet)
    next(model.generate([replace(REQUEST, deep_cache=interval)]))
    assert counter.whole == [2] * whole, "guided: both passes together"
    assert counter.all == [2] * 7


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS])
def test_every_sampler_begins_its_steps(model: TextToImage, sampler: str) -> None:
    """Two looks a step, but for the last: whole at steps 0, 3 and 6 of 7, whatever the sampler."""
    counter = Counter(model.bundle.unet)
    next(model.generate([replace(REQUEST, sampler=sampler, deep_cache=3)]))
    looks_twice = len(counter.all) > REQUEST.steps
    assert len(counter.all) == (13 if looks_twice else 7)
    assert len(counter.whole) == (5 if looks_twice else 3)


def test_a_change_of_passes_computes_anew(model: TextToImage) -> None:
    """Guided at steps 2 and 3 of 7: at 2 and 4 the passes change. Outside the interval there is one pass."""
    counter = Counter(model.bundle.unet)
    next(model.generate([replace(REQUEST, guidance_interval=(0.25, 0.5), deep_cache=7)]))
    assert counter.all == [1, 1, 2, 2, 1, 1, 1]
    assert counter.whole == [1, 2, 1]


def test_guidance_zero_outside_its_interval_is_another_text(model: TextToImage) -> None:
    """One pass throughout, and the same shapes: but features of the empty text are not for the prompt."""
    counter = Counter(model.bundle.unet)
    next(model.generate([replace(REQUEST, guidance=0.0, guidance_interval=(0.0, 0.5), deep_cache=7)]))
    assert counter.all == [1] * 7
    assert counter.whole == [1, 1]


def test_the_guidance_interval_saves_a_pass(model: TextToImage) -> None:
    counter = Counter(model.bundle.unet)
    next(model.generate([replace(REQUEST, guidance_interval=(0.0, 0.5))]))
    assert counter.all == [2, 2, 2, 2, 1, 1, 1]


def test_one_is_off_to_the_bit(model: TextToImage) -> None:
    off = next(model.generate([REQUEST]))
    one = next(model.generate([replace(REQUEST, deep_cache=1)]))
    two = next(model.generate([replace(REQUEST, deep_cache=2)]))
    assert (one.pixels == off.pixels).all()
    assert (two.pixels != off.pixels).any()
    assert "deep_cache" not in json.dumps(one.metadata.to_json())
    assert two.metadata.request.deep_cache == 2


def test_pictures_of_a_batch_are_those_drawn_alone(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [replace(REQUEST, seed=seed, deep_cache=2) for seed in range(3)]
    alone = [result.pixels for result in model.generate(requests)]
    monkeypatch.setattr(model, "one_by_one", False)  # as on a GPU
    counter = Counter(model.bundle.unet)
    together = [result.pixels for result in model.generate(requests, batch_size=3)]
    assert counter.whole == [6] * 4
    for one, other in zip(alone, together, strict=True):
        assert abs(one.astype(int) - other.astype(int)).max() <= 1


def test_another_interval_is_another_batch(model: TextToImage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model, "one_by_one", False)
    counter = Counter(model.bundle.unet)
    list(model.generate([REQUEST, replace(REQUEST, deep_cache=7)], batch_size=2))
    assert counter.whole == [2] * 8


def test_the_second_pass_has_features_of_its_own(model: TextToImage) -> None:
    counter = Counter(model.bundle.unet)
    request = replace(REQUEST, deep_cache=7, hires=Hires(scale=2.0, strength=0.5))
    result = next(model.generate([request]))
    assert counter.whole == [2, 2]
    assert result.pixels.shape == (128, 128, 3)


def test_pixels_alone_and_odd_are_the_same_on_any_threads(model: TextToImage) -> None:
    """A float32 picture without guidance goes through twice (`Network`), its features too."""
    request = replace(REQUEST, guidance=1.0, width_px=48, height_px=48, deep_cache=3)
    before = torch.get_num_threads()
    drawn: list[Any] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        drawn.append(next(model.generate([request])).pixels)
    torch.set_num_threads(before)
    assert (drawn[0] == drawn[1]).all()
    assert (drawn[0] == drawn[2]).all()


def test_the_looks_of_a_step_are_kept_apart() -> None:
    cache, context = DeepCache(2), torch.zeros(1, 2, 3)
    cache.begin_step(0)
    first, second = cache.features(context), cache.features(context)
    assert first[0] is not second[0]
    cache.begin_step(1)
    assert cache.features(context)[0] is first[0]
    assert cache.features(context)[0] is second[0]
    cache.begin_step(2)
    assert cache.features(context)[0] is not first[0]


@torch.inference_mode()
def test_passes_that_go_singly_keep_their_own_features() -> None:
    """As where memory is short: the same numbers as of both passes together."""
    unet = tiny_unet().double()
    context = torch.randn(2, 77, TINY_UNET.cross_attention_dim, dtype=torch.float64)
    t = torch.tensor([500.0, 500.0])
    caches = DeepCache(3), DeepCache(3)
    networks = [
        Network(unet, deep_cache=cache, one_by_one=singly) for cache, singly in zip(caches, (False, True), strict=True)
    ]
    counter = Counter(unet)
    for step in range(4):
        x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
        for cache in caches:
            cache.begin_step(step)
        together, singly = (network(x, t, context) for network in networks)
        torch.testing.assert_close(singly, together, rtol=1e-9, atol=1e-10)
    assert counter.whole == [2, 1, 1] * 2
    assert len(counter.all) == 3 * 4

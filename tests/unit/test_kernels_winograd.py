"""Winograd's convolution: against float64, against its own formulas in torch, and whatever it is computed beside."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.kernels import layers, library
from latentgen.kernels.layers import PackedConv2d
from latentgen.kernels.library import can_convolve, winograd_convolution
from latentgen.kernels.winograd import lay_back, lay_out
from tests.unit.test_kernels import bf16, on_threads, relative_error, runs_here

B_T = torch.tensor([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=torch.float64)
G = torch.tensor([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], dtype=torch.float64) / 2
A_T = torch.tensor([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=torch.float64)
"""The matrices of arXiv:1509.09308, eq. 7 and 8."""


@pytest.fixture(autouse=True)
def without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A CPU with AMX can compute all this too."""
    monkeypatch.setattr(library, "has_amx", lambda: False)


def a_map(batch: int, channels: int, height: int, width: int, seed: int = 0) -> Tensor:
    return bf16(batch, channels, height, width, seed=seed).to(memory_format=torch.channels_last)


def by_the_formulas(x: Tensor, weight: Tensor) -> Tensor:
    """In float64, of tiles and kernels rounded to bfloat16: (B, Cin, h, w) of even sides -> (B, Cout, h, w)."""
    tiles = F.pad(x.double(), (1, 1, 1, 1)).unfold(2, 4, 2).unfold(3, 4, 2)
    v = torch.einsum("pu,bchwuv,qv->bchwpq", B_T, tiles, B_T).bfloat16().double()
    u = torch.einsum("pu,ocuv,qv->ocpq", G, weight.double(), G).bfloat16().double()
    m = torch.einsum("bchwpq,ocpq->bohwpq", v, u)
    out = torch.einsum("mp,bohwpq,nq->bohmwn", A_T, m, A_T)
    return out.flatten(4).flatten(2, 3)


@runs_here
@pytest.mark.parametrize(
    ("batch", "into", "outs", "height", "width"),
    [
        (2, 32, 64, 16, 16),
        (1, 16, 112, 17, 31),  # odd sides; a second block that is not full
        (3, 48, 16, 8, 2),
        (1, 64, 80, 1, 1),
        (1, 96, 32, 70, 50),  # tiles in groups that no number of threads divides
        (1, 2048, 320, 16, 16),  # kernels in several runs, with the map's tiles kept
        (1, 1024, 576, 41, 40),  # and with the tiles made anew
    ],
)
def test_it_is_the_convolution(batch: int, into: int, outs: int, height: int, width: int) -> None:
    x, residual = a_map(batch, into, height, width), a_map(batch, outs, height, width, seed=1)
    weight, bias = bf16(outs, into, 3, 3, seed=2) / (9 * into) ** 0.5, bf16(outs, seed=3)
    kernels = lay_out(weight)
    with torch.inference_mode():
        alone = on_threads(lambda: winograd_convolution(x, kernels, None))
        whole = on_threads(lambda: winograd_convolution(x, kernels, bias, residual))
    exact = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative_error(alone[0], exact) < 0.005
    assert relative_error(whole[0], exact + bias.double()[:, None, None] + residual.double()) < 0.005
    for results in (alone, whole):
        assert results[0].is_contiguous(memory_format=torch.channels_last)
        assert all(torch.equal(result, results[0]) for result in results)


@runs_here
def test_it_rounds_tiles_kernels_and_the_answer_and_nothing_else() -> None:
    x, weight = a_map(2, 48, 18, 20), bf16(32, 48, 3, 3, seed=1)
    with torch.inference_mode():
        result = winograd_convolution(x, lay_out(weight), None)
    expected = by_the_formulas(x, weight)
    assert relative_error(result, expected) < 0.0018  # as of one rounding
    assert (result == expected.bfloat16()).double().mean() > 0.99


@runs_here
def test_a_picture_does_not_depend_on_what_is_beside_it() -> None:
    x, kernels = a_map(3, 64, 21, 16), lay_out(bf16(96, 64, 3, 3, seed=1))
    with torch.inference_mode():
        whole = winograd_convolution(x, kernels, None)
        for i in range(3):
            assert torch.equal(winograd_convolution(x[i : i + 1], kernels, None)[0], whole[i])


@runs_here
def test_another_default_device_changes_nothing() -> None:
    x, kernels = a_map(1, 32, 16, 16), lay_out(bf16(32, 32, 3, 3, seed=1))
    wanted = winograd_convolution(x, kernels, None)
    with torch.device("meta"):
        found = winograd_convolution(x, kernels, None)
    assert torch.equal(found, wanted)


@runs_here
def test_the_answer_may_take_the_residuals_place() -> None:
    x, residual = a_map(1, 64, 33, 33), a_map(1, 64, 33, 33, seed=1)
    layer = PackedConv2d(nn.Conv2d(64, 64, 3, padding=1).bfloat16())
    with torch.inference_mode():
        expected = layer.plus(x, residual)
        assert layer.form == "Winograd"
        result = layer.plus(x, residual, in_place=True)
        assert torch.equal(result, expected)
        assert result.data_ptr() == residual.data_ptr()


@pytest.mark.parametrize(("outs", "into"), [(64, 32), (16, 16), (176, 48)])
def test_weights_are_laid_out_and_back(outs: int, into: int) -> None:
    weight = bf16(outs, into, 3, 3)
    for given in (weight, weight.to(memory_format=torch.channels_last)):
        laid_out = lay_out(given)
        assert torch.equal(laid_out[: 9 * into * min(outs, 64)].view(into, 9, -1)[3, 5], weight[:64, 3, 1, 2])
        assert torch.equal(lay_back(laid_out, into), weight)


@runs_here
def test_a_layer_goes_from_form_to_form_with_its_very_weights() -> None:
    layer = nn.Conv2d(32, 48, 3, padding=1).bfloat16()
    weight = layer.weight.detach().clone()
    packed = PackedConv2d(layer)
    forms: list[str] = []
    with torch.inference_mode():
        for side in (16, 4, 20, 8, 4, 16):
            packed(a_map(1, 32, side, side))
            forms.append(packed.form)
            assert torch.equal(packed.plain().weight, weight)
    assert forms == ["Winograd", "product", "Winograd", "oneDNN", "product", "Winograd"]


@runs_here
@pytest.mark.parametrize(
    ("into", "outs", "side", "amx", "taken"),
    [
        (32, 32, 16, False, True),
        (32, 32, 15, False, False),
        (24, 32, 16, False, False),
        (32, 4, 16, False, False),
        (32, 32, 16, True, False),
    ],
)
def test_when_it_is_taken(
    into: int, outs: int, side: int, amx: bool, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "has_amx", lambda: amx)
    with torch.inference_mode():
        assert can_convolve(a_map(1, into, side, side), outs) == taken
        assert not can_convolve(a_map(1, into, side, side).float(), outs)
    assert not can_convolve(a_map(1, into, side, side), outs), "gradients are wanted"


def test_other_convolutions_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "can_convolve", lambda x, outs: True)
    x = a_map(1, 32, 16, 16)
    for layer in (
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.Conv2d(32, 32, 3),
        nn.Conv2d(32, 32, 2, padding=1),
        nn.Conv2d(32, 32, 3, padding=1, groups=2),
        nn.Conv2d(32, 32, 3, padding=2, dilation=2),
    ):
        expected = layer.bfloat16()(x).detach()
        packed = PackedConv2d(layer)
        with torch.inference_mode():
            assert relative_error(packed(x), expected.double()) < 0.002
        assert packed.form == "oneDNN"


@pytest.mark.parametrize("bias", [True, False])
def test_in_another_precision_it_is_the_plain_layer(bias: bool) -> None:
    layer = nn.Conv2d(32, 48, 3, padding=1, bias=bias).bfloat16()
    exact = copy.deepcopy(layer).float()
    x, residual = a_map(1, 32, 16, 16), a_map(1, 48, 16, 16, seed=1).float()
    packed = PackedConv2d(layer)
    with torch.inference_mode():
        packed(x)
        expected = exact(x.float())
        assert torch.equal(packed(x.float()), expected)
        assert torch.equal(packed.plus(x.float(), residual), expected + residual)

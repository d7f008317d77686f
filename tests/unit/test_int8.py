"""The U-Net in 8 bits: its layers against the same quantisation in float64, and the way back."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.errors import InputError
from latentgen.kernels import int8, library, upsampling
from latentgen.kernels.int8 import Int8Conv2d, Int8GEGLU, Int8Linear, quantize, quantize_weight, why_not_int8
from latentgen.kernels.layers import FastCrossAttention, FastGEGLU, FastResnetBlock, PackedConv2d, PackedLinear
from latentgen.kernels.unet import FastForm
from latentgen.kernels.upsampling import FastUpsample
from latentgen.models.attention import GEGLU
from latentgen.pipeline import TextToImage
from tests.tiny import TINY_UNET, tiny_unet
from tests.tiny_bundle import tiny_bundle

runs_here = pytest.mark.skipif(why_not_int8() is not None, reason=f"no 8-bit layers here: {why_not_int8()}")

ROUNDING = 2**-8
"""Of a result to bfloat16, relative; sums are exact."""


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def as_8_bits(x: Tensor, axes: tuple[int, ...]) -> Tensor:
    """What is left of numbers (float64) in 8 bits, symmetric, a scale for everything along `axes`."""
    x = x.double()
    scale = x.abs().amax(dim=axes, keepdim=True) / 127
    return (x / scale).round() * scale


def assert_rounded(value: Tensor, expected: Tensor) -> None:
    assert value.dtype == torch.bfloat16
    # Half-way between two integers float32 and float64 may go different ways: that is one step of one input.
    torch.testing.assert_close(value.double(), expected, rtol=ROUNDING, atol=5e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("shape", [(3,), (5, 7), (2, 65536 + 3), (2, 3, 4, 5)])
def test_activations_are_the_nearest_of_255_values(shape: tuple[int, ...]) -> None:
    x = bf16(*shape)
    codes, scale = quantize(x)
    assert codes.dtype == torch.uint8
    assert scale == pytest.approx(float(x.abs().max()) / 127, rel=1e-6)
    assert int(codes.min()) >= 1
    assert ((codes.double() - 128) * scale - x.double()).abs().max() <= scale * 0.5001


def test_activations_of_a_view_zeros_and_what_is_not_finite() -> None:
    x = bf16(2, 4, 6, 6)
    turned, scale = quantize(x.movedim(1, -1))
    assert torch.equal(turned, quantize(x)[0].movedim(1, -1))
    assert quantize(torch.zeros(2, 3).bfloat16())[0].eq(128).all()
    for value in (torch.nan, torch.inf, -torch.inf):
        x[0, 0, 0, 0] = value
        assert not torch.tensor(quantize(x)[1]).isfinite()
    assert torch.tensor(scale).isfinite()


def test_weights_have_a_scale_for_each_output() -> None:
    weight = bf16(16, 8, 3, 3) * torch.arange(16).view(-1, 1, 1, 1)  # the first is 0
    codes, scales = quantize_weight(weight)
    assert (codes.dtype, scales.shape) == (torch.int8, (16,))
    assert codes.flatten(1).abs().amax(dim=1).tolist() == [0] + [127] * 15
    error = (codes.double() * scales.double().view(-1, 1, 1, 1) - weight.double()).abs()
    assert (error <= 0.5001 * scales.double().view(-1, 1, 1, 1)).all()


@runs_here
@pytest.mark.parametrize("rows", [1, 7, 300])
@torch.inference_mode()
def test_a_linear_layer(rows: int) -> None:
    layers = [nn.Linear(48, 32).bfloat16(), nn.Linear(48, 64).bfloat16()]
    weight = torch.cat([layer.weight.data for layer in layers]).clone()
    bias = torch.cat([layer.bias.data for layer in layers]).double()
    layer = Int8Linear(PackedLinear(*layers))
    x, other = bf16(2, rows, 48), bf16(2, rows, 96, seed=1)
    expected = F.linear(as_8_bits(x, (0, 1, 2)), as_8_bits(weight, (1,)), bias)
    assert_rounded(layer(x), expected)
    assert_rounded(layer(x, "gelu"), F.gelu(expected))
    assert_rounded(layer.combined(x, other, "add"), expected + other.double())
    exact = F.linear(x.double(), weight.double(), bias)
    assert (layer(x).double() - exact).norm() / exact.norm() < 0.02
    x[0, 0, 0] = torch.nan
    assert layer(x).isnan().any()


@runs_here
@torch.inference_mode()
def test_a_gate_and_its_value_share_one_quantisation(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = FastGEGLU(GEGLU(48, 64).bfloat16())
    layer, x = Int8GEGLU(exact), bf16(2, 7, 48)
    expected = Int8Linear(exact.value)(x) * Int8Linear(exact.gate)(x, "gelu")
    calls: list[Tensor] = []

    def counted(x: Tensor) -> tuple[Tensor, float]:
        calls.append(x)
        return quantize(x)

    monkeypatch.setattr(int8, "quantize", counted)
    assert torch.equal(layer(x), expected)
    assert len(calls) == 1


@runs_here
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [4, 9, 16])
@torch.inference_mode()
def test_a_convolution(stride: int, side: int) -> None:
    plain = nn.Conv2d(16, 32, 3, stride, padding=1).bfloat16()
    assert plain.bias is not None
    weight, bias = plain.weight.data.clone(), plain.bias.data.double()
    layer = Int8Conv2d(PackedConv2d(plain))
    x = bf16(2, 16, side, side + 2).to(memory_format=torch.channels_last)
    expected = F.conv2d(as_8_bits(x, (0, 1, 2, 3)), as_8_bits(weight, (1, 2, 3)), bias, stride, 1)
    out = layer(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_rounded(out, expected)
    residual = bf16(*expected.shape, seed=1)
    before = residual.clone()
    assert_rounded(layer.plus(x, residual), expected + residual.double())
    assert torch.equal(residual, before)


@runs_here
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("winograd", [False, True])
@torch.inference_mode()
def test_the_form_is_near_and_its_way_back_exact(linear: bool, winograd: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not winograd:
        monkeypatch.setattr(upsampling, "convolves", lambda into, outs: False)
    unet = tiny_unet(replace(TINY_UNET, use_linear_projection=linear)).bfloat16()
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    x = bf16(2, 4, 8, 8).to(memory_format=torch.channels_last)
    t, context = torch.tensor([500.0, 20.0]), bf16(2, 77, TINY_UNET.cross_attention_dim, seed=1)
    exact = unet(x, t, context)
    form = FastForm(unet, int8=True)
    compiled = library.why_unavailable() is None
    assert form.kernels == f"{('compiled' if library.has_amx() else 'Winograd') if compiled else 'oneDNN'} int8"
    for _ in range(2):
        form.take_up()
        error = (unet(x, t, context).double() - exact.double()).norm() / exact.double().norm()
        assert 0.005 < error < 0.1
        for module in unet.modules():  # what stays in bfloat16
            if isinstance(module, FastResnetBlock):
                assert isinstance(module.time_emb_proj, PackedLinear)
                assert isinstance(module.conv1, Int8Conv2d)
            if isinstance(module, FastUpsample):
                assert isinstance(module.to_pixels, Int8Conv2d)
            if isinstance(module, FastCrossAttention):
                assert isinstance(module.to_kv, PackedLinear)
                assert isinstance(module.to_q, Int8Linear)
        assert isinstance(unet.conv_in, PackedConv2d)
        assert isinstance(unet.conv_out, PackedConv2d)
        assert isinstance(unet.time_embedding.linear_1, PackedLinear)
        form.leave()
        after = unet.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(value, before[name]) for name, value in after.items())


@runs_here
@torch.inference_mode()
def test_it_does_not_depend_on_threads() -> None:
    unet = tiny_unet().bfloat16()
    FastForm(unet, int8=True).take_up()
    x = bf16(2, 4, 16, 16).to(memory_format=torch.channels_last)
    context, before = bf16(2, 77, TINY_UNET.cross_attention_dim), torch.get_num_threads()
    drawn: list[Tensor] = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        drawn.append(unet(x, torch.tensor([500.0]), context))
    torch.set_num_threads(before)
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_where_it_is_not_possible_one_line_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--int8 is not possible: it is for bfloat16 on a CPU \(leave it out\)"):
        FastForm(tiny_unet(), int8=True)
    with pytest.raises(InputError, match="the fast form is off"):
        FastForm(tiny_unet().bfloat16(), wanted=False, int8=True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(InputError, match="this CPU has no VNNI"):
        FastForm(tiny_unet().bfloat16(), int8=True)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    monkeypatch.setattr(int8, "_onednn", object())
    with pytest.raises(InputError, match=r"has no onednn\.qlinear_prepack"):
        FastForm(tiny_unet().bfloat16(), int8=True)


@runs_here
def test_a_picture_says_so() -> None:
    bundle = tiny_bundle()
    for network in (bundle.unet, bundle.vae, bundle.text_encoder):
        network.bfloat16()
    model = TextToImage(bundle, int8=True)
    result = next(model.draw("a cat", seed=1))
    assert result.metadata.computation.kernels.endswith("int8")
    again = next(model.draw("a cat", seed=1))
    assert (result.pixels == again.pixels).all()

"""The fast form of a U-Net: its kernels against float64, its layers against torch's, and the way back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentgen.images.similarity import psnr_db
from latentgen.kernels import build as kernels_build
from latentgen.kernels import library
from latentgen.kernels.layers import (
    FastGEGLU,
    PackedConv2d,
    PackedLinear,
    PackedPointwiseConv2d,
    by_products,
)
from latentgen.kernels.unet import FastForm, slow_down, speed_up, why_not_fast
from latentgen.models.attention import GEGLU
from latentgen.models.layers import PointwiseConv2d
from latentgen.models.unet import UNet
from latentgen.pipeline import TextToImage
from latentgen.pipeline.network import Network
from tests.tiny import TINY_UNET, randomize
from tests.tiny_bundle import tiny_bundle

COMPILER = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++")
runs_here = pytest.mark.skipif(
    bool(reason := library.why_unavailable()) and "not compiled" not in str(reason),
    reason=f"no kernels on this machine: {reason}",
)
"""Only where the CPU or the system has no kernels: an installation that failed to compile them fails these tests."""


def bf16(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).bfloat16()


def relative_error(value: Tensor, expected: Tensor) -> float:
    return float((value.double() - expected).norm() / expected.norm())


def on_threads(compute: Callable[[], Tensor]) -> list[Tensor]:
    before = torch.get_num_threads()
    results: list[Tensor] = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        results.append(compute())
    torch.set_num_threads(before)
    return results


def exact_attention(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    q, k, v = (each.double().unflatten(-1, (heads, -1)).transpose(1, 2) for each in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


@pytest.mark.skipif(COMPILER is None or kernels_build.why_not_here() is not None, reason="nothing to compile with")
def test_an_installation_compiles_the_kernels(tmp_path: Path) -> None:
    assert library.why_unavailable() in (None, "this CPU has no AVX512-BF16")
    assert kernels_build.build(tmp_path / "kernels.so") is None
    assert [path.name for path in tmp_path.iterdir()] == ["kernels.so"]


def test_why_they_cannot_be_compiled_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels_build.sys, "platform", "darwin")
    assert "they are for Linux on x86-64" in str(kernels_build.build(tmp_path / "kernels.so"))
    monkeypatch.setattr(kernels_build.sys, "platform", "linux")
    monkeypatch.setattr(kernels_build.platform, "machine", lambda: "x86_64")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "there is no C++ compiler" in str(kernels_build.build(tmp_path / "kernels.so"))
    broken = tmp_path / "c++"
    broken.write_text("#!/bin/sh\necho 'no such instruction' >&2\necho 'and more' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CXX", "c++")
    assert kernels_build.build(tmp_path / "kernels.so") == "c++ failed: no such instruction"
    broken.write_text("#!/bin/sh\necho 'Debian clang version 14.0.6'\n")
    gnu = tmp_path / "g++"
    gnu.write_text("#!/bin/sh\necho 'the other one' >&2\nexit 1\n")
    gnu.chmod(0o755)
    monkeypatch.delenv("CXX")
    assert kernels_build.build(tmp_path / "kernels.so") == "g++ failed: the other one", "clang is passed over"
    monkeypatch.setenv("CXX", "c++")
    assert "c++ is clang, whose OpenMP is not torch's" in str(kernels_build.build(tmp_path / "kernels.so"))
    assert not (tmp_path / "kernels.so").exists()


@runs_here
@pytest.mark.parametrize(
    ("batch", "queries", "keys", "channels", "heads"),
    [
        (2, 64, 64, 80, 2),  # SD's 40 channels a head
        (1, 300, 300, 160, 2),
        (2, 33, 77, 320, 2),  # the text; 160 a head
        (1, 7, 5, 20, 2),
        (1, 1, 1, 2, 1),
        (3, 13, 17, 64, 1),
        (1, 520, 96, 96, 1),  # split into runs of queries
    ],
)
def test_fused_attention(batch: int, queries: int, keys: int, channels: int, heads: int) -> None:
    """No further from float64 than rounding the softmax and the output to 8 bits makes it; SDPA errs as much."""
    q, k, v = (bf16(batch, n, channels, seed=i) for i, n in enumerate((queries, keys, keys)))
    with torch.inference_mode():
        assert library.can_attend(q, k, v, heads)
        results = on_threads(lambda: library.fused_attention(q, k, v, heads))
    assert relative_error(results[0], exact_attention(q, k, v, heads)) < 0.003
    assert all(torch.equal(result, results[0]) for result in results)


@runs_here
def test_fused_attention_of_views_and_large_scores() -> None:
    q, k, v = bf16(2, 40, 96).chunk(3, dim=-1)
    with torch.inference_mode():
        out = library.fused_attention(q, k, v, 2)
        assert relative_error(out, exact_attention(q, k, v, 2)) < 0.003
        out = library.fused_attention(q * 60, k * 60, v, 2)  # a softmax of one entry nearly, exponents far below
        assert relative_error(out, exact_attention(q * 60, k * 60, v, 2)) < 0.003
        out = library.fused_attention(torch.full_like(q, torch.nan), k, v, 2)
    assert out.isnan().all(), "what is no number is not hidden"


@runs_here
def test_what_the_kernels_do_not_take() -> None:
    x = bf16(1, 8, 32)
    assert not library.can_attend(x, x, x, 2), "with gradients"
    with torch.inference_mode():
        assert library.can_attend(x, x, x, 2)
        assert not library.can_attend(x.float(), x.float(), x.float(), 2)
        odd = bf16(1, 8, 6)
        assert not library.can_attend(odd, odd, odd, 2), "three channels a head"
        assert not library.can_attend(x, x, x.transpose(1, 2), 2)
        pixels = bf16(1, 32, 4, 4)
        assert not library.can_norm(pixels, 4), "not channels_last"
        assert library.can_norm(pixels.to(memory_format=torch.channels_last), 4)
        assert not library.can_norm(bf16(1, 24, 4, 4).to(memory_format=torch.channels_last), 4), "not 16 channels each"


@runs_here
@pytest.mark.parametrize(("shape", "groups"), [((2, 32, 8, 8), 8), ((1, 480, 9, 7), 32), ((3, 16, 40, 40), 1)])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_fused_group_norm(shape: tuple[int, int, int, int], groups: int, silu: bool, shifted: bool) -> None:
    x = (2 * bf16(*shape) + 5).to(memory_format=torch.channels_last)  # a mean well above the spread
    weight, bias = torch.randn(2, shape[1], generator=torch.Generator().manual_seed(1))
    addend = bf16(shape[0], shape[1], seed=2) if shifted else None
    with torch.inference_mode():
        results = on_threads(lambda: library.fused_group_norm(x, groups, weight, bias, 1e-5, addend=addend, silu=silu))
    moved = x.double() + (0 if addend is None else addend.double()[:, :, None, None])
    expected = F.group_norm(moved, groups, weight.double(), bias.double(), 1e-5)
    assert relative_error(results[0], F.silu(expected) if silu else expected) < 0.002  # half a unit of 8 bits
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(result, results[0]) for result in results)


def test_attention_by_products() -> None:
    for queries, keys in ((64, 64), (33, 77), (1, 1)):
        q, k, v = (bf16(2, n, 32, seed=i) for i, n in enumerate((queries, keys, keys)))
        assert relative_error(by_products(q, k, v, 4), exact_attention(q, k, v, 4)) < 0.008


def test_packed_products_are_torchs() -> None:
    """The same numbers to the bit, for every shape of the input, and the very weights on the way back."""
    layers = [nn.Linear(48, n).bfloat16() for n in (32, 16, 64)]
    weights, biases = [x.weight.detach().clone() for x in layers], [x.bias.detach().clone() for x in layers]
    packed = PackedLinear(*layers)
    with torch.inference_mode():
        for rows in (1, 7, 128):
            x = bf16(2, rows, 48, seed=rows)
            expected = [F.linear(x, weight, bias) for weight, bias in zip(weights, biases, strict=True)]
            assert torch.equal(packed(x), torch.cat(expected, dim=-1))
    for plain, weight, bias in zip(packed.plain(), weights, biases, strict=True):
        assert torch.equal(plain.weight, weight)
        assert torch.equal(plain.bias, bias)


@pytest.mark.parametrize("stride", [1, 2])
def test_packed_convolutions_are_torchs(stride: int) -> None:
    layer = nn.Conv2d(16, 32, 3, stride, padding=1).bfloat16()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    packed = PackedConv2d(layer)
    with torch.inference_mode():
        for height, width in ((10, 10), (4, 4), (2, 7), (15, 16), (1, 3)):  # 16 pixels and fewer: as a product
            x = bf16(2, 16, height, width, seed=height).to(memory_format=torch.channels_last)
            expected = F.conv2d(x, before["weight"], before["bias"], stride, 1)
            exact = F.conv2d(x.double(), before["weight"].double(), before["bias"].double(), stride, 1)
            result = packed(x)
            if packed.form == "product":
                assert relative_error(result, exact) < 0.002
            else:
                assert torch.equal(result, expected)
            assert (packed.form == "product") == (height * width <= 16)
            assert result.shape == expected.shape
            assert result.is_contiguous(memory_format=torch.channels_last)
            residual = bf16(*expected.shape, seed=1).to(memory_format=torch.channels_last)
            assert relative_error(packed.plus(x, residual), exact + residual.double()) < 0.002
            plain = packed.plain()
            assert (plain.stride, plain.padding) == ((stride, stride), (1, 1))
            assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_small_maps_do_not_depend_on_the_batch_or_on_threads() -> None:
    packed = PackedConv2d(nn.Conv2d(64, 96, 3, padding=1).bfloat16())
    x = bf16(4, 64, 4, 4).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        whole = on_threads(lambda: packed(x))
        parts = torch.cat([packed(x[:1]), packed(x[1:4])])
    assert packed.form == "product"
    assert all(torch.equal(each, parts) for each in whole)


def test_packed_pointwise_convolution() -> None:
    layer = PointwiseConv2d(16, 32).bfloat16()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = bf16(2, 16, 5, 6).to(memory_format=torch.channels_last)
    packed = PackedPointwiseConv2d(layer)
    with torch.inference_mode():
        exact = F.conv2d(x.double(), before["weight"].double(), before["bias"].double())
        assert relative_error(packed(x), exact) < 0.002
    plain = packed.plain()
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())


def test_fast_geglu() -> None:
    layer = GEGLU(16, 32).bfloat16()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = bf16(2, 9, 16)
    fast = FastGEGLU(layer)
    with torch.inference_mode():
        value, gate = F.linear(x.double(), before["proj.weight"].double(), before["proj.bias"].double()).chunk(2, -1)
        assert relative_error(fast(x), value * F.gelu(gate)) < 0.005
    assert all(torch.equal(value, before[name]) for name, value in fast.plain().state_dict().items())


@pytest.fixture(params=["linear projections", "convolutions"])
def unet(request: pytest.FixtureRequest) -> UNet:
    config = replace(TINY_UNET, use_linear_projection=request.param == "linear projections")
    network = randomize(UNet(config)).eval().bfloat16()
    assert isinstance(network, UNet)
    return network


SIDES = pytest.mark.parametrize("side", [8, 16])
"""Of latents: the first layer of the larger ones goes Winograd's way, where there are compiled kernels and no AMX."""


def inputs(batch: int = 2, side: int = 8) -> tuple[Tensor, Tensor, Tensor]:
    x = bf16(batch, TINY_UNET.in_channels, side, side).to(memory_format=torch.channels_last)
    return x, torch.full((batch,), 500), bf16(batch, 77, TINY_UNET.cross_attention_dim, seed=1)


@SIDES
def test_the_fast_form_errs_no_more_than_bfloat16_does(unet: UNet, side: int) -> None:
    exact = UNet(unet.config).eval()
    exact.load_state_dict({name: value.float() for name, value in unet.state_dict().items()})
    x, t, context = inputs(side=side)
    with torch.inference_mode():
        expected = exact(x.float(), t, context.float()).double()
        plain = relative_error(unet(x, t, context), expected)
        speed_up(unet)
        fast = relative_error(unet(x, t, context), expected)
    takes = side == 16 and library.why_unavailable() is None and not library.has_amx()
    assert ("Winograd" in {each.form for each in unet.modules() if isinstance(each, PackedConv2d)}) == takes
    assert plain < 0.05
    assert fast < 1.2 * plain


@SIDES
def test_the_way_back_is_exact(unet: UNet, side: int) -> None:
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    x, t, context = inputs(side=side)
    with torch.inference_mode():
        drawn = unet(x, t, context)
    speed_up(unet)
    with torch.inference_mode():
        unet(x, t, context)
    slow_down(unet)
    after = unet.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with torch.inference_mode():
        assert torch.equal(unet(x, t, context), drawn)


def test_another_text_is_another_picture(unet: UNet) -> None:
    """Keys and values of the text are kept from step to step, and for no other text."""
    speed_up(unet)
    x, t, context = inputs()
    other = bf16(*context.shape, seed=5)
    with torch.inference_mode():
        first, second, again = unet(x, t, context), unet(x, t, other), unet(x, t, context)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_what_both_passes_of_guidance_share_is_computed_once_to_the_same_bits(unet: UNet) -> None:
    speed_up(unet)
    x, t, context = inputs()
    with torch.inference_mode():
        expected = unet(torch.cat([x[:1], x[:1]]), t, context)
        results = on_threads(lambda: Network(unet, channels_last=True, computes_once=True)(x[:1], t[:1], context))
    assert all(torch.equal(result, expected) for result in results)


@runs_here
def test_the_first_layer_of_a_wide_network_is_computed_once_to_the_same_bits() -> None:
    """Of SD's width, whose products oneDNN shares out in other ways than narrow ones."""
    config = replace(
        TINY_UNET, block_out_channels=(320, 64), num_attention_heads=(8, 8), norm_num_groups=32, cross_attention_dim=64
    )
    network = randomize(UNet(config)).eval().bfloat16()
    assert isinstance(network, UNet)
    speed_up(network)
    x = bf16(1, 4, 32, 32).to(memory_format=torch.channels_last)
    t, context = torch.tensor([500]), bf16(2, 77, 64, seed=1)
    with torch.inference_mode():
        expected = network(torch.cat([x, x]), t.repeat(2), context)
        results = on_threads(lambda: network(x, t, context))
    assert all(torch.equal(result, expected) for result in results)


def test_only_bfloat16_on_a_cpu_has_a_fast_form() -> None:
    assert "it is for bfloat16 on a CPU" in str(why_not_fast(UNet(TINY_UNET)))
    form = FastForm(UNet(TINY_UNET))
    form.take_up()
    assert (form.is_taken_up, form.kernels) == (False, "none")
    assert not FastForm(UNet(TINY_UNET).bfloat16(), wanted=False).is_possible


def drawn(model: TextToImage, **given: object) -> tuple[Tensor, str]:
    result = next(iter(model.draw("a lighthouse", seed=3, **given)))  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(result.pixels.copy()), result.metadata.computation.kernels


def in_bfloat16(*, fast: bool) -> TextToImage:
    bundle = tiny_bundle()
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.bfloat16()
    return TextToImage(bundle, fast=fast)


def test_a_picture_says_what_drew_it() -> None:
    fast, kernels = drawn(in_bfloat16(fast=True))
    plain, none = drawn(in_bfloat16(fast=False))
    compiled = library.why_unavailable() is None
    assert (kernels, none) == (("compiled" if library.has_amx() else "Winograd") if compiled else "oneDNN", "none")
    assert psnr_db(fast, plain) > 35  # random weights, whose pictures are noise


@SIDES
def test_pictures_do_not_depend_on_threads_or_on_what_was_drawn_before(side: int) -> None:
    model, size = in_bfloat16(fast=True), {"width_px": 8 * side, "height_px": 8 * side}
    pictures = on_threads(lambda: drawn(model, **size)[0])
    drawn(model, guidance=1.0)
    pictures.append(drawn(model, **size)[0])
    model.fast_form.leave()
    pictures.append(drawn(model, **size)[0])
    assert all(torch.equal(picture, pictures[0]) for picture in pictures)


@SIDES
def test_without_compiled_kernels_the_same_is_drawn_by_torch(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = {"width_px": 8 * side, "height_px": 8 * side}
    fast, _ = drawn(in_bfloat16(fast=True), **size)
    monkeypatch.setattr(library, "_library", lambda: "they were not compiled")
    other, kernels = drawn(in_bfloat16(fast=True), **size)
    assert kernels == "oneDNN"
    assert psnr_db(fast, other) > 35


def test_nothing_of_torch_is_needed_to_compile() -> None:
    """The build of a wheel calls it in an environment without our dependencies."""
    script = "import sys; sys.path.insert(0, sys.argv[1]); import build; assert 'torch' not in sys.modules"
    folder = str(Path(kernels_build.__file__).parent)
    subprocess.run([sys.executable, "-I", "-c", script, folder], check=True)


@SIDES
def test_weights_that_have_drawn_can_be_trained(side: int) -> None:
    """Whatever was laid out anew while a picture was drawn: tensors made in inference mode take no gradient."""
    model = in_bfloat16(fast=True)
    drawn(model, width_px=8 * side, height_px=8 * side)
    model.fast_form.leave()
    x, t, context = inputs()
    model.bundle.unet(x, t, context).square().mean().backward()
    assert all(weight.grad is not None for weight in model.bundle.unet.parameters())

"""The fast form's upsampling: against float64, on any threads, and with its way back."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from latentgen.kernels import upsampling
from latentgen.kernels.library import winograd_convolution
from latentgen.kernels.upsampling import FastUpsample, WinogradUpsample, fast_upsample, kernels_of_pixels
from latentgen.kernels.winograd import lay_out
from latentgen.models.layers import Upsample
from tests.unit.test_kernels import bf16, on_threads, relative_error, runs_here

Form = type[FastUpsample] | type[WinogradUpsample]
FORMS = pytest.mark.parametrize("form", [FastUpsample, pytest.param(WinogradUpsample, marks=runs_here)])


def upsample(channels: int = 32) -> Upsample:
    torch.manual_seed(0)
    return Upsample(channels).bfloat16()


def test_four_small_kernels_are_the_large_one_after_doubling() -> None:
    """Exactly so, in float64 sums of whole numbers; odd sides and borders included."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randint(-8, 9, shape, generator=generator).double() for shape in ((3, 2, 3, 3), (1, 2, 5, 4)))
    expected = F.conv2d(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), weight, padding=1)
    top_left, top_right, bottom_left, bottom_right = (
        F.conv2d(x, kernel, padding=1) for kernel in kernels_of_pixels(weight)
    )
    assert torch.equal(top_left[:, :, :-1, :-1], expected[:, :, ::2, ::2])
    assert torch.equal(top_right[:, :, :-1, 1:], expected[:, :, ::2, 1::2])
    assert torch.equal(bottom_left[:, :, 1:, :-1], expected[:, :, 1::2, ::2])
    assert torch.equal(bottom_right[:, :, 1:, 1:], expected[:, :, 1::2, 1::2])


@FORMS
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (4, 4), (1, 3), (1, 1)])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_it_errs_by_no_more_than_rounding_what_is_multiplied_makes_it(
    form: Form, size: tuple[int, int], layout: torch.memory_format
) -> None:
    layer = upsample()
    exact = Upsample(32).double()
    exact.load_state_dict({name: value.double() for name, value in layer.state_dict().items()})
    x = bf16(2, 32, *size).to(memory_format=layout)
    fast = form(layer)
    with torch.inference_mode():
        results = on_threads(lambda: fast(x))
        alone = torch.cat([fast(x[:1]), fast(x[1:])])
        assert relative_error(results[0], exact(x.double())) < 0.005
    assert results[0].is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(result, results[0]) for result in results)
    assert torch.equal(alone, results[0])


@pytest.mark.parametrize("channels", [48, 64, 128, 192, 256])
def test_no_number_of_threads_changes_it(channels: int) -> None:
    """Of these widths oneDNN's 2x2 convolutions, padding by themselves, differ on four or eight threads."""
    fast, before = FastUpsample(upsample(channels)), torch.get_num_threads()
    maps = [bf16(1, channels, *size).to(memory_format=torch.channels_last) for size in ((8, 8), (13, 11), (32, 32))]
    results: list[list[torch.Tensor]] = []
    try:
        for threads in (1, 2, 3, 4, 8):
            torch.set_num_threads(threads)
            with torch.inference_mode():
                results.append([fast(x) for x in maps])
    finally:
        torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


def test_rows_of_a_large_map_come_as_they_do_together(monkeypatch: pytest.MonkeyPatch) -> None:
    fast, x = FastUpsample(upsample()), bf16(1, 32, 13, 9)
    with torch.inference_mode():
        whole = fast(x)
        for numbers in (1, 3 * 4 * 32 * 10, 13 * 4 * 32 * 10):  # one row at a time, three, all
            monkeypatch.setattr(upsampling, "_NUMBERS_AT_A_TIME", numbers)
            assert torch.equal(fast(x), whole)


@runs_here
def test_winograds_way_is_that_of_the_doubled_map_to_the_bit() -> None:
    layer = upsample(48)
    x, kernels = bf16(2, 48, 7, 10).to(memory_format=torch.channels_last), lay_out(layer.conv.weight.data)
    with torch.inference_mode():
        doubled = (
            x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).contiguous(memory_format=torch.channels_last)
        )
        expected = winograd_convolution(doubled, kernels, layer.conv.bias)
        assert torch.equal(WinogradUpsample(layer)(x), expected)


@pytest.mark.parametrize("possible", [True, False])
def test_it_goes_winograds_way_where_that_is_possible(possible: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upsampling, "convolves", lambda into, outs: possible)
    assert isinstance(fast_upsample(upsample()), WinogradUpsample if possible else FastUpsample)


@FORMS
def test_the_way_back_is_the_layer_itself_and_it_can_be_trained(form: Form) -> None:
    layer = upsample()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    fast = form(layer)
    with torch.inference_mode():
        fast(bf16(1, 32, 4, 4))
    plain = fast.plain()
    assert list(plain.state_dict()) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in plain.state_dict().items())
    plain(bf16(1, 32, 8, 8)).square().mean().backward()
    assert plain.conv.weight.grad is not None
    assert plain.conv.bias is not None
    assert plain.conv.bias.grad is not None


@FORMS
def test_in_float32_it_is_the_layer_itself(form: Form) -> None:
    layer, x = upsample().float(), bf16(1, 32, 5, 6).float()
    with torch.inference_mode():
        expected = layer(x)
        fast = form(layer.bfloat16())
        assert torch.equal(fast.float()(x), expected)

"""Drawing by torch.compile, on a CPU that says it is a GPU, with backends that compile nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentgen.errors import InputError, RuntimeFailure
from latentgen.images.pixels import Pixels, pixel_difference
from latentgen.kernels import gpu
from latentgen.kernels.vae import lay_out
from latentgen.models.unet import DeepFeatures
from latentgen.pipeline import TextToImage
from latentgen.request import GenerationRequest
from tests.tiny import TINY_UNET, tiny_unet, tiny_vae
from tests.tiny_bundle import save_tiny_model, tiny_bundle
from tests.unit.test_adapters import files as files

REQUEST = GenerationRequest(
    prompt="a cat",
    seed=3,
    width_px=64,
    height_px=64,
    steps=4,
    guidance=2.5,
    sampler="dpmpp_2m",
    schedule="karras",
)
SMALL = replace(TINY_UNET, block_out_channels=(16,), attention_levels=(True,), num_attention_heads=(2,))


class Graphs:
    """A backend that counts what it is given and computes it as it is."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, graph: Any, inputs: object, **_: object) -> Any:
        self.count += 1
        return graph.forward


class CudaGraphs:
    """In the place of torch.compile: every call writes over what all calls before it gave."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, str]] = []
        """Function, rows and mode."""
        self.given: list[Tensor] = []

    def __call__(self, function: Callable[..., tuple[Tensor, ...]], backend: str, mode: str) -> Any:
        def call(network: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
            outputs = function(network, *inputs)
            for before in self.given:
                before.fill_(torch.nan)
            self.given = list(outputs)
            self.calls.append((function.__name__, len(inputs[0]), mode))
            return outputs

        return call

    def rows(self) -> list[int]:
        return [rows for _, rows, _ in self.calls]


@pytest.fixture
def _is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICES", ("cpu",))


@pytest.fixture
def graphs(_is_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> Graphs:
    backend = Graphs()
    torch.compiler.reset()
    monkeypatch.setattr(gpu, "COMPILER", backend)
    return backend


@pytest.fixture
def cuda_graphs(_is_a_gpu: None, monkeypatch: pytest.MonkeyPatch) -> CudaGraphs:
    recorded = CudaGraphs()
    monkeypatch.setattr(gpu, "_compiled", recorded)
    return recorded


def pipeline(*, compile: bool, small: bool = False) -> TextToImage:
    """A model that draws pictures together, as on a GPU."""
    bundle = tiny_bundle()
    if small:
        bundle.unet, bundle.config = tiny_unet(SMALL), replace(bundle.config, unet=SMALL)
    model = TextToImage(bundle, compile=compile)
    model.one_by_one = False
    return model


def largest_difference(model: TextToImage, expected: TextToImage, requests: list[GenerationRequest]) -> int:
    """Of 255, drawing two at a time with both."""
    pairs = zip(model.generate(requests, batch_size=2), expected.generate(requests, batch_size=2), strict=True)
    return max(pixel_difference(one.pixels, other.pixels)[0] for one, other in pairs)


# torch's own tracing


def test_one_graph_for_all_pictures_and_steps_and_a_lora_is_in_it(graphs: Graphs, files: tuple[Path, Path]) -> None:
    compiled, plain = pipeline(compile=True), pipeline(compile=False)
    (lora,) = {model.add_lora(files[1], scale=3.0) for model in (compiled, plain)}
    alone = [replace(REQUEST, seed=seed) for seed in (1, 2, 3)]
    with_lora = [replace(request, loras=(lora,)) for request in alone]
    assert largest_difference(compiled, plain, [*alone, *with_lora, *alone]) <= 1
    assert largest_difference(plain, plain, [alone[0]]) == 0
    (before,), (after,) = plain.generate(alone[:1]), plain.generate(with_lora[:1])
    assert pixel_difference(before.pixels, after.pixels)[0] > 8, "a LoRA that is seen"
    assert graphs.count == 1


def test_deep_cache_is_one_graph_more(graphs: Graphs) -> None:
    requests = [replace(REQUEST, guidance=1.0, deep_cache=2, steps=5)]
    compiled, plain = (pipeline(compile=compile, small=True) for compile in (True, False))
    assert largest_difference(compiled, plain, requests) <= 1
    assert graphs.count == 2


def test_decoding_is_compiled_in_half_precision_only(graphs: Graphs) -> None:
    vae = tiny_vae()
    z = torch.randn(1, 4, 4, 4)
    with torch.inference_mode():
        assert torch.equal(gpu.decode_compiled(vae, z), vae.decode(z))
        assert graphs.count == 0
        vae, z = vae.bfloat16(), z.bfloat16()
        expected = vae.decode(z)
        assert all(torch.equal(gpu.decode_compiled(vae, z), expected) for _ in range(2))
    assert graphs.count == 1


@pytest.mark.usefixtures("_is_a_gpu")
def test_a_compiler_that_fails_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(graph: object, inputs: object, **_: object) -> None:
        raise RuntimeError("Cannot find a working triton installation\nand more")

    torch.compiler.reset()
    monkeypatch.setattr(gpu, "COMPILER", missing)
    with pytest.raises(RuntimeFailure, match=r"^torch.compile failed: .*triton.*leave out --compile") as raised:
        list(pipeline(compile=True, small=True).generate([REQUEST]))
    assert "\n" not in str(raised.value)


# What is around it


@pytest.mark.parametrize("sampler", ["dpmpp_2m", "heun", "dpmpp_sde"])
@pytest.mark.parametrize("deep_cache", [1, 2])
def test_nothing_is_read_after_the_next_call_wrote_over_it(
    sampler: str, deep_cache: int, cuda_graphs: CudaGraphs
) -> None:
    requests = [replace(REQUEST, seed=seed, sampler=sampler, deep_cache=deep_cache) for seed in (1, 2)]
    assert largest_difference(pipeline(compile=True), pipeline(compile=False), requests) == 0
    assert len(cuda_graphs.calls) >= REQUEST.steps


def test_a_batch_that_is_not_full_is_filled_up(cuda_graphs: CudaGraphs) -> None:
    """And says so: drawn again in a batch of that size it has the same bits."""
    compiled, plain = pipeline(compile=True), pipeline(compile=False)
    requests = [replace(REQUEST, seed=seed, guidance_interval=(0.0, 0.5)) for seed in (1, 2, 3)]
    *_, last = compiled.generate(requests, batch_size=2)
    assert cuda_graphs.rows() == [4, 4, 2, 2] * 2
    assert last.metadata.computation.batch_size == 2
    full, _ = plain.generate([requests[2]] * 2, batch_size=2)
    assert pixel_difference(last.pixels, full.pixels)[0] == 0


def test_one_picture_is_not_filled_up(cuda_graphs: CudaGraphs) -> None:
    requests = [REQUEST, replace(REQUEST, steps=3), replace(REQUEST, steps=3, seed=1)]
    sizes = [result.metadata.computation.batch_size for result in pipeline(compile=True).generate(requests)]
    assert sizes == [1, 2, 2]
    assert cuda_graphs.rows() == [2] * 4 + [4] * 3


def test_cuda_graphs_are_for_the_main_thread(cuda_graphs: CudaGraphs) -> None:
    unet, x = tiny_unet(SMALL), torch.randn(1, 4, 8, 8)

    @torch.inference_mode()
    def predict() -> None:
        gpu.predict_compiled(unet, x, torch.ones(1), torch.zeros(1, 77, 24), deep=DeepFeatures())

    predict()
    thread = threading.Thread(target=predict)
    thread.start()
    thread.join()
    assert cuda_graphs.calls == [("_predict_and_keep", 1, "reduce-overhead"), ("_predict_and_keep", 1, "default")]


@pytest.mark.usefixtures("_is_a_gpu")
def test_half_precision_is_channels_last_and_float32_is_not() -> None:
    bundle = tiny_bundle()
    TextToImage(bundle)
    assert bundle.unet.conv_in.weight.is_contiguous()
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.bfloat16()
    TextToImage(bundle, fast=False)
    weights = bundle.unet.conv_in.weight, bundle.vae.decoder.conv_in.weight
    assert [weight.is_contiguous(memory_format=torch.channels_last) for weight in weights] == [True, True]
    lay_out(bundle.vae, torch.float32)
    assert bundle.vae.decoder.conv_in.weight.is_contiguous()
    lay_out(bundle.vae, torch.bfloat16)
    assert bundle.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("_is_a_gpu")
def test_a_network_that_is_read_while_drawing_is_laid_out_too(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    drawn: list[list[Pixels]] = []
    for low_memory in (False, True):
        model = TextToImage.load(folder, device="cpu", dtype="bfloat16", fast=False, low_memory=low_memory)
        drawn.append([result.pixels for result in model.draw("a cat", seed=1, count=2, steps=2)])
        assert model.bundle.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert all((whole == little).all() for whole, little in zip(*drawn, strict=True))


def test_a_cpu_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--compile is for a CUDA GPU, and this is drawn on cpu"):
        TextToImage.load(tmp_path / "nothing", device="cpu", compile=True)
    with pytest.raises(InputError, match="--compile is for a CUDA GPU"):
        TextToImage(tiny_bundle(), compile=True)


@pytest.mark.usefixtures("_is_a_gpu")
def test_one_network_at_a_time_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--compile and --low-memory contradict each other"):
        TextToImage.load(save_tiny_model(tmp_path / "tiny"), device="cpu", low_memory=True, compile=True)

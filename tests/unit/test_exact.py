"""The same request gives the same pixels to the last bit, whatever the batch size and the number of threads.

The tiny model's layers are too narrow for some of oneDNN's ways to compute, so the embedded one is drawn with too, and
layers as wide as Stable Diffusion's are computed alone.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from latentgen.diffusion.noise import VECTOR_WIDTH
from latentgen.images.pixels import pixels_sha256
from latentgen.models.attention import SpatialTransformer, attention
from latentgen.models.layers import PointwiseConv2d, ResnetBlock
from latentgen.models.unet import UNet
from latentgen.pipeline import TextToImage
from latentgen.pipeline.network import Network
from latentgen.request import MAX_SEED, GenerationRequest
from tests.tiny import TINY_MODEL, TINY_UNET, TINY_VAE, randomize, tiny_unet, tiny_vae
from tests.tiny_bundle import tiny_bundle

BATCH_SIZES = (1, 2, 4, 8)
THREADS = (1, 2, 4)
REQUEST = GenerationRequest(
    prompt="a cat",
    negative_prompt="a dog",
    seed=0,
    width_px=64,
    height_px=48,
    steps=2,
    guidance=2.5,
    sampler="euler_a",
    schedule="leading",
)
SEEDS = (0, 1, MAX_SEED)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def model(request: pytest.FixtureRequest) -> TextToImage:
    """In float32, and in the fast form."""
    bundle = tiny_bundle()
    for part in (bundle.unet, bundle.vae, bundle.text_encoder):
        part.to(getattr(torch, request.param))
    return TextToImage(bundle)


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def draw(model: TextToImage, requests: Sequence[GenerationRequest], *, batch_size: int, threads: int) -> list[str]:
    torch.set_num_threads(threads)
    return [pixels_sha256(result.pixels) for result in model.generate(requests, batch_size=batch_size)]


@pytest.mark.parametrize("sampler", ["euler_a", "ddim"])
def test_twelve_cells_one_hash(sampler: str, model: TextToImage) -> None:
    eta = 1.0 if sampler == "ddim" else 0.0
    requests = [replace(REQUEST, sampler=sampler, eta=eta, seed=seed) for seed in SEEDS]
    drawn = {
        (size, threads): draw(model, requests, batch_size=size, threads=threads)
        for size in BATCH_SIZES
        for threads in THREADS
    }
    first = drawn[1, 1]
    assert len(set(first)) == len(SEEDS)
    assert drawn == dict.fromkeys(drawn, first)


@pytest.mark.parametrize("size_px", [(16, 16), (48, 80), (80, 48)])
def test_picture_i_is_that_of_seed_plus_i_alone(size_px: tuple[int, int]) -> None:
    """Of sizes whose latents are no multiple of 16 values: torch draws noise by 16."""
    config = replace(
        TINY_MODEL,
        unet=replace(TINY_UNET, in_channels=3, out_channels=3),
        vae=replace(TINY_VAE, latent_channels=3),
    )
    bundle = replace(tiny_bundle(), unet=tiny_unet(config.unet), vae=tiny_vae(config.vae), config=config)
    model = TextToImage(bundle)
    request = replace(REQUEST, width_px=size_px[0], height_px=size_px[1])
    assert math.prod(model.latent_space.shape(*size_px)) % VECTOR_WIDTH
    together = draw(model, [replace(request, seed=5 + i) for i in range(4)], batch_size=4, threads=1)
    alone = [draw(model, [replace(request, seed=5 + i)], batch_size=1, threads=2) for i in range(4)]
    assert [[each] for each in together] == alone


# Layers as wide as those of real models, computed with 1, 2 and 4 threads


def thread_dependent(network: nn.Module, *inputs: Tensor) -> list[str]:
    """The innermost modules whose output for the same input is not the same to the last bit on 1, 2 and 4 threads."""
    calls: list[tuple[str, nn.Module, tuple[Tensor, ...], Tensor]] = []
    leaves = [(name, module) for name, module in network.named_modules() if not list(module.children())]

    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda module, inputs, output: calls.append((name, module, inputs, output.clone()))  # SiLU is in place

    hooks = [module.register_forward_hook(keep(name)) for name, module in leaves]
    torch.set_num_threads(1)
    with torch.inference_mode():
        network(*inputs)
        for hook in hooks:
            hook.remove()
        found: list[str] = []
        for threads in THREADS[1:]:
            torch.set_num_threads(threads)
            found += [
                f"{name} {threads}" for name, leaf, given, output in calls if not torch.equal(leaf(*given), output)
            ]
    return found


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(
    "network",
    [
        ResnetBlock(640, 320, num_groups=32, norm_eps=1e-5, time_embed_dim=1280),
        SpatialTransformer(320, 768, 8, depth=1, num_groups=32, use_linear_projection=False),
    ],
    ids=["residual block", "transformer"],
)
def test_wide_layers_do_not_depend_on_threads(network: nn.Module, batch: int) -> None:
    randomize(network)
    generator = torch.Generator().manual_seed(0)
    is_block = isinstance(network, ResnetBlock)
    x = torch.randn(batch, 640 if is_block else 320, 16, 16, generator=generator)
    second = torch.randn(batch, *([1280] if is_block else [77, 768]), generator=generator)
    assert thread_dependent(network, x, second) == []


@pytest.mark.parametrize("queries", [1, 2, 6, 15, 16, 31, 32, 35])
def test_attention_does_not_depend_on_threads(queries: int) -> None:
    """With few queries SDPA alone does. Every head is looked at, and each often: threads take them in turn."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, queries, 256, generator=generator)
    k, v = (torch.randn(2, 77, 256, generator=generator) for _ in range(2))
    torch.set_num_threads(1)
    with torch.inference_mode():
        alone = attention(q, k, v, heads=4)
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert all(torch.equal(attention(q, k, v, heads=4), alone) for _ in range(5))
    torch.testing.assert_close(alone, attention(q, k, v, heads=4), msg="the way with gradients, where SDPA is used")


class Dependent(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.get_num_threads()


def test_what_depends_on_threads_is_named() -> None:
    network = nn.Sequential(nn.SiLU(), Dependent(), nn.SiLU())
    assert thread_dependent(network, torch.ones(2)) == ["1 2", "1 4"]


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_pointwise_is_a_convolution(layout: torch.memory_format) -> None:
    layer = PointwiseConv2d(24, 40)
    x = torch.randn(2, 24, 6, 10).to(memory_format=layout)
    trained = layer(x)
    with torch.no_grad():
        torch.testing.assert_close(layer(x), trained, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias), atol=1e-5, rtol=1e-5)
    assert layer.state_dict()["weight"].shape == (40, 24, 1, 1)


def test_training_computes_as_it_always_did() -> None:
    """With gradients the convolution is oneDNN's, bit by bit."""
    unet = UNet(TINY_UNET)
    layers = [layer for layer in unet.modules() if isinstance(layer, PointwiseConv2d)]
    assert layers
    for layer in layers:
        x = torch.randn(2, layer.in_channels, 8, 8)
        assert torch.equal(layer(x), nn.functional.conv2d(x, layer.weight, layer.bias))


@pytest.mark.parametrize(("batch", "size"), [(1, (16, 16)), (2, (3, 1)), (2, (1, 5)), (2, (3, 6)), (2, (5, 16))])
def test_few_pixels_do_not_depend_on_threads(batch: int, size: tuple[int, int]) -> None:
    """Products of few rows are shared out by threads, and so are the values of SiLU."""
    network = SpatialTransformer(256, 256, 4, depth=1, num_groups=32, use_linear_projection=True)
    block = ResnetBlock(320, 320, num_groups=32, norm_eps=1e-5, time_embed_dim=1280)
    randomize(network)
    randomize(block)
    generator = torch.Generator().manual_seed(0)
    x, features = (torch.randn(batch, channels, *size, generator=generator) for channels in (256, 320))
    context, time = (torch.randn(batch, *shape, generator=generator) for shape in ((77, 256), (1280,)))
    torch.set_num_threads(1)
    with torch.inference_mode():
        alone = network(x, context), block(features, time)
        for threads in (2, 3, 4, 8):
            torch.set_num_threads(threads)
            assert torch.equal(network(x, context), alone[0]), f"transformer, {threads} threads"
            assert torch.equal(block(features, time), alone[1]), f"residual block, {threads} threads"
    torch.testing.assert_close(alone[0], network(x, context), msg="with gradients it is computed plainly")
    torch.testing.assert_close(alone[1], block(features, time), msg="with gradients it is computed plainly")


def test_one_small_picture_without_guidance() -> None:
    """Computed twice, beside itself: alone, a feature map of 18 pixels would depend on the threads."""
    unet = tiny_unet(replace(TINY_UNET, block_out_channels=(64, 128)))
    generator = torch.Generator().manual_seed(0)
    x, context = torch.randn(1, 4, 6, 12, generator=generator), torch.randn(1, 77, 24, generator=generator)
    t = torch.tensor([500.0])
    torch.set_num_threads(1)
    with torch.inference_mode():
        alone = Network(unet)(x, t, context)
        for threads in (2, 3, 4):
            torch.set_num_threads(threads)
            assert torch.equal(Network(unet)(x, t, context), alone)
        assert alone.shape == x.shape
        torch.testing.assert_close(alone, unet(x, t, context), atol=1e-5, rtol=1e-5)


# The embedded model, in processes of their own


DRAW = """
import json, sys, torch
from latentgen.images.pixels import pixels_sha256
from latentgen.pipeline import TextToImage
from latentgen.request import complete_request
threads, batch_size, dtype = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(threads)
model = TextToImage.load(device="cpu", dtype=dtype)
asked = {"prompt": "a lighthouse at sunset", "steps": 1, "width_px": 128, "height_px": 64}
requests = [complete_request(model.bundle.config, seed=seed, **asked) for seed in (0, 4294967295)]
print(json.dumps([pixels_sha256(result.pixels) for result in model.generate(requests, batch_size=batch_size)]))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_in_other_processes(dtype: str) -> None:
    cells = [(1, 1), (2, 2), (4, 1)]
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", DRAW, str(threads), str(size), dtype],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONHASHSEED": str(threads)},
        )
        for threads, size in cells
    ]
    drawn = [json.loads(run.communicate()[0]) for run in runs]
    assert [run.returncode for run in runs] == [0] * len(cells)
    assert len(set(drawn[0])) == 2
    assert drawn == [drawn[0]] * len(cells)

"""Networks that draw on a GPU: the layout that its tensor cores want, and torch.compile.

What is compiled are functions of a network's weights, not the network: its parameters keep their names and places, so
LoRAs that are merged into them, in place, are in the next call. On the main thread the kernels are recorded in CUDA
graphs, without which a GPU waits for Python where the batch is small. A graph's outputs lie in memory of its own that
the next call writes over, while samplers and DeepCache keep what they were given: so copies are given. Other threads
(`TextToImage.steps`) go without CUDA graphs: older releases of torch refuse them there, newer ones record anew for
every thread.

Shapes are static: a new size or batch size is compiled anew, a minute or so for Stable Diffusion's U-Net. A timestep is
a tensor, so steps share one graph. torch compiles eight shapes of a function and computes further ones as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor, nn

from latentgen.errors import InputError, RuntimeFailure
from latentgen.models.unet import DeepFeatures, UNet
from latentgen.models.vae import AutoencoderKL

COMPILER = "inductor"
"""torch.compile's backend."""
MODE = "reduce-overhead"
"""torch.compile's mode on the main thread: with CUDA graphs. "max-autotune" has them too, and looks for kernels for
many minutes a shape."""

DEVICES = ("cuda",)
"""Device types this is for."""
HALF = (torch.float16, torch.bfloat16)

Function = Callable[..., tuple[Tensor, ...]]
"""A network and tensors to tensors."""


def wants_channels_last(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions are computed a pixel's channels beside each other: by tensor cores, in half precision.

    Weights in another layout would be turned round at every call.
    """
    return device.type in DEVICES and dtype in HALF


def lay_out_for_gpu(network: nn.Module) -> None:
    """Lay weights out as this device and precision want them, in place; elsewhere they stay as they are."""
    parameter = next(network.parameters())
    if wants_channels_last(parameter.device, parameter.dtype):
        with torch.inference_mode(parameter.is_inference()):  # as they were made: the two kinds do not mix
            network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  missing in the overloads


def check_can_compile(device: torch.device, *, low_memory: bool = False) -> None:
    """Raise InputError where drawing cannot be compiled: elsewhere than on a GPU, and with one network at a time."""
    if device.type not in DEVICES:
        raise InputError(f"--compile is for a CUDA GPU, and this is drawn on {device.type}", hint="leave it out")
    if low_memory:
        raise InputError(
            "--compile and --low-memory contradict each other: every network that is read would be recorded anew",
            hint="give one or the other",
        )


def predict_compiled(unet: UNet, x: Tensor, t: Tensor, context: Tensor, *, deep: DeepFeatures | None = None) -> Tensor:
    """As `unet(x, t, context, deep=deep)`, without gradients. Raises RuntimeFailure where nothing can be compiled."""
    if deep is None:
        (prediction,) = _compute(_predict, unet, x, t, context)
    elif deep.features is None:
        prediction, deep.features = _compute(_predict_and_keep, unet, x, t, context)
    else:
        (prediction,) = _compute(_predict_with, unet, x, t, context, deep.features)
    return prediction


def decode_compiled(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """As `vae.decode(z)`, without gradients; compiled in half precision only.

    In float32 it may be the second try of one picture whose numbers were not finite, which is not worth a compilation.
    Raises RuntimeFailure where nothing can be compiled.
    """
    if z.dtype not in HALF:
        return vae.decode(z)
    (pixels,) = _compute(_decode, vae, z)
    return pixels


@contextmanager
def compiler_failures_named() -> Generator[None]:
    """Raise RuntimeFailure for what torch.compile cannot do here, for instance without a C++ compiler on a CPU."""
    from torch._dynamo.exc import BackendCompilerFailed, TorchDynamoException  # a second, which --compile has

    try:
        yield
    except TorchDynamoException as error:
        cause = error.inner_exception if isinstance(error, BackendCompilerFailed) else error
        first, *_ = [*str(cause).strip().splitlines(), type(cause).__name__]
        hint = "it needs a C++ compiler on a CPU and Triton on a GPU; leave out --compile"
        raise RuntimeFailure(f"torch.compile failed: {first}", hint=hint) from error


def _compute(function: Function, network: nn.Module, *inputs: Tensor) -> list[Tensor]:
    is_main = threading.current_thread() is threading.main_thread()
    with compiler_failures_named():
        outputs = _compiled(function, COMPILER, MODE if is_main else "default")(network, *inputs)
    return [output.clone() for output in outputs]


@cache
def _compiled(function: Function, backend: str, mode: str) -> Function:
    return torch.compile(function, dynamic=False, backend=backend, mode=mode)


# What is compiled: pure functions, so that there is one graph and nothing beside it.


def _predict(unet: UNet, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor]:
    return (unet(x, t, context),)


def _predict_and_keep(unet: UNet, x: Tensor, t: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
    deep = DeepFeatures()
    prediction = unet(x, t, context, deep=deep)
    assert deep.features is not None, "empty features are filled"
    return prediction, deep.features


def _predict_with(unet: UNet, x: Tensor, t: Tensor, context: Tensor, features: Tensor) -> tuple[Tensor]:
    return (unet(x, t, context, deep=DeepFeatures(features)),)


def _decode(vae: AutoencoderKL, z: Tensor) -> tuple[Tensor]:
    return (vae.decode(z),)

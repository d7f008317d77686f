"""DeepCache against an independent computation: diffusers' whole U-Net, with one of its inner tensors exchanged.

Theirs computes everything at every call. A hook before the last layers of the way up puts the features of an earlier
call where this call's own would be, so whatever reuses them must give the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from latentgen.config import DiffusionConfig, UNetConfig
from latentgen.diffusion.guidance import GuidedDenoiser
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.models.unet import DeepFeatures
from latentgen.pipeline.deep_cache import CachingDenoiser, DeepCache
from latentgen.pipeline.network import Network
from latentgen.samplers.registry import get_sampler
from tests.oracle.test_unet import EMBEDDED_LIKE, SD1_LIKE, SHALLOW_AND_DEEP, TOLERANCE, VARIANTS, build_pair, inputs


class Exchange:
    """The deep features of diffusers' calls: kept under a name, or put into the place of a call's own."""

    def __init__(self, unet: UNet2DConditionModel) -> None:
        self.kept: dict[object, Tensor] = {}
        self.name: object = None
        self.reuse = False
        outermost: Any = unet.up_blocks[-1]
        layer: nn.Module = outermost.resnets[-2]
        self.skip_channels = unet.config["block_out_channels"][0]  # of the first layer on the way down
        layer.register_forward_pre_hook(self.hook)

    def hook(self, layer: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        joined, *others = arguments
        deep, skip = joined[:, : -self.skip_channels], joined[:, -self.skip_channels :]
        if self.reuse:
            deep = self.kept[self.name]
        else:
            self.kept[self.name] = deep.clone()
        return torch.cat([deep, skip], dim=1), *others

    @contextmanager
    def under(self, name: object, *, reuse: bool) -> Iterator[None]:
        self.name, self.reuse = name, reuse
        yield
        self.name, self.reuse = None, False


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS.keys())
@torch.no_grad()
def test_a_call_that_reuses_features(config: UNetConfig) -> None:
    ours, theirs = build_pair(config)
    exchange = Exchange(theirs)
    x, t, context = inputs(config)
    deep = DeepFeatures()
    with exchange.under("first", reuse=False):
        torch.testing.assert_close(ours(x, t, context, deep=deep), theirs(x, t, context).sample, **TOLERANCE)
    for _ in range(2):  # the features stay what they were
        x, t = torch.randn_like(x), t - 7
        whole = theirs(x, t, context).sample
        with exchange.under("first", reuse=True):
            expected = theirs(x, t, context).sample
        assert (expected - whole).abs().max() > 0.01, "an exchange that changes nothing proves nothing"
        torch.testing.assert_close(ours(x, t, context, deep=deep), expected, **TOLERANCE)


def their_heun(
    theirs: UNet2DConditionModel,
    schedule: NoiseSchedule,
    sigmas: list[float],
    x: Tensor,
    texts: tuple[Tensor, Tensor],
    guidance: float,
    guided_steps: range,
    interval: int,
    *,
    is_euler: bool,
) -> Tensor:
    """Heun's method or Euler's with diffusers' U-Net, its two passes apart, and DeepCache as its paper describes it.

    Looks are named by their place within a step and by their text, so the two passes never share anything.
    """
    exchange = Exchange(theirs)
    made: set[object] = set()

    def eps(x: Tensor, sigma: float, text: int, look: int, step: int, is_guided: bool) -> Tensor:
        name = (look, text, is_guided)
        t = schedule.sigma_to_t(torch.tensor([sigma], dtype=torch.float64))
        reuse = step % interval != 0 and name in made
        made.add(name)
        with exchange.under(name, reuse=reuse):
            return theirs(x / (1 + sigma**2) ** 0.5, t.float(), texts[text]).sample

    def slope(x: Tensor, sigma: float, look: int, step: int) -> Tensor:
        # A look belongs to the guided part by its noise level: the second one may be past the end of it.
        is_guided = sigmas[guided_steps.stop] < sigma <= sigmas[guided_steps.start]
        cond = eps(x, sigma, 0, look, step, is_guided)
        if not is_guided:
            return cond
        uncond = eps(x, sigma, 1, look, step, is_guided)
        return uncond + guidance * (cond - uncond)

    for step, (sigma, sigma_next) in enumerate(pairwise(sigmas)):
        if step % interval == 0:
            made.clear()
        d = slope(x, sigma, 0, step)
        x_next = x + (sigma_next - sigma) * d
        if sigma_next > 0 and not is_euler:
            x_next = x + (sigma_next - sigma) * (d + slope(x_next, sigma_next, 1, step)) / 2
        x = x_next
    return x


@pytest.mark.parametrize("config", [SD1_LIKE, EMBEDDED_LIKE, SHALLOW_AND_DEEP], ids=["sd1", "embedded", "shallow"])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
@pytest.mark.parametrize(("interval", "guided"), [(2, (0.0, 1.0)), (3, (0.0, 1.0)), (2, (0.2, 0.7)), (4, (0.0, 0.5))])
@torch.no_grad()
def test_a_whole_guided_run(config: UNetConfig, sampler: str, interval: int, guided: tuple[float, float]) -> None:
    ours, theirs = build_pair(config)
    schedule = NoiseSchedule.from_config(DiffusionConfig())
    steps, guidance = 10, 4.0
    sigmas = schedule.inference_sigmas(steps, "karras")
    x, _, cond = inputs(config, batch=1)
    uncond = torch.randn_like(cond)
    guided_steps = range(round(guided[0] * steps), round(guided[1] * steps))
    x = x * float(sigmas[0])
    levels: list[float] = sigmas.tolist()
    expected = their_heun(
        theirs, schedule, levels, x, (cond, uncond), guidance, guided_steps, interval, is_euler=sampler == "euler"
    )

    cache = DeepCache(interval)
    denoiser = GuidedDenoiser(
        Network(ours, deep_cache=cache),
        schedule,
        "epsilon",
        cond,
        uncond,
        guidance,
        interval=(levels[guided_steps.stop], levels[guided_steps.start]),
    )
    drawn = get_sampler(sampler)(CachingDenoiser(denoiser, cache), x, sigmas, noise=lambda: torch.zeros_like(x))
    exact = get_sampler(sampler)(denoiser_without_cache(denoiser, ours), x, sigmas, noise=lambda: torch.zeros_like(x))
    scale = float(expected.abs().max())
    # Ten steps, each amplifying what rounding left before it.
    torch.testing.assert_close(drawn, expected, rtol=0, atol=1e-8 * scale)
    assert (drawn - exact).abs().max() > 1e-3 * scale, "a cache that changes nothing proves nothing"


def denoiser_without_cache(denoiser: GuidedDenoiser, unet: nn.Module) -> GuidedDenoiser:
    return GuidedDenoiser(
        lambda x, t, context: unet(x, t, context),
        denoiser.schedule,
        denoiser.prediction_type,
        denoiser.cond,
        denoiser.uncond,
        denoiser.guidance,
        interval=denoiser.interval,
    )

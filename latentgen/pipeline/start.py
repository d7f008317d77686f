"""Where drawing begins: pure noise, or a picture with noise on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentgen.diffusion.denoiser import Denoiser
from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.diffusion.schedule import NoiseSchedule


def unchanged(denoiser: Denoiser) -> Denoiser:
    return denoiser


@dataclass(frozen=True, slots=True, eq=False)
class Start:
    """The first state of a batch, and what holds on the way down from it."""

    x: Tensor
    """(B, C, h, w) float32 at sigmas[0]."""
    sigmas: Tensor
    """(n+1,): the noise levels that are visited; fewer than the request's steps where drawing starts from a picture."""
    constrain: Callable[[Denoiser], Denoiser] = unchanged
    """A denoiser around the denoiser, for instance one that keeps what a mask protects."""
    extra: Tensor | None = None
    """(B, E, h, w): further channels for an inpainting U-Net."""


def start_from_noise(
    sigmas: Tensor, source: NoiseSource, shape: tuple[int, int, int], *, extra: Tensor | None = None
) -> Start:
    """Pure noise, each picture's from its own seed. sigmas (n+1,), shape (C, h, w)."""
    return Start(starting_point(source.draw(shape), float(sigmas[0])), sigmas, extra=extra)


def start_from_picture(
    sigmas: Tensor,
    source: NoiseSource,
    latents: Tensor,
    strength: float,
    *,
    redrawn: Tensor | None = None,
    extra: Tensor | None = None,
) -> Start:
    """Latents (B, C, h, w) of pictures, noised to where `strength` of the run is left (SDEdit, arXiv:2108.01073).

    x = latents + sigma noise at the first level that is visited; at strength 1 the noise alone, whatever the picture,
    in the cells that may change: the others show the network what it has to go on from, at every strength.
    redrawn (B, 1, h, w) bool: the cells that may change, None for all.
    """
    c, h, w = latents.shape[1:]
    visited = NoiseSchedule.truncate(sigmas, strength)
    noise = source.draw((c, h, w)).to(latents.device)
    x = latents + float(visited[0]) * noise
    if strength == 1:
        alone = starting_point(noise, float(visited[0]))
        x = alone if redrawn is None else torch.where(redrawn, alone, x)
    constrain = unchanged if redrawn is None else holding(latents, redrawn)
    return Start(x, visited, constrain, extra)


def holding(latents: Tensor, redrawn: Tensor) -> Callable[[Denoiser], Denoiser]:
    """Keeps a picture in place where it is not redrawn: there the clean estimate is the picture itself.

    Every sampler moves along x - x_0, so what is held follows x = latents + sigma eps down to latents, with the noise
    that it started from: for first-order samplers this is the published inpainting, which sets x to that at each step.
    Unlike it, it leaves a sampler's own noise and the last estimates of a multistep one as they should be.
    latents (B, C, h, w), redrawn (B, 1, h, w) bool.
    """

    def constrain(denoiser: Denoiser) -> Denoiser:
        return lambda x, sigma: torch.where(redrawn, denoiser(x, sigma), latents)

    return constrain

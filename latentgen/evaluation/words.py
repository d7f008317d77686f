"""Which words a model takes notice of: is its loss lower under a caption than under one with two words exchanged?

A model that pays attention to a word foresees the picture's noise better when it is told the right one. So nothing is
drawn and nobody judges: two captions of one picture, the same noise, and the two errors compared. A word that it passes
over is right half of the time, whether the text encoder lost it or the U-Net does not look at it.
What shows through the noise anyway needs no word: of where a thing stands only the noisiest levels depend on it.
Source: the diffusion classifier, arXiv:2303.16203, section 3 (paired noise: section 3.2).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from latentgen.checkpoints.folder import ModelBundle
from latentgen.data.pixels import to_float
from latentgen.diffusion.fixed_draws import QUARTERS, fixed_noise, fixed_timesteps
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.losses import diffusion_loss, training_target
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.evaluation.scores import Share
from latentgen.images.pixels import Pixels


@dataclass(frozen=True, slots=True)
class Exchange:
    """Two words or phrases that are put in each other's place."""

    first: str
    second: str

    def apply(self, caption: str) -> str | None:
        """The caption with each in the other's place, in whatever case it stands; None if it holds neither."""
        both = (self.first, self.second)
        longest_first = sorted(both, key=len, reverse=True)
        pattern = r"(?<!\w)(" + "|".join(re.escape(word) for word in longest_first) + r")(?!\w)"

        def other(found: re.Match[str]) -> str:
            return self.second if found[1].casefold() == self.first.casefold() else self.first

        text, count = re.subn(pattern, other, caption, flags=re.IGNORECASE)
        return text if count else None


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of one exchange."""

    share: Share
    """Pictures whose error is lower under their own caption, of all with such a caption."""
    gains: tuple[float, ...]
    """How much lower the mean error is, as a share of it, by quarter of the schedule, from nearly clean to noise."""


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture (H, W, 3) with a caption of it, and what the exchange makes of that."""

    pixels: Pixels
    caption: str
    exchanged: str


@torch.inference_mode()
def measure_words(bundle: ModelBundle, pairs: Iterable[Pair]) -> Heard:
    """Compare the two errors of each pair, at eight timesteps; noise and timesteps depend on its place alone."""
    schedule = NoiseSchedule.from_config(bundle.config.diffusion)
    space = LatentSpace.from_config(bundle.config.vae)
    prediction, weight = bundle.config.diffusion.prediction_type, next(bundle.unet.parameters())
    errors: list[Tensor] = []
    for place, pair in enumerate(pairs):
        mean, _ = bundle.vae.encode(to_float(torch.from_numpy(pair.pixels.copy())[None]).to(weight))
        latents = space.normalize(mean[0].float().cpu())
        eps, t = fixed_noise(place, latents.shape), fixed_timesteps(place, schedule.num_timesteps)
        clean = latents.expand(eps.shape)
        noisy, target = schedule.add_noise(clean, eps, t), training_target(schedule, prediction, clean, eps, t)
        contexts = bundle.text_encoder(bundle.tokenizer.encode([pair.caption, pair.exchanged]).to(weight.device))
        of_both: list[Tensor] = []
        for context in contexts:
            told = context.expand(len(t), *context.shape)
            predicted = bundle.unet(noisy.to(weight), t.to(weight.device), told).float().cpu()
            of_both.append(diffusion_loss(predicted, target))
        errors.append(torch.stack(of_both))
    own, exchanged = torch.stack(errors, dim=1).double()  # (pairs, 8) each
    right = int((own.mean(dim=1) < exchanged.mean(dim=1)).sum())
    by_quarter = [each.unflatten(1, (QUARTERS, -1)).mean(dim=(0, 2)) for each in (own, exchanged)]
    gains = (by_quarter[1] - by_quarter[0]) / by_quarter[0]
    return Heard(Share(right, len(own)), tuple(gains.tolist()))

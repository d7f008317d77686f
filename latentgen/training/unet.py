"""Training the U-Net: predict eps, v or x0 from noised latents and a caption's context."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from latentgen.config import DiffusionConfig, GenerationDefaults
from latentgen.data.records import Record
from latentgen.diffusion.fixed_draws import fixed_noise, fixed_timesteps, summarise
from latentgen.diffusion.guidance import GuidedDenoiser, guided_sigmas
from latentgen.diffusion.latents import LatentSpace
from latentgen.diffusion.losses import diffusion_loss, min_snr_weights, training_target
from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.images.pixels import to_pixels
from latentgen.models.clip_text import CLIPTextModel
from latentgen.models.tokenizer import Tokenizer
from latentgen.models.unet import UNet
from latentgen.models.vae import AutoencoderKL
from latentgen.samplers.registry import get_sampler
from latentgen.training.caches import Contexts, LatentCache
from latentgen.training.rng import Draw, Order, OrderAmong, sample_order
from latentgen.training.set_aside import others

SAMPLES_AT_A_TIME = 2
"""Prompts of a sheet that are drawn together: with guidance four passes in a batch, without gradients."""
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The U-Net as the loss calls it: noisy latents, timesteps and contexts to the prediction."""
TimestepSampling = Literal["uniform", "logit-normal"]
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


@dataclass(frozen=True, slots=True)
class UNetObjectiveConfig:
    """How the noise is drawn and the error weighted."""

    caption_dropout: float = 0.1
    """Share of samples trained on the empty prompt, for classifier-free guidance (arXiv:2207.12598)."""
    timestep_sampling: TimestepSampling = "uniform"
    """uniform, or logit-normal in t/T: more of the middle (arXiv:2403.03206, section 3.1)."""
    logit_mean: float = 0.0
    """Mean of logit(t/T), of logit-normal timesteps: above 0 more noise, below 0 less."""
    logit_std: float = 1.0
    """Its standard deviation."""
    min_snr_gamma: float | None = None
    """Min-SNR weighting (arXiv:2303.09556); None: plain MSE."""
    noise_offset: float = 0.0
    """Spread of a number added to all the noise of a sample's channel, so that pictures may become dark or bright as a
    whole ("Diffusion with Offset Noise", crosslabs.org; 0.05 to 0.1 is usual)."""


@dataclass(frozen=True, slots=True)
class SamplePlan:
    """Prompts drawn again and again while training, and all that is frozen in drawing them, on the network's device."""

    prompts: tuple[str, ...]
    defaults: GenerationDefaults
    tokenizer: Tokenizer
    text_encoder: CLIPTextModel
    vae: AutoencoderKL
    columns: int = 4


class UNetBatch(NamedTuple):
    latents: Tensor
    """(B, C, h, w) clean, normalised."""
    eps: Tensor
    """(B, C, h, w) standard normal."""
    t: Tensor
    """(B,) int64 in [0, T)."""
    context: Tensor
    """(B, 77, D); or token ids (B, 77), where the network encodes them itself (`text_tuning`)."""


class UNetObjective:
    """The DDPM objective on latents (arXiv:2006.11239, eq. 14; arXiv:2112.10752, eq. 3); some captions are left out."""

    def __init__(
        self,
        network: UNet,
        diffusion: DiffusionConfig,
        space: LatentSpace,
        records: list[Record],
        latents: LatentCache,
        contexts: Contexts,
        config: UNetObjectiveConfig,
        plan: SamplePlan | None,
        identity: Mapping[str, Any],
        *,
        validation: Sequence[int] = (),
    ) -> None:
        """identity: fingerprints of the data and of the frozen parts; a resumed run must share them.

        validation: items of the data set that are not trained on, but that `validate` measures.
        """
        self._network, self.diffusion, self.space = network, diffusion, space
        self.records, self.latents, self.contexts = records, latents, contexts
        self.config, self.plan, self.identity = config, plan, identity
        self.schedule = NoiseSchedule.from_config(diffusion)
        self.validation = tuple(validation)
        self._trained = others(len(records), validation)

    @property
    def network(self) -> UNet:
        return self._network

    def order(self, seed: int, samples_per_step: int) -> Order:
        shapes = [self.latents.shapes[item] for item in self._trained]
        return OrderAmong(sample_order(shapes, seed, samples_per_step), self._trained)

    def describe(self) -> Mapping[str, Any]:
        settings = asdict(self.config)
        # Runs of before these two were options have them not.
        for name in ("logit_mean", "logit_std"):
            if settings[name] == getattr(UNetObjectiveConfig(), name):
                del settings[name]
        return {
            "objective": "unet",
            "unet": asdict(self._network.config),
            "diffusion": asdict(self.diffusion),
            "validation_pictures": len(self.validation),
            **settings,
            **self.identity,
        }

    def batch(self, draws: Sequence[Draw]) -> UNetBatch:
        latents: list[Tensor] = []
        eps: list[Tensor] = []
        contexts: list[Tensor] = []
        for draw in draws:
            mean = self.latents.mean(draw.item)
            latents.append(self.space.normalize(mean))
            eps.append(self._noise(draw, mean.shape))
            contexts.append(self.contexts.context(self._caption(draw)))
        t = torch.tensor([self.timestep(draw) for draw in draws])
        return UNetBatch(torch.stack(latents), torch.stack(eps), t, torch.stack(contexts))

    def timestep(self, draw: Draw) -> int:
        """t of one sample. Consecutive samples step through (0, 1) by the golden ratio, so that every batch covers it
        evenly: a low-discrepancy draw with less gradient noise than independent ones (arXiv:2107.00630, section I.1).
        """
        u = (0.5 + draw.index * GOLDEN_RATIO) % 1.0
        if self.config.timestep_sampling == "logit-normal":
            normal = torch.special.ndtri(torch.tensor(u, dtype=torch.float64))
            u = float(torch.sigmoid(self.config.logit_mean + self.config.logit_std * normal))
        return min(int(u * self.schedule.num_timesteps), self.schedule.num_timesteps - 1)

    def loss(self, network: Predict, batch: UNetBatch, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        noisy = self.schedule.add_noise(batch.latents, batch.eps, batch.t)
        target = training_target(self.schedule, self.diffusion.prediction_type, batch.latents, batch.eps, batch.t)
        gamma = self.config.min_snr_gamma
        weights = None
        if gamma is not None:
            weights = min_snr_weights(self.schedule, self.diffusion.prediction_type, batch.t, gamma)
        return diffusion_loss(network(noisy, batch.t, batch.context), target, weights).mean(), {}

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """val_loss: the mean squared error, unweighted, on the pictures set aside, with their first captions; and
        val_loss_t1 to val_loss_t4, the same by quarter of the schedule, from nearly clean to noise. No figures without
        such pictures. A picture is a batch of its own, so the training batch changes nothing.
        """
        if not self.validation:
            return {}
        device = next(network.parameters()).device
        errors: list[Tensor] = []
        for picture, item in enumerate(self.validation):
            latents = self.space.normalize(self.latents.mean(item))
            context = self.contexts.context(self.records[item].captions[0])
            eps = fixed_noise(picture, latents.shape)
            t = fixed_timesteps(picture, self.schedule.num_timesteps)
            repeated = (each.expand(len(t), *each.shape) for each in (latents, context))
            latents, context, eps, t = (each.to(device) for each in (*repeated, eps, t))
            prediction = network(self.schedule.add_noise(latents, eps, t), t, context)
            target = training_target(self.schedule, self.diffusion.prediction_type, latents, eps, t)
            errors.append(diffusion_loss(prediction, target).cpu())
        return summarise(torch.stack(errors))

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """A sheet of the plan's prompts, seed k for prompt k; beside it prompts.txt says which they are."""
        if self.plan is None:
            return
        assert isinstance(network, UNet), "the loop hands back the network it was given"
        columns, defaults = self.plan.columns, self.plan.defaults
        rows = -(-len(self.plan.prompts) // columns)
        sheet = Image.new("RGB", (columns * defaults.width_px, rows * defaults.height_px))
        for k, z in enumerate(self._drawn(network, self.plan)):
            row, column = divmod(k, columns)
            tile = Image.fromarray(to_pixels(self.plan.vae.decode(z[None])[0]))
            sheet.paste(tile, (column * defaults.width_px, row * defaults.height_px))
        sheet.save(folder / f"step_{step:08d}.png")
        (folder / "prompts.txt").write_text("".join(f"{prompt}\n" for prompt in self.plan.prompts), encoding="utf-8")

    def _drawn(self, network: UNet, plan: SamplePlan) -> Iterator[Tensor]:
        """Raw z (C, h, w) of one of the plan's prompts after another, on the network's device."""
        from latentgen.pipeline.conditioning import chunks_of

        # Together go prompts of as many chunks: one that is filled up for a longer neighbour gives another picture.
        lengths = [len(chunks_of(prompt, plan.tokenizer)) for prompt in plan.prompts]
        first = 0
        for last in range(1, len(lengths) + 1):
            if last == len(lengths) or last - first == SAMPLES_AT_A_TIME or lengths[last] != lengths[first]:
                yield from self._draw(network, plan, range(first, last))
                first = last

    def _draw(self, network: UNet, plan: SamplePlan, chosen: range) -> Tensor:
        """Raw z (B, C, h, w) of some prompts, by their numbers, which are their seeds."""
        from latentgen.pipeline.conditioning import encode_prompts

        device, defaults = next(network.parameters()).device, plan.defaults
        texts = ["", *(plan.prompts[k] for k in chosen)]
        uncond, cond = encode_prompts(texts, plan.tokenizer, plan.text_encoder).split([1, len(chosen)])
        sigmas = self.schedule.inference_sigmas(defaults.steps, defaults.schedule)
        interval = guided_sigmas(sigmas, *defaults.guidance_interval)
        predicts, guidance = self.diffusion.prediction_type, defaults.guidance
        denoise = GuidedDenoiser(network, self.schedule, predicts, cond, uncond, guidance, interval=interval)
        shape = self.space.shape(defaults.height_px, defaults.width_px)
        source = NoiseSource(chosen)
        start = starting_point(source.draw(shape), float(sigmas[0])).to(device)
        sampler = get_sampler(defaults.sampler)
        latents = sampler(denoise, start, sigmas, noise=lambda: source.draw(shape).to(device))
        return self.space.denormalize(latents)

    def _noise(self, draw: Draw, shape: torch.Size) -> Tensor:
        """eps (C, h, w) of one sample, with the offset of each channel."""
        eps = torch.randn(shape, generator=draw.generator("noise"))
        if self.config.noise_offset:
            offsets = torch.randn(shape[0], 1, 1, generator=draw.generator("noise offset"))
            eps = eps + self.config.noise_offset * offsets
        return eps

    def _caption(self, draw: Draw) -> str:
        generator = draw.generator("caption")
        dropped, which = torch.rand(2, generator=generator).tolist()
        if dropped < self.config.caption_dropout:
            return ""
        captions = self.records[draw.item].captions
        return captions[int(which * len(captions))]

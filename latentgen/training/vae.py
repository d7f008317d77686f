"""Training the KL autoencoder on crops: reconstruction, KL, and if asked a perceptual and an adversarial loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from latentgen.config import VAEConfig
from latentgen.data.pixels import Pictures, to_float
from latentgen.images.pixels import to_pixels
from latentgen.images.similarity import psnr_db, ssim
from latentgen.models.vae import LOGVAR_RANGE, AutoencoderKL
from latentgen.training.caches import LatentCache
from latentgen.training.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss
from latentgen.training.perceptual import LPIPS
from latentgen.training.rng import Draw, Order, OrderAmong, SampleOrder
from latentgen.training.set_aside import others
from latentgen.training.sizes import check_crop_fits, check_vae_settings
from latentgen.training.vae_settings import VAELossWeights

VALIDATION_PICTURES = 16


class VAEBatch(NamedTuple):
    pixels: Tensor
    """(B, 3, S, S) in [-1, 1]"""
    eps: Tensor
    """(B, C, S/f, S/f) standard normal: the draw of the reparametrisation."""
    decoded_side: Tensor
    """() int64: the side to which the latents are brought before they are decoded; S/f leaves them as they are."""
    noise: Tensor
    """(B, C, S/f, S/f), added to the latents before they are decoded; zeros where none is asked for."""
    moments: Tensor
    """(B, 2C, S/f, S/f), mean and log-variance of the posterior; (0,) where the encoder is to be asked."""


class Verdicts(NamedTuple):
    """What the discriminator says of each patch, (B, 1, h, w) each."""

    of_autoencoder: Tensor
    """Of the reconstruction, with a gradient to the autoencoder alone."""
    of_generated: Tensor
    """Of the reconstruction, with a gradient to the discriminator alone."""
    of_real: Tensor


class VAEOutput(NamedTuple):
    reconstruction: Tensor
    """(B, 3, T, T), where T is f times the decoded side."""
    target: Tensor
    """(B, 3, T, T), what it should be."""
    mean: Tensor
    """(B, C, s, s), of the posterior."""
    logvar: Tensor
    """(B, C, s, s), as the encoder gives it: not clamped."""
    verdicts: Verdicts | None


class VAENetwork(nn.Module):
    """encode -> sample -> decode -> judge as one forward, so that DDP sees every parameter used.

    The discriminator is trained with the autoencoder by one optimizer and one backward pass: the graph that leads to
    the autoencoder holds its parameters as constants, the graph that leads to it holds the reconstruction as one.
    """

    def __init__(
        self, config: VAEConfig, *, decoder_only: bool = False, discriminator: PatchDiscriminator | None = None
    ) -> None:
        super().__init__()
        self.vae = AutoencoderKL(config)
        self.discriminator = discriminator
        self.decoder_only = decoder_only
        if decoder_only:
            self.vae.encoder.requires_grad_(False)
            if self.vae.quant_conv is not None:
                self.vae.quant_conv.requires_grad_(False)

    def forward(
        self,
        pixels: Tensor,
        eps: Tensor,
        decoded_side: int | None = None,
        judge: bool = False,
        *,
        noise: Tensor | None = None,
        moments: Tensor | None = None,
    ) -> VAEOutput:
        """pixels (B, 3, S, S), eps and noise (B, C, s, s); judge: with the discriminator's verdicts.

        decoded_side: latents brought to it decode to the pixels made smaller likewise, or learn to; None: s.
        moments: what the encoder says of the pixels, (B, 2C, s, s), if it is known.
        """
        if moments is None:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not self.decoder_only):
                mean, logvar = self.vae.moments(pixels)
        else:
            mean, logvar = moments.chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar.float().clamp(*LOGVAR_RANGE)) * eps
        if noise is not None:
            z = z + noise
        target = pixels
        if decoded_side is not None and decoded_side != z.shape[-1]:
            z, target = resized(z, decoded_side), resized(pixels, decoded_side * self.vae.config.downscale)
        z = z.to(mean.dtype)
        if z.device.type == "cpu":  # 1.27 times as fast with its gradients (measured)
            z = z.contiguous(memory_format=torch.channels_last)
        reconstruction = self.vae.decode(z)
        discriminator = self.discriminator
        if discriminator is None:
            return VAEOutput(reconstruction, target, mean, logvar, None)
        if not judge:
            # DDP wants a gradient for every parameter: until it takes part, the discriminator's is 0.
            idle = torch.stack([parameter.sum() for parameter in discriminator.parameters()]).sum()
            return VAEOutput(reconstruction + 0 * idle, target, mean, logvar, None)
        constants = {name: parameter.detach() for name, parameter in discriminator.named_parameters()}
        verdicts = Verdicts(
            torch.func.functional_call(discriminator, constants, (reconstruction,)),
            discriminator(reconstruction.detach()),
            discriminator(target),
        )
        return VAEOutput(reconstruction, target, mean, logvar, verdicts)


class VAEObjective:
    """Crops of the data set, reconstructed. Source: KL autoencoders of LDM, arXiv:2112.10752, section 3.1."""

    def __init__(
        self,
        config: VAEConfig,
        pixels: Pictures,
        data_fingerprint: str,
        *,
        crop_px: int,
        side_px: int,
        weights: VAELossWeights,
        decoder_only: bool = False,
        flip: bool = True,
        perceptual: nn.Module | None = None,
        perceptual_identity: str = "none",
        discriminator: PatchDiscriminator | None = None,
        held_out: Pictures | None = None,
        validation: Sequence[int] = (),
        latents: LatentCache | None = None,
    ) -> None:
        """perceptual: the frozen distance of two batches of pictures, and what tells it from others.

        discriminator: a fresh one where `weights.adversarial` asks for it, else None.
        held_out: pictures beside the set, for `validate`. validation: without them, items of the set that are not
        trained on, for the same. With neither, it looks at pictures that are trained on.
        latents: what the encoder says of every picture, where it is kept as it is and all crops are whole pictures;
        they are then not mirrored.
        Raises ConfigError as `check_vae_settings` and `check_crop_fits` do.
        """
        check_vae_settings(
            config,
            crop_px=crop_px,
            side_px=side_px,
            discriminator=discriminator is not None,
            lpips=isinstance(perceptual, LPIPS),
            equivariance=weights.equivariance > 0,
        )
        check_crop_fits(crop_px, pixels.shapes)
        assert (discriminator is not None) == (weights.adversarial > 0), "a weight for a discriminator, or neither"
        self.config, self.pixels, self.data_fingerprint = config, pixels, data_fingerprint
        self.crop_px, self.side_px, self.weights = crop_px, side_px, weights
        self.perceptual, self.perceptual_identity = perceptual, perceptual_identity
        self.held_out, self.validation = held_out, tuple(validation)
        assert latents is None or decoder_only, "an encoder that learns is asked anew"
        self.latents, self.flip = latents, flip and latents is None
        self._network = VAENetwork(config, decoder_only=decoder_only, discriminator=discriminator)

    @property
    def network(self) -> VAENetwork:
        return self._network

    @property
    def items(self) -> int:
        return len(self.pixels)

    def order(self, seed: int, samples_per_step: int) -> Order:
        trained = others(len(self.pixels), self.validation)
        return self.pixels.follow(OrderAmong(SampleOrder(len(trained), seed), trained))

    def describe(self) -> Mapping[str, Any]:
        discriminator = self._network.discriminator
        return {
            "objective": "vae",
            "vae": asdict(self.config),
            "weights": asdict(self.weights),
            "perceptual": self.perceptual_identity,
            **({} if discriminator is None else {"discriminator_width": discriminator.width}),
            "crop_px": self.crop_px,
            "side_px": self.side_px,
            "pixels": self.pixels.identity,
            "decoder_only": self._network.decoder_only,
            "flip": self.flip,
            "cached_latents": None if self.latents is None else self.latents.identity,
            "data": self.data_fingerprint,
            "validation_pictures": len(self.validation),
        }

    def batch(self, draws: Sequence[Draw]) -> VAEBatch:
        """Crops are square and of one size, so pictures of any shapes can meet in a batch."""
        crops: list[Tensor] = []
        eps: list[Tensor] = []
        noises: list[Tensor] = []
        moments: list[Tensor] = []
        latent_side = self.crop_px // self.config.downscale
        shapes = self.pixels.shapes
        for draw in draws:
            generator = draw.generator("crop")
            height, width = shapes[draw.item]
            rooms = (height - self.crop_px + 1, width - self.crop_px + 1, 2)
            top, left, mirrored = (int(torch.randint(room, (), generator=generator)) for room in rooms)
            crop = self.pixels.crop(draw.item, top, left, self.crop_px)
            crops.append(crop.flip(1) if self.flip and mirrored else crop)
            shape = (self.config.latent_channels, latent_side, latent_side)
            eps.append(torch.randn(shape, generator=draw.generator("eps")))
            noises.append(self._latent_noise(draw, shape))
            if self.latents is not None:
                moments.append(self.latents.moments(draw.item))
        return VAEBatch(
            to_float(torch.stack(crops)),
            torch.stack(eps),
            torch.tensor(self._decoded_side(draws[0], latent_side)),
            torch.stack(noises),
            torch.stack(moments) if moments else torch.empty(0),
        )

    def _latent_noise(self, draw: Draw, shape: tuple[int, ...]) -> Tensor:
        """Gaussian, of a spread that each sample draws anew, evenly from 0 to the one asked for; for raw latents."""
        if not self.weights.latent_noise:
            return torch.zeros(shape)
        generator = draw.generator("latent noise")
        spread = self.weights.latent_noise / self.config.scaling_factor * torch.rand((), generator=generator)
        return spread * torch.randn(shape, generator=generator)

    def _decoded_side(self, first: Draw, latent_side: int) -> int:
        """Of one batch, by its first draw: in the share of batches asked for, from half the latents' side up.

        A batch is what one process computes at once, so several processes do not take one process's steps here.
        """
        if latent_side < 2:
            return latent_side
        generator = first.generator("decoded side")
        if float(torch.rand((), generator=generator)) >= self.weights.equivariance:
            return latent_side
        return int(torch.randint(-(-latent_side // 2), latent_side, (), generator=generator))

    def loss(self, network: nn.Module, batch: VAEBatch, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        weights = self.weights
        judge = weights.adversarial > 0 and step >= weights.adversarial_from
        output: VAEOutput = network(
            batch.pixels,
            batch.eps,
            int(batch.decoded_side),
            judge,
            noise=batch.noise if weights.latent_noise else None,
            moments=batch.moments if self.latents is not None else None,
        )
        reconstruction, mean, logvar = output.reconstruction.float(), output.mean.float(), output.logvar.float()
        pixels = output.target
        metrics: dict[str, Tensor] = {}

        # How far the picture is from its original
        error = F.l1_loss if weights.reconstruction == "l1" else F.mse_loss
        metrics[weights.reconstruction] = pixel_error = error(reconstruction, pixels)
        distance = pixel_error + weights.gradient * gradient_l1(reconstruction, pixels)
        if self.perceptual is not None:
            metrics["perceptual"] = perceptual = self.perceptual.to(pixels.device)(reconstruction, pixels)
            distance = distance + weights.perceptual * perceptual

        # How far the posterior is from the prior
        kl = kl_divergence(mean, logvar.clamp(*LOGVAR_RANGE)).sum() / (batch.pixels.numel() / 3)
        excess = F.relu(logvar).mean()
        metrics |= {"kl": kl, "logvar_excess": excess}
        loss = distance + weights.kl * kl + weights.logvar * excess

        # What the discriminator thinks of it, and what it learns itself
        if output.verdicts is not None:
            of_autoencoder, of_generated, of_real = (verdict.float() for verdict in output.verdicts)
            adversarial, discriminator = -of_autoencoder.mean(), hinge_loss(of_real, of_generated)
            adaptive = adaptive_weight(distance, adversarial, self._network.vae.decoder.conv_out.weight)
            loss = loss + weights.adversarial * adaptive * adversarial + discriminator
            metrics |= {"adversarial": adversarial, "adaptive_weight": adaptive, "discriminator": discriminator}
        metrics["psnr_db"] = 10 * torch.log10(4 / F.mse_loss(reconstruction, pixels))
        return loss, {name: value.detach() for name, value in metrics.items()}

    def validate(self, network: nn.Module) -> Mapping[str, float]:
        """PSNR and SSIM of whole pictures, through the posterior's mean.

        Of those held out or set aside; figures of the last that are trained on begin with "training_".
        """
        assert isinstance(network, VAENetwork), "the loop hands back the network it was given"
        pixels = self.pixels if self.held_out is None else self.held_out
        prefix = "held_out_" if self.held_out is not None else "" if self.validation else "training_"
        aside = self.validation if self.held_out is None else ()
        items = aside or range(max(0, len(pixels) - VALIDATION_PICTURES), len(pixels))
        pairs = [(pixels.batch([item])[0], reconstruct(network.vae, pixels, item)) for item in items]
        return {
            f"{prefix}psnr_db": round(sum(psnr_db(*pair) for pair in pairs) / len(pairs), 3),
            f"{prefix}ssim": round(sum(ssim(*pair) for pair in pairs) / len(pairs), 4),
        }

    def write_samples(self, network: nn.Module, folder: Path, step: int) -> None:
        """A sheet: eight pictures above their reconstructions."""
        assert isinstance(network, VAENetwork), "the loop hands back the network it was given"
        items = [i * (self.items - 1) // 7 for i in range(8)]
        height, width = (max(self.pixels.shapes[item][side] for item in items) for side in (0, 1))
        sheet = Image.new("RGB", (8 * width, 2 * height))
        for column, item in enumerate(items):
            pair = (self.pixels.batch([item])[0], reconstruct(network.vae, self.pixels, item))
            for row, picture in enumerate(pair):
                sheet.paste(Image.fromarray(picture.numpy()), (column * width, row * height))
        sheet.save(folder / f"step_{step:08d}.png")


def kl_divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """KL(N(mean, exp(logvar)) || N(0, 1)) of each element (arXiv:1312.6114, appendix B)."""
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar)


def resized(images: Tensor, side: int) -> Tensor:
    """(B, C, S, S) -> (B, C, side, side), each new place a mean of the old ones that it covers."""
    return F.interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def gradient_l1(a: Tensor, b: Tensor) -> Tensor:
    """L1 between the finite differences of two pictures (B, 3, H, W)."""
    horizontal = (a[..., 1:] - a[..., :-1] - b[..., 1:] + b[..., :-1]).abs().mean()
    vertical = (a[..., 1:, :] - a[..., :-1, :] - b[..., 1:, :] + b[..., :-1, :]).abs().mean()
    return horizontal + vertical


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pixels: Pictures, item: int) -> Tensor:
    """One picture through the posterior mean and back: (H, W, 3) uint8."""
    weight = next(vae.parameters())
    mean, _ = vae.encode(to_float(pixels.batch([item])).to(weight))
    return torch.from_numpy(to_pixels(vae.decode(mean)[0]))

"""The autoencoder's objective: its terms, its crops, its latents' scale, and what it says of itself."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from latentgen.data.pixels import PixelCache, to_float
from latentgen.errors import ConfigError
from latentgen.images.similarity import psnr_db, ssim
from latentgen.models.vae import AutoencoderKL
from latentgen.training.caches import LatentCache
from latentgen.training.latent_statistics import (
    fold_latent_map,
    fold_latent_statistics,
    latent_geometry,
    latent_statistics,
    measured_scaling,
    scale_latents,
)
from latentgen.training.vae import VAEObjective, gradient_l1, kl_divergence, reconstruct
from latentgen.training.vae_settings import VAELossWeights
from latentgen.training.vae_start import prepare_from_scratch
from tests.tiny import tiny_vae
from tests.training.overfitting import draws, overfit
from tests.training.tiny_runs import SIDE_PX, VAE, TinyData


def test_overfits_one_batch(tiny_data: TinyData) -> None:
    first, last = overfit(tiny_data.vae(), 100, lr=1e-2)
    assert last * 2.5 < first, f"{first:.4f} -> {last:.4f}"


def test_kl_is_that_of_the_distributions() -> None:
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


def test_vae_loss_is_its_terms_weighted(tiny_data: TinyData) -> None:
    objective = tiny_data.vae()
    batch = objective.batch(draws(range(3)))
    loss, metrics = objective.loss(objective.network, batch, 0)
    reconstruction, _, mean, logvar, _ = objective.network(batch.pixels, batch.eps)
    l1 = (reconstruction - batch.pixels).abs().mean()
    kl = kl_divergence(mean, logvar).sum() / (3 * 8 * 8)  # a picture's sum over its pixel count
    excess = logvar.clamp(min=0).mean()
    torch.testing.assert_close(loss, l1 + gradient_l1(reconstruction, batch.pixels) + 1e-4 * kl + excess)
    assert float(metrics["l1"]) == pytest.approx(float(l1.detach()))
    psnr_db = 10 * torch.log10(4 / F.mse_loss(reconstruction, batch.pixels))
    assert float(metrics["psnr_db"]) == pytest.approx(float(psnr_db.detach()), rel=1e-5)


def test_equivariance_asks_for_the_picture_made_smaller(tiny_data: TinyData) -> None:
    """In every batch where its share is 1: latents of 4x4 made 2x2 or 3x3, pixels of 8x8 made 4x4 or 6x6."""
    objective = objective_on(tiny_data.pixels, VAELossWeights(kl=1e-4, equivariance=1.0))
    sides: set[int] = set()
    for first in range(8):
        batch = objective.batch(draws(range(first, first + 2)))
        side = int(batch.decoded_side)
        sides.add(side)
        loss, metrics = objective.loss(objective.network, batch, 0)
        mean, logvar = objective.network.vae.moments(batch.pixels)
        z, smaller = mean + torch.exp(0.5 * logvar) * batch.eps, (2 * side, 2 * side)
        target = F.interpolate(batch.pixels, smaller, mode="bilinear", antialias=True)
        answer = objective.network.vae.decode(F.interpolate(z, (side, side), mode="bilinear", antialias=True))
        assert answer.shape == target.shape
        torch.testing.assert_close(metrics["l1"], F.l1_loss(answer, target).detach())
        kl = kl_divergence(mean, logvar).sum() / (2 * 8 * 8)
        expected = F.l1_loss(answer, target) + gradient_l1(answer, target) + 1e-4 * kl + logvar.clamp(min=0).mean()
        torch.testing.assert_close(loss, expected)
    assert sides == {2, 3}


def test_equivariance_takes_its_share_of_the_batches(tiny_data: TinyData) -> None:
    def whole(share: float) -> int:
        objective = objective_on(tiny_data.pixels, VAELossWeights(equivariance=share))
        return sum(int(objective.batch(draws(range(k, k + 1))).decoded_side) == 4 for k in range(100))

    assert whole(0.0) == 100
    assert 30 < whole(0.5) < 70


def test_gradient_l1() -> None:
    flat, ramp = torch.zeros(1, 1, 4, 4), torch.arange(4.0).expand(1, 1, 4, 4)
    assert float(gradient_l1(flat, flat + 7)) == 0, "brightness has no gradient"
    assert float(gradient_l1(ramp, flat)) == 1, "one a pixel across, nothing down"
    assert float(gradient_l1(ramp + ramp.mT, flat)) == 2


def test_crops_come_from_the_picture(tiny_data: TinyData) -> None:
    """Every crop is a window of its own item, mirrored or not, and both kinds occur."""
    objective = tiny_data.vae()
    pictures = to_float(tiny_data.pixels.batch(list(range(10))))
    mirrored = 0
    for draw in draws(range(20)):
        crop = objective.batch([draw]).pixels[0]
        windows = pictures[draw.item].unfold(1, 8, 1).unfold(2, 8, 1)  # (3, 9, 9, 8, 8)
        plain = (windows - crop[:, None, None]).abs().amax(dim=(0, 3, 4)).min()
        flipped = (windows - crop.flip(2)[:, None, None]).abs().amax(dim=(0, 3, 4)).min()
        assert min(float(plain), float(flipped)) == 0
        mirrored += float(plain) > 0
    assert 2 <= mirrored <= 18


def test_statistics_measured_on_the_cpu_are_folded_into_a_network_elsewhere() -> None:
    """On a GPU that torch only pretends to have."""
    mean, std = torch.tensor([0.5, -1.0]), torch.tensor([2.0, 0.1])
    with FakeTensorMode(allow_non_fake_inputs=True):
        with torch.device("cuda"):
            vae = AutoencoderKL(VAE)
        fold_latent_statistics(vae, mean, std)
        fold_latent_map(vae, mean.double(), torch.eye(2, dtype=torch.float64), torch.zeros(2))


def test_folding_makes_latents_white_and_changes_no_picture(tiny_data: TinyData) -> None:
    """float64, so that the algebra is tested and not the rounding."""
    vae = tiny_vae(VAE).double()
    items = list(range(10))
    pixels = to_float(tiny_data.pixels.batch(items)).double()
    before_mean, before_logvar = vae.encode(pixels)
    before = vae.decode(before_mean)
    mean, std = latent_statistics(vae, tiny_data.pixels, items)
    assert not torch.allclose(std, torch.ones(2), atol=0.1), "otherwise there is nothing to fold"
    config = fold_latent_statistics(vae, mean, std)
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    after_mean, after_logvar = vae.encode(pixels)
    torch.testing.assert_close(vae.decode(after_mean), before, rtol=1e-9, atol=1e-9)
    # The reparametrised z is the same point too: z' = (z - mean) / std.
    scale = std.double()[:, None, None]
    torch.testing.assert_close(after_mean, (before_mean - mean.double()[:, None, None]) / scale)
    torch.testing.assert_close(after_logvar, before_logvar - 2 * scale.log())
    folded_mean, folded_std = latent_statistics(vae, tiny_data.pixels, items)
    torch.testing.assert_close(folded_mean, torch.zeros(2), rtol=0, atol=1e-5)
    torch.testing.assert_close(folded_std, torch.ones(2), rtol=0, atol=1e-5)


def test_energy_scaling_makes_latents_as_large_as_they_show(tiny_data: TinyData) -> None:
    """Uncorrelated, ordered, of unit variance on average, and no reconstruction changes."""
    vae = tiny_vae(replace(VAE, latent_channels=4)).double()
    assert vae.post_quant_conv is not None
    with torch.no_grad():
        vae.post_quant_conv.weight[:, 3] = 0  # a channel that the decoder does not look at
    items = list(range(10))
    pixels = to_float(tiny_data.pixels.batch(items)).double()
    before = vae.decode(vae.encode(pixels)[0])
    config = scale_latents(vae, tiny_data.pixels, items, "energy")
    assert (config.scaling_factor, config.shift_factor) == (1.0, 0.0)
    mean, logvar = vae.encode(pixels)
    torch.testing.assert_close(vae.decode(mean), before, rtol=1e-7, atol=1e-7)
    assert torch.equal(logvar, logvar[:1, :, :1, :1].expand_as(logvar))
    after = latent_geometry(vae, tiny_data.pixels, items)
    torch.testing.assert_close(after.mean, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-6)
    variances = after.covariance.diagonal()
    torch.testing.assert_close(after.covariance, torch.diag(variances), rtol=0, atol=1e-6)
    assert float(variances.mean()) == pytest.approx(1, rel=1e-5)
    assert variances.tolist() == sorted(variances.tolist(), reverse=True)
    energies = after.metric.diagonal() * variances
    shares = energies / energies.sum()
    expected = shares.clamp(min=1e-7).sqrt()
    # The changes that measure the metric are those of other axes now; the decoder is not linear.
    torch.testing.assert_close(variances, expected / expected.mean(), rtol=0.1, atol=0.02)
    assert shares[3] < 1e-6


def test_statistics_are_those_of_the_posterior_mean(tiny_data: TinyData) -> None:
    """Not of its samples: the U-Net learns from the mean, and a runaway log-variance must not count."""
    vae = tiny_vae(VAE)
    mean, _ = vae.encode(to_float(tiny_data.pixels.batch(list(range(10)))))
    got_mean, got_std = latent_statistics(vae, tiny_data.pixels, list(range(10)))
    torch.testing.assert_close(got_mean, mean.mean(dim=(0, 2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(got_std, mean.std(dim=(0, 2, 3), correction=0), rtol=1e-4, atol=0)


def test_a_fresh_vae_starts_with_white_latents(tiny_data: TinyData) -> None:
    objective = tiny_data.vae()
    vae = objective.network.vae
    prepare_from_scratch(vae, tiny_data.pixels)
    items = [i * 9 // 31 for i in range(32)]  # those it is measured on
    mean, logvar = vae.encode(to_float(tiny_data.pixels.batch(items)))
    rows = mean.permute(0, 2, 3, 1).flatten(0, 2).double()
    torch.testing.assert_close(rows.mean(dim=0), torch.zeros(2).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(torch.cov(rows.T, correction=0), torch.eye(2).double(), rtol=0, atol=1e-3)
    assert torch.equal(logvar, torch.full_like(logvar, -6.0))


def test_decoder_only_leaves_the_encoder(tiny_data: TinyData) -> None:
    network = tiny_data.vae().network
    frozen = type(network)(VAE, decoder_only=True)
    output = frozen(torch.randn(1, 3, 8, 8), torch.randn(1, 2, 4, 4))
    output.reconstruction.sum().backward()
    trained = {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in trained} == {"decoder", "post_quant_conv"}


def test_latents_known_beforehand_train_the_decoder_as_the_encoder_does(tiny_data: TinyData, tmp_path: Path) -> None:
    """The same loss and gradients, up to the cache's float16; and no picture is mirrored."""
    vae = tiny_vae(VAE)
    latents = LatentCache(tiny_data.records, tiny_data.pixels, vae, tmp_path, lambda text: None)
    found: list[dict[str, torch.Tensor]] = []
    for known in (latents, None):
        objective = VAEObjective(
            VAE,
            tiny_data.pixels,
            "data",
            crop_px=SIDE_PX,
            side_px=SIDE_PX,
            weights=VAELossWeights(kl=1e-4, latent_noise=0.3),
            decoder_only=True,
            flip=known is not None,
            latents=known,
        )
        objective.network.vae.load_state_dict(vae.state_dict())
        if known is not None:
            objective.network.vae.encoder.conv_in.weight.data.fill_(torch.nan)  # it is not asked
            assert objective.describe()["cached_latents"] == latents.identity
        batch = objective.batch(draws(range(4)))
        assert batch.moments.shape == ((4, 4, 8, 8) if known else (0,))
        assert torch.equal(batch.pixels, to_float(tiny_data.pixels.batch([draw.item for draw in draws(range(4))])))
        loss, _ = objective.loss(objective.network, batch, 0)
        loss.backward()
        assert objective.describe()["flip"] is False
        found.append(
            {
                "loss": loss.detach(),
                **{name: each.grad for name, each in objective.network.named_parameters() if each.grad is not None},
            }
        )
    for name, cached in found[0].items():
        assert float((cached - found[1][name]).norm()) <= 0.01 * float(found[1][name].norm()), name


def test_noise_is_added_to_the_latents(tiny_data: TinyData) -> None:
    """Gaussian, its spread even between 0 and what is asked for; the loss is that of the noisy latents' picture.

    It is that of what a U-Net sees: twice as much in raw latents where these are twice as large.
    """
    weights = VAELossWeights(kl=0.0, logvar=0.0, latent_noise=0.5)
    objective = objective_on(tiny_data.pixels, weights)
    noise = objective.batch(draws(range(400))).noise
    spreads = noise.std(dim=(1, 2, 3))
    assert 0.4 < float(spreads.max()) < 0.65
    assert float(spreads.mean()) == pytest.approx(0.25, abs=0.03)
    batch = objective.batch(draws(range(3)))
    vae = objective.network.vae
    mean, logvar = vae.moments(batch.pixels)
    answer = vae.decode(mean + torch.exp(0.5 * logvar) * batch.eps + batch.noise)
    loss, _ = objective.loss(objective.network, batch, 0)
    torch.testing.assert_close(loss, F.l1_loss(answer, batch.pixels) + gradient_l1(answer, batch.pixels))
    assert not objective_on(tiny_data.pixels, VAELossWeights()).batch(draws(range(3))).noise.any()
    objective.config = replace(VAE, scaling_factor=0.5)
    assert torch.equal(objective.batch(draws(range(400))).noise, 2 * noise)


@pytest.mark.parametrize(("crop_px", "says"), [(7, "--crop 7"), (32, "larger than the pictures")])
def test_vae_sizes_that_do_not_fit(crop_px: int, says: str, tiny_data: TinyData) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_data.vae(crop_px=crop_px)


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        ({"kl": float("nan")}, "--kl-weight nan must be a number, 0 or more"),
        ({"gradient": float("inf")}, "--gradient-weight inf must be"),
        ({"latent_noise": float("inf")}, "--latent-noise inf must be"),
        ({"perceptual": -1.0}, "--perceptual-weight -1.0 must be"),
        ({"equivariance": 1.5}, "--equivariance 1.5 is a share of the batches"),
        ({"adversarial_from": 5}, "--disc-start 5 starts nothing (give --disc-weight too)"),
    ],
)
def test_weights_that_are_none(weights: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        VAELossWeights(**weights)  # pyright: ignore[reportArgumentType]
    assert says in str(error.value)


def test_l2_and_a_perceptual_distance(tiny_data: TinyData) -> None:
    class Brightness(nn.Module):
        def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return (a.mean() - b.mean()).abs()

    weights = VAELossWeights(reconstruction="l2", gradient=0.5, kl=0.0, logvar=0.0, perceptual=3.0)
    objective = objective_on(tiny_data.pixels, weights, perceptual=Brightness())
    batch = objective.batch(draws(range(3)))
    loss, metrics = objective.loss(objective.network, batch, 0)
    reconstruction = objective.network(batch.pixels, batch.eps).reconstruction
    brightness = (reconstruction.mean() - batch.pixels.mean()).abs()
    expected = (reconstruction - batch.pixels).square().mean() + 0.5 * gradient_l1(reconstruction, batch.pixels)
    torch.testing.assert_close(loss, expected + 3.0 * brightness)
    assert float(metrics["perceptual"]) == pytest.approx(float(brightness.detach()))
    assert "l2" in metrics


@pytest.mark.parametrize("logvar", [3.0, 25.0])
def test_a_log_variance_that_ran_off_is_led_back(logvar: float, tiny_data: TinyData) -> None:
    """Above the clamp neither the KL term nor the reconstruction has a gradient; below 0 the new term has none."""
    for weight, is_led_back in ((1.0, True), (0.0, False)):
        objective = objective_on(tiny_data.pixels, VAELossWeights(kl=0.0, logvar=weight))
        quant = objective.network.vae.quant_conv
        assert quant is not None
        assert quant.bias is not None
        with torch.no_grad():
            quant.weight[2:] = 0  # the rows of the log-variance
            quant.bias[2:] = torch.tensor([logvar, -3.0])
        batch = objective.batch(draws(range(2)))._replace(eps=torch.zeros(2, 2, 4, 4))
        loss, _ = objective.loss(objective.network, batch, 0)
        loss.backward()
        assert quant.bias.grad is not None
        expected = [0.5, 0.0] if is_led_back else [0.0, 0.0]  # half of the elements, each with slope 1
        torch.testing.assert_close(quant.bias.grad[2:], torch.tensor(expected))


def test_crops_of_pictures_of_several_shapes(tiny_data: TinyData, tmp_path: Path) -> None:
    """Each crop lies in its own picture, and reaches its last row or column at times."""
    shapes = [(12, 20) if item % 2 else (20, 12) for item in range(10)]
    pixels = PixelCache(tiny_data.records, shapes, tmp_path, lambda text: None)
    objective = objective_on(pixels, VAELossWeights(), crop_px=8, flip=False)
    corners: set[tuple[int, int, int]] = set()
    for draw in draws(range(300)):
        crop = objective.batch([draw]).pixels[0]
        picture = to_float(pixels.batch([draw.item]))[0]
        windows = picture.unfold(1, 8, 1).unfold(2, 8, 1)  # (3, rows, columns, 8, 8)
        found = (windows == crop[:, None, None]).all(dim=4).all(dim=3).all(dim=0).nonzero()
        assert len(found)
        corners |= {(draw.item % 2, int(top), int(left)) for top, left in found}
    assert {(1, 4, 12), (0, 12, 4), (1, 0, 0), (0, 0, 0)} <= corners
    order = objective.order(0, 5)
    assert sorted(order.draw(k).item for k in range(10)) == list(range(10)), "an epoch is all of them, once"
    assert len({order.draw(k).item % 2 for k in range(5)}) == 2, "both shapes in one step"
    with pytest.raises(ConfigError, match="--crop 16 is larger than the shortest side of the pictures, 12 px"):
        objective_on(pixels, VAELossWeights(), crop_px=16)
    objective.write_samples(objective.network.eval(), tmp_path, 3)
    assert (tmp_path / "step_00000003.png").exists()


def test_measured_scaling_is_that_of_all_latents(tiny_data: TinyData) -> None:
    """LDM, appendix G: one standard deviation over channels and places together."""
    vae = tiny_vae(VAE)
    latents, _ = vae.encode(to_float(tiny_data.pixels.batch(list(range(10)))))
    config = measured_scaling(VAE, *latent_statistics(vae, tiny_data.pixels, list(range(10))))
    assert config.scaling_factor == pytest.approx(1 / float(latents.detach().std(correction=0)), rel=1e-5)
    assert config.shift_factor == 0


def test_validation_is_of_whole_pictures(tiny_data: TinyData, tmp_path: Path) -> None:
    """Of those held out, else those set aside, else the last that are trained on; the posterior's mean, decoded."""
    objective = objective_on(tiny_data.pixels, VAELossWeights())
    network = objective.network.eval()
    few = PixelCache(tiny_data.records[:3], SIDE_PX, tmp_path, lambda text: None)
    whole, three = range(len(tiny_data.pixels)), range(3)
    for pixels, held_out, aside, items, prefix in (
        (tiny_data.pixels, None, (), whole, "training_"),
        (tiny_data.pixels, None, (2, 7), (2, 7), ""),
        (few, few, (), three, "held_out_"),
    ):
        objective.held_out, objective.validation = held_out, aside
        figures = objective.validate(network)
        pairs = [(pixels.batch([i])[0], reconstruct(network.vae, pixels, i)) for i in items]
        expected = {
            f"{prefix}psnr_db": sum(psnr_db(*pair) for pair in pairs) / len(pairs),
            f"{prefix}ssim": sum(ssim(*pair) for pair in pairs) / len(pairs),
        }
        assert figures == pytest.approx(expected, abs=1e-3)


def test_pictures_set_aside_are_not_trained_on(tiny_data: TinyData) -> None:
    objective = objective_on(tiny_data.pixels, VAELossWeights())
    objective.validation = (2, 7)
    order = objective.order(0, 4)
    seen = {order.draw(k).item for k in range(40)}
    assert seen == set(range(10)) - {2, 7}
    assert sorted(order.draw(k).item for k in range(8)) == sorted(seen), "each once an epoch"


def objective_on(
    pixels: PixelCache,
    weights: VAELossWeights,
    *,
    crop_px: int = 8,
    flip: bool = True,
    perceptual: nn.Module | None = None,
) -> VAEObjective:
    torch.manual_seed(0)
    return VAEObjective(
        VAE, pixels, "data", crop_px=crop_px, side_px=SIDE_PX, weights=weights, flip=flip, perceptual=perceptual
    )

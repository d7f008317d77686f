"""Each objective learns one small batch, and its loss is the paper's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentgen.config import DiffusionConfig
from latentgen.data.pixels import to_float
from latentgen.errors import ConfigError, RuntimeFailure
from latentgen.training.caches import LatentCache
from latentgen.training.clip import CLIPTowers, text_encoder_of
from latentgen.training.loop import Objective
from latentgen.training.rng import Draw, SampleOrder
from latentgen.training.unet import UNetObjectiveConfig
from latentgen.training.vae import (
    fold_latent_statistics,
    gradient_l1,
    kl_divergence,
    latent_statistics,
    prepare_from_scratch,
    reconstruction_psnr_db,
)
from tests.tiny import tiny_vae
from tests.training.tiny_runs import TEXT, VAE, TinyData


def draws(indices: range, items: int = 10) -> list[Draw]:
    order = SampleOrder(items, seed=0)
    return [order.draw(i) for i in indices]


def overfit(objective: Objective, steps: int, lr: float) -> tuple[float, float]:
    """First and last loss on one batch of four."""
    batch = objective.batch(draws(range(4)))
    optimizer = torch.optim.Adam(objective.network.parameters(), lr=lr)
    losses: list[float] = []
    for _ in range(steps):
        loss, _ = objective.loss(objective.network, batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses[0], losses[-1]


@pytest.mark.parametrize(("name", "steps", "factor"), [("vae", 100, 2.5), ("clip", 40, 20.0), ("unet", 80, 4.0)])
def test_overfits_one_batch(name: str, steps: int, factor: float, tiny_data: TinyData) -> None:
    objective: Objective = {"vae": tiny_data.vae, "clip": tiny_data.clip, "unet": tiny_data.unet}[name]()
    first, last = overfit(objective, steps, lr=1e-2)
    assert last * factor < first, f"{first:.4f} -> {last:.4f}"


# VAE


def test_kl_is_that_of_the_distributions() -> None:
    mean, logvar = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    posterior = torch.distributions.Normal(mean, torch.exp(0.5 * logvar))
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    torch.testing.assert_close(kl_divergence(mean, logvar), expected)


def test_vae_loss_is_its_terms_weighted(tiny_data: TinyData) -> None:
    objective = tiny_data.vae()
    batch = objective.batch(draws(range(3)))
    loss, metrics = objective.loss(objective.network, batch)
    reconstruction, mean, logvar = objective.network(batch.pixels, batch.eps)
    l1 = (reconstruction - batch.pixels).abs().mean()
    kl = kl_divergence(mean, logvar).sum() / (3 * 8 * 8)  # a picture's sum over its pixel count
    torch.testing.assert_close(loss, l1 + gradient_l1(reconstruction, batch.pixels) + 1e-4 * kl)
    assert float(metrics["l1"]) == pytest.approx(float(l1.detach()))
    psnr_db = 10 * torch.log10(4 / F.mse_loss(reconstruction, batch.pixels))
    assert float(metrics["psnr_db"]) == pytest.approx(float(psnr_db.detach()), rel=1e-5)


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
    reconstruction, _, _ = frozen(torch.randn(1, 3, 8, 8), torch.randn(1, 2, 4, 4))
    reconstruction.sum().backward()
    trained = {name for name, parameter in frozen.named_parameters() if parameter.grad is not None}
    assert {name.split(".")[1] for name in trained} == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(("crop_px", "says"), [(7, "--crop 7"), (32, "larger than the pictures")])
def test_vae_sizes_that_do_not_fit(crop_px: int, says: str, tiny_data: TinyData) -> None:
    with pytest.raises(ConfigError, match=says):
        tiny_data.vae(crop_px=crop_px)


def test_psnr(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    """An autoencoder that is off by 0.1 in [-1, 1], which is 12.75 grey levels, rounded to 13."""
    vae = tiny_vae(VAE)
    middle = tiny_data.pixels.batch([0]).float().clamp(20, 200)
    monkeypatch.setattr(tiny_data.pixels, "batch", lambda items: middle)
    monkeypatch.setattr(vae, "decode", lambda z: to_float(middle) + 0.1)
    assert reconstruction_psnr_db(vae, tiny_data.pixels, [0]) == pytest.approx(20 * torch.log10(torch.tensor(255 / 13)))


# CLIP


def test_clip_loss_is_the_papers(tiny_data: TinyData) -> None:
    """arXiv:2103.00020, figure 3, line by line."""
    objective = tiny_data.clip()
    batch = objective.batch(draws(range(6)))
    loss, metrics = objective.loss(objective.network, batch)
    image, text, scale = objective.network(batch.pixels, batch.token_ids)
    torch.testing.assert_close(image.norm(dim=1), torch.ones(6))
    torch.testing.assert_close(text.norm(dim=1), torch.ones(6))
    logits = scale * image @ text.T
    labels = torch.arange(6)
    torch.testing.assert_close(loss, (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2)
    assert float(metrics["top1"]) == pytest.approx(float((logits.argmax(1) == labels).float().mean()))


def test_the_kept_text_tower_is_the_trained_one(tiny_data: TinyData) -> None:
    """Its end-token state, projected, is the tower's feature; though it was trained on batches cut to their length."""
    objective = tiny_data.clip()
    batch = objective.batch(draws(range(4)))
    assert batch.token_ids.shape[1] < 77
    towers = objective.network.eval()
    assert isinstance(towers, CLIPTowers)
    _, features, _ = towers(batch.pixels, batch.token_ids)
    weights = towers.state_dict()
    encoder = text_encoder_of(weights, TEXT)
    whole = tiny_data.tokenizer.encode([tiny_data.records[d.item].captions[0] for d in draws(range(4))])
    ends = (whole == TEXT.eos_token_id).int().argmax(dim=1)
    states: Tensor = encoder(whole)[torch.arange(4), ends] @ weights["text.text_projection"]
    torch.testing.assert_close(F.normalize(states, dim=1), features, rtol=1e-4, atol=1e-5)


def test_retrieval_counts_right_captions(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    objective = tiny_data.clip()
    monkeypatch.setattr(objective, "_features", lambda items: (torch.eye(len(items)), torch.eye(len(items))))
    assert objective.retrieval(8) == 1.0
    monkeypatch.setattr(objective, "_features", lambda items: (torch.eye(len(items)), torch.eye(len(items)).roll(1, 0)))
    assert objective.retrieval(8) == 0.0


# U-Net


def test_captions_are_left_out_at_the_stated_rate(tiny_data: TinyData) -> None:
    objective = tiny_data.unet(config=UNetObjectiveConfig(caption_dropout=0.25))
    unconditional = objective.contexts.context("")
    left_out = sum(torch.equal(objective.batch([d]).context[0], unconditional) for d in draws(range(400)))
    assert 70 <= left_out <= 130, "binomial(400, 0.25): 100 +- 3.5 standard deviations"
    never = tiny_data.unet(config=UNetObjectiveConfig(caption_dropout=0.0))
    for draw in draws(range(10)):
        expected = never.contexts.context(tiny_data.records[draw.item].captions[0])
        assert torch.equal(never.batch([draw]).context[0], expected)


def test_timesteps_cover_the_range_evenly(tiny_data: TinyData) -> None:
    objective = tiny_data.unet()
    sampled = [objective.timestep(draw) for draw in draws(range(1000))]
    assert sampled == [objective.timestep(draw) for draw in draws(range(1000))]
    assert min(sampled) >= 0
    assert max(sampled) < 1000
    assert torch.bincount(torch.tensor(sampled) // 100, minlength=10).tolist() == pytest.approx([100] * 10, abs=2)
    for start in range(0, 1000, 32):  # and so does every single batch
        of_batch = torch.tensor(sampled[start : start + 32]).sort().values
        assert int(of_batch.diff().max() if len(of_batch) == 32 else 0) <= 1000 * 3 // 32


def test_logit_normal_timesteps(tiny_data: TinyData) -> None:
    """arXiv:2403.03206, section 3.1: logit(t / T) is standard normal."""
    objective = tiny_data.unet(config=UNetObjectiveConfig(timestep_sampling="logit-normal"))
    t = torch.tensor([objective.timestep(draw) for draw in draws(range(2000))], dtype=torch.float64)
    logits = torch.logit((t + 0.5) / 1000)
    assert float(logits.mean()) == pytest.approx(0, abs=0.02)
    assert float(logits.std()) == pytest.approx(1, abs=0.02)


def test_unet_loss_is_the_error_of_the_noise(tiny_data: TinyData) -> None:
    objective = tiny_data.unet()
    batch = objective.batch(draws(range(4)))
    loss, _ = objective.loss(objective.network, batch)
    a = objective.schedule.alphas_cumprod[batch.t].float()[:, None, None, None]
    noisy = a.sqrt() * batch.latents + (1 - a).sqrt() * batch.eps
    predicted = objective.network(noisy, batch.t, batch.context)
    torch.testing.assert_close(loss, F.mse_loss(predicted, batch.eps))


def test_min_snr_weights_each_sample(tiny_data: TinyData) -> None:
    """arXiv:2303.09556: min(SNR, 5) / SNR of the eps error."""
    objective = tiny_data.unet(config=UNetObjectiveConfig(min_snr_gamma=5.0), diffusion=DiffusionConfig())
    batch = objective.batch(draws(range(4)))
    loss, _ = objective.loss(objective.network, batch)
    noisy = objective.schedule.add_noise(batch.latents, batch.eps, batch.t)
    errors = (objective.network(noisy, batch.t, batch.context) - batch.eps).square().mean(dim=(1, 2, 3))
    snr = objective.schedule.snr(batch.t)
    torch.testing.assert_close(loss, (errors * snr.clamp(max=5) / snr).mean())


def test_latents_are_the_posterior_means(tiny_data: TinyData) -> None:
    """float16 in the cache: 1e-3 of the value. The noise is another one for each sample of the same picture."""
    objective = tiny_data.unet()
    mean, _ = tiny_vae(VAE).encode(to_float(tiny_data.pixels.batch([3])))
    batch = objective.batch([Draw(0, index, 3) for index in range(200)])
    expected = objective.space.normalize(mean.detach()).expand(200, -1, -1, -1)
    torch.testing.assert_close(batch.latents, expected, rtol=2e-3, atol=2e-3)
    assert float(batch.eps.mean()) == pytest.approx(0, abs=0.02)
    assert float(batch.eps.std()) == pytest.approx(1, abs=0.02)
    assert len(batch.eps.flatten(1)[:, 0].unique()) == 200


def test_weights_that_are_broken_are_not_cached(tiny_data: TinyData, tmp_path: Path) -> None:
    vae = tiny_vae(VAE)
    with torch.no_grad():
        vae.encoder.conv_in.bias[0] = torch.nan
    with pytest.raises(RuntimeFailure, match=r"the VAE's latents of pictures \[0, 1, 2, 3\] are not finite"):
        LatentCache(tiny_data.records, tiny_data.pixels, vae, tmp_path, lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_sample_sheet_of_any_number_of_prompts(tiny_data: TinyData, tmp_path: Path) -> None:
    from PIL import Image

    from latentgen.config import GenerationDefaults
    from latentgen.models.clip_text import CLIPTextModel
    from latentgen.training.unet import SamplePlan

    objective = tiny_data.unet()
    defaults = GenerationDefaults(width_px=16, height_px=16, steps=2, guidance=3.0, sampler="euler")
    prompts = ("a red picture", "a blue picture", "a grey picture")
    encoder = CLIPTextModel(TEXT).eval()
    objective.plan = SamplePlan(prompts, defaults, tiny_data.tokenizer, encoder, tiny_vae(VAE), columns=2)
    with torch.inference_mode():
        objective.write_samples(objective.network, tmp_path, 7)
    with Image.open(tmp_path / "step_00000007.png") as sheet:
        assert sheet.size == (32, 32)

"""The U-Net's objective: it learns one small batch, its loss is the papers' and diffusers', its validation is fixed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr
from PIL import Image
from torch import Tensor

from latentgen.checkpoints.folder import ModelBundle
from latentgen.config import DiffusionConfig, GenerationDefaults, ModelConfig, PredictionType
from latentgen.data.pixels import to_float
from latentgen.diffusion.fixed_draws import fixed_timesteps
from latentgen.errors import RuntimeFailure
from latentgen.models.clip_text import CLIPTextModel
from latentgen.pipeline import TextToImage
from latentgen.training.caches import LatentCache
from latentgen.training.rng import Draw
from latentgen.training.set_aside import pictures_to_set_aside, set_aside
from latentgen.training.unet import SamplePlan, UNetObjective, UNetObjectiveConfig
from tests.tiny import randomize, tiny_vae
from tests.training.overfitting import draws, overfit
from tests.training.tiny_runs import TEXT, VAE, TinyData, train


def test_overfits_one_batch(tiny_data: TinyData) -> None:
    first, last = overfit(tiny_data.unet(), 80, lr=1e-2)
    assert last * 4 < first, f"{first:.4f} -> {last:.4f}"


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


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 1.0), (-0.5, 0.7)])
def test_logit_normal_timesteps(tiny_data: TinyData, mean: float, std: float) -> None:
    """arXiv:2403.03206, section 3.1: logit(t / T) is normal."""
    config = UNetObjectiveConfig(timestep_sampling="logit-normal", logit_mean=mean, logit_std=std)
    objective = tiny_data.unet(config=config)
    t = torch.tensor([objective.timestep(draw) for draw in draws(range(2000))], dtype=torch.float64)
    logits = torch.logit((t + 0.5) / 1000)
    assert float(logits.mean()) == pytest.approx(mean, abs=0.02)
    assert float(logits.std()) == pytest.approx(std, abs=0.02)


def test_unet_loss_is_the_error_of_the_noise(tiny_data: TinyData) -> None:
    objective = tiny_data.unet()
    batch = objective.batch(draws(range(4)))
    loss, _ = objective.loss(objective.network, batch, 0)
    a = objective.schedule.alphas_cumprod[batch.t].float()[:, None, None, None]
    noisy = a.sqrt() * batch.latents + (1 - a).sqrt() * batch.eps
    predicted = objective.network(noisy, batch.t, batch.context)
    torch.testing.assert_close(loss, F.mse_loss(predicted, batch.eps))


def test_min_snr_weights_each_sample(tiny_data: TinyData) -> None:
    """arXiv:2303.09556: min(SNR, 5) / SNR of the eps error."""
    objective = tiny_data.unet(config=UNetObjectiveConfig(min_snr_gamma=5.0), diffusion=DiffusionConfig())
    batch = objective.batch(draws(range(4)))
    loss, _ = objective.loss(objective.network, batch, 0)
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
    objective = tiny_data.unet()
    defaults = GenerationDefaults(width_px=16, height_px=16, steps=2, guidance=3.0, sampler="euler")
    prompts = ("a red picture", "a blue picture", "a grey picture")
    encoder = CLIPTextModel(TEXT).eval()
    objective.plan = SamplePlan(prompts, defaults, tiny_data.tokenizer, encoder, tiny_vae(VAE), columns=2)
    with torch.inference_mode():
        objective.write_samples(objective.network, tmp_path, 7)
    with Image.open(tmp_path / "step_00000007.png") as sheet:
        assert sheet.size == (32, 32)


def test_a_sample_sheet_shows_what_generate_draws(tiny_data: TinyData, tmp_path: Path) -> None:
    """With emphasis, beyond 75 tokens, and whatever stands beside it on the sheet."""
    objective = tiny_data.unet()
    randomize(objective.network)
    diffusion, vae = objective.diffusion, tiny_vae(VAE)
    defaults = GenerationDefaults(width_px=16, height_px=16, steps=3, guidance=3.0, sampler="euler")
    encoder = CLIPTextModel(TEXT).eval()
    randomize(encoder)
    prompts = ("a (red:1.5) picture", "red " * 100, "a red picture", "a BREAK picture", "a red picture")
    objective.plan = SamplePlan(prompts, defaults, tiny_data.tokenizer, encoder, vae, columns=5)
    with torch.inference_mode():
        objective.write_samples(objective.network, tmp_path, 7)
    config = ModelConfig(objective.network.config, VAE, TEXT, diffusion, defaults)
    pipeline = TextToImage(ModelBundle(objective.network, vae, encoder, tiny_data.tokenizer, config))
    pipeline.latent_space = objective.space
    with Image.open(tmp_path / "step_00000007.png") as sheet:
        tiles = [np.array(sheet.crop((16 * k, 0, 16 * k + 16, 16))) for k in range(5)]
    for k, prompt in enumerate(prompts):
        (drawn,) = pipeline.draw(prompt, seed=k)
        difference = np.abs(drawn.pixels.astype(int) - tiles[k])
        assert difference.max() <= 1, prompt
    assert not np.array_equal(tiles[2], tiles[4]), "another seed"


def test_a_sample_sheet_is_guided_where_the_models_pictures_will_be(tiny_data: TinyData, tmp_path: Path) -> None:
    objective = tiny_data.unet()
    randomize(objective.network)
    encoder = CLIPTextModel(TEXT).eval()
    sheets: list[bytes] = []
    for interval in ((0.0, 1.0), (0.5, 1.0), (0.5, 1.0)):
        defaults = GenerationDefaults(16, 16, steps=2, guidance=7.0, sampler="euler", guidance_interval=interval)
        objective.plan = SamplePlan(("a red picture",), defaults, tiny_data.tokenizer, encoder, tiny_vae(VAE))
        with torch.inference_mode():
            objective.write_samples(objective.network, tmp_path, 7)
        sheets.append((tmp_path / "step_00000007.png").read_bytes())
    assert sheets[0] != sheets[1] == sheets[2]


# Against diffusers' training script


@pytest.mark.parametrize(
    ("prediction", "zero_snr"),
    [("epsilon", False), ("v_prediction", False), ("v_prediction", True), ("sample", False), ("sample", True)],
)
@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_that_of_diffusers(
    prediction: PredictionType, zero_snr: bool, gamma: float | None, tiny_data: TinyData
) -> None:
    """What `train_text_to_image.py` computes with `DDPMScheduler`; t = 999 is there, where zero SNR has SNR 0."""
    diffusion = DiffusionConfig(prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    objective = tiny_data.unet(config=UNetObjectiveConfig(min_snr_gamma=gamma), diffusion=diffusion)
    randomize(objective.network)
    batch = objective.batch(draws(range(4)))
    batch = batch._replace(t=torch.tensor([0, 300, 700, 999]))
    loss, _ = objective.loss(objective.network, batch, 0)

    scheduler = DDPMScheduler(
        **{"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
        prediction_type=prediction,
        rescale_betas_zero_snr=zero_snr,
    )
    noisy = scheduler.add_noise(batch.latents, batch.eps, batch.t)
    predicted = objective.network(noisy, batch.t, batch.context)
    target = {
        "epsilon": batch.eps,
        "v_prediction": scheduler.get_velocity(batch.latents, batch.eps, batch.t),
        "sample": batch.latents,
    }[prediction]
    errors = F.mse_loss(predicted, target, reduction="none").mean(dim=(1, 2, 3))
    if gamma is not None:
        snr = compute_snr(scheduler, batch.t)
        weights = snr.clamp(max=gamma)
        errors = errors * {"epsilon": weights / snr, "v_prediction": weights / (snr + 1), "sample": weights}[prediction]
    assert torch.isfinite(loss)
    # Their float32 tables: 1e-4 in sqrt(abar) near zero SNR, 1e-3 in the SNR at t = 0.
    torch.testing.assert_close(loss, errors.mean(), rtol=2e-3, atol=1e-5)
    assert torch.autograd.grad(loss, next(objective.network.parameters()))[0].isfinite().all()


def test_noise_offset(tiny_data: TinyData) -> None:
    """As in diffusers: eps + offset * randn(B, C, 1, 1), in the noise that is added and in the target alike."""
    plain = tiny_data.unet()
    offset = tiny_data.unet(config=UNetObjectiveConfig(noise_offset=0.5))
    several = draws(range(300))
    added = (offset.batch(several).eps - plain.batch(several).eps) / 0.5
    torch.testing.assert_close(added, added[:, :, :1, :1].expand_as(added), rtol=0, atol=1e-5)
    numbers = added[:, :, 0, 0]
    assert float(numbers.mean()) == pytest.approx(0, abs=0.15), "600 numbers: 3.5 standard errors"
    assert float(numbers.std()) == pytest.approx(1, abs=0.1)
    assert len(numbers.flatten().unique()) > 590, "another one for each sample and channel"
    assert torch.equal(offset.batch(several[7:9]).eps, offset.batch(several).eps[7:9]), "a function of the draw alone"
    batch = offset.batch(several[:4])
    noisy = offset.schedule.add_noise(batch.latents, batch.eps, batch.t)
    loss, _ = offset.loss(offset.network, batch, 0)
    torch.testing.assert_close(loss, F.mse_loss(offset.network(noisy, batch.t, batch.context), batch.eps))


def test_latents_of_any_shape(tiny_data: TinyData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Aspect buckets: what belongs to one step is of one shape, but it may be any that the network halves."""
    objective = tiny_data.unet()
    monkeypatch.setattr(objective.latents, "mean", lambda item: torch.randn(2, 6, 10))
    batch = objective.batch(draws(range(3)))
    assert batch.latents.shape == batch.eps.shape == (3, 2, 6, 10)
    loss, _ = objective.loss(objective.network, batch, 0)
    assert torch.isfinite(loss)


# Validation


def validating(data: TinyData, *, prediction: PredictionType = "epsilon", **settings: Any) -> UNetObjective:
    """Items 1 and 6 of the ten are set aside. The same network always."""
    like = data.unet(config=UNetObjectiveConfig(**settings), diffusion=DiffusionConfig(prediction_type=prediction))
    randomize(like.network)
    parts = (like.network, like.diffusion, like.space, data.records, like.latents, like.contexts, like.config)
    return UNetObjective(*parts, None, like.identity, validation=(1, 6))


def validated(objective: UNetObjective) -> Mapping[str, float]:
    with torch.inference_mode():
        return objective.validate(objective.network)


def test_pictures_set_aside_are_not_trained_on(tiny_data: TinyData) -> None:
    objective = validating(tiny_data, caption_dropout=0.0)
    order = objective.order(seed=3, samples_per_step=4)
    contexts = [objective.batch([order.draw(i)]).context[0] for i in range(16)]  # two epochs of eight
    captions = [objective.contexts.context(record.captions[0]) for record in tiny_data.records]
    seen = [next(i for i, caption in enumerate(captions) if torch.equal(caption, each)) for each in contexts]
    assert sorted(seen) == sorted([0, 2, 3, 4, 5, 7, 8, 9] * 2)
    assert objective.describe()["validation_pictures"] == 2


@pytest.mark.parametrize("prediction", get_args(PredictionType))
def test_validation_is_the_error_at_fixed_noise(prediction: PredictionType, tiny_data: TinyData) -> None:
    """Recomputed with diffusers' scheduler, a sample at a time, from the network's own inputs."""
    objective = validating(tiny_data, prediction=prediction)
    calls: list[tuple[Tensor, Tensor, Tensor]] = []

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = objective.network

        def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
            calls.append((x, t, context))
            return self.inner(x, t, context)

    with torch.inference_mode():
        figures = objective.validate(Watched())
    scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    quarters: dict[int, list[float]] = {1: [], 2: [], 3: [], 4: []}
    for item, (x, t, context) in zip((1, 6), calls, strict=True):
        latents = objective.space.normalize(objective.latents.mean(item))
        caption = objective.contexts.context(tiny_data.records[item].captions[0])
        for x_t, at, told in zip(x, t, context, strict=True):
            assert torch.equal(told, caption), "never left out"
            abar = scheduler.alphas_cumprod[at]
            eps = (x_t - abar.sqrt() * latents) / (1 - abar).sqrt()
            velocity = abar.sqrt() * eps - (1 - abar).sqrt() * latents
            target = {"epsilon": eps, "v_prediction": velocity, "sample": latents}[prediction]
            with torch.inference_mode():
                answer = objective.network(x_t[None], at[None], told[None])[0]
            quarters[1 + int(at) // 250].append(float((answer - target).square().mean()))
    assert [len(errors) for errors in quarters.values()] == [4, 4, 4, 4], "two timesteps a picture in each quarter"
    # eps is divided out of x_t again: at t near 0 its float32 error is 1e-7 / sqrt(1 - abar) of it, below 1e-4
    for number, errors in quarters.items():
        assert figures[f"val_loss_t{number}"] == pytest.approx(sum(errors) / 4, rel=1e-3)
    assert figures["val_loss"] == pytest.approx(sum(sum(errors) for errors in quarters.values()) / 16, rel=1e-3)


def test_validation_depends_on_the_weights_alone(tiny_data: TinyData) -> None:
    """Not on the run's seed or batch, nor on how the training error is drawn and weighted."""
    objective = validating(tiny_data)
    first = validated(objective)
    objective.batch([objective.order(5, 32).draw(i) for i in range(7)])
    torch.manual_seed(99)
    assert validated(objective) == first
    changed = {"caption_dropout": 1.0, "min_snr_gamma": 5.0, "noise_offset": 0.3, "timestep_sampling": "logit-normal"}
    assert validated(validating(tiny_data, **changed)) == first
    with torch.no_grad():
        objective.network.conv_out.bias.add_(0.01)
    assert validated(objective) != first


def test_validation_of_a_run_is_logged(tiny_data: TinyData, tmp_path: Path) -> None:
    """Of one batch size and of another, at the same weights: those of step 0 as no step can change them."""
    logs: list[list[dict[str, Any]]] = []
    for batch_size in (2, 4):
        folder = tmp_path / str(batch_size)
        train(validating(tiny_data), folder, batch_size=batch_size, lr=1e-30, max_steps=2, validate_every_steps=1)
        text = (folder / "log.jsonl").read_text()
        logs.append([e for e in map(json.loads, text.splitlines()) if e.get("validation")])
        assert [event["step"] for event in logs[-1]] == [1, 2]
    figures = [[{k: v for k, v in event.items() if k.startswith("val_loss")} for event in log] for log in logs]
    assert figures[0] == figures[1]
    assert set(figures[0][0]) == {"val_loss", "val_loss_t1", "val_loss_t2", "val_loss_t3", "val_loss_t4"}


def test_what_is_set_aside() -> None:
    assert [pictures_to_set_aside(n) for n in (5, 99, 100, 1000, 24_000)] == [0, 0, 1, 10, 64]
    assert set_aside(10, 0) == ()
    assert set_aside(10, 2) == (2, 7)
    for count in (1, 3, 7, 64, 99):
        chosen = set_aside(100, count)
        assert len(set(chosen)) == count
        assert min(chosen) >= 0
        assert max(chosen) < 100


def test_fixed_timesteps_are_stratified() -> None:
    every = torch.stack([fixed_timesteps(picture, 1000) for picture in range(50)])
    assert torch.equal(every // 125, torch.arange(8).expand(50, 8))
    assert len(every.unique()) > 200, "not the same eight for every picture"

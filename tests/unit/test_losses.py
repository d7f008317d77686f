from __future__ import annotations

from typing import get_args

import pytest
import torch

from latentgen.config import DiffusionConfig, PredictionType
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.losses import diffusion_loss, min_snr_weights, training_target
from latentgen.diffusion.schedule import NoiseSchedule

PREDICTIONS = get_args(PredictionType)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_config(DiffusionConfig())


def drawn(batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    latents, eps = torch.randn(2, batch, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return latents, eps


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_network_that_answers_the_target_denoises_perfectly(
    schedule: NoiseSchedule, prediction_type: PredictionType
) -> None:
    """The target of training and the denoiser of sampling are inverse to each other."""
    latents, eps = drawn(3)
    t = torch.tensor([1, 500, 999])
    target = training_target(schedule, prediction_type, latents, eps, t)
    sigma = schedule.sigmas[t]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def network(x_t: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        seen.append((x_t, at))
        return target

    x_0 = make_denoiser(network, schedule, prediction_type)(latents + sigma.view(3, 1, 1, 1) * eps, sigma)
    torch.testing.assert_close(x_0, latents, rtol=0, atol=1e-12)
    # and the network saw in sampling what it sees in training
    torch.testing.assert_close(seen[0][0], schedule.add_noise(latents, eps, t), rtol=0, atol=1e-12)
    assert seen[0][1].tolist() == t.tolist()


def test_loss_is_the_mean_square_of_each_sample_in_float32() -> None:
    prediction = torch.tensor([[1.0, 3.0], [2.0, 2.0]], dtype=torch.bfloat16)
    target = torch.tensor([[0.0, 0.0], [2.0, 4.0]])
    loss = diffusion_loss(prediction, target)
    assert loss.dtype == torch.float32
    assert loss.tolist() == [5.0, 2.0]
    assert diffusion_loss(prediction, target, torch.tensor([2.0, 0.5])).tolist() == [10.0, 1.0]


def test_min_snr_weights_are_one_weight_on_the_x_0_error(schedule: NoiseSchedule) -> None:
    """The same wrong x_0 costs min(SNR, gamma) whichever quantity the network predicts it through."""
    latents, eps = drawn(6)
    wrong = latents + 0.1
    t = torch.tensor([0, 50, 200, 400, 700, 999])
    # The eps and v that go with x_t and the wrong x_0.
    abar = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = schedule.add_noise(latents, eps, t)
    wrong_eps = (x_t - abar.sqrt() * wrong) / (1 - abar).sqrt()
    guesses = {"epsilon": wrong_eps, "v_prediction": schedule.velocity(wrong, wrong_eps, t), "sample": wrong}
    for prediction_type in PREDICTIONS:
        target = training_target(schedule, prediction_type, latents, eps, t)
        loss = diffusion_loss(guesses[prediction_type], target, min_snr_weights(schedule, prediction_type, t, 5.0))
        wanted = 0.1**2 * schedule.snr(t).clamp(max=5.0)
        torch.testing.assert_close(loss, wanted, rtol=1e-3, atol=0)  # float32 differences of values of order 1


@pytest.mark.parametrize(("prediction_type", "wanted"), [("epsilon", 1.0), ("v_prediction", 0.0), ("sample", 0.0)])
def test_min_snr_weights_at_zero_terminal_snr(prediction_type: PredictionType, wanted: float) -> None:
    config = DiffusionConfig(prediction_type="v_prediction", rescale_betas_zero_snr=True)
    weights = min_snr_weights(NoiseSchedule.from_config(config), prediction_type, torch.tensor([999]))
    assert weights.tolist() == [wanted]

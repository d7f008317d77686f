from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from latentgen.config import DiffusionConfig, PredictionType
from latentgen.diffusion.denoiser import EpsDenoiser, SampleDenoiser, VDenoiser, make_denoiser
from latentgen.diffusion.schedule import NoiseSchedule

PREDICTIONS = get_args(PredictionType)
SHAPE = (3, 4, 2, 2)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_config(DiffusionConfig())


def drawn(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x, prediction = torch.randn(2, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(dtype)
    return x, prediction


def test_the_three_formulas(schedule: NoiseSchedule) -> None:
    """x_0 in DDPM's coordinates: x_t = sqrt(abar) x."""
    x, prediction = drawn()
    t = torch.tensor([0, 300, 999])
    abar = schedule.alphas_cumprod[t].view(3, 1, 1, 1)
    x_t = abar.sqrt() * x
    sigma = schedule.sigmas[t]
    wanted = {
        EpsDenoiser: (x_t - (1 - abar).sqrt() * prediction) / abar.sqrt(),
        VDenoiser: abar.sqrt() * x_t - (1 - abar).sqrt() * prediction,
        SampleDenoiser: prediction,
    }
    for denoiser, x_0 in wanted.items():
        torch.testing.assert_close(denoiser(lambda _x, _t: prediction, schedule)(x, sigma), x_0, rtol=0, atol=1e-12)


def test_make_denoiser_knows_each_prediction_type(schedule: NoiseSchedule) -> None:
    kinds = [type(make_denoiser(lambda x, _t: x, schedule, prediction)) for prediction in PREDICTIONS]
    assert dict(zip(PREDICTIONS, kinds, strict=True)) == {
        "epsilon": EpsDenoiser,
        "v_prediction": VDenoiser,
        "sample": SampleDenoiser,
    }


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_network_sees_unit_variance_input_and_float32_integer_timesteps(
    schedule: NoiseSchedule, prediction_type: PredictionType
) -> None:
    seen: list[tuple[Tensor, Tensor]] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append((x, t))
        return x

    x, _ = drawn(torch.float32)
    sigmas = schedule.inference_sigmas(3, "leading")[:3]
    make_denoiser(network, schedule, prediction_type)(x, sigmas)
    x_t, t = seen[0]
    assert t.dtype == torch.float32
    assert t.tolist() == [667.0, 334.0, 1.0]
    torch.testing.assert_close(x_t, x / (1 + sigmas.view(3, 1, 1, 1) ** 2).sqrt())


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_a_half_precision_network_leaves_x_in_its_own_precision(
    schedule: NoiseSchedule, prediction_type: PredictionType
) -> None:
    x, prediction = drawn(torch.float32)
    kept = x.clone()
    denoise = make_denoiser(lambda _x, _t: prediction.bfloat16(), schedule, prediction_type)
    assert denoise(x, torch.tensor([0.1, 1.0, 10.0])).dtype == torch.float32
    assert torch.equal(x, kept)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_rows_are_independent(schedule: NoiseSchedule, prediction_type: PredictionType) -> None:
    x, prediction = drawn()
    sigma = torch.tensor([0.1, 1.0, 10.0])
    together = make_denoiser(lambda _x, _t: prediction, schedule, prediction_type)(x, sigma)
    for row in range(3):
        only = slice(row, row + 1)
        alone = make_denoiser(lambda _x, _t, only=only: prediction[only], schedule, prediction_type)(
            x[only], sigma[only]
        )
        assert torch.equal(alone, together[only])


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_zero_terminal_snr_reads_the_picture_off_the_prediction(prediction_type: PredictionType) -> None:
    """At the clamped last sigma, 4096, x_0 is -v or the sample, up to the 2**-24 of x that is left in it."""
    config = DiffusionConfig(prediction_type=prediction_type, rescale_betas_zero_snr=True)
    schedule = NoiseSchedule.from_config(config)
    sigma = schedule.inference_sigmas(1, "trailing")[:1].expand(3)
    noise, prediction = drawn()
    asked: list[Tensor] = []

    def network(_x: Tensor, t: Tensor) -> Tensor:
        asked.append(t)
        return prediction

    x_0 = make_denoiser(network, schedule, prediction_type)(noise * sigma.view(3, 1, 1, 1), sigma)
    wanted = -prediction if prediction_type == "v_prediction" else prediction
    torch.testing.assert_close(x_0, wanted, rtol=0, atol=3 * 2.0**-12)  # noise below 3, seen through 2**-12
    assert asked[0].tolist() == [999.0] * 3

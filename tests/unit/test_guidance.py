from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from latentgen.config import DiffusionConfig, PredictionType
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.guidance import GuidedDenoiser, guide
from latentgen.diffusion.schedule import NoiseSchedule

PREDICTIONS = get_args(PredictionType)
BATCH = 2


class Network:
    """A small function of x, t and the text that counts what it is asked."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.batch_sizes.append(len(x))
        return torch.sin(x + t.view(-1, 1, 1, 1) / 500) * context.mean(dim=(1, 2)).view(-1, 1, 1, 1)


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_config(DiffusionConfig())


def inputs() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, sigma, cond, uncond."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 4, 3, 3, generator=generator)
    cond, uncond = torch.randn(2, BATCH, 77, 8, generator=generator)
    return x, torch.tensor([3.0, 0.5]), cond, uncond


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("guidance", [-1.0, 0.5, 7.5])
def test_guided_is_the_formula_of_two_separate_estimates(
    schedule: NoiseSchedule, prediction_type: PredictionType, guidance: float
) -> None:
    x, sigma, cond, uncond = inputs()
    network = Network()
    guided = GuidedDenoiser(network, schedule, prediction_type, cond, uncond, guidance)(x, sigma)
    assert network.batch_sizes == [2 * BATCH], "one batched pass"
    with_text, without = (
        make_denoiser(lambda x, t, text=text: network(x, t, text), schedule, prediction_type)(x, sigma)
        for text in (cond, uncond)
    )
    torch.testing.assert_close(guided, without + guidance * (with_text - without))


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_guiding_estimates_is_guiding_predictions(schedule: NoiseSchedule, prediction_type: PredictionType) -> None:
    """What the rest of the field does: combine eps or v, then turn it into x_0."""
    x, sigma, cond, uncond = inputs()
    network = Network()
    combined = make_denoiser(
        lambda x, t: guide(network(x, t, cond), network(x, t, uncond), 7.5), schedule, prediction_type
    )
    guided = GuidedDenoiser(network, schedule, prediction_type, cond, uncond, 7.5)
    # float32, values up to sigma g = 20
    torch.testing.assert_close(guided(x, sigma), combined(x, sigma), rtol=0, atol=2e-5)


@pytest.mark.parametrize("guidance", [1, 1.0])
@pytest.mark.parametrize("with_uncond", [True, False])
def test_guidance_1_is_the_unguided_model_in_a_single_pass(
    schedule: NoiseSchedule, guidance: float, with_uncond: bool
) -> None:
    x, sigma, cond, uncond = inputs()
    network = Network()
    denoise = GuidedDenoiser(network, schedule, "epsilon", cond, uncond if with_uncond else None, guidance)
    result = denoise(x, sigma)
    assert network.batch_sizes == [BATCH]
    assert torch.equal(result, make_denoiser(lambda x, t: network(x, t, cond), schedule, "epsilon")(x, sigma))


def test_guidance_0_means_0(schedule: NoiseSchedule) -> None:
    """The text is ignored, not the flag."""
    x, sigma, cond, uncond = inputs()
    network = Network()
    result = GuidedDenoiser(network, schedule, "epsilon", cond, uncond, 0)(x, sigma)
    assert network.batch_sizes == [BATCH]
    assert torch.equal(result, make_denoiser(lambda x, t: network(x, t, uncond), schedule, "epsilon")(x, sigma))


def test_one_empty_prompt_serves_the_batch(schedule: NoiseSchedule) -> None:
    x, sigma, cond, uncond = inputs()
    one = GuidedDenoiser(Network(), schedule, "epsilon", cond, uncond[:1], 4.0)(x, sigma)
    many = GuidedDenoiser(Network(), schedule, "epsilon", cond, uncond[:1].repeat(BATCH, 1, 1), 4.0)(x, sigma)
    assert torch.equal(one, many)


def test_a_batch_of_two_is_two_singles(schedule: NoiseSchedule) -> None:
    x, sigma, cond, uncond = inputs()
    both = GuidedDenoiser(Network(), schedule, "v_prediction", cond, uncond, 4.0)(x, sigma)
    for k in range(BATCH):
        one = slice(k, k + 1)
        alone = GuidedDenoiser(Network(), schedule, "v_prediction", cond[one], uncond[one], 4.0)(x[one], sigma[one])
        torch.testing.assert_close(alone, both[one], rtol=0, atol=1e-6)


def test_a_missing_or_misshapen_uncond_is_caught(schedule: NoiseSchedule) -> None:
    _, _, cond, uncond = inputs()
    with pytest.raises(AssertionError, match="unconditional"):
        GuidedDenoiser(Network(), schedule, "epsilon", cond, None, 4.0)
    with pytest.raises(AssertionError, match="length or width"):
        GuidedDenoiser(Network(), schedule, "epsilon", cond, uncond[:, :10], 4.0)

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import Tensor

from latentgen.config import DiffusionConfig, PredictionType
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.guidance import GuidedDenoiser, guide, guided_sigmas
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.models.attention import repeated

PREDICTIONS = get_args(PredictionType)
BATCH = 2


class Network:
    """A small function of x, t and the text that counts what it is asked."""

    def __init__(self) -> None:
        self.batch_sizes: list[int] = []

    def __call__(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        self.batch_sizes.append(len(context))
        x, t = repeated(x, len(context)), repeated(t, len(context))
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


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("rescale", [0.3, 0.7, 1.0])
def test_rescale_is_the_papers_on_the_prediction(
    schedule: NoiseSchedule, prediction_type: PredictionType, rescale: float
) -> None:
    """arXiv:2305.08891, eqs. 15 and 16, picture for picture, then turned into x_0."""
    x, sigma, cond, uncond = inputs()
    network = Network()

    def combined(x_t: Tensor, t: Tensor) -> Tensor:
        with_text, without = network(x_t, t, cond), network(x_t, t, uncond)
        rows: list[Tensor] = []
        for positive, negative in zip(with_text, without, strict=True):
            cfg = negative + 7.5 * (positive - negative)
            rescaled = cfg * positive.std() / cfg.std()
            rows.append(rescale * rescaled + (1 - rescale) * cfg)
        return torch.stack(rows)

    guided = GuidedDenoiser(network, schedule, prediction_type, cond, uncond, 7.5, rescale=rescale)(x, sigma)
    wanted = make_denoiser(combined, schedule, prediction_type)(x, sigma)
    torch.testing.assert_close(guided, wanted, rtol=0, atol=2e-5)  # float32, values up to sigma g = 20
    plain = GuidedDenoiser(network, schedule, prediction_type, cond, uncond, 7.5)(x, sigma)
    assert (guided - plain).abs().max() > 0.01


def test_rescale_leaves_an_unguided_picture_alone(schedule: NoiseSchedule) -> None:
    x, sigma, cond, uncond = inputs()
    plain, rescaled = (
        GuidedDenoiser(Network(), schedule, "epsilon", cond, uncond, 1.0, rescale=phi)(x, sigma) for phi in (0.0, 0.7)
    )
    assert torch.equal(plain, rescaled)


def test_outside_the_interval_the_guidance_is_1_in_a_single_pass(schedule: NoiseSchedule) -> None:
    x, _, cond, uncond = inputs()
    network = Network()
    limited = GuidedDenoiser(network, schedule, "epsilon", cond, uncond, 7.5, rescale=0.7, interval=(1.0, 5.0))
    always = GuidedDenoiser(Network(), schedule, "epsilon", cond, uncond, 7.5, rescale=0.7)
    never = GuidedDenoiser(Network(), schedule, "epsilon", cond, None, 1.0)
    for level, like, passes in (
        (14.6, never, BATCH),
        (5.01, never, BATCH),
        (5.0, always, 2 * BATCH),
        (1.01, always, 2 * BATCH),
        (1.0, never, BATCH),
        (0.03, never, BATCH),
    ):
        sigma = torch.full((BATCH,), level, dtype=torch.float64)
        assert torch.equal(limited(x, sigma), like(x, sigma)), f"at sigma {level}"
        assert network.batch_sizes[-1] == passes, f"at sigma {level}"


def test_guidance_0_outside_the_interval_is_the_text_alone(schedule: NoiseSchedule) -> None:
    """The interval says where the guidance holds; elsewhere it is 1, whatever it is inside."""
    x, _, cond, uncond = inputs()
    denoise = GuidedDenoiser(Network(), schedule, "epsilon", cond, uncond, 0.0, interval=(1.0, 5.0))
    never = GuidedDenoiser(Network(), schedule, "epsilon", cond, None, 1.0)
    sigma = torch.full((BATCH,), 9.0)
    assert torch.equal(denoise(x, sigma), never(x, sigma))


@pytest.mark.parametrize(
    ("fractions", "guided"),
    [
        ((0.0, 1.0), range(10)),
        ((0.2, 0.6), range(2, 6)),
        ((0.3, 0.7), range(3, 7)),  # 3 / 10 is the float 0.3: no step is won or lost by rounding
        ((0.21, 0.61), range(3, 7)),
        ((0.0, 0.05), range(1)),
        ((0.95, 1.0), range(9, 10)),  # the step within which it begins, rather than none
        ((0.31, 0.34), range(3, 4)),
        ((0.5, 0.5), range(0)),
        ((1.0, 1.0), range(0)),
    ],
)
@pytest.mark.parametrize("schedule_name", ["leading", "karras"])
def test_fractions_of_a_run_are_its_steps(
    schedule: NoiseSchedule, fractions: tuple[float, float], guided: range, schedule_name: str
) -> None:
    sigmas = schedule.inference_sigmas(10, schedule_name)
    network = Network()
    x, _, cond, uncond = inputs()
    interval = guided_sigmas(sigmas, *fractions)
    denoise = GuidedDenoiser(network, schedule, "epsilon", cond, uncond, 7.5, interval=interval)
    for sigma in sigmas[:-1]:
        denoise(x, sigma.expand(BATCH))
    assert [i for i, size in enumerate(network.batch_sizes) if size == 2 * BATCH] == list(guided)


def test_a_half_precision_network_is_guided_in_single_precision(schedule: NoiseSchedule) -> None:
    """bfloat16 resolves 4 + 7.5 (0.01) no better than 0.03; the difference must be scaled after widening."""
    _, _, cond, uncond = inputs()
    x = torch.zeros(BATCH, 4, 3, 3)
    answers = torch.tensor([4.0625, 4.0]).repeat_interleave(BATCH).view(-1, 1, 1, 1).bfloat16()
    denoise = GuidedDenoiser(lambda _x, _t, _c: answers, schedule, "sample", cond, uncond, 7.3)
    guided = denoise(x, torch.ones(BATCH))
    torch.testing.assert_close(guided, torch.full_like(guided, 4.0 + 7.3 * 0.0625))

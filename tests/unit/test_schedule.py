from __future__ import annotations

from typing import get_args

import pytest
import torch

from latentgen.config import BetaSchedule, DiffusionConfig
from latentgen.diffusion.schedule import NoiseSchedule, make_betas, rescale_zero_terminal_snr
from latentgen.errors import InputError

BETAS = get_args(BetaSchedule)


@pytest.fixture(params=BETAS)
def schedule(request: pytest.FixtureRequest) -> NoiseSchedule:
    return NoiseSchedule.from_config(DiffusionConfig(beta_schedule=request.param))


def test_tables_are_float64_and_sigma_squared_is_inverse_snr(schedule: NoiseSchedule) -> None:
    assert {schedule.betas.dtype, schedule.alphas_cumprod.dtype, schedule.sigmas.dtype} == {torch.float64}
    t = torch.arange(1000)
    torch.testing.assert_close(schedule.snr(t), (1 / schedule.sigmas**2).float())
    assert (schedule.sigmas.diff() > 0).all()


def test_beta_end_points() -> None:
    for name in ("linear", "scaled_linear"):
        betas = make_betas(name, 1000, 0.00085, 0.012)
        torch.testing.assert_close(betas[[0, -1]], torch.tensor([0.00085, 0.012], dtype=torch.float64))
    assert make_betas("squaredcos_cap_v2", 1000, 0.00085, 0.012)[-1] == 0.999


def test_cosine_alphas_follow_their_formula_until_the_cap() -> None:
    """arXiv:2102.09672, eq. 17: abar_t = f(t) / f(0), where f(0) divides out over a product that starts at t = 0."""
    schedule = NoiseSchedule.from_config(DiffusionConfig(beta_schedule="squaredcos_cap_v2"))
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    f = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    f_0 = torch.cos(torch.tensor(0.008 / 1.008 * torch.pi / 2, dtype=torch.float64)) ** 2
    torch.testing.assert_close(schedule.alphas_cumprod[:-1], (f / f_0)[:-1], rtol=1e-10, atol=0)


def test_add_noise_is_the_closed_form(schedule: NoiseSchedule) -> None:
    x_0, eps = torch.randn(2, 3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0, 400, 999])
    abar = schedule.alphas_cumprod[t].view(3, 1, 1, 1)
    torch.testing.assert_close(schedule.add_noise(x_0, eps, t), abar.sqrt() * x_0 + (1 - abar).sqrt() * eps)
    torch.testing.assert_close(schedule.velocity(x_0, eps, t), abar.sqrt() * eps - (1 - abar).sqrt() * x_0)


def test_half_precision_is_computed_in_float32(schedule: NoiseSchedule) -> None:
    x_0, eps = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    t = torch.tensor([0, 400, 999])
    noisy = schedule.add_noise(x_0, eps, t)
    assert noisy.dtype == torch.bfloat16
    assert torch.equal(noisy, schedule.add_noise(x_0.float(), eps.float(), t).bfloat16())


def test_t_of_sigma_of_t_is_t(schedule: NoiseSchedule) -> None:
    t = torch.arange(1000)
    assert torch.equal(schedule.sigma_to_t(schedule.sigmas), t.double())
    assert torch.equal(schedule.sigma_to_t(schedule.sigmas.float()), t.double()), "after a round trip through float32"


def test_t_between_the_entries_and_beyond_the_ends(schedule: NoiseSchedule) -> None:
    between = (schedule.sigmas[:-1] * schedule.sigmas[1:]).sqrt()
    halves = torch.arange(999, dtype=torch.float64) + 0.5
    torch.testing.assert_close(schedule.sigma_to_t(between), halves, rtol=0, atol=1e-9)
    assert schedule.sigma_to_t(torch.tensor([[0.0], [1e9]])).tolist() == [[0.0], [999.0]]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("n", [1, 7, 20, 50, 999, 1000])
def test_timesteps_descend_within_the_table(schedule: NoiseSchedule, spacing: str, n: int) -> None:
    t = schedule.timesteps(n, spacing)  # pyright: ignore[reportArgumentType]
    assert t.dtype == torch.int64
    assert len(t) == n
    assert (t.diff() < 0).all()
    assert t[0] <= 999
    assert t[-1] >= 0
    sigmas = schedule.inference_sigmas(n, spacing)
    assert torch.equal(sigmas[:-1], schedule.sigmas[t].float())
    assert torch.equal(schedule.sigma_to_t(sigmas[:-1]), t.double()), "the network is asked at exactly these timesteps"


def test_karras_runs_between_the_ends_of_the_models_spacing(schedule: NoiseSchedule) -> None:
    sigmas = schedule.inference_sigmas(12, "karras")
    plain = schedule.inference_sigmas(12, "leading")
    torch.testing.assert_close(sigmas[[0, -2]], plain[[0, -2]])
    assert sigmas[-1] == 0
    # EDM eq. 5: equal steps in sigma^(1/7)
    steps = (sigmas[:-1].double() ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-5, atol=0)


@pytest.mark.parametrize("n", [0, -3, 1001])
def test_a_number_of_steps_that_does_not_fit(schedule: NoiseSchedule, n: int) -> None:
    with pytest.raises(InputError, match=r"1\.\.1000"):
        schedule.inference_sigmas(n, "trailing")


def test_an_unknown_schedule(schedule: NoiseSchedule) -> None:
    with pytest.raises(InputError, match="karas"):
        schedule.inference_sigmas(10, "karas")


@pytest.mark.parametrize("betas", BETAS)
@pytest.mark.parametrize("num_timesteps", [20, 1000, 8000])
def test_zero_terminal_snr(betas: BetaSchedule, num_timesteps: int) -> None:
    config = DiffusionConfig(
        num_train_timesteps=num_timesteps,
        beta_schedule=betas,
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )
    schedule = NoiseSchedule.from_config(config)
    plain = make_betas(betas, num_timesteps, config.beta_start, config.beta_end)
    assert schedule.alphas_cumprod[-1] == 0
    assert schedule.snr(torch.tensor([num_timesteps - 1])) == 0
    torch.testing.assert_close(schedule.betas[0], plain[0], rtol=1e-9, atol=0)
    assert torch.isinf(schedule.sigmas[-1])

    for name in ("trailing", "karras"):
        sigmas = schedule.inference_sigmas(20, name)
        assert torch.isfinite(sigmas).all()
        assert (sigmas.diff() < 0).all()
        assert schedule.sigma_to_t(sigmas)[0] == num_timesteps - 1
    # With nothing of the picture left, x_t is the noise and v is minus the picture.
    x_0, eps = torch.randn(2, 1, 4, generator=torch.Generator().manual_seed(0))
    last = torch.tensor([num_timesteps - 1])
    assert torch.equal(schedule.add_noise(x_0, eps, last), eps)
    assert torch.equal(schedule.velocity(x_0, eps, last), -x_0)


def test_rescaling_is_algorithm_1() -> None:
    """sqrt(abar) keeps its start, reaches 0, and moves affinely in between."""
    betas = make_betas("scaled_linear", 1000, 0.00085, 0.012)
    before = (1 - betas).cumprod(0).sqrt()
    after = (1 - rescale_zero_terminal_snr(betas)).cumprod(0).sqrt()
    slope = before[0] / (before[0] - before[-1])
    torch.testing.assert_close(after, slope * (before - before[-1]), rtol=0, atol=1e-12)

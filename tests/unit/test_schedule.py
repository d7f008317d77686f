from __future__ import annotations

import math
from typing import get_args

import mpmath
import pytest
import torch

from latentgen.config import BetaSchedule, DiffusionConfig
from latentgen.diffusion.beta_quantile import symmetric_beta_quantile
from latentgen.diffusion.schedule import ALIGN_YOUR_STEPS, LEVELS, NoiseSchedule, make_betas, rescale_zero_terminal_snr
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


def test_karras_runs_between_the_ends_of_the_models_table(schedule: NoiseSchedule) -> None:
    sigmas = schedule.inference_sigmas(12, "karras")
    torch.testing.assert_close(sigmas[[0, -2]], schedule.sigmas[[-1, 0]].float())
    assert sigmas[-1] == 0
    # EDM eq. 5: equal steps in sigma^(1/7)
    steps = (sigmas[:-1].double() ** (1 / 7)).diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-5, atol=0)


def test_exponential_is_even_in_log_sigma_between_the_same_ends(schedule: NoiseSchedule) -> None:
    sigmas = schedule.inference_sigmas(12, "exponential")
    torch.testing.assert_close(sigmas[[0, -2]], schedule.sigmas[[-1, 0]].float())
    steps = sigmas[:-1].double().log().diff()
    torch.testing.assert_close(steps, steps[:1].expand(11), rtol=1e-5, atol=0)


def log_sigma(schedule: NoiseSchedule, t: float) -> float:
    """k-diffusion's t_to_sigma, one timestep at a time: linear between the table's logarithms."""
    low = min(int(t), schedule.num_timesteps - 2)
    at_low, at_high = (math.log(float(schedule.sigmas[k])) for k in (low, low + 1))
    return at_low + (t - low) * (at_high - at_low)


@pytest.mark.parametrize("n", [1, 7, 20, 50, 999])
def test_schedules_known_by_their_timesteps(schedule: NoiseSchedule, n: int) -> None:
    """As k-diffusion's get_sigmas, A1111 and ComfyUI define them, timestep by timestep."""
    wanted = {
        "uniform": [999 - i * 999 / max(n - 1, 1) for i in range(n)],
        "sgm_uniform": [999 - i * 999 / n for i in range(n)],
        "simple": [float(999 - int(i * (1000 / n))) for i in range(n)],
    }
    for name, timesteps in wanted.items():
        sigmas = schedule.inference_sigmas(n, name)
        assert sigmas[-1] == 0
        for sigma, t in zip(sigmas.tolist(), timesteps, strict=False):
            # t near 0 comes out of a subtraction from 999, 1e-13 off
            assert math.log(sigma) == pytest.approx(log_sigma(schedule, max(t, 0.0)), abs=1e-6), name
        asked = schedule.sigma_to_t(sigmas[:-1])
        # float32 rounds a sigma by 6e-8, against 2e-3 and more a timestep
        torch.testing.assert_close(asked, torch.tensor(timesteps, dtype=torch.float64), rtol=0, atol=1e-4)


@pytest.mark.parametrize("a", [0.5, 0.6, 1.0])
def test_beta_quantiles(a: float) -> None:
    """Put back into the distribution function, computed with 30 digits, they give the probability."""
    p = torch.cat([torch.linspace(0, 1, 41, dtype=torch.float64), torch.tensor([1e-12, 1e-6, 1e-3, 0.4999, 0.999])])
    x = symmetric_beta_quantile(p, a)
    with mpmath.workdps(30):
        back = [float(mpmath.betainc(a, a, 0, each, regularized=True)) for each in x.tolist()]
    assert back == pytest.approx(p.tolist(), rel=1e-12, abs=2e-14)
    assert x[[0, 20, 40]].tolist() == pytest.approx([0, 0.5, 1], abs=1e-14)
    if a == 0.5:  # the arcsine distribution
        torch.testing.assert_close(x, torch.sin(torch.pi / 2 * p) ** 2, rtol=1e-12, atol=1e-15)


def test_beta_is_dense_at_both_ends(schedule: NoiseSchedule) -> None:
    n = 20
    t = schedule.sigma_to_t(schedule.inference_sigmas(n, "beta")[:-1])
    p = (t / 999).tolist()
    with mpmath.workdps(30):
        probabilities = [float(mpmath.betainc(0.6, 0.6, 0, each, regularized=True)) for each in p]
    assert probabilities == pytest.approx([1 - i / n for i in range(n)], abs=1e-5)
    gaps = -t.diff()
    assert gaps[0] < gaps[n // 2] > gaps[-1]


def test_align_your_steps_at_ten_steps_is_as_published() -> None:
    stable_diffusion = NoiseSchedule.from_config(DiffusionConfig())
    ten = stable_diffusion.inference_sigmas(10, "align_your_steps")
    torch.testing.assert_close(ten, torch.tensor([*ALIGN_YOUR_STEPS[:10], 0.0]))
    twenty = stable_diffusion.inference_sigmas(20, "align_your_steps")
    torch.testing.assert_close(twenty[::2], ten)
    torch.testing.assert_close(twenty[1:19:2] ** 2, twenty[0:18:2] * twenty[2:20:2])


@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2"])
def test_align_your_steps_is_for_stable_diffusions_levels(betas: BetaSchedule) -> None:
    schedule = NoiseSchedule.from_config(DiffusionConfig(beta_schedule=betas))
    with pytest.raises(InputError, match=r"0\.029 to 14\.6") as raised:
        schedule.inference_sigmas(10, "align_your_steps")
    assert raised.value.hint is not None


@pytest.mark.parametrize("name", LEVELS)
@pytest.mark.parametrize("n", [1, 2, 3, 17, 500, 1000])
def test_every_schedule_descends_for_any_number_of_steps(schedule: NoiseSchedule, name: str, n: int) -> None:
    if name == "align_your_steps" and schedule.sigmas[-1] > 20:
        schedule = NoiseSchedule.from_config(DiffusionConfig())
    sigmas = schedule.inference_sigmas(n, name)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == n + 1
    assert (sigmas.diff() < 0).all()
    assert sigmas[-1] == 0
    assert sigmas[0] <= float(schedule.sigmas[-1]) * 1.001


def test_sigma_of_t_of_sigma_is_sigma(schedule: NoiseSchedule) -> None:
    sigmas = torch.logspace(math.log10(0.05), 1, 50, dtype=torch.float64)
    torch.testing.assert_close(schedule.t_to_sigma(schedule.sigma_to_t(sigmas)), sigmas, rtol=1e-6, atol=0)
    t = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(schedule.t_to_sigma(t), schedule.sigmas)


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


def test_truncating_keeps_the_tail_and_at_least_one_step(schedule: NoiseSchedule) -> None:
    sigmas = schedule.inference_sigmas(30, "karras")
    assert torch.equal(schedule.truncate(sigmas, 1.0), sigmas)
    assert torch.equal(schedule.truncate(sigmas, 0.75), sigmas[-23:])
    assert torch.equal(schedule.truncate(sigmas, 0.001), sigmas[-2:])
    for strength in (0.0, -0.5, 1.01):
        with pytest.raises(AssertionError, match="strength"):
            schedule.truncate(sigmas, strength)

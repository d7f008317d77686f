from __future__ import annotations

import functools
import math
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from latentgen.config import DiffusionConfig
from latentgen.diffusion.denoiser import make_denoiser
from latentgen.diffusion.noise import NoiseSource, starting_point
from latentgen.diffusion.schedule import NoiseSchedule
from latentgen.errors import InputError
from latentgen.samplers import registry
from latentgen.samplers.registry import (
    SAMPLERS,
    SCHEDULES,
    get_sampler,
    resolve_sampler,
    resolve_schedule,
)
from latentgen.samplers.step import Step

CASES = [*((name, {}) for name in SAMPLERS), ("ddim", {"eta": 0.5}), ("ddim", {"eta": 1.0})]
all_samplers = pytest.mark.parametrize(("name", "options"), CASES, ids=lambda case: str(case))


@pytest.fixture(scope="module")
def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_config(DiffusionConfig())


@pytest.fixture(scope="module", params=list(SCHEDULES))
def sigmas(schedule: NoiseSchedule, request: pytest.FixtureRequest) -> Tensor:
    return schedule.inference_sigmas(8, request.param)


def refuse() -> Tensor:
    raise AssertionError("noise was drawn by a deterministic sampler")


def noise_fn(seeds: list[int], shape: tuple[int, ...]) -> functools.partial[Tensor]:
    return functools.partial(NoiseSource(seeds).draw, shape)


def random_network(x: Tensor, t: Tensor) -> Tensor:
    """Per pixel, so that rows of a batch cannot differ by the order of a sum."""
    return torch.sin(3 * x + t.view(-1, 1, 1, 1) / 200)


@all_samplers
def test_a_perfect_denoiser_lands_on_the_picture(name: str, options: dict[str, float], sigmas: Tensor) -> None:
    x_0 = NoiseSource([1, 2]).draw((4, 3, 3))
    start = starting_point(NoiseSource([3, 4]).draw((4, 3, 3)), float(sigmas[0]))
    result = get_sampler(name)(lambda _x, _s: x_0, start, sigmas, noise=noise_fn([5, 6], (4, 3, 3)), **options)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-6)


@all_samplers
def test_nothing_of_the_callers_is_changed(
    name: str, options: dict[str, float], schedule: NoiseSchedule, sigmas: Tensor
) -> None:
    x = starting_point(NoiseSource([0]).draw((4, 3, 3)), float(sigmas[0]))
    kept_x, kept_sigmas, state = x.clone(), sigmas.clone(), torch.get_rng_state()
    seen: list[tuple[Tensor, Tensor]] = []

    def watch(step: Step) -> None:
        seen.append((step.x, step.x.clone()))

    denoise = make_denoiser(random_network, schedule, "epsilon")
    get_sampler(name)(denoise, x, sigmas, noise=noise_fn([1], (4, 3, 3)), on_step=watch, **options)
    assert torch.equal(x, kept_x)
    assert torch.equal(sigmas, kept_sigmas)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(then, now) for now, then in seen), "a reported state was edited afterwards"


@all_samplers
def test_a_batch_of_two_is_two_singles(
    name: str, options: dict[str, float], schedule: NoiseSchedule, sigmas: Tensor
) -> None:
    """Element for element, at a size where torch's own generator would give a batch other numbers."""
    shape = (4, 3, 3)
    denoise = make_denoiser(random_network, schedule, "v_prediction")

    def drawn(seeds: list[int]) -> Tensor:
        source = NoiseSource(seeds)
        start = starting_point(source.draw(shape), float(sigmas[0]))
        return get_sampler(name)(denoise, start, sigmas, noise=lambda: source.draw(shape), **options)

    both = drawn([10, 11])
    # sin may differ in the last bit between the vectorised and the scalar part of a tensor
    torch.testing.assert_close(both, torch.cat([drawn([10]), drawn([11])]), rtol=0, atol=1e-5)


@all_samplers
def test_steps_are_reported(name: str, options: dict[str, float], schedule: NoiseSchedule, sigmas: Tensor) -> None:
    steps: list[Step] = []
    denoise = make_denoiser(random_network, schedule, "epsilon")
    x = starting_point(NoiseSource([0]).draw((4, 3, 3)), float(sigmas[0]))
    result = get_sampler(name)(denoise, x, sigmas, noise=noise_fn([1], (4, 3, 3)), on_step=steps.append, **options)
    assert [step.index for step in steps] == list(range(8))
    assert {step.total for step in steps} == {8}
    assert [step.sigma for step in steps] == sigmas[:-1].tolist()
    assert torch.equal(steps[0].x, x)
    for step in steps:
        assert torch.equal(step.denoised, denoise(step.x, torch.full((1,), step.sigma)))
    torch.testing.assert_close(result, steps[-1].denoised, rtol=0, atol=1e-5)


@all_samplers
def test_noise_is_drawn_only_where_it_is_used(name: str, options: dict[str, float], sigmas: Tensor) -> None:
    draws: list[Tensor] = []
    source = NoiseSource([0])

    def noise() -> Tensor:
        draws.append(source.draw((4, 3, 3)))
        return draws[-1]

    get_sampler(name)(lambda x, _s: x * 0, torch.zeros(1, 4, 3, 3), sigmas, noise=noise, **options)
    stochastic = options.get("eta", 0) > 0 or name in ("ddpm", "euler_a")
    assert len(draws) == (7 if stochastic else 0)
    assert not stochastic or SAMPLERS[name].stochastic


def test_euler_is_ddim_without_noise(schedule: NoiseSchedule, sigmas: Tensor) -> None:
    denoise = make_denoiser(random_network, schedule, "v_prediction")
    x = starting_point(NoiseSource([0]).draw((4, 3, 3)), float(sigmas[0])).double()
    euler, ddim = (get_sampler(name)(denoise, x, sigmas, noise=refuse) for name in ("euler", "ddim"))
    torch.testing.assert_close(euler, ddim, rtol=0, atol=1e-12)


def test_ddpm_euler_a_and_ddim_with_eta_1_are_one_process(schedule: NoiseSchedule, sigmas: Tensor) -> None:
    """Three published derivations of the same ancestral step; equal noise gives equal pictures."""
    denoise = make_denoiser(random_network, schedule, "v_prediction")
    x = starting_point(NoiseSource([0]).draw((4, 3, 3)), float(sigmas[0])).double()
    ddpm, euler_a, ddim = (
        get_sampler(name)(denoise, x, sigmas, noise=noise_fn([1], (4, 3, 3)), **options)
        for name, options in (("ddpm", {}), ("euler_a", {}), ("ddim", {"eta": 1.0}))
    )
    torch.testing.assert_close(euler_a, ddpm, rtol=0, atol=1e-9)
    torch.testing.assert_close(ddim, ddpm, rtol=0, atol=1e-9)


# Pictures distributed N(0, spread^2): the best denoiser and the ODE's solution are known in closed form.
SPREAD = 0.5


def gaussian_denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    """E[x_0 | x] for x_0 ~ N(0, SPREAD^2)."""
    return x * SPREAD**2 / (SPREAD**2 + sigma.to(x.dtype).view(-1, 1) ** 2)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("dpmpp_2m", 2)])
def test_order_of_convergence(name: str, order: int) -> None:
    """Halving the steps' length divides the error of the ODE's solution by 2 to the order."""
    high, low = 10.0, 0.1
    exact = math.sqrt((SPREAD**2 + low**2) / (SPREAD**2 + high**2))

    def error(n: int) -> float:
        sigmas = torch.logspace(math.log10(high), math.log10(low), n + 1, dtype=torch.float64)
        x = torch.ones(1, 1, dtype=torch.float64)
        return abs(get_sampler(name)(gaussian_denoiser, x, sigmas, noise=refuse).item() - exact)

    slope = math.log2(error(64) / error(128))
    assert slope == pytest.approx(order, abs=0.15)


@pytest.mark.parametrize(("name", "options"), [("ddpm", {}), ("euler_a", {}), ("ddim", {"eta": 1.0})])
def test_ancestral_samplers_draw_from_the_distribution(name: str, options: dict[str, float]) -> None:
    """The best denoiser of a Gaussian gives that Gaussian: 4000 values, standard error of the spread 1.1 %."""
    sigmas = torch.cat([torch.logspace(1, -2, 200, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    start = starting_point(NoiseSource([0]).draw((4000,)).double(), 10.0)
    result = get_sampler(name)(gaussian_denoiser, start, sigmas, noise=noise_fn([1], (4000,)), **options)
    assert result.std().item() == pytest.approx(SPREAD, rel=0.05)
    assert result.mean().item() == pytest.approx(0, abs=0.03)


# The registry


@pytest.mark.parametrize(
    ("spelling", "wanted"),
    [
        ("Euler", ("euler", None)),
        ("Euler a", ("euler_a", None)),
        ("euler-a", ("euler_a", None)),
        ("DPM++ 2M", ("dpmpp_2m", None)),
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("dpmpp_2m_karras", ("dpmpp_2m", "karras")),
        ("Euler a Karras", ("euler_a", "karras")),
        ("DDIM", ("ddim", None)),
        ("DDPM", ("ddpm", None)),
        ("k_euler_ancestral", ("euler_a", None)),
    ],
)
def test_names_people_use(spelling: str, wanted: tuple[str, str | None]) -> None:
    assert resolve_sampler(spelling) == wanted
    assert get_sampler(spelling) is get_sampler(wanted[0])


def test_every_name_is_unambiguous_and_every_entry_loads() -> None:
    spellings = [spelling for each in SAMPLERS.values() for spelling in (each.name, each.title, *each.aliases)]
    for entry in SAMPLERS.values():
        assert {resolve_sampler(name)[0] for name in (entry.name, entry.title, *entry.aliases)} == {entry.name}
        assert get_sampler(entry.name).__name__ == entry.name  # pyright: ignore[reportAttributeAccessIssue]
        assert entry.summary
    assert len(spellings) == len(set(spellings))
    assert [resolve_schedule(entry.title) for entry in SCHEDULES.values()] == list(SCHEDULES)


def test_a1111s_names_of_both_together_are_read() -> None:
    for sampler in SAMPLERS.values():
        for schedule in SCHEDULES.values():
            assert resolve_sampler(f"{sampler.title} {schedule.title}") == (sampler.name, schedule.name)


@pytest.mark.parametrize(
    ("wrong", "close"), [("eular", "euler"), ("DPM++ 2N", "dpmpp_2m"), ("ddmp", "ddpm"), ("?", "ddim")]
)
def test_an_unknown_sampler_names_the_closest(wrong: str, close: str) -> None:
    with pytest.raises(InputError, match=close):
        get_sampler(wrong)


def test_an_unknown_schedule_names_the_closest() -> None:
    with pytest.raises(InputError, match="did you mean karras"):
        resolve_schedule("karas")


def test_every_schedule_can_be_computed(schedule: NoiseSchedule) -> None:
    for name in SCHEDULES:
        assert len(schedule.inference_sigmas(5, name)) == 6


def test_the_registry_does_not_import_torch() -> None:
    code = f"import sys, {registry.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

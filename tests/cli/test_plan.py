"""What is drawn with where the command line names a sampler and no schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from latentgen.cli.plan import Flags, resolve_sampling
from latentgen.config import DiffusionConfig
from latentgen.presets import EMBEDDED, SD15

ZERO_SNR = replace(
    SD15,
    diffusion=DiffusionConfig(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing", steps_offset=0
    ),
)


@pytest.mark.parametrize(
    ("sampler", "schedule"),
    [
        ("dpmpp_2m", "karras"),
        ("dpmpp_2m_sde", "exponential"),
        ("euler", "uniform"),
        ("Euler a", "uniform"),
        ("ddim", "leading"),
        ("lcm", "trailing"),
        ("Euler a Karras", "karras"),
    ],
)
def test_a_sampler_brings_its_schedule_to_stable_diffusion(sampler: str, schedule: str) -> None:
    """As A1111's "Automatic" does; its `modules/sd_samplers_kdiffusion.py` has the table."""
    assert resolve_sampling(Flags(sampler=sampler), SD15)[1] == schedule


@pytest.mark.parametrize("config", [EMBEDDED, ZERO_SNR], ids=["cosine", "zero terminal SNR"])
def test_a_model_of_high_noise_levels_keeps_its_own(config: object) -> None:
    assert resolve_sampling(Flags(sampler="euler_a"), config)[1] is None  # pyright: ignore[reportArgumentType]


def test_what_is_asked_for_counts() -> None:
    assert resolve_sampling(Flags(sampler="euler", schedule="beta"), SD15) == ("euler", "beta")
    assert resolve_sampling(Flags(), SD15) == ("dpmpp_2m", None)

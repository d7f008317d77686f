"""What is drawn with where the command line leaves it open, and what is said of sizes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from latentgen import embedded_model_path
from latentgen.cli.init_pictures import size_notes
from latentgen.cli.plan import Entry, Flags, plan_requests
from latentgen.config import DiffusionConfig, ModelConfig
from latentgen.presets import EMBEDDED, SD15, SD21_V
from latentgen.samplers.registry import resolve_sampling

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
    assert resolve_sampling(sampler, None, SD15)[1] == schedule


@pytest.mark.parametrize("config", [EMBEDDED, ZERO_SNR], ids=["cosine", "zero terminal SNR"])
def test_a_model_of_high_noise_levels_keeps_its_own(config: object) -> None:
    assert resolve_sampling("euler_a", None, config)[1] is None  # pyright: ignore[reportArgumentType]


def test_what_is_asked_for_counts() -> None:
    assert resolve_sampling("euler", "beta", SD15) == ("euler", "beta")
    assert resolve_sampling(None, None, SD15) == ("dpmpp_2m", None)


FAR = "is far from the 256x256 that the embedded model draws at: things come out"


@pytest.mark.parametrize(
    ("sizes", "line"),
    [
        (["256x256", "384x384", "320x256", "192x192", "128x512"], None),
        (["512x768"], f"512x768 {FAR} several times; --size 256x256 --hires 2x draws a large picture in two passes"),
        (["128x128"], f"128x128 {FAR} blurred"),
        (["256x256", "512x512", "128x128"], f"512x512 {FAR} several times"),
    ],
)
def test_a_size_far_from_the_models_own_is_told_once(sizes: list[str], line: str | None) -> None:
    told = notes_on(EMBEDDED, embedded_model_path(), *sizes)
    assert len(told) == (line is not None)
    assert line is None or told[0].startswith(line)


@pytest.mark.parametrize(
    ("config", "sizes"),
    [(SD15, ["512x768", "768x512", "640x640", "768x768"]), (SD21_V, ["512x512", "512x768", "1024x1024"])],
)
def test_the_usual_sizes_of_stable_diffusion_are_not_told(config: ModelConfig, sizes: list[str]) -> None:
    assert notes_on(config, Path("sd"), *sizes) == []


def test_a_second_pass_makes_no_size_far(tmp_path: Path) -> None:
    entry = Entry("a cat", Flags(hires="3x"))
    assert size_notes(plan_requests([entry], EMBEDDED), EMBEDDED, tmp_path) == []


def notes_on(config: ModelConfig, model: Path, *sizes: str) -> list[str]:
    sides = (map(int, size.split("x")) for size in sizes)
    entries = [Entry("a cat", Flags(width_px=width, height_px=height)) for width, height in sides]
    return size_notes(plan_requests(entries, config), config, model)

from __future__ import annotations

import math
from typing import Any

import pytest

from latentgen.config import TrainConfig
from latentgen.errors import ConfigError

GOOD: dict[str, Any] = {"lr": 1e-3, "batch_size": 4, "max_steps": 10}


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"max_steps": None}, "a run needs an end"),
        ({"max_steps": None, "max_minutes": 1.0, "lr_scheduler": "cosine"}, "cosine decays over --max-steps"),
        ({"batch_size": 0}, "--batch-size 0"),
        ({"grad_accum": 0}, "--grad-accum 0"),
        ({"keep": 0}, "--keep 0"),
        ({"lr": 0.0}, "--lr 0.0"),
        ({"lr": math.nan}, "--lr nan"),
        ({"lr": math.inf}, "--lr inf"),
        ({"muon_lr": -0.1}, "--muon-lr -0.1"),
        ({"ema_decay": 1.0}, "--ema-decay 1.0"),
        ({"ema_decay": math.nan}, "--ema-decay nan"),
    ],
)
def test_settings_that_cannot_be(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TrainConfig(**{**GOOD, **changes})


def test_warm_up_is_linear_and_reaches_the_peak() -> None:
    config = TrainConfig(lr=1e-3, batch_size=1, max_steps=10, warmup_steps=4)
    assert [config.lr_factor(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert TrainConfig(lr=1e-3, batch_size=1, max_steps=10, warmup_steps=0).lr_factor(0) == 1.0


def test_cosine_falls_from_the_peak_to_zero() -> None:
    config = TrainConfig(lr=1e-3, batch_size=1, max_steps=12, warmup_steps=2, lr_scheduler="cosine")
    assert config.lr_factor(0) == 0.5
    assert config.lr_factor(2) == 1.0
    assert config.lr_factor(7) == pytest.approx(0.5)
    assert config.lr_factor(12) == pytest.approx(0.0)
    factors = [config.lr_factor(step) for step in range(2, 13)]
    assert factors == sorted(factors, reverse=True)

from __future__ import annotations

import pytest
import torch
from torch import nn

from latentgen.training.ema import EMA


class Counted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("count", torch.tensor(0))


def test_average_follows_the_formula() -> None:
    """avg_n = d_n avg_{n-1} + (1 - d_n) w_n, d_n = min(decay, (1 + n) / (10 + n)), in float64 beside it."""
    module = Counted()
    ema = EMA(module, 0.6)
    expected = module.weight.detach().double()
    for step in range(1, 12):
        with torch.no_grad():
            module.weight.copy_(torch.randn(3))
            module.count += 1  # pyright: ignore[reportOperatorIssue]
        ema.update(module, step)
        decay = min(0.6, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach().double()
    torch.testing.assert_close(ema.shadow["weight"].double(), expected, rtol=1e-6, atol=1e-6)
    assert int(ema.shadow["count"]) == 11, "what is no fraction is copied"


def test_the_average_is_its_own_memory() -> None:
    module = Counted()
    ema = EMA(module, 0.9)
    before = ema.shadow["weight"].clone()
    with torch.no_grad():
        module.weight.zero_()
    assert torch.equal(ema.shadow["weight"], before)
    loaded = {name: value.clone() for name, value in EMA(Counted(), 0.9).shadow.items()}
    ema.load(loaded)
    assert torch.equal(ema.shadow["weight"], loaded["weight"])


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.1, float("nan")])
def test_decay_out_of_range(decay: float) -> None:
    with pytest.raises(ValueError, match="decay"):
        EMA(Counted(), decay)

"""A head whose logits stand out is scaled down to the cap, alone; in a run, and in processes that agree."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from latentgen.models.attention import Attention
from latentgen.training import attention_cap
from latentgen.training.attention_cap import EVERY_STEPS, SMALLEST_FACTOR, AttentionCap
from latentgen.training.run_dir import RunDir
from tests.tiny import TINY_UNET, tiny_unet
from tests.training.tiny_runs import LAST, TinyData, log_events, state_hashes, train, train_until_killed

HEADS, WIDTH, KEYS = 4, 32, 77


def alone(values: Tensor) -> Tensor:
    return values


def log_odds(layer: Attention, x: Tensor, context: Tensor) -> Tensor:
    """(heads,): of the key that any query looks at most, against all others together."""
    q, k = (
        each.unflatten(-1, (layer.heads, -1)).transpose(1, 2) for each in (layer.to_q(x[:1]), layer.to_k(context[:1]))
    )
    chances = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).double().softmax(dim=-1).amax(dim=(0, 2, 3))
    return (chances / (1 - chances)).log()


def layer_with_a_loud_head(loud: int, factor: float) -> tuple[Attention, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = Attention(WIDTH, WIDTH, HEADS)
    with torch.no_grad():
        layer.to_k.weight[loud * 8 : (loud + 1) * 8] *= factor
    return layer, torch.randn(3, 50, WIDTH), torch.randn(3, KEYS, WIDTH)


def capped(layer: Attention, x: Tensor, context: Tensor, cap: float, steps: int) -> None:
    capping = AttentionCap(nn.ModuleList([layer]), cap)
    for step in range(steps):
        capping.before_step(step)
        layer(x, context)
        capping.after_step(alone)


def test_a_loud_head_is_scaled_down_to_the_cap_and_the_others_are_left_alone() -> None:
    layer, x, context = layer_with_a_loud_head(2, 400)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    assert float(log_odds(layer, x, context)[2].detach()) > 30
    capped(layer, x, context, 5.0, 100 * EVERY_STEPS)
    odds = log_odds(layer, x, context).detach()
    assert 1 < float(odds[2]) <= 5.0 + 1e-3, "the others are not equal here, so that its odds may stay below"
    for name in ("to_q.weight", "to_k.weight"):
        was, now = (state[name].unflatten(0, (HEADS, -1)) for state in (before, layer.state_dict()))
        assert torch.equal(now[[0, 1, 3]], was[[0, 1, 3]]), name
        ratio = now[2] / was[2]
        torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio))
    shrunk = [float(layer.state_dict()[f"{side}.weight"][16:24].norm() / before[f"{side}.weight"][16:24].norm())
              for side in ("to_q", "to_k")]  # fmt: skip
    assert shrunk[0] == pytest.approx(shrunk[1], rel=1e-4), "queries and keys by the same factor"
    assert all(
        torch.equal(layer.state_dict()[name], before[name]) for name in before if "to_v" in name or "out" in name
    )


@pytest.mark.parametrize("cap", [0.0, 3.0, 6.0])
def test_the_cap_is_log_odds_where_all_other_keys_are_equal(cap: float) -> None:
    """Against softmax itself: one key that all queries like, the others alike."""
    layer = Attention(1, 1, 1)
    with torch.no_grad():
        layer.to_q.weight.fill_(9.0)
        layer.to_k.weight.fill_(9.0)
    context = torch.zeros(1, KEYS, 1)
    context[0, 5] = 1.0
    x = torch.ones(1, 20, 1)
    capped(layer, x, context, cap, 200 * EVERY_STEPS)
    # The mean of a row holds the largest logit too, 1 in KEYS of it.
    limit = (math.log(KEYS) + cap) * KEYS / (KEYS - 1) - math.log(KEYS - 1)
    assert float(log_odds(layer, x, context).detach()) == pytest.approx(limit, abs=1e-3)
    assert limit == pytest.approx(cap, abs=0.15)


def test_every_tenth_step_and_by_no_more_than_a_tenth() -> None:
    layer, x, context = layer_with_a_loud_head(0, 1e4)
    was = layer.to_q.weight.detach().clone()
    capped(layer, x, context, 5.0, EVERY_STEPS - 1)
    assert torch.equal(layer.to_q.weight, was)
    capped(layer, x, context, 5.0, EVERY_STEPS)
    torch.testing.assert_close(layer.to_q.weight[:8], was[:8] * SMALLEST_FACTOR)


def test_a_compiled_network_is_capped_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one graph: what is watched does not break it."""
    monkeypatch.setattr(attention_cap, "SMALLEST_FACTOR", 1e-3)

    def after_some_steps(*, compiled: bool) -> dict[str, Tensor]:
        network = tiny_unet().train()
        loud(network)
        capping = AttentionCap(network, 1.0)
        if compiled:
            network.compile(backend="eager", fullgraph=True)
        torch.manual_seed(0)
        inputs = torch.randn(2, 4, 8, 8), torch.tensor([3, 400]), torch.randn(2, 77, TINY_UNET.cross_attention_dim)
        for step in range(2 * EVERY_STEPS):
            capping.before_step(step)
            network(*inputs).sum().backward()
            capping.after_step(alone)
        return network.state_dict()

    plain, compiled = after_some_steps(compiled=False), after_some_steps(compiled=True)
    assert all(torch.equal(compiled[name], value) for name, value in plain.items())
    quiet = tiny_unet()
    loud(quiet)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
    shrunk = [float(plain[name][rows].norm() / quiet.state_dict()[name][rows].norm()) for rows in
              (slice(8), slice(8, 16))]  # fmt: skip
    assert max(shrunk) < 0.2
    assert max(shrunk) > 1.01 * min(shrunk), "each head by its own"


def loud(network: nn.Module) -> None:
    """Make all attention logits of a network large, in place."""
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, Attention):
                module.to_q.weight *= 40
                module.to_k.weight *= 40


def test_a_run_keeps_its_heads_under_the_cap_and_resumes_exactly(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_cap, "EVERY_STEPS", 2)
    monkeypatch.setattr(attention_cap, "SMALLEST_FACTOR", 0.3)

    def largest_odds(folder: Path, cap: float | None) -> float:
        """Of a network after its run, on a sample of the set."""
        objective = tiny_data.unet()
        loud(objective.network)
        train(objective, folder, attention_cap=cap, muon_lr=1e-4)
        found: list[float] = []
        for module in objective.network.modules():
            if isinstance(module, Attention):
                module.register_forward_pre_hook(lambda m, inputs: found.append(float(log_odds(m, *inputs).max())))
        with torch.no_grad():
            draw = objective.order(0, 1).draw(0)
            objective.loss(objective.network, objective.batch([draw]), 0)
        return max(found)

    free, kept = largest_odds(tmp_path / "free", None), largest_odds(tmp_path / "kept", 1.0)
    assert free > 2 * kept
    stopped = tiny_data.unet()
    loud(stopped.network)
    train_until_killed(stopped, tmp_path / "stopped", 7, attention_cap=1.0, muon_lr=1e-4)
    train(tiny_data.unet(), tmp_path / "stopped", resume="latest", attention_cap=1.0, muon_lr=1e-4)
    assert state_hashes(tmp_path / "stopped", LAST) == state_hashes(tmp_path / "kept", LAST)


def test_the_log_tells_how_far_heads_stand_out_and_a_run_leaves_no_hooks(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_cap, "EVERY_STEPS", 2)
    objective = tiny_data.unet()
    loud(objective.network)
    train(objective, tmp_path / "loud", attention_cap=1.0, muon_lr=1e-4)
    told = [event.get("attention") for event in log_events(tmp_path / "loud") if "loss" in event]
    assert told[0] is None, "not watched yet"
    assert told[1] > 10
    assert told[5] < told[3] < told[1] == told[2]
    train(tiny_data.unet(), tmp_path / "free", attention_cap=None)
    assert not any("attention" in event for event in log_events(tmp_path / "free"))
    hooked = [module for module in objective.network.modules() if module._forward_hooks]
    assert not hooked


def test_a_network_without_attention_has_nothing_to_cap(
    tiny_data: TinyData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_cap, "EVERY_STEPS", 1)
    train(tiny_data.vae(), tmp_path / "capped", attention_cap=5.0)
    train(tiny_data.vae(), tmp_path / "free")
    capped_run, free = (RunDir(tmp_path / name).latest() for name in ("capped", "free"))
    assert capped_run is not None
    assert free is not None
    assert all(torch.equal(capped_run.model[name], value) for name, value in free.model.items())

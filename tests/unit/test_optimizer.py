from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from latentgen.training.optimizer import (
    MUON_MOMENTUM,
    MuonAdamW,
    RatedModule,
    make_optimizer,
    orthogonalize,
    shared_out,
)
from latentgen.training.scaler_state import load_scaler, scaler_tensors


class Small(nn.Module):
    """One of each kind of parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.convolution = nn.Conv2d(8, 6, 3, padding=1)
        self.pixels = nn.Conv2d(3, 8, 1)
        self.norm = nn.GroupNorm(2, 6)
        self.linear = nn.Linear(6, 12)

    def forward(self, ids: Tensor, pixels: Tensor) -> Tensor:
        x = self.convolution(self.pixels(pixels) + self.embedding(ids)[..., None, None])
        return self.linear(self.norm(x).mean(dim=(2, 3))).square().mean()


def networks() -> tuple[Small, Small]:
    torch.manual_seed(0)
    first = Small()
    second = Small()
    second.load_state_dict(first.state_dict())
    return first, second


def backward(*modules: Small) -> None:
    ids, pixels = torch.randint(0, 11, (4,)), torch.randn(4, 3, 5, 5)
    for module in modules:
        module.zero_grad()
        module(ids, pixels).backward()


def make(network: nn.Module, muon_lr: float | None = None) -> torch.optim.AdamW:
    return make_optimizer(network, lr=1e-2, muon_lr=muon_lr, weight_decay=0.1, beta2=0.99)


def names_in(network: nn.Module, group: dict[str, object]) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}  # pyright: ignore[reportGeneralTypeIssues]
    return {name for name, parameter in network.named_parameters() if id(parameter) in members}


def test_which_parameter_goes_where() -> None:
    network = Small()
    muon, decayed, plain = make(network, muon_lr=0.05).param_groups
    assert names_in(network, muon) == {"convolution.weight", "linear.weight"}
    assert names_in(network, decayed) == {"pixels.weight"}, "three channels on a side"
    assert names_in(network, plain) == {
        *("embedding.weight", "norm.weight", "norm.bias"),
        *("convolution.bias", "pixels.bias", "linear.bias"),
    }
    assert (muon["peak_lr"], decayed["peak_lr"], plain["peak_lr"]) == (0.05, 1e-2, 1e-2)
    assert (muon["weight_decay"], decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.1, 0.0)
    network.linear.requires_grad_(False)
    assert all("linear.weight" not in names_in(network, group) for group in make(network).param_groups)


def test_a_part_learns_at_its_own_rate() -> None:
    class Two(RatedModule):
        def __init__(self, rates: dict[str, float]) -> None:
            super().__init__(rates)
            torch.manual_seed(0)
            self.first, self.second = nn.Linear(6, 5), nn.Linear(6, 5)

    groups = make(Two({"second.": 0.25}), muon_lr=0.04).param_groups
    assert [(group["muon"], group["peak_lr"]) for group in groups] == [
        (True, 0.04), (True, 0.01), (False, 1e-2), (False, 2.5e-3),
    ]  # fmt: skip
    moved: list[dict[str, Tensor]] = []
    for rates in ({}, {"second.": 0.25}):
        network = Two(rates)
        before = {name: value.clone() for name, value in network.state_dict().items()}
        optimizer = make_optimizer(network, lr=1e-2, muon_lr=0.04, weight_decay=0.0, beta2=0.99)
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"]
        (network.first(torch.ones(2, 6)).square().sum() + network.second(torch.ones(2, 6)).square().sum()).backward()
        optimizer.step()
        moved.append({name: value - before[name] for name, value in network.state_dict().items()})
    for name, distance in moved[0].items():
        torch.testing.assert_close(moved[1][name], distance * (0.25 if name.startswith("second.") else 1.0), msg=name)


def test_positions_are_embeddings_too() -> None:
    """CLIP's are bare parameters, of two dimensions as a matrix is."""
    network = Small()
    network.register_parameter("positional_embedding", nn.Parameter(torch.randn(7, 8)))
    _, _, plain = make(network, muon_lr=0.05).param_groups
    assert "positional_embedding" in names_in(network, plain)


def test_without_muon_it_is_torchs_adamw() -> None:
    ours, theirs = networks()
    optimizer = make(ours)
    decayed = [theirs.convolution.weight, theirs.pixels.weight, theirs.linear.weight]
    plain = [p for p in theirs.parameters() if not any(p is each for each in decayed)]
    reference = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}],
        lr=1e-2,
        betas=(0.9, 0.99),
        fused=True,
    )
    for _ in range(5):
        backward(ours, theirs)
        optimizer.step()
        reference.step()
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, theirs.state_dict()[name], rtol=0, atol=0, msg=name)


def test_muon_moves_its_matrices_and_adamw_the_rest() -> None:
    """After one step: matrices by Muon, everything else bit for bit where plain AdamW puts it."""
    ours, theirs = networks()
    optimizer, reference = make(ours, muon_lr=0.05), make(theirs)
    groups = list(optimizer.param_groups)
    backward(ours, theirs)
    optimizer.step()
    reference.step()
    assert optimizer.param_groups == groups
    for name, value in ours.state_dict().items():
        same = torch.equal(value, theirs.state_dict()[name])
        assert same is (name not in {"convolution.weight", "linear.weight"}), name


@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (40, 8), (6, 8 * 9)])
def test_orthogonalize(shape: tuple[int, int]) -> None:
    """Every singular value comes near 1, and the singular directions stay: U V^T of the matrix."""
    u, _, v = torch.linalg.svd(torch.randn(shape), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.05, 1.0, min(shape))) @ v
    result = orthogonalize(matrix).float()
    assert result.shape == shape
    values = torch.linalg.svdvals(result)
    assert float(values.min()) > 0.6
    assert float(values.max()) < 1.3
    along = (u.T @ result @ v.T).diagonal()
    assert float(along.min()) > 0.6, "the same directions, none flipped"


@pytest.mark.parametrize("shape", [(8, 40), (40, 8), (16, 16)])
def test_muon_is_torchs_on_matrices(shape: tuple[int, int]) -> None:
    """torch.optim.Muon with its `original` adjustment, sqrt(max(1, rows / columns)), takes the same steps.

    Tolerance: both orthogonalize in bfloat16, and five steep polynomials carry its rounding, 2**-8, to a few percent.
    """
    start = torch.randn(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    group = {"params": [ours], "muon": True, "weight_decay": 0.1}
    optimizer = MuonAdamW([group], lr=0.05)
    reference = torch.optim.Muon([theirs], lr=0.05, weight_decay=0.1, momentum=MUON_MOMENTUM, nesterov=True)
    for _ in range(4):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        optimizer.step()
        reference.step()
    moved = (theirs.detach() - start).norm()
    assert float((ours.detach() - theirs.detach()).norm() / moved) < 0.06
    assert float(moved) > 0.1


def test_a_kernel_is_stepped_as_its_flattened_matrix() -> None:
    kernel, matrix = nn.Parameter(torch.randn(6, 8, 3, 3)), nn.Parameter(torch.zeros(6, 72))
    matrix.data.copy_(kernel.data.flatten(1))
    kernel.grad = torch.randn(6, 8, 3, 3)
    matrix.grad = kernel.grad.flatten(1).clone()
    for parameter in (kernel, matrix):
        MuonAdamW([{"params": [parameter], "muon": True, "weight_decay": 0.1}], lr=0.05).step()
    assert torch.equal(kernel.data.flatten(1), matrix.data)


def test_work_is_shared_out_evenly() -> None:
    assert shared_out([5, 1, 4, 3, 3], 2) == [0, 1, 1, 1, 0], "5 + 3 and 4 + 3 + 1"
    assert shared_out([1.0, 2.0], 3) == [1, 0]


def test_state_loads_and_goes_on_as_before() -> None:
    """Through state_dict, as accelerate does with every optimizer it is given."""
    ours, theirs = networks()
    optimizer, other = make(ours, muon_lr=0.05), make(theirs, muon_lr=0.05)
    backward(ours)
    optimizer.step()
    theirs.load_state_dict(ours.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # which shares tensors
    backward(ours, theirs)
    optimizer.step()
    other.step()
    for name, value in ours.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[name]), name


def test_closure_is_called_once_and_before_the_step() -> None:
    network, _ = networks()
    optimizer = make(network, muon_lr=0.05)
    calls: list[Tensor] = []

    def closure() -> float:
        backward(network)
        calls.append(network.linear.weight.detach().clone())
        return 0.25

    before = network.linear.weight.detach().clone()
    assert optimizer.step(closure) == 0.25
    assert len(calls) == 1
    assert torch.equal(calls[0], before)
    assert not torch.equal(network.linear.weight, before)


def test_overflowed_gradients_move_nothing() -> None:
    """As a gradient scaler drives a fused optimizer."""
    network, untouched = networks()
    optimizer = make(network, muon_lr=0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    backward(network)
    scaler.scale(torch.zeros(()))
    assert network.linear.weight.grad is not None
    network.linear.weight.grad[0, 0] = math.inf
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 4.0
    for name, value in network.state_dict().items():
        assert torch.equal(value, untouched.state_dict()[name]), name


def test_loss_scale_is_saved_with_the_optimizer() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.load_state_dict({**scaler.state_dict(), "scale": 1234.5, "_growth_tracker": 17})
    tensors = scaler_tensors(scaler)
    other = torch.amp.GradScaler("cpu")
    rest = load_scaler(other, {"weight:exp_avg": torch.ones(1), **tensors})
    assert set(rest) == {"weight:exp_avg"}
    assert other.state_dict() == scaler.state_dict()
    assert scaler_tensors(None) == {}
    assert set(load_scaler(None, {"weight:exp_avg": torch.ones(1)})) == {"weight:exp_avg"}

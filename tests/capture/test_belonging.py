"""The arguments of a probe must belong together: what is certain is refused, the rest is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from watch_cases import SGD, hooks_left, network

import shiftscope as ss


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"model": torch.ones(3)}, "the model is a Tensor"),
        ({"rows": "a"}, "rows must be a whole number, got 'a'"),
        ({"rows": 1}, "rows must be at least 2"),
        ({"window": "a"}, "window must be a whole number"),
        ({"window": 0}, "window must be at least 1"),
        ({"scaler": 3}, "scaler is 3"),
        ({"every": float("nan")}, "every must be a whole number, got nan"),
        ({"every": "x"}, "every must be a whole number, got 'x'"),
        ({"every": True}, "every must be a whole number, got True"),
        ({"budget": "x"}, "budget must be a positive number, got 'x'"),
        ({"budget": float("nan")}, "budget must be a positive number, got nan"),
        ({"budget": 2}, r"budget must lie in \(0, 1\]"),
        ({"sites": 3}, "sites is 3"),
        ({"sites": None}, "sites is None"),
        ({"sites": []}, r"sites is \(\)"),
        ({"sites": [3]}, r"sites is \(3,\)"),
        ({"resume": 3}, "resume is 3"),
        ({"seed": "x"}, "seed must be a whole number"),
        ({"boundaries": 3}, "boundaries is 3"),
    ],
)
def test_arguments_without_a_meaning_are_refused(options: dict[str, Any], says: str) -> None:
    model = network()
    given = {"model": model, "optimizer": SGD(model.parameters(), lr=0.1), **options}
    with pytest.raises(ss.UsageError, match=says) as caught:
        ss.watch(**given)
    assert caught.value.remedy
    assert "\n" not in caught.value.reason
    assert hooks_left(model) == 0


def test_whole_floats_are_taken_for_every() -> None:
    assert ss.watch(network(), every=5.0).overhead["every"] == 5  # type: ignore[arg-type]


# -- optimizers -----------------------------------------------------------------------------------


def test_the_optimizer_of_another_model_is_refused() -> None:
    model, other = network(), network()
    with pytest.raises(ss.UsageError, match="the SGD holds no parameter of the model"):
        ss.watch(model, SGD(other.parameters(), lr=0.1))
    with pytest.raises(ss.UsageError, match="holds no parameter"):
        ss.watch(torch.compile(model, backend="eager"), SGD(other.parameters(), lr=0.1))


@pytest.mark.parametrize("model", [nn.Sequential(), nn.ReLU(), nn.BatchNorm1d(3, affine=False)])
def test_an_optimizer_is_none_of_a_model_without_parameters(model: nn.Module) -> None:
    with pytest.raises(
        ss.UsageError, match="the SGD holds parameters, and there are none"
    ) as caught:
        ss.watch(model, SGD(network().parameters(), lr=0.1))
    assert "call probe.step()" in caught.value.remedy
    assert hooks_left(model) == 0
    ss.watch(model).detach()


class Bare(nn.Module):
    """Its weights are plain tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.randn(4, 3).requires_grad_()
        self.more = {"v": torch.randn(3, 2).requires_grad_()}

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.w) @ self.more["v"]


class Wrapper:
    """As trainers wrap optimizers."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer


class Tagged(nn.Parameter):
    """As sharded parameters are: of another class."""


def flat_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    """One buffer holds all parameters, which become views of it."""
    flat = torch.cat([p.detach().ravel() for p in model.parameters()]).requires_grad_()
    start = 0
    for p in model.parameters():
        p.data = flat.detach()[start : start + p.numel()].view_as(p)
        start += p.numel()
    return SGD([flat], lr=0.1)


def own(model: nn.Module) -> Any:
    return SGD(model.parameters(), lr=0.1)


def constrained() -> nn.Module:
    return network(last=parametrizations.weight_norm(nn.Linear(5, 2)))


def of_another(_: nn.Module) -> Any:
    return own(network())


CASES: dict[str, tuple[Any, Any]] = {
    "one layer": (network, lambda m: own(m[0])),
    "a larger model": (network, lambda m: own(nn.ModuleList([m, nn.Linear(2, 2)]))),
    "wrapped": (network, lambda m: Wrapper(own(m))),
    "parametrized": (constrained, own),
    "compiled": (lambda: torch.compile(network(), backend="eager"), own),
    "data parallel": (lambda: nn.DataParallel(network()), own),
    "flat": (network, flat_optimizer),
    "plain tensors": (Bare, lambda m: SGD([m.w], lr=0.1)),
    "plain tensors in a table": (Bare, lambda m: SGD(m.more.values(), lr=0.1)),
    "frozen": (lambda: network().requires_grad_(False), of_another),
    "master copies": (lambda: network().bfloat16(), of_another),
    "without an address": (lambda: network().to("meta"), lambda _: own(network().to("meta"))),
    "tensors of a class": (
        lambda: network(),
        lambda _: SGD([Tagged(torch.ones(2))], lr=0.1),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_not_certain_is_not_refused(name: str) -> None:
    make, optimizer = CASES[name]
    model = make()
    ss.watch(model, optimizer(model)).detach()


def test_groups_may_be_filled_later() -> None:
    model, optimizer = network(), SGD([torch.zeros(1)], lr=0.1)
    optimizer.param_groups.clear()
    optimizer.param_groups.append({"params": []})
    ss.watch(model, optimizer).detach()


def test_several_processes_are_not_judged(tmp_path: Path) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/s", rank=0, world_size=1)
    try:
        ss.watch(network(), of_another(network())).detach()
    finally:
        dist.destroy_process_group()

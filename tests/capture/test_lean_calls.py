"""Recording by plan: a call keeps its name and its place in the graph from step to step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tally_support import READERS, read_by
from torch import Tensor, nn

import shiftscope as ss


@pytest.fixture(autouse=True, params=READERS)
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test here holds for each way of reading a tensor."""
    read_by(request.param, monkeypatch)
    return str(request.param)


def run_lean(model: nn.Module, batches: list[Any], loss: Callable[[Any], Tensor]) -> Any:
    with ss.watch(model, every=1, window=len(batches)) as probe:
        for x in batches:
            model.zero_grad()
            loss(model(x) if isinstance(x, Tensor) else [model(part) for part in x]).backward()
            probe.step()
    return probe.trace.last.records


def test_a_call_keeps_its_place_in_the_graph_when_the_plan_learns_another() -> None:
    """Laid out otherwise, the same op has other nodes; what was hooked before stays as it was."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Tanh(), nn.Linear(5, 5))
    batches = [[torch.randn(2, 3, 5, requires_grad=True) for _ in range(2)] for _ in range(2)]
    for parts in batches:
        parts.append(torch.randn(2, 5, 3, requires_grad=True).transpose(1, 2))
    records = run_lean(model, batches, lambda outs: sum(out.square().sum() for out in outs))
    assert set(records["1"].streams["grad_a"].moments.count.tolist()) == {2 * 3 * 6}


def test_a_layout_that_ends_early_in_the_graph_is_no_error() -> None:
    torch.manual_seed(0)
    model = nn.Linear(5, 5)
    assert model.bias is not None
    model.bias.requires_grad_(False)
    shapes = [(2, 5, 3), (2, 5, 3), (1, 5, 3), (2, 5, 3)]
    records = run_lean(
        model, [torch.randn(s).transpose(1, 2) for s in shapes], lambda out: out.square().sum()
    )
    (record,) = records.values()
    assert set(record.streams["grad_z"].moments.count.tolist()) == {21}


@pytest.mark.parametrize("kind", [nn.Softsign, nn.Tanhshrink, nn.Tanh, nn.Hardswish])
def test_an_activation_of_several_nodes_keeps_its_whole_gradient(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), kind(), nn.Linear(3, 1))
    x = torch.randn(50, 4)
    want = run_lean(model, [x], lambda out: out.square().sum())["1"].streams["grad_z"].moments
    got = run_lean(model, [x] * 4, lambda out: out.square().sum())["1"].streams["grad_z"].moments
    torch.testing.assert_close(got.mean, want.mean, rtol=1e-5, atol=1e-7)


def test_a_patched_forward_keeps_its_name() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    first: Any = model[0]
    first.forward = lambda x: F.linear(F.relu(x), first.weight)
    records = run_lean(model, [torch.randn(6, 4)] * 2, lambda out: out.sum())
    assert set(records) == {"0", "0:relu", "1"}


def test_transforms_of_functions_pass_through() -> None:
    class Mapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.outer = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Any:
            return self.outer(torch.func.vmap(self.inner)(x))

    records = run_lean(Mapped(), [torch.randn(6, 4)] * 3, lambda out: out.sum())
    assert "outer" in records

"""Odd models, analysed and trained: what they run is a site, or a gap with its reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import shiftscope as ss


class Model(nn.Module):
    """Layers and weights by name, and what is run of them."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], **parts: Any) -> None:
        super().__init__()
        self.run = run
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def measured(model: nn.Module) -> list[ss.Snapshot]:
    """By an analysis, and in three steps of training."""
    data = torch.randn(3, 6, 4, generator=torch.Generator().manual_seed(1))
    analysed = ss.analyze(model, [(data[0], None)], lambda out, _: out.square().sum())
    with ss.watch(model, every=1) as probe:
        for x in data:
            model(x).square().sum().backward()
            probe.step()
    return [analysed, probe.snapshot()]


def linear() -> nn.Linear:
    return nn.Linear(4, 4)


def ragged(x: Tensor) -> Tensor:
    return torch.nested.nested_tensor([x[:2], x[2:]], layout=torch.jagged)


NESTED = "nested tensors: their rows differ in length"
COMPLEX = "complex numbers: their means and variances are not defined here"
WIDTH = "called with tensors of width zero only"
LISTED: dict[str, tuple[Callable[[], nn.Module], dict[str, str]]] = {
    "an activation of nested tensors": (
        lambda: Model(lambda m, x: m.a(x) + m.r(ragged(x)).values(), a=linear(), r=nn.ReLU()),
        {"r": NESTED},
    ),
    "a function of nested tensors": (
        lambda: Model(lambda m, x: m.a(x) + torch.relu(ragged(x)).values(), a=linear()),
        {":relu": NESTED},
    ),
    "a function of complex numbers": (
        lambda: Model(lambda m, x: m.a(torch.tanh(x + 1j * x).abs()), a=linear()),
        {":tanh": COMPLEX},
    ),
    "a layer that another one uses for sparse inputs": (
        lambda: Model(
            lambda m, x: m.a(x) + F.linear(x.relu().to_sparse(), m.b.weight), a=linear(), b=linear()
        ),
        {"b": "sparse tensors are not measured"},
    ),
    "a layer without outputs": (
        lambda: Model(lambda m, x: torch.cat([m.a(x), m.b(x)], 1), a=linear(), b=nn.Linear(4, 0)),
        {"b": WIDTH},
    ),
    "layers without inputs": (
        lambda: Model(
            lambda m, x: m.a(x) + m.b(m.r(x[:, :0])), a=linear(), b=nn.Linear(0, 4), r=nn.ReLU()
        ),
        {"b": WIDTH, "r": WIDTH},
    ),
    "an activation that is never called": (
        lambda: Model(lambda m, x: m.a(x), a=linear(), r=nn.GELU()),
        {"r": "not called"},
    ),
    "a weight under vmap": (
        lambda: Model(
            lambda m, x: m.a(x) + torch.vmap(lambda row: row @ m.w)(x), a=linear(), w=torch.eye(4)
        ),
        {"": "called under a transform of torch.func only (vmap, grad): not measured there"},
    ),
    "a lazy layer that is never called": (
        lambda: Model(lambda m, x: m.a(x), a=linear(), z=nn.LazyLinear(3)),
        {"z": "a lazy module that was not called: its weights do not exist yet"},
    ),
}


@pytest.mark.filterwarnings("ignore:.*[Nn]ested", "ignore:Lazy modules", "ignore:Initializing zero")
@pytest.mark.parametrize("name", LISTED)
def test_what_cannot_be_measured_is_listed_beside_what_can(name: str) -> None:
    make, gaps = LISTED[name]
    for snapshot in measured(make()):
        assert "a" in snapshot.records
        assert dict(snapshot.gaps) == gaps


def run_with_gates(m: Any, x: Tensor) -> Tensor:
    places = (x[:, 0] * 9).long().clamp(min=0) % 6
    return torch.sigmoid(m.gate) * torch.sigmoid(torch.relu(m.a(x[places])))


def test_whole_and_single_numbers_are_no_signals() -> None:
    model = Model(run_with_gates, a=linear(), gate=torch.tensor(0.5))
    for snapshot in measured(model):
        assert list(snapshot.records) == ["a", ":relu", ":sigmoid"]
        assert snapshot.gaps == ()


def rows(run: Callable[[Any, Tensor], Tensor], **parts: Any) -> list[tuple[str, Any]]:
    """Site and variance of z, of both ways to measure."""
    torch.manual_seed(0)
    model = Model(run, a=nn.Linear(4, 4), w=torch.randn(4, 3), g=torch.rand(4) + 0.5, **parts)
    found = measured(model)
    for snapshot in found:
        assert snapshot.gaps == ()
    return [(name, snapshot.records[name]) for snapshot in found for name in snapshot.records]


@pytest.mark.parametrize(
    ("run", "names"),
    [
        (lambda m, x: m.a(x) @ m.w, ["a", ":matmul"]),
        (lambda m, x: torch.einsum("bi,io->bo", m.a(x), m.w), ["a", ":einsum"]),
        (lambda m, x: m.a(x * m.g) @ m.w, ["a", ":matmul"]),
        (lambda m, x: m.a(x) @ m.w + (x * m.g) @ m.w, ["a", ":matmul", ":matmul.2"]),
        (lambda m, x: m.a(x) @ m.a(x).t() @ x @ m.w, ["a", ":matmul"]),
    ],
)
def test_what_a_layer_made_of_data_is_no_weight(
    run: Callable[[Any, Tensor], Tensor], names: list[str]
) -> None:
    found = rows(run)
    assert [name for name, _ in found] == names * 2
    for name, record in found:
        assert record.info.neurons == (4 if name == "a" else 3)
        assert torch.isfinite(record.streams["grad_z"].moments.mean).all()

"""What ``ss.watch`` cannot measure it tells, with the reason; what it can, it measures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import shiftscope as ss

Run = Callable[[nn.Module, Tensor], Tensor]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    layers = (nn.Linear(12, 16), nn.Sigmoid(), nn.Linear(16, 8), nn.Tanh(), nn.Linear(8, 5))
    return nn.Sequential(*layers)


def watched(model: nn.Module, run: Any, between: Any = None) -> ss.Snapshot:
    """Three steps, each the backward pass of what ``run(model, x)`` gives."""
    data = torch.Generator().manual_seed(1)
    with ss.watch(model, every=1) as probe:
        for _ in range(3):
            x = torch.randn(9, 12, generator=data).requires_grad_()
            out = run(model, x)
            if between is not None:
                between(model)
            if isinstance(out, Tensor) and out.grad_fn is not None:
                out.square().mean().backward()
            probe.step()
    return probe.snapshot()


PIECEWISE: dict[str, Run] = {
    "sequential": lambda net, x: checkpoint_sequential(net, 2, x, use_reentrant=True),
    "part": lambda net, x: net[4](checkpoint(net[:4], x, use_reentrant=True)),
    "whole": lambda net, x: checkpoint(net, x, use_reentrant=True),
}


def validate(model: nn.Module) -> None:
    with torch.no_grad():
        model.eval()(torch.ones(30, 12))
    model.train()


@pytest.mark.parametrize("between", [None, validate])
@pytest.mark.parametrize("name", PIECEWISE)
def test_reentrant_checkpoints_around_parts_of_the_model(name: str, between: Any) -> None:
    expected = watched(mlp(), lambda net, x: net(x))
    got = watched(mlp(), PIECEWISE[name], between)
    assert (got.gaps, got.sites["notes"].tolist()) == ((), [""] * 5)
    for column in ("count", "z_mean", "z_var", "grad_z_count", "grad_z_mean", "grad_z_var"):
        np.testing.assert_allclose(got.neurons[column], expected.neurons[column], rtol=1e-9)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return torch.relu(x @ w.t())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return grads[0] @ w, grads[0].t() @ x


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.w = nn.Linear(12, 12), nn.Parameter(torch.randn(7, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = checkpoint(lambda x: torch.tanh(self.first(x)), x, use_reentrant=True)
        return Product.apply(x, self.w)


def test_calls_without_a_gradient_say_so() -> None:
    notes = watched(Custom(), lambda net, x: net(x)).sites.set_index("site")["notes"]
    assert notes["first"] == ""
    for site in (":tanh", ":matmul", ":relu"):
        assert "3 of 3 calls passed no gradient on" in notes[site]


def test_layers_that_run_under_no_grad_by_themselves_are_listed() -> None:
    def run(net: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = net[0](x)
        return net[2](torch.tanh(hidden))

    snapshot = watched(mlp()[:3], run)
    assert list(snapshot.records) == ["2"]
    (path, reason), uncalled = snapshot.gaps
    assert path == "0"
    assert "another phase" in reason
    assert uncalled == ("1", "not called")
    assert snapshot.coverage["parameters"] == {"seen": 16 * 8, "total": 12 * 16 + 16 * 8}


class Two(nn.Module):
    """Of its three weights one goes through an op that is known, one by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 12, 8) * 0.1)
        self.v = nn.Parameter(torch.randn(3, 8, 5) * 0.1)
        self.u = nn.Parameter(torch.randn(4, 5) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(torch.bmm(x.view(3, 3, 12), self.w))
        return torch.einsum("ebi,eio->ebo", h, self.v) @ self.u.t()


def test_a_weight_that_no_op_used_is_named_where_others_were_measured() -> None:
    snapshot = watched(Two(), lambda net, x: net(x))
    ((path, reason),) = snapshot.gaps
    assert path == ""
    assert "no linear map with its w was seen" in reason
    assert snapshot.coverage["parameters"] == {"seen": 3 * 40 + 20, "total": 3 * 96 + 3 * 40 + 20}


def test_weights_that_are_only_added_are_named() -> None:
    class Embedded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.position = nn.Parameter(torch.zeros(9, 12))
            self.head = nn.Linear(12, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x + self.position)

    ((path, reason),) = watched(Embedded(), lambda net, x: net(x)).gaps
    assert path == ""
    assert "position was seen (added, or" in reason


def test_weights_beside_those_of_a_part_that_was_run_are_named() -> None:
    class Biased(nn.Module):
        """Runs the weights of its part itself, as windowed attention does, and adds a table."""

        def __init__(self) -> None:
            super().__init__()
            self.table, self.part = nn.Parameter(torch.randn(9, 12)), nn.Linear(12, 12)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.part.weight, self.part.bias) + self.table

    model = nn.Sequential(Biased(), nn.Linear(12, 2))
    snapshot = ss.analyze(model, [torch.randn(9, 12)])
    assert list(snapshot.records) == ["0.part", "1"]
    assert [path for path, reason in snapshot.gaps if "its table was seen" in reason] == ["0"]
    assert snapshot.coverage["parameters"] == {"seen": 12 * 12 + 24, "total": 9 * 12 + 12 * 12 + 24}


def test_a_layer_under_vmap_was_called() -> None:
    class Batched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(self.second)(torch.relu(self.first(x)))

    ((path, reason),) = watched(Batched(), lambda net, x: net(x)).gaps
    assert path == "second"
    assert "vmap" in reason


def nested(net: nn.Module, x: Tensor) -> Tensor:
    return net(torch.nested.nested_tensor([x[:3], x[3:]], layout=torch.jagged)).values()


def inferred(net: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return net.eval()(x.view(3, 3, 12))


def scripted() -> nn.Module:
    return torch.jit.trace(mlp(), torch.zeros(1, 12))


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(12, 2, 16, batch_first=True)


NOTHING: dict[str, tuple[Callable[[], nn.Module], Any, str]] = {
    "vmap": (mlp, lambda net, x: torch.vmap(net)(x), "vmap"),
    "grad": (mlp, lambda net, x: torch.func.grad(lambda x: net(x).sum())(x), "torch.func"),
    "nested": (lambda: mlp()[:1], nested, "nested"),
    "complex": (lambda: mlp()[:1].to(torch.complex64), lambda n, x: n(x + 0j).abs(), "complex"),
    "script": (scripted, lambda net, x: net(x), "TorchScript"),
    "empty": (mlp, lambda net, x: net(x[:0]), "empty batches"),
    "fused": (encoder, inferred, "fused inference path"),
    "fused cell": (lambda: nn.GRUCell(12, 4), lambda net, x: net(x), "fused op(.|\\n)*ss.analyze"),
    "meta": (
        lambda: mlp().to("meta"),
        lambda net, x: net(x.detach().to("meta")),
        "shapes only",
    ),
}


@pytest.mark.filterwarnings("ignore:.torch.jit", "ignore:Complex modules", "ignore:.*nested")
@pytest.mark.parametrize("name", NOTHING)
def test_where_nothing_can_be_measured_the_message_says_why(name: str) -> None:
    make, run, reason = NOTHING[name]
    with pytest.raises(ss.MeasureError, match=f"nothing could be measured.*{reason}"):
        watched(make(), run)


def test_a_trace_without_windows_says_what_could_not_be_measured() -> None:
    cell = nn.GRUCell(3, 3)
    with ss.watch(cell, every=1, window=1) as probe:
        cell(torch.randn(2, 3)).sum().backward()
        probe.step()
    with pytest.raises(ss.UsageError, match=r"holds no window: .*fused op(.|\n)*ss.analyze"):
        _ = probe.trace.last


def test_where_nothing_was_run_the_message_says_so() -> None:
    with pytest.raises(ss.MeasureError, match="no step of phase 'train' was recorded"):
        watched(mlp(), lambda net, x: x)


def test_a_pattern_that_names_nothing_in_a_single_layer_gives_no_empty_list() -> None:
    with pytest.warns(UserWarning, match="no site matches .*; leave sites out to keep all"):
        ss.watch(nn.Linear(3, 3), every=1, sites="fc*").detach()

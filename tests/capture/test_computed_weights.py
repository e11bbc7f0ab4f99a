"""Weights that a parametrization computes, in layers that run them by any product."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

import shiftscope as ss

PRODUCTS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w, b: x @ w + b,
    "addmm": lambda x, w, b: torch.addmm(b, x, w),
    "einsum": lambda x, w, b: torch.einsum("ni,io->no", x, w) + b,
    "transposed": lambda x, w, b: (w.t() @ x.t()).t() + b,
}


class Layer(nn.Module):
    """A layer of one's own, square so that nothing is told by its shape."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(6, 6)), nn.Parameter(torch.randn(6))
        self.product = product

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x, self.weight, self.bias)


class Centred(nn.Module):
    """An operation that no list of shaping functions knows."""

    def forward(self, weight: Tensor) -> Tensor:
        return torch.linalg.qr(weight - weight.mean(0))[0]


def network(product: str) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(Layer(PRODUCTS[product]), nn.Tanh(), Layer(PRODUCTS[product]))
    parametrize.register_parametrization(model[0], "weight", Centred())
    parametrizations.weight_norm(model[2], "weight", dim=1)
    return model


def train(model: nn.Module, x: Tensor, *, cached: bool = False) -> ss.Snapshot:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with ss.watch(model, optimizer, every=1, window=1) as probe:
        for _ in range(3):
            optimizer.zero_grad()
            if cached:
                with parametrize.cached():
                    (model(x[:4]).square().mean() + model(x[4:]).square().mean()).backward()
            else:
                model(x).square().mean().backward()
            last = [layer.weight.detach().clone() for layer in (model[0], model[2])]  # type: ignore[index]
            optimizer.step()
        snapshot = probe.trace.last
    for name, weight in zip("02", last, strict=True):
        facts = snapshot.records[name].weights
        assert facts is not None
        np.testing.assert_allclose(facts.norm2, weight.double().square().sum(0), rtol=1e-5)
    return snapshot


@pytest.mark.parametrize("product", PRODUCTS)
@pytest.mark.parametrize("cached", [False, True])
def test_they_are_measured_under_the_name_of_their_layer(product: str, cached: bool) -> None:
    model, x = network(product), torch.randn(8, 6)
    analysed = ss.analyze(model, [x])
    watched = train(model, x, cached=cached)
    for snapshot in (analysed, watched):
        assert list(snapshot.records) == ["0", "1", "2"]
        assert not snapshot.gaps
    z = analysed.records["0"].streams["z"].moments
    want = x.double() @ network(product)[0].weight.detach().double()  # type: ignore[union-attr]
    np.testing.assert_allclose(z.variance, want.var(0, correction=0), rtol=1e-4)


def test_no_other_tensor_is_taken_for_one() -> None:
    """Of the same shape, computed in the same call, and not from data that need a gradient."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(6, 6))

        def forward(self, x: Tensor) -> Tensor:
            h = x @ self.weight
            out: Tensor = h @ torch.sigmoid(h)
            return out

    torch.manual_seed(0)
    model = nn.Sequential(Gate())
    parametrize.register_parametrization(model[0], "weight", Centred())
    snapshot = ss.analyze(model, [torch.randn(6, 6)])
    assert [name for name, r in snapshot.records.items() if r.info.kind == "linear"] == ["0"]
    assert snapshot.records["0"].calls == 1

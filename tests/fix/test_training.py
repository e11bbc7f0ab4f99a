"""A 20-layer sigmoid network on the digits: what trains with LCW and does not without."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.fix.initialise import standardize_


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training and test part, 1437 and 360 images of 64 pixels in [0, 1]."""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    x = torch.tensor(bunch.data, dtype=torch.float32)[order] / 16
    y = torch.tensor(bunch.target)[order]
    return x[:1437], y[:1437], x[1437:], y[1437:]


def network(variant: str, depth: int = 20, width: int = 128) -> nn.Sequential:
    """Glorot weights, zero biases, and what the variant names."""
    layers: list[nn.Module] = []
    inputs = 64
    for _ in range(depth):
        linear = nn.Linear(inputs, width)
        layers += [linear, *([nn.BatchNorm1d(width)] if "bn" in variant else []), nn.Sigmoid()]
        inputs = width
    net = nn.Sequential(*layers, nn.Linear(inputs, 10))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
    batch = digits()[0][:256]
    if "lcw" in variant:
        ss.constrain(net, "lcw")
    if "lcw" in variant or variant == "plain_mb":
        ss.rescale_(net, batch)
    if variant == "sn":
        ss.constrain(net, "spectral_norm")
    if variant == "wn":
        ss.constrain(net, "weight_norm")
        standardize_(net, batch, draw=0.05)
    return net


def train(variant: str, seed: int, epochs: int = 15) -> tuple[float, float]:
    """Training loss of the last epoch and test accuracy."""
    torch.manual_seed(seed)
    x, y, x_test, y_test = digits()
    net = network(variant)
    sgd = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    rate = torch.optim.lr_scheduler.ExponentialLR(sgd, 0.95)
    total = 0.0
    for _ in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(net(x[rows]), y[rows])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
            total += float(loss.detach()) * len(rows)
        rate.step()
    net.eval()
    with torch.no_grad():
        accuracy = (net(x_test).argmax(1) == y_test).float().mean()
    return total / len(x), float(accuracy)


@pytest.mark.parametrize(
    "seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)]
)
def test_two_lines_make_it_train(seed: int) -> None:
    loss, accuracy = train("lcw", seed)
    assert loss < 0.05
    assert accuracy >= 0.95


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("variant", ["plain", "plain_mb", "sn", "wn"])
def test_without_it_nothing_is_learnt(variant: str, seed: int) -> None:
    loss, accuracy = train(variant, seed)
    assert loss > 2.2
    assert accuracy < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_batch_normalisation_it_trains_faster_than_that_alone(seed: int) -> None:
    both, alone = train("bn+lcw", seed)[0], train("bn", seed)[0]
    assert both < 0.1
    assert both < alone < 0.3

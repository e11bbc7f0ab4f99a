"""Chains are told from numbers: what continues one, and everything that ends it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import shiftscope as ss
from shiftscope.prediction.chain import chains, layers_of


class Net(nn.Module):
    """Two linear maps with something of choice between."""

    def __init__(self, between: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)
        self.norm, self.layer_norm = nn.BatchNorm1d(24), nn.LayerNorm(24)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.between(self, self.first(x), x))
        return out


def measured(model: nn.Module, *shape: int) -> ss.Snapshot:
    torch.manual_seed(0)
    snapshot: ss.Snapshot = ss.analyze(model, [torch.randn(64, *shape) + 0.5 for _ in range(2)])
    return snapshot


GOES_ON = {
    "activation": lambda net, z, x: torch.relu(z),
    "nothing": lambda net, z, x: z,
    "in place": lambda net, z, x: torch.relu_(z),
    "batch norm": lambda net, z, x: torch.tanh(net.norm(z)),
}
ENDS = {
    "residual sum": lambda net, z, x: x + torch.relu(z),
    "sum before the activation": lambda net, z, x: torch.relu(x + z),
    "one scale for all": lambda net, z, x: torch.sigmoid(-3.0 * z + 1.0),
    "layer norm": lambda net, z, x: torch.relu(net.layer_norm(z)),
    "norm of activations": lambda net, z, x: net.norm(torch.relu(z)),
    "pooling": lambda net, z, x: torch.relu(z).cumsum(0),
    "two activations": lambda net, z, x: torch.sigmoid(torch.relu(z)),
    "unknown function": lambda net, z, x: torch.special.i0e(z),
    "softmax": lambda net, z, x: torch.softmax(z, dim=-1),
}


@pytest.mark.parametrize("name", GOES_ON)
def test_a_chain_goes_on(name: str) -> None:
    layers = layers_of(measured(Net(GOES_ON[name]), 24))
    assert chains(layers) == ([[0, 1]], [])
    assert [layer.normalized for layer in layers] == [name == "batch norm", False]


@pytest.mark.parametrize("name", ENDS)
def test_a_chain_ends(name: str) -> None:
    parts, cuts = chains(layers_of(measured(Net(ENDS[name]), 24)))
    assert parts == [[0], [1]]
    ((site, reason),) = cuts
    assert site == "second"
    assert "lies between" in reason or reason == "no gain is known of softmax"


def test_convolutions_and_flattening() -> None:
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3)),
        *(nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)),
    )
    parts, cuts = chains(layers_of(measured(model, 2, 8, 8)))
    assert parts == [[0, 1], [2]]
    assert cuts[0][0] == "6"


def test_a_saved_snapshot_has_the_same_chains(tmp_path) -> None:  # type: ignore[no-untyped-def]
    snapshot = measured(Net(GOES_ON["batch norm"]), 24)
    snapshot.save(tmp_path / "run.npz")
    loaded = ss.load(tmp_path / "run.npz")
    assert chains(layers_of(loaded)) == chains(layers_of(snapshot)) == ([[0, 1]], [])


def test_nothing_measured_is_no_chain() -> None:
    assert chains(layers_of(ss.Snapshot(records={}))) == ([], [])

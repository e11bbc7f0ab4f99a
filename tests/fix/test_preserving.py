"""Mean-preserving constraints: what the weights lose of the means, the biases get."""

from __future__ import annotations

import copy

import pytest
import torch
from fix_cases import batches, mlp
from torch import nn

import shiftscope as ss
from shiftscope.errors import UsageError
from shiftscope.fix.preserving import preserve_means_


def test_one_layer_follows_the_formula() -> None:
    """b_i + w̄_i E(Σ_j a_j), written out."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 5).double(), torch.rand(64, 16, dtype=torch.float64)
    weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
    model = nn.Sequential(layer)
    (change,) = preserve_means_(model, x)
    assert (change.site, change.action) == ("0", "constrain")
    average = weight.mean(1)
    torch.testing.assert_close(model[0].weight, weight - average[:, None])
    torch.testing.assert_close(model[0].bias.data, bias + average * x.sum(1).mean())


def test_inputs_of_constant_sum_give_the_same_outputs() -> None:
    torch.manual_seed(0)
    x = torch.rand(64, 16, dtype=torch.float64)
    x = x / x.sum(1, keepdim=True)
    model = nn.Sequential(nn.Linear(16, 5)).double()
    before = model(x)
    preserve_means_(model, x)
    ss.release(model)
    torch.testing.assert_close(model(x), before, atol=1e-12, rtol=0)


@pytest.mark.parametrize("method", ["lcw", "lcw-projection", "lcw-data"])
def test_each_layer_keeps_its_means_on_the_inputs_it_gets(method: str) -> None:
    torch.manual_seed(0)
    model, (x, _) = mlp(nn.ReLU, 4).double(), batches()[0]
    x = x.double()
    old = copy.deepcopy(model)
    preserve_means_(model, x, method)
    ss.release(model)
    h = x
    for layer, was in zip(model, old, strict=True):
        if isinstance(layer, nn.Linear):
            torch.testing.assert_close(layer(h).mean(0), was(h).mean(0), atol=1e-12, rtol=0)
            direction = h.mean(0) if method == "lcw-data" else torch.ones(h.shape[1]).double()
            assert (layer.weight @ direction).abs().max() < 1e-12 * len(direction)
        h = layer(h)


def test_convolutions_keep_their_means_under_zero_padding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, 2, 1))
    ((x, _),) = batches((1, 8, 8))[:1]
    before = model[0](x).mean((0, 2, 3))
    preserve_means_(model, x)
    torch.testing.assert_close(model[0](x).mean((0, 2, 3)), before, atol=1e-6, rtol=0)


def test_it_changes_the_output_less_than_the_bare_constraint() -> None:
    torch.manual_seed(0)
    model, (x, _) = mlp(nn.Sigmoid, 3), batches()[0]
    bare, kept = copy.deepcopy(model), copy.deepcopy(model)
    ss.constrain(bare, "lcw")
    preserve_means_(kept, x)
    y = model(x)
    assert (kept(x) - y).norm() < 0.2 * (bare(x) - y).norm()


def test_layers_without_bias_are_left_alone_and_named() -> None:
    model = nn.Sequential(nn.Linear(16, 8, bias=False), nn.ReLU(), nn.Linear(8, 4))
    weight = model[0].weight.detach().clone()
    first, second = preserve_means_(model, torch.rand(32, 16))
    assert (first.action, second.action) == ("skip", "constrain")
    assert "no bias" in first.reason
    assert torch.equal(model[0].weight, weight)


def test_other_methods_are_refused() -> None:
    with pytest.raises(UsageError, match="preserves no means"):
        preserve_means_(nn.Sequential(nn.Linear(4, 4)), torch.rand(8, 4), "cwn")

"""What stands around a constraint: optimizers, wrappers, odd weights, wrong arguments."""

from __future__ import annotations

import copy
import warnings
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import shiftscope as ss
from shiftscope.errors import MeasureError, UsageError
from shiftscope.fix.constrain import METHODS


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Sigmoid(), nn.Linear(8, 3))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.rand(4, 6)).square().sum().backward()
    optimizer.step()


# -- optimizers and wrappers ----------------------------------------------------------------------


@pytest.mark.parametrize("method", ["lcw", "cwn", "weight_norm", "gmp"])
def test_an_optimizer_that_was_built_before_is_told(method: str) -> None:
    model = net()
    optimizer = torch.optim.Adam(model.parameters())
    step(model, optimizer)
    with pytest.warns(UserWarning, match="an optimizer was built before the model was constrained"):
        ss.constrain(model, method)
    del optimizer
    new = torch.optim.Adam(model.parameters())
    step(model, new)
    ss.release(model)  # training is over: nobody is warned


def test_nobody_is_warned_without_need() -> None:
    model, other = net(), net()
    elsewhere = torch.optim.Adam(other.parameters())
    step(other, elsewhere)
    same = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    step(model, same)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ss.constrain(model, "lcw-projection")  # the same parameters in the same shape
        step(model, same)
        ss.constrain(model, "lcw-projection")
        ss.constrain(other, "lcw", dry_run=True)


def test_a_model_that_is_wrapped_already_is_refused() -> None:
    model = net()
    wrapped = object.__new__(nn.parallel.DistributedDataParallel)
    nn.Module.__init__(wrapped)
    wrapped.module = model
    for act in (lambda: ss.constrain(wrapped, "gmp"), lambda: ss.constrain(nn.Sequential(wrapped))):
        with pytest.raises(UsageError, match="DistributedDataParallel") as raised:
            act()
        assert "afterwards" in raised.value.remedy
    ss.constrain(model, "lcw")
    with pytest.raises(UsageError, match="DistributedDataParallel"):
        ss.release(wrapped)


# -- odd weights ----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("method", [m for m in METHODS if m != "lcw-data"])
def test_layers_without_weights_are_left_alone(method: str) -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 0), nn.Linear(0, 3))
    changes = ss.constrain(model, method)
    assert [change.action for change in changes] == ["constrain", "skip", "skip"]
    assert "no elements" in changes[1].reason


@pytest.mark.parametrize(
    ("method", "rows"),
    [("weight_norm", [1]), ("weight_norm", [0, 1, 2]), ("spectral_norm", [0, 1, 2])],
)
@pytest.mark.parametrize("dry_run", [False, True])
def test_rows_of_zeros_have_no_direction(method: str, rows: list[int], dry_run: bool) -> None:
    layer = nn.Linear(4, 3)
    layer.weight.data[rows] = 0.0
    with nullcontext() if dry_run else pytest.warns(UserWarning, match="no layer was constrained"):
        (change,) = ss.constrain(layer, method, dry_run=dry_run)
    assert change.action == "skip"
    assert "zero weights" in change.reason
    assert not parametrize.is_parametrized(layer)


@pytest.mark.parametrize("method", ["cwn", "weight_norm", "gmp"])
def test_weights_that_would_overflow_are_left_as_they_are(method: str) -> None:
    layer = nn.Linear(256, 4).half()
    layer.weight.data.uniform_(-1.0, 1.0).mul_(1e4)
    before, weight = layer.weight.detach().clone(), layer.weight
    bias = layer.bias.detach().clone()
    with pytest.warns(UserWarning, match="no layer was constrained"):
        (change,) = ss.constrain(layer, method)
    assert change.action == "skip"
    assert "range of torch.float16" in change.reason
    assert torch.equal(layer.weight, before)
    assert torch.equal(layer.bias, bias)
    assert layer.weight is weight
    assert not parametrize.is_parametrized(layer)


def test_what_rounding_changes_is_told() -> None:
    torch.manual_seed(0)
    (coarse,) = ss.constrain(nn.Linear(2048, 4).bfloat16(), "gmp")
    assert coarse.action == "constrain"
    assert "rounding in bfloat16 changes its weights by" in coarse.reason
    (fine,) = ss.constrain(nn.Linear(64, 4), "gmp")
    assert fine.reason == ""


def test_frozen_weights_are_projected_and_it_is_said() -> None:
    model = net()
    model[2].weight.requires_grad_(False)
    for dry_run in (True, False):
        changes = ss.constrain(model, "lcw", dry_run=dry_run)
        assert changes[0].reason == ""
        assert "frozen" in changes[1].reason
    assert float(model[2].weight.sum(1).abs().max()) < 1e-6


def test_the_order_in_memory_comes_back() -> None:
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    strides = layer.weight.stride()
    for method in ("lcw", "lcw-projection", "cwn", "weight_norm", "gmp"):
        ss.constrain(layer, method)
        ss.release(layer)
        assert layer.weight.stride() == strides


# -- wrong arguments ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda: ss.constrain(net(), "cwn", scale=0.0), "positive scale"),
        (lambda: ss.constrain(net(), "cwn", scale=-1.0), "positive scale"),
        (lambda: ss.constrain(net(), sites=["0", "9"]), "sites='9'"),
        (lambda: ss.constrain(net(), sites=3), "neither a pattern"),  # type: ignore[arg-type]
        (lambda: ss.constrain(None), "the model is None, expected a torch.nn.Module"),  # type: ignore[arg-type]
        (lambda: ss.constrain(net().state_dict()), "the model is an OrderedDict"),  # type: ignore[arg-type]
        (lambda: ss.release("q"), "the model is 'q'"),  # type: ignore[arg-type]
    ],
)
def test_mistakes_are_told(act: Any, words: str) -> None:
    with pytest.raises(UsageError) as raised:
        act()
    assert words in raised.value.reason
    assert raised.value.remedy


def test_a_batch_the_model_does_not_take() -> None:
    for act in (ss.rescale_, lambda model, x: ss.constrain(model, "lcw-data", batch=x)):
        model = net()
        before = copy.deepcopy(model.state_dict())
        with pytest.raises(MeasureError, match="raised RuntimeError on the batch"):
            act(model, torch.rand(4, 5))
        assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
        assert not any(module._forward_hooks for module in model.modules())


def test_a_batch_with_nan_has_no_mean() -> None:
    x = torch.rand(32, 6)
    x[0, 0] = torch.nan
    with pytest.warns(UserWarning, match="no layer was constrained: its input holds NaN"):
        changes = ss.constrain(net(), "lcw-data", batch=x)
    assert [change.reason for change in changes] == ["its input holds NaN or infinite values"] * 2


def test_one_method_by_name() -> None:
    data = [(torch.rand(64, 6), torch.zeros(64, 3))]
    told = ss.prescribe(net(), data, nn.functional.mse_loss, methods="lcw")
    assert {item.fix.method for item in told if item.fix is not None} == {"lcw"}


def test_one_row_tells_no_mean_and_nan_moves_none() -> None:
    with pytest.warns(UserWarning, match="no layer was constrained"):
        (change, _) = ss.constrain(net(), "lcw-data", batch=torch.rand(1, 6))
    assert change.reason == "one row does not tell a mean"
    model = net()
    ss.constrain(model, "lcw-data", batch=torch.rand(64, 6), momentum=0.5)
    mean = model[0].parametrizations["weight"][0].mean
    before = mean.clone()
    model(torch.full((8, 6), torch.nan))
    assert torch.equal(mean, before)
    model(torch.rand(8, 6))
    assert not torch.equal(mean, before)


def test_a_missing_condition_of_the_gram_matrix_has_a_reason() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 2))
    data = [(torch.rand(16, 1, 6, 6), torch.zeros(16, 2))]
    (told, *_) = ss.prescribe(model, data, nn.functional.mse_loss, methods=["lcw"], gram=True)
    assert any("No condition of the Gram matrix" in text for text in told.assumptions)

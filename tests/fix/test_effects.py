"""The numbers behind a prescription against a second, naive way to the same numbers."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
import torch
from fix_cases import batches, mlp
from torch import nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.findings.reading import Reading
from shiftscope.fix.candidates import candidate
from shiftscope.fix.effects import chain, measured_gain, theory_gain
from shiftscope.fix.prescribe import output_change, predict
from shiftscope.fix.prescription import GradientEffect

Array = npt.NDArray[np.float64]


def share(z: Array) -> float:
    """Between over total, less what the scatter of the means adds."""
    means, variances = z.mean(0), z.var(0)
    total = means.var() + variances.mean()
    error = z.var(0, ddof=1).mean() / len(z)
    return float(max(means.var() - error, 0.0) / total)


@pytest.mark.parametrize("method", ["lcw", "lcw-data", "absorb-bias"])
def test_one_layer_alone(method: str) -> None:
    """All rows stored, float64, the projection written out."""
    torch.manual_seed(0)
    x, y = batches()[0]
    model, data = mlp(nn.ReLU, 3), [(x[:128], y[:128])]  # no more rows than are sampled
    told = predict(model, data, candidate(method), F.cross_entropy)
    effects = {effect.site: effect for effect in told.effects}
    h = torch.cat([x for x, _ in data]).double()
    for name, layer in model.double().named_children():
        if isinstance(layer, nn.Linear):
            a, w, b = h.numpy(), layer.weight.detach().numpy(), layer.bias.detach().numpy()
            mean = a.mean(0)
            before = w @ mean
            if method == "lcw":
                w = w - w.mean(1, keepdims=True)
            elif method == "lcw-data":
                w = w - np.outer(w @ mean, mean) / (mean @ mean)
            else:
                b = -before
            z = a @ w.T + b
            assert effects[name].alone == pytest.approx(share(z), abs=1e-4)
            left = w @ mean + b if method == "absorb-bias" else w @ mean
            removed = 1 - left.var() / before.var()
            assert effects[name].removed == pytest.approx(removed, abs=1e-4)
            index = mean.sum() ** 2 / (len(mean) * (mean @ mean))
            assert effects[name].p_gamma_index == pytest.approx(index, rel=1e-4)
        h = layer(h).detach()


@pytest.mark.parametrize("activation", [nn.Sigmoid, nn.GELU])
def test_the_gain_of_theory(activation: type[nn.Module]) -> None:
    """φ_bw by a sum over a fine grid at the moments of every neuron, ‖w‖² row by row."""
    torch.manual_seed(0)
    model, x = mlp(activation, 4, 32).double(), batches()[0][0].double()
    snapshot = ss.analyze(model, [x])
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = torch.exp(-(grid**2) / 2)
    density /= density.sum()
    logs, h, function = [], x, activation()
    linears = [layer for layer in model if isinstance(layer, nn.Linear)]
    for here, following in pairwise(linears[:4]):
        z = here(h).detach()
        points = z.mean(0)[:, None] + z.std(0, correction=0)[:, None] * grid
        points.requires_grad_()
        (slopes,) = torch.autograd.grad(function(points).sum(), points)
        phi = (slopes.square() * density).sum(1).mean()
        eta = following.weight.detach().square().sum(1).mean()
        logs.append(math.log(phi * eta))
        h = function(z)
    assert theory_gain(Reading(snapshot)) == pytest.approx(math.exp(np.mean(logs)), rel=1e-6)


def test_the_measured_gain() -> None:
    """Gradients of every layer kept, their variances summed over neurons."""
    torch.manual_seed(0)
    model, (x, y) = mlp(nn.Tanh, 5, 48).double(), batches()[0]
    x = x.double()
    model[2] = nn.Linear(48, 80).double()  # a change of width is no gain
    model[4] = nn.Linear(80, 48).double()
    snapshot = ss.analyze(model, [(x, y)], F.cross_entropy)
    h, kept = x, []
    for layer in model:
        h = layer(h)
        if isinstance(layer, nn.Linear):
            h.retain_grad()
            kept.append(h)
    F.cross_entropy(h, y).backward()
    sizes = [z.grad.var(0, correction=0).sum().item() for z in kept if z.grad is not None]
    expected = (sizes[0] / sizes[-2]) ** (1 / 4)
    assert measured_gain(Reading(snapshot)) == pytest.approx(expected, rel=1e-6)


def test_chains_are_told_from_other_networks() -> None:
    x = batches()[0][0]
    chained = Reading(ss.analyze(mlp(nn.Sigmoid, 4), [x]))
    assert [(h["site"], a["site"]) for h, a in chain(chained)] == [
        ("0", "1"), ("2", "3"), ("4", "5"), ("6", "7")
    ]  # fmt: skip
    normed = nn.Sequential(nn.Linear(64, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).train()
    assert chain(Reading(ss.analyze(normed, [x]))) == []
    assert math.isnan(theory_gain(Reading(ss.analyze(normed, [x]))))


def test_decades_and_premises() -> None:
    effect = GradientEffect(layers=11, before=0.1, theory=1.0, trial=1.05)
    assert effect.premises_hold
    assert (effect.after, effect.decades_before, effect.decades_after) == (1.0, -10.0, 0.0)
    refuted = GradientEffect(layers=11, before=0.1, theory=1.0, trial=2.0)
    assert not refuted.premises_hold
    assert refuted.after == 2.0
    assert refuted.decades_after == pytest.approx(10 * math.log10(2))
    blind = GradientEffect(layers=11, before=math.nan, theory=1.0, trial=math.nan)
    assert blind.premises_hold
    assert math.isnan(blind.decades_before)
    assert not GradientEffect(3, 1.0, math.nan, 1.0).premises_hold


def test_the_change_of_the_output() -> None:
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    x = torch.rand(16, 4)
    expected = ((other(x) - one(x)).norm() / one(x).norm()).item()
    assert output_change(one, other, (x, None)) == pytest.approx(expected, rel=1e-5)
    assert output_change(one, one, x) == 0.0

"""Faults of scale, of single units and of numbers, each told from the others."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from finding_cases import (
    ROWS,
    WIDTH,
    data,
    deep,
    findings_of,
    found,
    linears,
    plain,
    rescale,
    scaled,
)
from scipy import stats
from standin import measure, mlp
from torch import nn

from shiftscope.findings import diagnose
from shiftscope.findings.units import never_active_bound
from shiftscope.tally import Counts


def test_small_weights_are_a_fault_of_scale_not_of_shift() -> None:
    findings = found(scaled(deep(nn.Tanh), 0.3))
    assert findings["weight_scale"].severity == "serious"
    assert findings["vanishing_gradient"].follows_from == "weight_scale"
    assert findings["variance_collapse"].follows_from == "weight_scale"
    assert "activation_shift" not in findings


def test_large_weights_explode_under_relu() -> None:
    findings = found(scaled(plain(nn.ReLU), 2.0))
    assert "grows" in findings["weight_scale"].title
    assert findings["weight_scale"].severity == "serious"


def test_decay_under_relu_is_blamed_on_the_scale_and_not_on_shift() -> None:
    """PyTorch's default initialisation: ||w||^2 = 1/3, where ReLU needs 2; biases hold z up."""
    for backward in (True, False):
        findings = found(mlp([WIDTH] * 13 + [10], nn.ReLU), backward)
        assert findings["activation_shift"].severity == "watch"
        assert "another cause" in findings["activation_shift"].explanation
        scale = findings["weight_scale"]
        assert scale.severity == ("critical" if backward else "serious")
        assert float(scale.evidence["eta"].value) == pytest.approx(1 / 3, abs=0.01)
        needed = float(scale.evidence["eta_that_keeps_the_gradient"].value)
        assert needed == pytest.approx(2.0, abs=0.15)
        assert next(iter(findings)) == "weight_scale"
        if backward:
            assert findings["vanishing_gradient"].follows_from == "weight_scale"


def test_saturation_is_told_with_its_error_and_not_for_softmax() -> None:
    findings = found(scaled(deep(nn.Tanh, depth=4), 30.0))
    finding = findings["saturation"]
    assert finding.severity == "serious"
    fraction = finding.evidence["saturated_fraction"]
    share = float(fraction.value)
    assert fraction.se == pytest.approx(math.sqrt(share * (1 - share) / ROWS))
    model = mlp([WIDTH, WIDTH, WIDTH, 10], nn.Tanh)
    model[1] = nn.Softmax(dim=1)
    assert all("1" not in f.sites for f in found(scaled(model, 30.0)).values())


def test_dead_units_carry_a_bound() -> None:
    model = plain(nn.ReLU)
    with torch.no_grad():
        linears(model)[3].bias[:100] = -1e3
    finding = found(model)["dead_units"]
    assert (finding.severity, finding.sites[0]) == ("serious", "7")
    bound = finding.evidence["probability_active"].high
    assert bound == pytest.approx(stats.binomtest(0, ROWS).proportion_ci(0.90).high)
    assert bound == pytest.approx(3 / ROWS, rel=0.01)


def test_a_dead_layer_is_critical_and_cuts_the_gradient() -> None:
    model = plain(nn.ReLU)
    with torch.no_grad():
        linears(model)[3].bias[:] = -1e3
        for layer in linears(model)[4:]:
            layer.bias.normal_()
    findings = found(model)
    assert findings["dead_units"].severity == "critical"
    assert "No gradient reaches 4 of 20" in findings["vanishing_gradient"].title
    assert findings["vanishing_gradient"].follows_from == "dead_units"


def test_layers_of_zeros_are_named_as_what_stops_the_gradient() -> None:
    x, y = data()
    model = rescale(deep(nn.Tanh, depth=4), x)
    nn.init.zeros_(linears(model)[-1].weight)
    finding = {f.cause: f for f in diagnose(measure(model, x, y))}["vanishing_gradient"]
    assert (finding.severity, finding.title[:34]) == ("watch", "No gradient reaches 4 of 4 hidden ")
    assert "weights right behind are all zero (at 8)" in finding.explanation
    assert "--trial" in finding.advice
    with torch.no_grad():
        linears(model)[1].bias.fill_(-1e6)  # and dead units, which zeros do not explain
        linears(model)[-1].weight.normal_()
    finding = {f.cause: f for f in diagnose(measure(model, x, y))}["vanishing_gradient"]
    assert finding.severity == "critical"


def test_few_samples_allow_no_verdict_on_dead_units() -> None:
    model = plain(nn.ReLU)
    with torch.no_grad():
        linears(model)[3].bias[:100] = -1e3
    x, y = data(rows=8)
    findings = {f.cause: f for f in diagnose(measure(model, x, y))}
    assert findings["dead_units"].severity == "info"
    assert never_active_bound(0) == 1.0


def test_non_finite_values_come_first_with_the_first_site() -> None:
    model = plain(nn.Tanh)
    with torch.no_grad():
        linears(model)[5].weight[3] = math.nan
    findings = list(found(model).values())
    assert (findings[0].cause, findings[0].severity) == ("non_finite", "critical")
    assert findings[0].sites[0] == "10"


def test_a_gradient_that_is_not_finite_is_told_from_the_loss_on() -> None:
    x, y = data()
    snapshot = measure(plain(nn.Tanh), x, y)
    records = dict(snapshot.records)
    for name in ("0", "8"):
        streams = dict(records[name].streams)
        streams["grad_z"] = replace(
            streams["grad_z"], counts=Counts.of(torch.full((ROWS, WIDTH), math.inf))
        )
        records[name] = replace(records[name], streams=streams)
    top = diagnose(replace(snapshot, records=records))[0]
    assert (top.cause, top.sites) == ("non_finite", ("8", "0"))


def test_rounding_noise_is_flagged_and_kept_out_of_the_profiles() -> None:
    model = plain(nn.Sigmoid).float()
    x, y = data()
    findings = {f.cause: f for f in diagnose(measure(model, x.float(), y))}
    finding = findings["below_resolution"]
    assert finding.sites
    assert "float64" in finding.advice
    exact = findings_of(plain, nn.Sigmoid)["variance_collapse"].evidence["decades_per_layer"]
    noisy = findings["variance_collapse"].evidence["decades_per_layer"]
    assert float(noisy.value) == pytest.approx(float(exact.value), rel=0.1)

"""Activation shift against networks that have it and that do not, with gradients and without."""

from __future__ import annotations

import pytest
from finding_cases import (
    case,
    data,
    deep,
    findings_of,
    found,
    lcw,
    plain,
    rescale,
    severe,
)
from standin import measure
from torch import nn

from shiftscope.findings import Thresholds, diagnose, verdict
from shiftscope.findings.reading import Reading, share_error


def test_sigmoid_with_standard_weights_is_critical_and_all_else_follows() -> None:
    findings = findings_of(plain, nn.Sigmoid)
    top = next(iter(findings.values()))
    assert (top.cause, top.severity) == ("activation_shift", "critical")
    assert findings["vanishing_gradient"].follows_from == "activation_shift"
    assert "follows from activation shift" in findings["vanishing_gradient"].explanation
    # 19 steps of E f'^2 / E f^2 = 0.152827 (Kutsuna 2019, Section 4; width to infinity)
    rate = findings["vanishing_gradient"].evidence["decades_per_layer"]
    assert float(rate.value) == pytest.approx(0.8158, abs=0.07)
    assert rate.se is not None
    assert 0 < rate.se < 0.05
    assert "lcw" in top.advice
    assert top.sites[0] in {"33", "35", "37", "39"}


def test_sigmoid_with_zero_sum_weights_is_healthy() -> None:
    assert severe(findings_of(lcw, nn.Sigmoid)) == set()


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_healthy_deep_networks_have_no_serious_finding(activation: type[nn.Module]) -> None:
    findings = findings_of(plain, activation)
    assert severe(findings) == set()
    assert "vanishing_gradient" not in findings


def test_shift_under_relu_that_costs_no_gradient_is_a_remark() -> None:
    findings = findings_of(plain, nn.ReLU)
    assert findings["activation_shift"].severity == "info"
    assert "phi_bw/phi_fw = 1.467" in findings["activation_shift"].advice


def test_zero_sum_weights_under_relu_explode_and_the_advice_says_why() -> None:
    finding = findings_of(lcw, nn.ReLU)["exploding_gradient"]
    assert finding.severity in {"watch", "serious"}
    # log10(pi / (pi - 1)) = 0.1664 decades a layer (Kutsuna 2019, Proposition 6)
    assert float(finding.evidence["decades_per_layer"].value) == pytest.approx(-0.1664, abs=0.02)
    assert "release" in finding.advice


def test_shift_of_a_shallow_network_is_at_most_worth_watching() -> None:
    x, y = data()
    model = rescale(deep(nn.Sigmoid, depth=3), x)
    findings = {f.cause: f for f in diagnose(measure(model, x, y))}
    assert findings["activation_shift"].severity in {"info", "watch"}
    assert severe(findings) == set()


def test_the_share_must_exceed_its_threshold_by_two_standard_errors() -> None:
    snapshot = case(plain, nn.ReLU)
    share = snapshot.sites.set_index("site")["shift_share"]
    finding = next(f for f in diagnose(snapshot) if f.cause == "activation_shift")
    site = finding.sites[-1]
    error = share_error(Reading(snapshot).rows[int(site)])
    just_above = Thresholds(shift_share=share[site] - error)
    assert site in finding.sites
    again = [f for f in diagnose(snapshot, just_above) if f.cause == "activation_shift"]
    assert site not in (again[0].sites if again else ())


def test_sites_are_told_worst_first() -> None:
    snapshot = case(plain, nn.Sigmoid)
    share = snapshot.sites.set_index("site")["shift_share"]
    sites = diagnose(snapshot)[0].sites
    assert [share[s] for s in sites] == sorted((share[s] for s in sites), reverse=True)


# -- without gradients ---------------------------------------------------------------------------


def test_without_a_loss_the_decay_is_predicted_and_the_verdict_capped() -> None:
    forward = found(plain(nn.Sigmoid), backward=False)
    finding = forward["activation_shift"]
    assert finding.severity == "serious"
    assert "capped at serious" in finding.explanation
    measured = findings_of(plain, nn.Sigmoid)["vanishing_gradient"].evidence["decades_total"]
    predicted = finding.evidence["predicted_decay"]
    assert float(predicted.value) == pytest.approx(float(measured.value), rel=0.05)
    assert "gradients" in forward["coverage"].title


def test_without_a_loss_healthy_networks_stay_healthy() -> None:
    for model in (plain(nn.ReLU), plain(nn.Tanh), lcw(nn.Sigmoid)):
        findings = found(model, backward=False)
        assert severe(findings) == set()
        snapshot = measure(model, data()[0])
        assert "gradients were not measured" in verdict(list(findings.values()), snapshot)[
            "sentence"
        ] or any(f.severity == "watch" for f in findings.values())

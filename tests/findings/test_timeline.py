"""Findings of runs: when they appeared, where they went, and where NaN came from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from run_cases import WIDTH, batch, network, run
from standin import measure
from torch import Tensor, nn

from shiftscope.findings import Finding, diagnose, verdict
from shiftscope.findings.origin import find_origin
from shiftscope.snapshot import Snapshot
from shiftscope.trace import Trace, Window


def of(findings: list[Finding], cause: str) -> Finding:
    return next(finding for finding in findings if finding.cause == cause)


def test_a_fault_that_comes_is_dated() -> None:
    told = run([0.0, 0.0, 1.0, 1.0])
    alone = [diagnose(window.snapshot) for window in told.windows]
    assert [any(f.cause == "activation_shift" for f in found) for found in alone] == [
        *(False, False, True, True)
    ]
    finding = of(diagnose(told), "activation_shift")
    assert finding.evidence["appeared_at_step"].value == 10
    assert "appeared at step 10" in finding.title
    assert finding.severity == of(alone[-1], "activation_shift").severity == "critical"
    assert finding.sites == of(alone[-1], "activation_shift").sites


def test_a_fault_from_the_start_is_told_so() -> None:
    finding = of(diagnose(run([1.0, 1.0])), "activation_shift")
    assert "from the start" in finding.title
    assert finding.evidence["appeared_at_step"].value == 0


def test_a_fault_that_went_away_is_a_remark() -> None:
    finding = of(diagnose(run([1.0, 1.0, 0.0])), "activation_shift")
    assert finding.severity == "info"
    assert "between steps 0 and 5, not at step 10" in finding.title
    assert finding.evidence["last_seen_at_step"].value == 5


def test_a_fault_that_came_back_is_dated_by_its_return() -> None:
    finding = of(diagnose(run([1.0, 0.0, 1.0])), "activation_shift")
    assert finding.evidence["appeared_at_step"].value == 10


def test_the_course_of_the_leading_number_is_told() -> None:
    told = run([0.5, 0.7, 1.0])
    finding = of(diagnose(told), "activation_shift")
    ends = [
        of(diagnose(w.snapshot), "activation_shift") for w in (told.windows[0], told.windows[2])
    ]
    first, last = (float(f.evidence["shift_share"].value) for f in ends)
    assert f"went from {first:.3g} at step 0 to {last:.3g} at step 10" in finding.explanation


def test_windows_of_training_are_judged() -> None:
    sick, healthy = run([1.0]).windows[0], run([0.0]).windows[0]
    mixed = Trace((replace(sick, phase="eval"), replace(healthy, first=5, last=5)))
    assert "activation_shift" not in [finding.cause for finding in diagnose(mixed)]
    alone = Trace((replace(sick, phase="eval"),))
    assert "activation_shift" in [finding.cause for finding in diagnose(alone)]


@pytest.mark.parametrize(
    ("losses", "stalled"), [([2.3, 2.4] * 5, True), ([2.3 - 0.2 * k for k in range(10)], False)]
)
def test_a_loss_that_stands_still_beside_a_fault(losses: list[float], stalled: bool) -> None:
    findings = diagnose(run([1.0] * 10, losses))
    assert ("not_learning" in [f.cause for f in findings]) == stalled
    if stalled:
        assert of(findings, "not_learning").follows_from == "activation_shift"


def test_a_loss_that_stands_still_alone_is_no_fault() -> None:
    findings = diagnose(run([0.0] * 6, [0.001] * 6))
    assert "not_learning" not in [finding.cause for finding in findings]


def test_the_verdict_of_a_run_names_its_steps() -> None:
    told = run([0.0, 0.0])
    sentence = verdict([], told)["sentence"]
    assert sentence.startswith("No fault found")
    assert "Steps 0 to 5, 2 windows" in sentence
    assert verdict([], Trace())["sentence"].startswith("Nothing was measured")
    assert diagnose(Trace()) == []


# -- the origin of NaN and infinity ------------------------------------------------------------


def poisoned(spoil: Callable[[nn.Sequential], None], x: Tensor | None = None) -> Snapshot:
    inputs, y = batch()
    model = network(0.0)
    with torch.no_grad():
        spoil(model)
    return measure(model, inputs if x is None else x, y)


def with_spoiled(snapshot: Snapshot) -> Trace:
    clean = run([0.0, 0.0]).windows
    return Trace((*clean, Window(10, 10, "train", snapshot), Window(15, 15, "train", snapshot)))


def first_bad_module(spoil: Callable[[nn.Sequential], None]) -> str:
    """The naive way: run module by module and look."""
    value, model = batch()[0], network(0.0)
    with torch.no_grad():
        spoil(model)
        for name, module in model.named_children():
            value = module(value)
            if not torch.isfinite(value).all():
                return name
    raise AssertionError


def test_the_first_forward_site_is_found() -> None:
    def spoil(model: nn.Sequential) -> None:
        model[6].weight[3, 2] = math.inf

    told = with_spoiled(poisoned(spoil))
    origin = find_origin(told)
    assert origin is not None
    assert (origin.step, origin.site, origin.stream) == (10, first_bad_module(spoil), "z")
    assert not origin.inherited
    assert [facts.site for facts in origin.before] == ["6", "5", "5", "4", "4"]
    assert [facts.stream for facts in origin.before] == ["a", "a", "z", "z", "a"]
    assert all(facts.nonfinite == 0 and facts.std > 0 for facts in origin.before)
    assert [(facts.site, facts.step) for facts in origin.history] == [("6", 5), ("6", 0)]


def test_the_statistics_before_it_are_those_of_the_tensor() -> None:
    def spoil(model: nn.Sequential) -> None:
        model[2].bias[0] = math.nan

    origin = find_origin(with_spoiled(poisoned(spoil)))
    assert origin is not None
    x = network(0.0)[:2](batch()[0]).detach()
    facts = origin.before[0]
    assert (facts.site, facts.stream) == ("2", "a")
    assert facts.mean == pytest.approx(float(x.mean()), rel=1e-9)
    assert facts.std == pytest.approx(float(x.var(dim=0, correction=0).mean().sqrt()), rel=1e-9)
    assert facts.largest == pytest.approx(float(x.abs().max()), rel=1e-9)


def test_data_that_hold_nan_are_blamed() -> None:
    x = batch()[0].clone()
    x[0, 0] = math.nan
    origin = find_origin(with_spoiled(poisoned(lambda model: None, x)))
    assert origin is not None
    assert (origin.site, origin.stream, origin.inherited) == ("0", "a", True)


def test_gradients_count_where_all_values_are_finite() -> None:
    x, y = batch()
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Sigmoid(), nn.Linear(WIDTH, 10)).double()
    snapshot = measure(model, x, y)
    record = snapshot.records["0"]
    bad = replace(record.streams["grad_z"].counts, nonfinite=torch.ones(WIDTH, dtype=torch.int64))  # type: ignore[type-var]
    streams_of_0 = {**record.streams, "grad_z": replace(record.streams["grad_z"], counts=bad)}
    records = {**snapshot.records, "0": replace(record, streams=streams_of_0)}
    origin = find_origin([Window(3, 3, "train", replace(snapshot, records=records))])
    assert origin is not None
    assert (origin.step, origin.site, origin.stream) == (3, "0", "grad_z")
    assert origin.before[0].site == "1"


def test_the_finding_tells_where_and_after_what() -> None:
    def spoil(model: nn.Sequential) -> None:
        model[6].weight[3, 2] = math.inf

    finding = diagnose(with_spoiled(poisoned(spoil)))[0]
    assert finding.cause == "non_finite"
    assert "appeared between steps 5 and 10 (train), first seen in 6, stream z" in finding.title
    assert finding.sites[0] == "6"
    assert "Computed just before it: 6 a at step 10: mean" in finding.explanation
    assert "The same stream earlier: 6 z at step 5" in finding.explanation


def test_a_clean_run_has_no_origin() -> None:
    assert find_origin(run([0.0, 1.0]).windows) is None


def test_what_comes_after_nan_is_not_judged() -> None:
    """The finite rest of a spoiled window would show faults that pass and faults that are none."""

    def spoil(model: nn.Sequential) -> None:
        model[0].weight[:] = math.nan

    sick = run([1.0, 1.0]).windows
    told = Trace((*sick, Window(10, 10, "train", poisoned(spoil))))
    shift = of(diagnose(told), "activation_shift")
    assert shift.severity == "critical"
    assert "from the start" in shift.title
    assert diagnose(told)[0].cause == "non_finite"

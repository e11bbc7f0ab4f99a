"""What is told of all findings together: their order, their sources, the verdict."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from finding_cases import (
    case,
    data,
    deep,
    findings_of,
    lcw,
    linears,
    plain,
)
from standin import measure
from torch import nn

import shiftscope as ss
from shiftscope.capture.bare_weights import weights_only
from shiftscope.findings import CAUSES, Finding, Thresholds, diagnose, verdict
from shiftscope.snapshot import Snapshot


def test_every_threshold_has_a_source_and_every_finding_names_one() -> None:
    limits = Thresholds()
    assert all(len(limits.source(item.name)) > 10 for item in fields(limits))
    for snapshot in (case(plain, nn.Sigmoid), case(lcw, nn.ReLU)):
        for finding in diagnose(snapshot):
            assert finding.cause in CAUSES
            assert finding.source
            assert finding.advice
            assert finding.title[-1] != "."


def test_findings_are_sorted_and_told_once_per_cause() -> None:
    findings = list(findings_of(plain, nn.Sigmoid).values())
    ranks = [finding.rank for finding in findings]
    assert ranks == sorted(ranks)
    assert len({f.cause for f in findings}) == len(findings)


def test_the_verdict_of_nothing_and_of_weights_alone() -> None:
    empty = Snapshot(records={})
    assert "Nothing was measured" in verdict(diagnose(empty), empty)["sentence"]
    full = case(plain, nn.Tanh)
    bare = {n: replace(r, streams={}, samples=0) for n, r in full.records.items()}
    weights = Snapshot(records=bare, manifest={})
    findings = diagnose(weights)
    assert "Weights only" in verdict(findings, weights)["sentence"]
    assert {f.severity for f in findings} <= {"info"}


def test_where_no_site_was_seen_a_loss_that_was_given_is_not_asked_for() -> None:
    gaps = (("", "a TorchScript module: no hook and no mode sees its inside"),)
    told = diagnose(Snapshot({}, gaps, {"gradients": True}))
    assert [(f.title, f.advice) for f in told] == [
        ("Not measured: 1 module", "Nothing, if these parts do not matter here.")
    ]


def test_a_file_without_weights_to_read_asks_for_a_model() -> None:
    nothing = weights_only({"0.scale": torch.ones(1)}, left_out=["0._packed_params"])
    findings = diagnose(nothing)
    assert "no weights were found" in verdict(findings, nothing)["sentence"]
    assert [f.title for f in findings] == ["Not measured: 1 module, signals and gradients"]
    assert "--model" in findings[0].advice


def test_the_verdict_counts_what_follows() -> None:
    snapshot = case(plain, nn.Sigmoid)
    told = verdict(diagnose(snapshot), snapshot)
    assert told["severity"] == "critical"
    assert "follow from it" in told["sentence"]


def test_gaps_are_told_as_a_notice() -> None:
    snapshot = replace(case(plain, nn.Tanh), gaps=(("rnn", "fused kernel"),))
    findings = diagnose(snapshot)
    assert [(f.cause, f.severity, f.sites) for f in findings] == [("coverage", "info", ("rnn",))]


def test_the_public_names() -> None:
    assert ss.diagnose is diagnose
    assert ss.Finding is Finding


def test_the_verdict_names_the_cause_of_what_it_leads_with() -> None:
    model = deep(nn.ReLU, depth=10)
    for layer in linears(model):
        nn.init.normal_(layer.weight, std=0.1 * (2 / layer.in_features) ** 0.5)
    snapshot = measure(model, *data())
    findings = diagnose(snapshot)
    assert (findings[0].cause, findings[0].follows_from) == ("vanishing_gradient", "weight_scale")
    sentence = verdict(findings, snapshot)["sentence"]
    scale = next(finding for finding in findings if finding.cause == "weight_scale")
    assert sentence.startswith(f"{findings[0].title}. The cause: {scale.title}.")


def test_weights_alone_ask_for_a_model_and_data() -> None:
    snapshot = weights_only({"0.weight": torch.randn(8, 4), "2.weight": torch.randn(3, 8)})
    finding = next(f for f in diagnose(snapshot) if f.cause == "coverage")
    assert finding.title == "Not measured: signals and gradients"
    assert "--data" in finding.advice

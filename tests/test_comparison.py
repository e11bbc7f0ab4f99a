"""Comparisons: sites by name, changes with their errors, findings gained, lost and graver."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from fix_cases import batches, mlp
from torch import nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.capture.bare_weights import weights_only
from shiftscope.comparison import QUANTITIES
from shiftscope.errors import UsageError
from shiftscope.files import strict_json
from shiftscope.findings.reading import Reading, share_error
from shiftscope.trace import Trace


@pytest.fixture(scope="module")
def both() -> tuple[ss.Snapshot, ss.Snapshot]:
    """A deep sigmoid network before and after the fix."""
    torch.manual_seed(0)
    model, data = mlp(nn.Sigmoid), batches()[:2]
    before = ss.analyze(model, data, F.cross_entropy)
    ss.constrain(model, "lcw")
    ss.rescale_(model, data[0][0])
    ss.release(model)
    return before, ss.analyze(model, data, F.cross_entropy)


def test_changes_are_differences_and_errors_add_in_squares(
    both: tuple[ss.Snapshot, ss.Snapshot],
) -> None:
    frame = ss.compare(*both).frame
    assert list(frame["site"]) == list(both[0].sites["site"])
    assert set(frame["status"]) == {"both"}
    old, new = (snapshot.sites for snapshot in both)
    np.testing.assert_array_equal(frame["shift_share_before"], old["shift_share"])
    np.testing.assert_array_equal(frame["shift_share_after"], new["shift_share"])
    np.testing.assert_allclose(
        frame["shift_share_change"], new["shift_share"] - old["shift_share"], atol=0
    )
    errors = [[share_error(row) for row in Reading(s).rows] for s in both]
    np.testing.assert_allclose(frame["shift_share_se"], np.hypot(*errors), rtol=1e-12)
    logs = np.log10(new["grad_z_var"]) - np.log10(old["grad_z_var"])
    np.testing.assert_allclose(frame["log10_grad_z_var_change"], logs, rtol=1e-9)
    assert frame["log10_grad_z_var_se"].iloc[0] == pytest.approx(
        math.sqrt(2) * math.sqrt(2 / 512) / math.log(10)
    )


def test_findings_gained_lost_and_graver(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    better, worse = ss.compare(*both), ss.compare(*reversed(both))
    assert {f.cause for f in better.lost} >= {"vanishing_gradient", "variance_collapse"}
    assert [f.cause for f in worse.gained] == [f.cause for f in better.lost]
    assert better.worse("watch") == ()
    causes = {f.cause for f in worse.worse("critical")}
    assert "activation_shift" in causes
    assert causes <= {f.cause for f in worse.worse("info")}
    # there before as well, but milder: graver, not gained
    assert "activation_shift" not in {f.cause for f in worse.gained}


def test_equal_snapshots_are_no_worse(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    same = ss.compare(both[0], both[0])
    assert same.gained == same.lost == same.worse("info") == ()
    for name in QUANTITIES:
        change = same.frame[f"{name}_change"].dropna()
        assert (change == 0).all()


def test_sites_of_one_side_only_keep_their_place(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    before, after = both
    records = dict(after.records)
    records["extra"] = replace(
        records["2"], info=replace(records["2"].info, site="extra", order=99)
    )
    del records["4"]
    frame = ss.compare(before, replace(after, records=records)).frame
    assert list(frame["site"])[:6] == ["0", "1", "2", "3", "4", "5"]
    status = dict(zip(frame["site"], frame["status"], strict=True))
    assert (status["4"], status["extra"], status["0"]) == ("before only", "after only", "both")
    lone = frame.set_index("site").loc["4"]
    assert math.isnan(lone["shift_share_after"])
    assert math.isnan(lone["shift_share_change"])


def test_loss_and_accuracy_are_compared(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    scores = ss.compare(*both).scores
    assert scores["loss"] == (both[0].manifest["loss"], both[1].manifest["loss"])
    assert set(scores) == {"loss", "accuracy"}
    forward = ss.analyze(mlp(nn.Sigmoid), [x for x, _ in batches()[:1]])
    assert ss.compare(forward, forward).scores == {}


def test_the_last_window_of_a_trace_counts(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    trace = Trace.of(both)
    assert ss.compare(both[0], trace).after is trace.last
    assert ss.compare(both[1], trace).worse("info") == ()
    with pytest.raises(UsageError, match="no window"):
        ss.compare(both[0], Trace())
    with pytest.raises(UsageError, match="expected a snapshot"):
        ss.compare("a.npz", both[0])


def test_networks_without_a_common_site_are_refused(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    other = ss.analyze(nn.ModuleDict({"x": nn.Linear(4, 4)})["x"], [torch.rand(8, 4)])
    with pytest.raises(UsageError, match="neither of the two holds a site"):
        ss.compare(ss.Snapshot({}), ss.Snapshot({}))
    with pytest.raises(UsageError, match="share no site"):
        ss.compare(both[0], other)
    with pytest.raises(UsageError, match="unknown level"):
        ss.compare(*both).worse("fatal")


def test_the_document_is_strict_json(both: tuple[ss.Snapshot, ss.Snapshot]) -> None:
    document = json.loads(strict_json(ss.compare(*both).as_dict()))
    assert document["lost"]
    assert len(document["sites"]) == 13
    assert document["sites"][1]["lcw_residual_before"] is None


@pytest.mark.parametrize(
    ("before", "after", "severity"),
    [
        ({"accuracy": 0.95}, {"accuracy": 0.80}, "critical"),
        ({"accuracy": 0.95}, {"accuracy": 0.90}, "serious"),
        ({"accuracy": 0.95}, {"accuracy": 0.944}, None),
        ({"accuracy": 0.80}, {"accuracy": 0.95}, None),
        ({"loss": 0.5}, {"loss": 0.6}, "watch"),
        ({"loss": 0.5}, {"loss": 1.1}, "serious"),
        ({"loss": 0.5}, {"loss": 0.52}, None),
        ({"loss": 0.5}, {"loss": math.nan}, "critical"),
        ({"loss": 0.5, "accuracy": 0.9}, {"loss": None, "accuracy": 0.9}, "critical"),
        ({"loss": 0.5}, {}, None),
        ({}, {"loss": 0.5}, None),
    ],
)
def test_a_worse_outcome_is_a_finding(
    both: tuple[ss.Snapshot, ss.Snapshot], before: Any, after: Any, severity: str | None
) -> None:
    bare = {k: v for k, v in both[1].manifest.items() if k not in ("loss", "accuracy")}
    bare["samples"] = 4000
    old, new = (replace(both[1], manifest={**bare, **scores}) for scores in (before, after))
    comparison = ss.compare(old, new)
    assert (comparison.outcome.severity if comparison.outcome else None) == severity
    worse = [finding.cause for finding in comparison.worse("info")]
    assert worse == (["outcome"] if severity else [])


def test_what_the_second_was_not_measured_for_is_not_gone() -> None:
    torch.manual_seed(0)
    model, data = mlp(nn.Sigmoid), batches()[:2]
    full = ss.analyze(model, data, F.cross_entropy)
    alone = weights_only(model.state_dict())
    comparison = ss.compare(full, alone)
    assert comparison.lost == ()
    assert "vanishing_gradient" in {f.cause for f in comparison.unjudged}
    forward = ss.analyze(model, data)
    told = ss.compare(full, forward)
    assert {"vanishing_gradient"} <= {f.cause for f in told.unjudged}
    assert not {"vanishing_gradient"} & {f.cause for f in told.lost}


def test_weights_that_are_not_finite_are_found_without_data() -> None:
    model = mlp(nn.Sigmoid)
    sound = weights_only(model.state_dict())
    with torch.no_grad():
        next(m for m in model.modules() if isinstance(m, nn.Linear)).weight[1, 2] = math.nan
    broken = weights_only(model.state_dict())
    (finding,) = [f for f in ss.diagnose(broken) if f.cause == "non_finite"]
    assert finding.severity == "critical"
    assert finding.evidence["neurons"].value == 1
    assert finding.sites[0] in finding.title
    assert [f.cause for f in ss.compare(sound, broken).worse("critical")] == ["non_finite"]
    measured = ss.diagnose(ss.analyze(model, batches()[:1]))
    assert any("weights at" in f.title for f in measured if f.cause == "non_finite")

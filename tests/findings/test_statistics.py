"""Normalisations in evaluation mode whose running statistics nothing ever updated."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.findings import diagnose, verdict


def network(depth: int = 12, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [
        nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), make(kind), nn.ReLU())
        for _ in range(depth)
    ]
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4),
    )  # fmt: skip


def make(kind: Any) -> nn.Module:
    made: nn.Module = kind(8)
    return made


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randn(16, 3, 8, 8), torch.randint(4, (16,))


def found(model: nn.Module) -> dict[str, ss.Finding]:
    snapshot = ss.analyze(model, [batch()], F.cross_entropy)
    return {finding.cause: finding for finding in diagnose(snapshot)}


def test_the_statistics_of_initialisation_are_the_cause_of_what_follows() -> None:
    snapshot = ss.analyze(network().eval(), [batch()], F.cross_entropy)
    findings = {finding.cause: finding for finding in diagnose(snapshot)}
    statistics = findings["norm_statistics"]
    assert statistics.severity == "serious"
    assert statistics.evidence["layers"].value == 12
    assert "all 12 normalisations, first in 1.1" in statistics.title
    assert findings["vanishing_gradient"].follows_from == "norm_statistics"
    assert statistics.title in verdict([*findings.values()], snapshot)["sentence"]


def test_some_of_them() -> None:
    model = network(3)
    model.train()(batch()[0])
    norm: Any = model.get_submodule("2.1")
    norm.reset_running_stats()
    title = found(model.eval())["norm_statistics"].title
    assert "1 of 3 normalisations, first in 2.1" in title
    alone = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).eval()
    snapshot = ss.analyze(alone, [batch()[0]])
    assert any("the one normalisation" in finding.title for finding in diagnose(snapshot))


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(network(2).train(), id="training mode"),
        pytest.param(network(2, nn.InstanceNorm2d).eval(), id="no running statistics"),
        pytest.param(network(2, nn.Identity).eval(), id="no normalisation"),
    ],
)
def test_where_no_running_statistics_are_used_nothing_is_said(model: nn.Module) -> None:
    assert "norm_statistics" not in found(model)
    assert "norms" not in ss.analyze(model, [batch()[0]]).manifest


def test_statistics_that_were_updated_are_fine() -> None:
    model = network(2)
    model.train()(batch()[0])
    snapshot = ss.analyze(model.eval(), [batch()[0]])
    assert snapshot.manifest["norms"] == 2
    assert snapshot.manifest["norms_at_initialisation"] == 0
    assert "norm_statistics" not in found(model)

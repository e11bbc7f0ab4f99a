"""The section on premises: numbers by how much, never a proposition called violated."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from report_cases import hostile, sick
from torch import nn
from torch.nn.functional import cross_entropy

import shiftscope as ss
from shiftscope.findings import diagnose
from shiftscope.reporting.document import document
from shiftscope.reporting.page import page
from shiftscope.reporting.premises import premise_section


def analysed(model: nn.Module, width: int) -> ss.Snapshot:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(500, width, generator=generator)
    y = torch.randint(4, (500,), generator=generator)
    snapshot: ss.Snapshot = ss.analyze(model, [(x, y)], cross_entropy)
    return snapshot


def test_where_premises_fail_the_page_says_by_how_much() -> None:
    snapshot = sick()
    section = premise_section(snapshot)
    text = page(snapshot, diagnose(snapshot))
    assert section["sentence"] in text
    assert "not contradicted" in section["sentence"]
    assert "violat" not in text.lower()
    worst = max(row["cv"] for row in document(snapshot, [])["premises"])
    assert f"to {worst:.2f}" in section["sentence"]
    assert [row[0] for row in section["rows"]] == list(
        snapshot.sites.query("kind == 'linear'").site
    )
    assert {row[-1] for row in section["rows"]} <= {"holds", "fails"}


def test_where_they_hold_it_says_so() -> None:
    torch.manual_seed(0)
    snapshot = analysed(nn.Linear(30, 40), 30)
    assert premise_section(snapshot)["sentence"].startswith("At the only site that was judged")


class Skip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.out = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(x + self.two(torch.relu(self.one(x))))
        return out


def test_the_document_holds_the_profile_and_its_cuts() -> None:
    torch.manual_seed(0)
    snapshot = analysed(Skip(), 8)
    written = document(snapshot, [])["prediction"]
    assert [layer["site"] for layer in written["layers"]] == ["one", "two", "out"]
    assert [cut["site"] for cut in written["cuts"]] == ["out"]
    assert written["chi_predicted"] == pytest.approx(written["chi"], rel=0.5)
    assert premise_section(snapshot)["cuts"][0][0] == "out"
    assert "where the layers form no chain" in page(snapshot, [])


@pytest.mark.parametrize("snapshot", [ss.Snapshot(records={}), hostile()], ids=["empty", "hostile"])
def test_odd_snapshots_have_a_page(snapshot: Any) -> None:
    text = page(snapshot, [])
    assert ("premises-title" in text) == bool(len(snapshot.sites))
    assert "<script>alert" not in text

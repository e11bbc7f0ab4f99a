"""Comparisons on disk and in the terminal: side by side, inert, and reproducible."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from fix_cases import batches, mlp
from rich.console import Console
from torch import nn
from torch.nn import functional as F

import shiftscope as ss
from shiftscope.comparison import Comparison
from shiftscope.errors import UsageError
from shiftscope.reporting.comparison import comparison_page, write_comparison
from shiftscope.reporting.comparison_rows import Outlook, comparison_sentence, comparison_table

EVIL = "<script>alert(1)</script>\x1b[31m"


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    torch.manual_seed(0)
    model, data = mlp(nn.Sigmoid), batches()[:1]
    before = ss.analyze(model, data, F.cross_entropy)
    ss.constrain(model, "lcw")
    ss.rescale_(model, data[0][0])
    ss.release(model)
    return ss.compare(before, ss.analyze(model, data, F.cross_entropy))


def text(comparison: Comparison, outlook: Outlook | None = None, rows: int | None = None) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=200).print(comparison_table(comparison, outlook, rows))
    return buffer.getvalue()


def test_the_sentence_says_what_came_and_went(comparison: Comparison) -> None:
    assert comparison_sentence(comparison).startswith("Findings: gone ")
    back = ss.compare(comparison.after, comparison.before)
    told = comparison_sentence(back)
    assert "new " in told
    assert "graver activation shift" in told
    assert "same" in comparison_sentence(ss.compare(comparison.after, comparison.after))


def test_predicted_stands_between_before_and_after(comparison: Comparison) -> None:
    lines = [("gradient gain per layer", 0.25, 1.125, 1.5)]
    outlook = Outlook({"0": 0.12345}, lines, ["Applied: lcw."])
    shown = text(comparison, outlook)
    heading = next(line for line in shown.splitlines() if "predicted" in line)
    assert heading.index("shift share") < heading.index("predicted") < heading.index("after")
    assert "0.123" in shown
    page = comparison_page(comparison, outlook)
    assert '<th scope="row">gradient gain per layer</th>' in page
    for cell in ("0.25", "1.125", "1.5", "Applied: lcw.", "0.123"):
        assert cell in page


def test_only_the_sites_that_moved_most_are_shown_where_asked(comparison: Comparison) -> None:
    rows = [line for line in text(comparison, rows=3).splitlines() if line[1:2].isdigit()]
    assert len(rows) == 3


def test_names_are_inert(comparison: Comparison) -> None:
    record = comparison.before.records["0"]
    named = replace(record, info=replace(record.info, site=EVIL))
    snapshot = replace(comparison.before, records={EVIL: named})
    evil = ss.compare(snapshot, snapshot)
    page = comparison_page(evil, Outlook({}, [(EVIL, 0.0, 0.0, 0.0)], [EVIL]))
    assert "<script" not in page
    assert "\x1b" not in page
    assert "\x1b" not in text(evil)


def test_the_page_needs_no_network_and_runs_no_script(comparison: Comparison) -> None:
    page = comparison_page(comparison)
    assert "default-src 'none'" in page
    assert "http://" not in page
    assert "https://" not in page
    assert "<script" not in page
    assert "style=" not in page.split("</style>")[1]


def test_all_formats_are_written(comparison: Comparison, tmp_path: Path) -> None:
    files = write_comparison(comparison, tmp_path / "new", outlook=Outlook({"0": 0.5}))
    assert all(path.stat().st_size for path in files)
    document = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert document["schema_version"] == 1
    assert document["predicted"]["shift_share"] == {"0": 0.5}
    again = ss.compare(ss.load(tmp_path / "new/before.npz"), ss.load(tmp_path / "new/after.npz"))
    pd.testing.assert_frame_equal(again.frame, comparison.frame)
    (path, *_) = write_comparison(comparison, tmp_path / "json", "json")
    assert path.name == "comparison.json"
    with pytest.raises(UsageError, match="no format"):
        write_comparison(comparison, tmp_path / "pdf", ["pdf"])
    assert not (tmp_path / "pdf").exists()

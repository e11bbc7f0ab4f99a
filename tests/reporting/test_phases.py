"""A run in the page: how many windows of each phase, and evaluation beside training."""

from __future__ import annotations

import html
import re
from dataclasses import replace

import pytest
from run_cases import batch, network, run
from standin import measure

from shiftscope.findings import diagnose, verdict
from shiftscope.reporting.page import page
from shiftscope.reporting.phases import run_section
from shiftscope.reporting.words import bounded_share, number
from shiftscope.trace import Trace, Window


@pytest.fixture(scope="module")
def both() -> Trace:
    """Two windows of training, then one of evaluation without gradients or its first layer."""
    train = run([0.4, 0.8])
    seen = measure(network(1.0), *batch())
    records = {name: record for name, record in seen.records.items() if name != "0"}
    gaps = (*seen.gaps, ("0", "it <did> not run"))
    beside = replace(seen, records=records, gaps=gaps)
    return Trace([*train, Window(7, 8, "eval", beside)])


def text_of(trace: Trace) -> str:
    findings = diagnose(trace)
    return html.unescape(re.sub(r"<[^>]*>", " ", page(trace.last, findings, trace=trace)))


def test_windows_are_counted_by_phase(both: Trace) -> None:
    told = run_section(both)["sentence"]
    assert told.startswith("3 windows: 2 of training (steps 0 to 5) and 1 of evaluation (steps 7")
    assert "are of training" in told
    assert run_section(run([0.0])) == {"sentence": "1 window: 1 of training (step 0).", "rows": []}


def test_the_latest_windows_stand_side_by_side(both: Trace) -> None:
    section = run_section(both)
    train, beside = both.phase("train")[-1].snapshot, both.phase("eval")[-1].snapshot
    rows = {row[0]: row[1:] for row in section["rows"]}
    assert set(rows) == set(train.sites["site"])
    old, new = (s.sites.set_index("site").loc["3"] for s in (train, beside))
    assert rows["3"] == (
        *(bounded_share(row["shift_share"]) for row in (old, new)),
        *(number(row["within_var"]) for row in (old, new)),
        *(number(row["between_var"]) for row in (old, new)),
    )
    assert rows["3"][0] != rows["3"][1]
    assert "(step 5)" in section["caption"]
    assert "(steps 7 to 8)" in section["caption"]


def test_sites_that_differ_most_come_first(both: Trace) -> None:
    train, beside = (both.phase(p)[-1].snapshot.sites.set_index("site") for p in ("train", "eval"))
    apart = (train["shift_share"] - beside["shift_share"]).abs()
    names = [row[0] for row in run_section(both)["rows"]]
    known = [apart[name] for name in names if name != "0"]
    assert known == sorted(known, reverse=True)
    assert names[-1] == "0"


def test_what_evaluation_did_not_measure_is_a_dash_with_its_reason(both: Trace) -> None:
    section = run_section(both)
    row = next(row for row in section["rows"] if row[0] == "0")
    assert [cell == "–" for cell in row[1:]] == [False, True] * 3
    assert ("0", "it <did> not run") in section["gaps"]


def test_the_page_of_a_run_tells_of_both_phases(both: Trace) -> None:
    text = text_of(both)
    assert run_section(both)["sentence"] in text
    assert "Not measured in evaluation: 0: it <did> not run" in " ".join(text.split())
    assert "it <did>" not in page(both.last, [], trace=both)


def test_the_verdict_of_a_run_is_that_of_all_its_windows(both: Trace) -> None:
    sentence = verdict(diagnose(both), both)["sentence"]
    assert sentence in text_of(both)
    calm = run([0.0, 0.0])
    assert verdict([], calm)["sentence"] != verdict([], calm.last)["sentence"]
    assert verdict([], calm)["sentence"] in html.unescape(page(calm.last, [], trace=calm))


def test_a_snapshot_has_no_run(both: Trace) -> None:
    assert 'id="run"' not in page(both.last, [])
    assert 'id="run"' in page(both.last, [], trace=both)

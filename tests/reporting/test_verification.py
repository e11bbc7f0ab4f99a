"""Verifications on disk: the page says what failed, the document has every number."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from chromium import Browser

from shiftscope.errors import UsageError
from shiftscope.reporting.verification import (
    verification_document,
    verification_page,
    write_verification,
)
from shiftscope.theory.verification import Verification, verify


@pytest.fixture(scope="module")
def run() -> list[Verification]:
    return verify(["prop3", "eta_xi", "erratum1"], samples=2000, seed=4)


def test_all_formats_are_written(run: list[Verification], tmp_path: Path) -> None:
    written = write_verification(run, tmp_path / "new" / "folder")
    assert {str(p.relative_to(tmp_path / "new" / "folder")) for p in written} == {
        "verification.html",
        "verification.json",
        *(f"figures/claim-{name}.png" for name in ("prop3", "eta_xi", "erratum1")),
    }
    assert all(p.stat().st_size for p in written)


def test_the_document_is_strict_and_complete(run: list[Verification], tmp_path: Path) -> None:
    (path,) = write_verification(run, tmp_path, "json")

    def refuse(token: str) -> None:
        raise AssertionError(f"{token} is no JSON")

    stored = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert stored["schema_version"] == 1
    assert stored["passed"] is True
    cases = [case for claim in stored["claims"] for case in claim["cases"]]
    assert len(cases) == len(run)
    for case, verification in zip(cases, run, strict=True):
        assert case["case"] == verification.case
        assert case["estimate"] == pytest.approx(verification.estimate)
        assert len(case["comparisons"]) == len(verification.comparisons)
    broken = next(c for c in cases if c["case"] == "norm by norm")
    assert broken["z"] is None  # infinite
    assert broken["verdict"] == "refuted"


def test_the_page_tells_printed_from_corrected(run: list[Verification]) -> None:
    text = verification_page(run)
    assert "Every claim came out as expected" in text
    row = re.search(r"<tr><td><a href=\"#claim-erratum1\">.*?</tr>", text)
    assert row is not None
    assert "|γ|: refuted" in row.group()
    assert "γ: holds" in row.group()


def test_a_failed_case_is_named_opened_and_marked(run: list[Verification]) -> None:
    wrong = [*run[:-1], replace(run[-1], verdict="refuted")]
    text = verification_page(wrong)
    assert "Not every claim came out as expected" in text
    assert '<a href="#claim-erratum1">erratum1, corrected: θ to γ1</a>' in text
    assert '<details class="finding" id="claim-erratum1" open>' in text
    assert "refuted, expected: holds" in text
    assert verification_document(wrong)["passed"] is False


def test_the_page_is_inert_and_self_contained(run: list[Verification]) -> None:
    text = verification_page([replace(run[0], case="<script>alert(1)</script>"), *run[1:]])
    assert "<script" not in text
    assert " style=" not in text
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "default-src 'none'" in text


def test_nonsense_is_refused(run: list[Verification], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no format 'pdf'"):
        write_verification(run, tmp_path, ["pdf"])
    with pytest.raises(UsageError, match="no verifications"):
        write_verification([], tmp_path)


def test_the_page_is_quiet_in_a_browser(run: list[Verification], tmp_path: Path) -> None:
    write_verification(run, tmp_path / "out")
    browser = Browser(tmp_path / "profile")
    try:
        for width, dark in ((1080, False), (400, True)):
            browser.show(tmp_path / "out" / "verification.html", width=width, dark=dark)
            browser.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
            browser.evaluate("[...document.images].forEach(i => i.loading = 'eager')")
            assert browser.evaluate("document.images.length") == 3
            browser.wait("[...document.images].every(i => i.naturalWidth > 0)")
            assert browser.evaluate("document.documentElement.scrollWidth") <= width
        assert browser.complaints() == []
        assert browser.requests() == []
    finally:
        browser.close()

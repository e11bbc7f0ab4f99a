"""``shiftscope verify``: the table, the JSON, and the exit code."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch

import shiftscope

(SCRIPT,) = entry_points(group="console_scripts", name="shiftscope")
main: Callable[[list[str]], int] = SCRIPT.load()
FAST = ["verify", "--propositions", "3", "--samples", "2000", "--seed", "5", "--quiet"]


def test_json_holds_what_python_returns(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FAST, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    known = shiftscope.verify([3], samples=2000, seed=5)
    assert [(r["claim"], r["case"], r["verdict"]) for r in rows] == [
        (v.claim, v.case, v.verdict) for v in known
    ]
    assert [r["estimate"] for r in rows] == pytest.approx([v.estimate for v in known])


def test_the_table_names_every_case(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(FAST) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    cases = shiftscope.verify([3], samples=2000, seed=5)
    assert all(case.claim in out and case.case in out for case in cases)
    assert out.splitlines()[-1].startswith(f"{len(cases)} of {len(cases)} cases")


def test_an_unexpected_outcome_is_told_by_the_exit_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dataclasses import replace

    outcomes = shiftscope.verify([3], samples=2000)
    other = {"holds": "refuted", "refuted": "holds"}
    wrong = replace(outcomes[0], verdict=other[outcomes[0].verdict])  # type: ignore[arg-type]

    def verify(*_: Any, **__: Any) -> list[Any]:
        return [wrong, *outcomes[1:]]

    monkeypatch.setattr(shiftscope, "verify", verify)
    assert main(FAST) == 1
    assert "expected: " in capsys.readouterr().out


def test_a_false_claim_among_the_claims_ends_in_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """A claim that is wrong by one per cent, through simulation, table and report."""
    from shiftscope.theory import verification
    from shiftscope.theory.claims import Bench, Case, Claim, Comparison
    from shiftscope.theory.montecarlo import compare_means, row_moments

    def measure(bench: Bench) -> list[Comparison]:
        def draw(generator: torch.Generator, rows: int) -> torch.Tensor:
            return torch.randn(rows, 1, generator=generator, dtype=torch.float64) + 1.01

        one = torch.ones(1, dtype=torch.float64)
        return compare_means(row_moments(bench, draw, one), one)

    case = Case("off by a hundredth", "Gaussian", measure)
    false = Claim("false", "The mean is one", "nobody", "E a = 1", (1,), (case,))
    monkeypatch.setattr(verification, "CLAIMS", (*verification.CLAIMS, false))
    options = ["--samples", "1e6", "--quiet", "--out", str(tmp_path / "out")]
    assert main(["verify", "--propositions", "false", *options]) == 1
    assert "0 of 1 cases came out as expected" in capsys.readouterr().out
    page = (tmp_path / "out" / "verification.html").read_text(encoding="utf-8")
    assert "Not every claim came out as expected" in page


@pytest.mark.parametrize(
    ("text", "meant"),
    [("1-6", (1, 2, 3, 4, 5, 6)), ("2,4", (2, 4)), ("3", (3,)), ("1, 5-6,x", (1, 5, 6, "x"))],
)
def test_lists_of_propositions(text: str, meant: tuple[object, ...]) -> None:
    import sys

    parse = sys.modules["shiftscope.cli.verify"].propositions
    assert parse(text) == meant


@pytest.mark.parametrize("text", ["7", "0-2", "nonsense", ",", ""])
def test_what_is_no_proposition_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--propositions", text]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_a_report_is_written_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*FAST, "--json", "--out", str(tmp_path / "new"), "--format", "html,json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert len(json.loads(out)) == 11 + 7
    assert {p.name for p in (tmp_path / "new").iterdir()} == {
        "verification.html",
        "verification.json",
    }
    (tmp_path / "file").touch()
    assert main([*FAST, "--out", str(tmp_path / "file")]) == 2
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "meant"), [("1000", 1000), ("1e8", 10**8), ("2.5e3", 2500)])
def test_numbers_of_rows(text: str, meant: int) -> None:
    import sys

    assert sys.modules["shiftscope.cli.verify"].rows(text) == meant


@pytest.mark.parametrize("text", ["999", "1.5", "nan", "inf", "many", "-1e9"])
def test_what_is_no_number_of_rows_is_refused(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", f"--samples={text}"]) == 2
    assert "from 1000 on" in capsys.readouterr().err


def test_the_default_run_takes_less_than_half_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    start = time.process_time()
    assert main(["verify", "--quiet"]) == 0
    assert time.process_time() - start < 30
    assert "93 of 93 cases" in capsys.readouterr().out

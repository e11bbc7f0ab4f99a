"""``shiftscope verify``: the table, the JSON, and the exit code."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

import pytest

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

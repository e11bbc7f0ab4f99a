"""Names made inert, numbers made readable."""

from __future__ import annotations

import math

import pytest

from shiftscope.reporting.words import (
    ascii_only,
    bounded_share,
    number,
    printable,
    score_line,
    shorten,
)
from shiftscope.snapshot import Snapshot


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("layer1.0:relu", "layer1.0:relu"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("a\0b", r"a\x00b"),
        ("line\nbreak", r"line\nbreak"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("schön ∇", "schön ∇"),
        ("\ud800", r"\ud800"),
    ],
)
def test_what_cannot_be_seen_becomes_an_escape(name: str, shown: str) -> None:
    assert printable(name) == shown


def test_long_names_lose_their_middle() -> None:
    short = shorten("x" * 400 + ".fc2", 30)
    assert len(short) == 30
    assert short.endswith(".fc2")
    assert "…" in short


def test_greek_letters_are_spelt_out_in_ascii() -> None:
    assert ascii_only("∇z ± 1 → φ 名") == "grad z +/- 1 -> phi \\u540d"


def test_the_score_is_told_where_it_is_known() -> None:
    known = {"accuracy": 0.916309, "accuracy_rows": 932, "chance_accuracy": 0.11, "loss": 0.2957}
    told = "Accuracy 91.6 % of 932 rows (always the most frequent class: 11.0 %), loss 0.2957."
    assert score_line(Snapshot(records={}, manifest=known)) == told
    assert score_line(Snapshot(records={}, manifest={"loss": 2.5})) == "Loss 2.5."
    assert score_line(Snapshot(records={})) == ""


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (math.nan, "–"),
        (math.inf, "–"),
        (None, "–"),
        (3.0, "3"),
        (46410, "46,410"),
        (0.123456, "0.1235"),
        (-1.5e-9, "-1.5e-09"),
        (True, "True"),
        ("<b>", "<b>"),
    ],
)
def test_cells(value: object, shown: str) -> None:
    assert number(value) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [
        (0.5, "0.5"),
        (0.99949, "0.999"),
        (0.9996, "0.9996"),
        (0.99998653, "0.99998"),
        (1 - 1e-9, ">0.999999"),
        (1.0, ">0.999999"),
        (math.nan, "–"),
    ],
)
def test_a_share_next_to_one_is_not_rounded_to_one(share: float, shown: str) -> None:
    assert bounded_share(share, 3) == shown

"""Figures of claims: what is drawn are the comparisons, and verdicts stand in words."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from shiftscope.draw.claims import claim_estimates, claim_figures, claim_scores
from shiftscope.draw.output import to_png_bytes
from shiftscope.theory.verification import Verification, verify


@pytest.fixture(scope="module")
def run() -> list[Verification]:
    return verify(["prop1", "eta_xi", "sigmoid_table"], samples=2000)


def points(ax: Axes) -> list[tuple[float, float]]:
    """Marks of an axes, lines without marks left out."""
    marked = [line for line in ax.lines if line.get_marker() not in ("None", "", "_", "|")]
    return [tuple(xy) for line in marked for xy in np.asarray(line.get_xydata())]


def test_one_figure_a_claim_with_words(run: list[Verification]) -> None:
    drawn = claim_figures(run)
    assert [f.name for f in drawn] == ["claim-prop1", "claim-eta_xi", "claim-sigmoid_table"]
    assert drawn[0].alt.startswith("12 of 12 cases came out as expected")
    for figure in drawn:
        assert to_png_bytes(figure.figure).startswith(b"\x89PNG")


def test_every_comparison_is_drawn_at_its_numbers(run: list[Verification]) -> None:
    cases = [v for v in run if v.claim == "prop1"]
    expected = sorted((c.predicted, c.estimate) for v in cases for c in v.comparisons)
    np.testing.assert_allclose(sorted(points(claim_estimates(cases))), expected)
    scores = points(claim_scores(cases))
    for row, case in enumerate(cases):
        drawn = sorted(x for x, y in scores if y == row)
        np.testing.assert_allclose(drawn, sorted(c.z for c in case.comparisons))


def test_broken_identities_stand_at_the_edge_and_say_so(run: list[Verification]) -> None:
    cases = [v for v in run if v.claim == "eta_xi"]
    assert any(math.isinf(v.z) for v in cases)
    ax = claim_scores(cases)
    assert all(math.isfinite(x) for x, _ in points(ax))
    assert "∞" in [text.get_text() for text in ax.texts]


def test_an_unexpected_verdict_stands_out(run: list[Verification]) -> None:
    wrong = replace(run[0], verdict="refuted")
    assert not wrong.passed
    texts = {text.get_text(): text for text in claim_scores([wrong, run[1]]).texts}
    assert texts["refuted!"].get_fontweight() == "bold"
    assert texts["holds"].get_fontweight() == "normal"

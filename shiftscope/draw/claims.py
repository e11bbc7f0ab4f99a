"""Claims against their Monte Carlo estimates: one figure a claim."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.draw.named_figure import NamedFigure
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import (
    INK,
    WIDTH,
    drawing,
    legend_above,
    new_axes,
    new_figure,
    span,
    title,
)
from shiftscope.errors import UsageError
from shiftscope.given import each
from shiftscope.theory.verification import Verification

__all__ = ["claim_estimates", "claim_figure", "claim_figures", "claim_scores"]

_ROLES = (
    ("holds", "should hold", COLORS["forward"], "o"),
    ("refuted", "should fail", COLORS["shift"], "D"),
)
"""Expected verdict, words, colour, marker."""
_ERRORS = 2.0
"""Standard errors an error bar spans to either side."""


def claim_figures(verifications: Sequence[Verification]) -> list[NamedFigure]:
    """Draw one figure for each claim among the verifications.

    Args:
        verifications: What :func:`shiftscope.verify` returned.

    Returns:
        The figures in the order of the claims, with the words that stand beside them.

    Raises:
        UsageError: Something else than verifications is given.
    """
    verifications = each("verifications", verifications, Verification)
    ids = dict.fromkeys(v.claim for v in verifications)
    groups = {name: [v for v in verifications if v.claim == name] for name in ids}
    return [
        NamedFigure(
            f"claim-{name}",
            cases[0].title,
            f"{cases[0].statement}. Left: estimates with two standard errors against "
            "predictions; on the line they agree. Right: deviations in standard errors, one mark "
            "a comparison; inside the band they are compatible with chance over the whole run.",
            _sentence(cases),
            claim_figure(cases),
        )
        for name, cases in groups.items()
    ]


def _sentence(cases: Sequence[Verification]) -> str:
    right = sum(v.passed for v in cases)
    held = [abs(v.z) for v in cases if v.expected == "holds"]
    largest = (
        f"; what should hold deviates by at most {max(held):.1f} standard errors" if held else ""
    )
    return f"{right} of {len(cases)} cases came out as expected{largest}."


@drawing()
def claim_figure(cases: Sequence[Verification]) -> Figure:
    """Draw the cases of one claim: predictions against estimates, and deviations.

    Args:
        cases: Verifications of one claim.

    Returns:
        A figure of two panels.

    Raises:
        UsageError: There is no verification, or something else is given.
    """
    cases = _some(cases)
    figure = new_figure(max(2.6, 1.0 + 0.24 * len(cases)))
    left, right = figure.subplots(1, 2, width_ratios=(1.0, 1.25))
    claim_estimates(cases, left)
    claim_scores(cases, right)
    figure.set_size_inches(WIDTH, figure.get_size_inches()[1])
    return figure


@drawing()
def claim_estimates(cases: Sequence[Verification], ax: Axes | None = None) -> Axes:
    """Draw every estimate, with two standard errors, against its prediction.

    Args:
        cases: Verifications of one claim.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: There is no verification, or something else is given.
    """
    cases = _some(cases)
    ax = new_axes(ax, 4.0)
    title(ax, "Estimates")
    for expected, words, colour, marker in _ROLES:
        chosen = [c for v in cases if v.expected == expected for c in v.comparisons]
        if chosen:
            ax.errorbar(
                [c.predicted for c in chosen],
                [c.estimate for c in chosen],
                yerr=[_ERRORS * c.standard_error for c in chosen],
                fmt=marker,
                ms=3.5,
                color=colour,
                mfc="none",
                lw=1.0,
                label=words,
            )
    values = [x for v in cases for c in v.comparisons for x in (c.predicted, c.estimate)]
    limits = span(values, least=0.02)
    ax.plot(limits, limits, color=COLORS["theory"], lw=0.8, zorder=1)
    ax.set(xlim=limits, ylim=limits, xlabel="predicted", ylabel="estimated")
    legend_above(ax, 2)
    return ax


@drawing()
def claim_scores(cases: Sequence[Verification], ax: Axes | None = None) -> Axes:
    """Draw the deviation of every comparison in standard errors, one row a case.

    The axis is linear inside the critical value and logarithmic outside. Identities that fail
    deviate by infinitely many standard errors and stand at the edge.

    Args:
        cases: Verifications of one claim.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: There is no verification, or something else is given.
    """
    cases = _some(cases)
    ax = new_axes(ax, 4.0)
    title(ax, "Deviation")
    critical = max(v.critical for v in cases)
    scores = [np.array([c.z for c in v.comparisons]) for v in cases]
    finite = np.concatenate([np.abs(z[np.isfinite(z)]) for z in scores])
    edge = 3.0 * max(critical, float(finite.max(initial=0.0)))
    ax.set_xscale("symlog", linthresh=critical, linscale=1.5)
    ax.axvspan(-critical, critical, color="#EEF1F4", zorder=0)
    for row, (case, z) in enumerate(zip(cases, scores, strict=True)):
        _, _, colour, marker = next(r for r in _ROLES if r[0] == case.expected)
        x = np.clip(z, -edge / 1.3, edge / 1.3)
        ax.plot(x, np.full(z.size, row), marker, ms=3.5, color=colour, mfc="none", alpha=0.8)
        if np.isinf(z).any():
            ax.annotate("∞", (edge / 1.3, row), (-5, 0), textcoords="offset points",
                        ha="right", va="center", color=colour)  # fmt: skip
    _label_cases(ax, cases)
    ax.set(xlim=(-edge, edge), xlabel="z (standard errors)")
    powers = range(math.ceil(math.log10(critical)), math.floor(math.log10(edge)) + 1)
    shown = [10.0**p for p in powers][-3:]
    ax.set_xticks([-x for x in shown[::-1]] + [0.0] + shown)
    ax.minorticks_off()
    return ax


def _some(cases: Any) -> tuple[Verification, ...]:
    found = each("cases", cases, Verification)
    if not found:
        raise UsageError("there are no verifications to draw", "give what ss.verify gave")
    return found


def _label_cases(ax: Axes, cases: Sequence[Verification]) -> None:
    """Names on the left, verdicts on the right; an unexpected one stands out."""
    ax.set_yticks(range(len(cases)), [v.case for v in cases], fontsize=7.5)
    ax.set_ylim(len(cases) - 0.4, -0.6)
    ax.grid(visible=False, axis="y")
    for row, case in enumerate(cases):
        ax.annotate(
            case.verdict if case.passed else f"{case.verdict}!",
            (1.01, row),
            xycoords=ax.get_yaxis_transform(),
            va="center",
            fontsize=7.5,
            color=INK if case.passed else COLORS["threshold"],
            fontweight="normal" if case.passed else "bold",
            annotation_clip=False,
        )

"""Marks in a drawing: sites of findings, thresholds crossed, where values were not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes

from shiftscope.draw.palette import COLORS, SEVERITY_COLORS, SEVERITY_MARKERS

if TYPE_CHECKING:
    from shiftscope.draw.tables import Array
    from shiftscope.findings import Finding

__all__ = [
    "BAD",
    "HATCH",
    "hatch_stretches",
    "mark_findings",
    "stretches",
    "threshold_line",
    "thresholds_of",
]

BAD = "NaN or infinite values"
"""What hatching means, for legends."""

HATCH: dict[str, Any] = {"edgecolor": f"{COLORS['threshold']}60", "hatch": "///", "linewidth": 0}
"""Style of what is hatched."""


def thresholds_of(findings: Sequence[Finding], word: str) -> list[tuple[str, float]]:
    """Thresholds that were crossed and whose name holds a word, each once."""
    found = {f.threshold[0]: float(f.threshold[1]) for f in findings if word in f.threshold[0]}
    return list(found.items())


def threshold_line(ax: Axes, value: float, label: str) -> None:
    """Draw a threshold as a dashed line that says what it is.

    Args:
        ax: The panel; its limits widen so that the line is seen.
        value: Where the line stands, in data units.
        label: Its words, for the legend.
    """
    low, high = ax.get_ylim()
    spare = 0.05 * (high - low)
    ax.set_ylim(min(low, value - spare), max(high, value + spare))
    ax.axhline(
        value,
        color=COLORS["threshold"],
        linewidth=1.0,
        linestyle=(0, (5, 3)),
        label=label,
        zorder=2,
    )


def mark_findings(ax: Axes, names: Sequence[str], findings: Sequence[Finding]) -> None:
    """Mark the sites of findings along the bottom of a panel, colour and shape by severity.

    Args:
        ax: A panel whose x runs over the positions of the sites.
        names: The sites, in order.
        findings: Findings, worst first; the worst is drawn last, on top.
    """
    places = {name: place for place, name in enumerate(names)}
    for finding in reversed(findings):
        where = [places[site] for site in finding.sites if site in places]
        if where:
            ax.plot(
                *(where, np.zeros(len(where))),
                transform=ax.get_xaxis_transform(),
                linestyle="",
                marker=SEVERITY_MARKERS.get(finding.severity, "o"),
                color=SEVERITY_COLORS.get(finding.severity, COLORS["measured"]),
                markersize=4.5,
                clip_on=False,
                zorder=7,
                label=f"{finding.severity}: {finding.cause.replace('_', ' ')}",
            )


def hatch_stretches(
    ax: Axes, edges: Array, marked: npt.NDArray[np.bool_], label: str | None = BAD
) -> None:
    """Hatch places along the x axis over the whole height of a panel.

    Args:
        ax: The panel.
        edges: Where the places begin and end, ``[n + 1]``.
        marked: Which places, ``[n]``.
        label: Words for the legend; None for none.
    """
    for start, stop in stretches(marked):
        ends = edges[start], edges[stop]
        ax.axvspan(*ends, facecolor="none", label=label, zorder=0.5, **HATCH)
        label = None


def stretches(marked: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    """First and past-the-last position of each unbroken stretch of marked places."""
    turns = np.flatnonzero(np.diff(np.concatenate([[False], marked, [False]])))
    return [(int(start), int(stop)) for start, stop in turns.reshape(-1, 2)]

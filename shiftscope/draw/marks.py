"""Findings in a drawing: the sites they concern and the thresholds they crossed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes

from shiftscope.draw.palette import COLORS, SEVERITY_COLORS, SEVERITY_MARKERS

if TYPE_CHECKING:
    from shiftscope.findings import Finding

__all__ = ["mark_findings", "threshold_line", "thresholds_of"]


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

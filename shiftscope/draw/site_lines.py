"""Lines over the sites of a model: what the panels of a depth profile have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from shiftscope.draw.decades import decade_axis
from shiftscope.draw.marks import mark_findings, threshold_line, thresholds_of
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import MANY, label_sites, legend_above, not_measured, span
from shiftscope.draw.tables import Array

if TYPE_CHECKING:
    from shiftscope.findings import Finding

__all__ = [
    "error_band",
    "finish",
    "in_decades",
    "main_places",
    "places",
    "predicted_line",
    "relative_thresholds",
    "site_line",
    "without_data",
]


def places(sites: pd.DataFrame, kind: str) -> Any:
    """Positions of the sites of one kind, in the order of execution."""
    return np.flatnonzero((sites["kind"] == kind).to_numpy())


def main_places(sites: pd.DataFrame) -> Any:
    """Linear sites; the activations where a table has no linear ones."""
    linear = places(sites, "linear")
    return linear if len(linear) else np.arange(len(sites))


def site_line(
    ax: Axes,
    where: Any,
    values: Array,
    quantity: str,
    label: str,
    *,
    weak: bool = False,
    wide: bool = False,
) -> None:
    """Draw a measured quantity over the positions of its sites; nothing where none is known.

    Args:
        ax: The panel.
        where: Positions.
        values: One for each.
        quantity: What decides the colour, a key of :data:`shiftscope.draw.palette.COLORS`.
        label: Words for the legend.
        weak: Whether it stands behind another line of the same quantity.
        wide: Whether a prediction will lie on it.
    """
    if not np.isfinite(values).any():
        return
    many = len(values) > MANY
    ax.plot(
        *(where, values),
        color=COLORS[quantity],
        label=label,
        marker="o",
        markersize=1.4 if many else 4.4 if wide else 3.6,
        markerfacecolor="white" if weak and not many else COLORS[quantity],
        linewidth=1.0 if many else 2.2 if wide else 1.3,
        linestyle=":" if weak else "-",
        alpha=0.75 if weak else 1.0,
        zorder=2.5 if weak else 3,
    )


def predicted_line(ax: Axes, where: Any, values: Array, quantity: str, label: str) -> None:
    """Draw what was predicted of a quantity, thin and on top of what was measured."""
    if np.isfinite(values).any():
        many = len(values) > MANY
        ax.plot(
            *(where, values),
            color=COLORS["theory"],
            label=label,
            linewidth=0.6 if many else 0.9,
            linestyle="-" if quantity == "forward" else ":",
            marker="" if many else ("o" if quantity == "forward" else "s"),
            markersize=2.4,
            zorder=4,
        )


def error_band(ax: Axes, where: Any, values: Array, error: Array) -> None:
    """Shade two standard errors to either side of a line."""
    if np.isfinite(error).any():
        low, high = values - 2 * error, values + 2 * error
        ax.fill_between(where, low, high, facecolor=COLORS["shift"], alpha=0.18, linewidth=0)


def in_decades(ax: Axes, sites: pd.DataFrame, *values: Array) -> None:
    """Label the sites, and let the other axis run over the decades of some values."""
    label_sites(ax, list(sites["site"]))
    ax.set_ylim(*span(*values, least=0.6))
    decade_axis(ax.yaxis, 5)
    ax.set_ylabel("variance")


def relative_thresholds(
    ax: Axes, findings: Sequence[Finding], word: str, start: float, where: str, sign: float = -1.0
) -> None:
    """Draw the thresholds whose name holds a word, as decades away from a start."""
    for _, value in thresholds_of(findings, word):
        threshold_line(ax, start + sign * value, f"{value:g} decades {where}")


def finish(ax: Axes, sites: pd.DataFrame, findings: Sequence[Finding], causes: set[str]) -> None:
    """Mark the sites of findings of some causes, draw the legend."""
    if "activation_shift" in causes:
        for _, value in thresholds_of(findings, "shift_share"):
            threshold_line(ax, value, f"threshold {value:g}")
    mark_findings(ax, list(sites["site"]), [f for f in findings if f.cause in causes])
    legend_above(ax)


def without_data(ax: Axes, sites: pd.DataFrame, reason: str) -> Axes:
    """Say in the panel why nothing is drawn."""
    not_measured(ax, reason if len(sites) else "no site was found in this model")
    return ax

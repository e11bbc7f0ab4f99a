"""Angles of the weight vectors of each site: to the vector of ones and to the mean input.

A neuron's shift is the norm of its weights times the norm of the mean input times the cosine of
this angle (Kutsuna 2019, Propositions 1 and 2): at 90 degrees there is none.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.draw.heatmaps import sequential
from shiftscope.draw.names import display_names, strided
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import drawing, new_axes, new_figure, not_measured, title
from shiftscope.draw.tables import Array, Source, by_site, column, neurons_of

__all__ = ["angle_histogram", "angle_histograms"]

_RIDGES = 10
_BINS = 61
_REACHES = (2.0, 5.0, 10.0, 20.0, 45.0, 90.0)
_WORDS = {
    "ones": ("theta_ones", "Angle of weights to 1"),
    "mean": ("theta_mean", "Angle of weights to the mean input"),
}


@drawing()
def angle_histograms(source: Source) -> Figure:
    """Draw the angles of the weights to 1 and to the mean input, side by side.

    Args:
        source: A snapshot or its neuron table.

    Returns:
        A figure of two panels.
    """
    neurons = _with_angles(neurons_of(source))
    rows = neurons["site"].nunique()
    figure = new_figure(min(1.5 + 0.42 * min(rows, _RIDGES), 5.6) if rows <= _RIDGES else 4.8)
    left, right = figure.subplots(1, 2)
    angle_histogram(neurons, "ones", ax=left)
    angle_histogram(neurons, "mean", ax=right)
    if left.has_data() and right.has_data():
        right.tick_params(labelleft=False)
    return figure


@drawing()
def angle_histogram(
    source: Source, to: Literal["ones", "mean"] = "mean", ax: Axes | None = None
) -> Axes:
    """Draw how the angles of a site's weight vectors are distributed, a row each site.

    Up to ten sites are ridges; more are a heat map, dark at the fullest bin of each row. The axis
    reaches equally far on both sides of 90 degrees.

    Args:
        source: A snapshot or its neuron table.
        to: ``"ones"``, the vector of ones, or ``"mean"``, the mean input of the site.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax = new_axes(ax, 4.0)
    name, heading = _WORDS[to]
    title(ax, heading)
    rows = [(site, _degrees(p, name)) for site, p in by_site(_with_angles(neurons_of(source)))]
    measured = [values for _, values in rows if values.size]
    if not measured:
        reason = "no weights were read" if to == "ones" else "no mean input (no data were run)"
        not_measured(ax, reason)
        return ax
    edges = _edges(measured)
    heights = np.stack([np.histogram(values, edges)[0] for _, values in rows])
    heights = heights / np.maximum(heights.max(axis=1, keepdims=True), 1)
    draw = _ridges if len(rows) <= _RIDGES else _heat
    draw(ax, edges, heights)
    _furnish(ax, [site for site, _ in rows], edges)
    return ax


def _with_angles(neurons: pd.DataFrame) -> pd.DataFrame:
    known = np.isfinite(column(neurons, "theta_ones")) | np.isfinite(column(neurons, "theta_mean"))
    return neurons[known]


def _degrees(part: pd.DataFrame, name: str) -> Array:
    values = np.degrees(column(part, name))
    return values[np.isfinite(values)]


def _edges(rows: list[Array]) -> Array:
    """Bins symmetric about 90 degrees that hold every angle; the middle one is centred on 90."""
    farthest = max(float(np.abs(values - 90).max()) for values in rows)
    reach = next((r for r in _REACHES if farthest <= r), 90.0)
    return 90 + np.linspace(-reach, reach, _BINS + 1)


def _ridges(ax: Axes, edges: Array, heights: Array) -> None:
    for row, height in enumerate(heights):
        tops = row - 0.85 * height
        ax.stairs(
            *(tops, edges),
            baseline=row,
            fill=True,
            facecolor=COLORS["shift"],
            alpha=0.35,
            linewidth=0,
        )
        ax.stairs(tops, edges, baseline=None, color=COLORS["shift"], linewidth=1.0)
    ax.set_ylim(len(heights) - 0.7, -1.0)


def _heat(ax: Axes, edges: Array, heights: Array) -> None:
    ax.imshow(
        heights,
        cmap=sequential(COLORS["shift"]),
        extent=(edges[0], edges[-1], len(heights) - 0.5, -0.5),
        aspect="auto",
        interpolation="nearest",
        vmin=0,
        vmax=1,
    )
    ax.grid(visible=False)


def _furnish(ax: Axes, names: list[str], edges: Array) -> None:
    ax.axvline(90, color="white", linewidth=1.8, alpha=0.6, zorder=3.9)
    ax.axvline(90, color=COLORS["theory"], linewidth=0.9, linestyle=":", zorder=4)
    places = strided(len(names), 12)
    ax.set_yticks(places, display_names([names[place] for place in places], 22), fontsize=7.5)
    ax.grid(visible=False, axis="y")
    ax.set_xlim(float(edges[0]), float(edges[-1]))
    ax.set_xlabel("degrees (90: no shift)")
    if math.isclose(float(edges[-1]), 180.0):
        ax.set_xticks([0, 30, 60, 90, 120, 150, 180])

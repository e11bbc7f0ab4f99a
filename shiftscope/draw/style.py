"""How every figure looks: sizes, theme, axes in decades, site names along an axis, empty panels.

Nothing global is touched: figures are made without pyplot, and every drawing runs inside
:func:`drawing`, which restores the user's parameters.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib.style
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from shiftscope.draw.names import FONT, display_names, strided

__all__ = [
    "DPI",
    "INK",
    "MANY",
    "WIDTH",
    "drawing",
    "empty_figure",
    "label_sites",
    "legend_above",
    "new_axes",
    "new_figure",
    "not_measured",
    "remark",
    "span",
    "stack_panels",
    "title",
]

WIDTH = 9.0
"""Width of every figure in inches: 1080 pixels at :data:`DPI`, the width of the report."""

DPI = 120
"""Pixels per inch of saved figures."""

INK = "#333A40"
"""Text and axes."""

QUIET = "#5F676E"
"""Remarks, and words in the place of what was not measured."""

MANY = 64
"""From here on boxes become bands and markers become dots: below it each has 5 pixels or more."""

_LEVEL = 70
"""Letters that fit side by side under a panel, with space between the names."""

_HUGE = 1e300
"""Where an axis ends: matplotlib cannot take the difference of larger limits."""

_LETTERS = 12
"""Letters of a remark in an inch."""

_EMPTY = "not-measured"

_RC: dict[str, Any] = {
    "font.family": [FONT],
    "font.sans-serif": [FONT],
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "xtick.labelsize": 8.0,
    "ytick.labelsize": 8.0,
    "legend.fontsize": 8.0,
    "legend.frameon": False,
    "figure.titlesize": 11.0,
    "figure.titleweight": "bold",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "axes.facecolor": "white",
    "axes.edgecolor": "#9AA1A8",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "axes.axisbelow": True,
    "grid.color": "#E3E6E9",
    "grid.linewidth": 0.7,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.width": 0.8,
    "ytick.major.width": 0.8,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "path.simplify": True,
}


@contextmanager
def drawing() -> Iterator[None]:
    """Hold shiftscope's style while drawing or saving; afterwards the user's own is back.

    Also a decorator: ``@drawing()``.
    """
    with matplotlib.style.context(["default", sns.axes_style("ticks") | _RC]):
        yield


def new_axes(ax: Axes | None, height: float = 3.0) -> Axes:
    """The axes given, or the only axes of a new figure that no global state knows.

    Args:
        ax: Axes of the caller, or None.
        height: Height of a new figure in inches.
    """
    return ax if ax is not None else new_figure(height).subplots()


def new_figure(height: float) -> Figure:
    """A figure of the common width, laid out so that no label is cut off."""
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def title(ax: Axes, text: str) -> None:
    """Set the title of a panel, at its left edge."""
    ax.set_title(text, loc="left")


def label_sites(ax: Axes, names: Sequence[object], limit: int = 14) -> None:
    """Name the sites along the x axis: all of them where they fit, else evenly spaced ones.

    Args:
        ax: Axes whose x runs over the positions 0, 1, ... of the sites.
        names: One name a site.
        limit: How many names stand along the axis at most, once not all of them fit.
    """
    fits = len(names) <= 2 * limit
    places = strided(len(names), 2 * limit if fits else limit)
    labels = display_names([names[place] for place in places], 24)
    ax.set_xticks(places, labels, fontsize=7.5)
    if sum(map(len, labels)) > _LEVEL:
        for label in ax.get_xticklabels():
            label.set(rotation=38, ha="right", rotation_mode="anchor")
    ax.set_xlim(-0.7 - 0.01 * len(names), len(names) - 0.3 + 0.01 * len(names))
    ax.grid(visible=False, axis="x")


def not_measured(ax: Axes, reason: str) -> None:
    """Say in words why a panel is empty, instead of showing an empty axes.

    Args:
        ax: The panel; its ticks and grid go.
        reason: What is missing, and what would bring it.
    """
    # Removing the ticks themselves would remove those of panels that share the axis.
    ax.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    ax.grid(visible=False)
    for spine in ax.spines.values():
        spine.set_visible(True)
        spine.set_linestyle((0, (4, 4)))
    room = ax.get_position().width * ax.get_figure(root=True).get_figwidth()  # type: ignore[union-attr]
    text = "\n".join(textwrap.wrap(f"Not measured: {reason}", max(int(room * _LETTERS), 12)))
    ax.text(
        *(0.5, 0.5, text),
        transform=ax.transAxes,
        ha="center",
        va="center",
        color=QUIET,
        gid=_EMPTY,
        in_layout=False,
    )


def stack_panels(figure: Figure, panels: Sequence[Axes], height: float, rest: float) -> None:
    """Finish panels that stand on each other: labels at the lowest, empty ones made low.

    Args:
        figure: The figure of the panels; its height is set.
        panels: From top to bottom, sharing the x axis.
        height: Height of a panel in inches.
        rest: Inches for what stands below the lowest.
    """
    heights = [0.4 * height if _is_empty(ax) else height for ax in panels]
    filled = [ax for ax in panels if not _is_empty(ax)]
    for ax in filled:
        ax.tick_params(labelbottom=ax is filled[-1])
    if (grid := panels[0].get_gridspec()) is not None:
        grid.set_height_ratios(heights)
    figure.set_size_inches(WIDTH, sum(heights) + rest)


def _is_empty(ax: Axes) -> bool:
    return any(text.get_gid() == _EMPTY for text in ax.texts)


def empty_figure(heading: str, reason: str) -> Figure:
    """A figure of one panel that says why there is nothing to draw."""
    figure = new_figure(1.6)
    ax = figure.subplots()
    title(ax, heading)
    not_measured(ax, reason)
    return figure


def remark(ax: Axes, text: str, x: float = 0.99, y: float = 0.04) -> None:
    """Put a quiet remark in a corner of a panel, where no data can be.

    Args:
        ax: The panel.
        text: The words; anything they must not hide belongs below the axis instead.
        x: Where, as a share of the width.
        y: Where, as a share of the height.
    """
    ax.text(
        *(x, y, text),
        transform=ax.transAxes,
        ha="right" if x > 0.5 else "left",
        va="bottom" if y < 0.5 else "top",
        fontsize=7.5,
        color=QUIET,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.5},
        zorder=6,
    )


def legend_above(ax: Axes, columns: int = 5) -> None:
    """Put the legend above the panel at its right, where it covers neither data nor title."""
    handles, labels = ax.get_legend_handles_labels()
    rows = math.ceil(len(handles) / columns)
    while handles:
        legend = ax.legend(
            *(handles, labels),
            loc="lower right",
            bbox_to_anchor=(1.0, 1.0),
            ncols=math.ceil(len(handles) / rows),
            borderaxespad=0.1,
            columnspacing=1.3,
            handlelength=1.6,
            handletextpad=0.5,
        )
        if rows == len(handles) or _title_width(ax) + legend.get_window_extent().width < _room(ax):
            return
        rows += 1


def _title_width(ax: Axes) -> float:
    """Width of the title at the left in pixels."""
    told = ax.get_title(loc="left")
    for text in ax.findobj(Text):
        if told and isinstance(text, Text) and text.get_text() == told:
            return float(text.get_window_extent().width)
    return 0.0


def _room(ax: Axes) -> float:
    """Width of a panel in pixels; one that has a row of the figure to itself grows with layout."""
    own, figure = float(ax.get_window_extent().width), ax.get_figure(root=True)
    grid = ax.get_gridspec()
    if figure is None or grid is None or grid.ncols > 1:
        return own
    return max(own, 0.88 * figure.get_figwidth() * figure.dpi)


def span(*arrays: Any, least: float) -> tuple[float, float]:
    """Limits that hold all finite values with 6 % to spare.

    They are at least ``least`` apart and at least 0.2 % of the largest value, so that rounding
    noise is not blown up to a whole panel.

    Args:
        arrays: What is to be seen; NaN and infinities are left out.
        least: Smallest distance between the limits.

    Returns:
        Lower and upper limit; ``(-least / 2, least / 2)`` where nothing is finite.
    """
    values = np.concatenate([np.ravel(np.asarray(array, dtype=np.float64)) for array in arrays])
    values = np.clip(values[np.isfinite(values)], -_HUGE, _HUGE)
    if not values.size:
        return -least / 2, least / 2
    low, high = float(values.min()), float(values.max())
    least = max(least, 2e-3 * max(abs(low), abs(high)))
    missing = max(least - (high - low), 0.0) / 2
    spare = 0.06 * max(high - low, least)
    return low - missing - spare, high + missing + spare

"""Five quantiles a place, as boxes where there is room for boxes, as nested bands beyond that."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes

from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import MANY
from shiftscope.draw.tables import Array

__all__ = ["BANDS", "BOXES", "draw_bands", "draw_quantiles"]

BOXES = "box 25 to 75 %, whiskers 1 and 99 %, line: median"
"""How to read the boxes, for captions."""

BANDS = "light band 1 to 99 %, dark band 25 to 75 %, line: median"
"""How to read the bands, for captions."""


def draw_quantiles(ax: Axes, places: Array, table: Array, quantity: str) -> str:
    """Draw quantiles side by side.

    Args:
        ax: The panel.
        places: Position of each on the x axis, rising, ``[n]``.
        table: Quantiles 1, 25, 50, 75 and 99 %, ``[5, n]``; a column with NaN leaves a gap.
        quantity: Whose colour is used, a key of :data:`~shiftscope.draw.palette.COLORS`.

    Returns:
        How to read the drawing, for its caption.
    """
    if len(places) <= MANY:
        _boxes(ax, places, table, COLORS[quantity])
        return BOXES
    _bands(ax, places, table, COLORS[quantity])
    return BANDS


def _boxes(ax: Axes, places: Array, table: Array, color: str) -> None:
    known = np.isfinite(table).all(axis=0)
    keys = ("whislo", "q1", "med", "q3", "whishi")
    stats = [dict(zip(keys, map(float, column), strict=True)) for column in table[:, known].T]
    line = {"color": color, "linewidth": 1.0}
    ax.bxp(
        stats,
        positions=places[known],
        widths=0.62,
        showfliers=False,
        showcaps=True,
        capwidths=0.3,
        patch_artist=True,
        manage_ticks=False,
        boxprops={"facecolor": f"{color}40", "edgecolor": color, "linewidth": 0.9},
        medianprops={"color": color, "linewidth": 2.0, "solid_capstyle": "butt"},
        whiskerprops=line,
        capprops=line,
    )


def _bands(ax: Axes, places: Array, table: Array, color: str) -> None:
    middles = (places[1:] + places[:-1]) / 2
    draw_bands(ax, np.concatenate([[places[0] - 0.5], middles, [places[-1] + 0.5]]), table, color)


def draw_bands(ax: Axes, edges: Array, table: Array, color: str) -> None:
    """Draw quantiles as two nested bands with a line, in steps as wide as their place.

    So a measured one between two gaps is still seen.

    Args:
        ax: The panel.
        edges: Where places begin and end, ``[n + 1]``.
        table: Quantiles 1, 25, 50, 75 and 99 %, ``[5, n]``; a column with NaN leaves a gap.
        color: A colour that matplotlib knows.
    """
    for (low, high), alpha in (((0, 4), 0.22), ((1, 3), 0.42)):
        ax.stairs(
            *(table[high], edges),
            baseline=table[low],
            fill=True,
            facecolor=color,
            alpha=alpha,
            linewidth=0,
        )
    ax.stairs(table[2], edges, baseline=None, color=color, linewidth=1.1)

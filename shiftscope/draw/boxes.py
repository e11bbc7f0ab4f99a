"""Kutsuna 2019, Figures 2 and 3: the activations of each neuron of a site.

In a healthy layer every box spans the range of the activation. Under activation shift the boxes
are short and stand at different heights: each neuron has become a constant of its own.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from shiftscope.draw.decades import value_axis
from shiftscope.draw.names import thinned
from shiftscope.draw.quantiles import draw_quantiles
from shiftscope.draw.style import MANY, drawing, new_axes, not_measured, span, title
from shiftscope.draw.tables import Array, Source, neurons_of, quantiles_of, site_label

__all__ = ["neuron_boxes"]

_COLUMNS = 1000
_WORDS = {"a": "activation a", "z": "preactivation z"}


@drawing()
def neuron_boxes(
    source: Source,
    site: str,
    stream: Literal["a", "z"] | None = None,
    order: Literal["median", "index"] = "median",
    first: int | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the distribution of each neuron of a site: quantiles 1, 25, 50, 75 and 99 %.

    Up to 64 neurons are boxes, as in Kutsuna 2019 (ECML PKDD), Figures 2 and 3; more are nested
    bands with the line of the medians.

    Args:
        source: A snapshot or its neuron table.
        site: Name of the site.
        stream: ``"a"`` for what leaves an activation, ``"z"`` for what enters it or leaves a
            linear map; None takes a where it was measured.
        order: Neurons by their median, or as they are numbered.
        first: Only the first so many neurons (the paper draws 20).
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: There is no such site.
    """
    ax = new_axes(ax, 2.6)
    frame = neurons_of(source, site)
    frame = frame if first is None else frame.iloc[:first]
    chosen = stream or _measured(frame)
    table = quantiles_of(frame, chosen)
    title(ax, f"Site {site_label(source, site, 56)}: {_WORDS[chosen]}")
    known = np.isfinite(table).all(axis=0)
    if not known.any():
        not_measured(ax, f"no quantiles of {chosen} were sampled at this site")
        return ax
    _draw(ax, table[:, known], order, len(frame))
    return ax


def _measured(frame: pd.DataFrame) -> Literal["a", "z"]:
    return "a" if np.isfinite(quantiles_of(frame, "a")).any() else "z"


def _draw(ax: Axes, table: Array, order: str, total: int) -> None:
    count = table.shape[1]
    # Equal medians are common behind ReLU: the upper quantiles decide there.
    ranks = np.lexsort((table[4], table[3], table[2])) if order == "median" else np.arange(count)
    kept = np.asarray(thinned(count, _COLUMNS))
    table = table[:, ranks][:, kept]
    draw_quantiles(ax, np.asarray(kept, dtype=np.float64), table, "forward")
    ax.set_ylim(*span(table, least=1e-290))
    value_axis(ax.yaxis)
    ax.set_xlim(-0.7, count - 0.3)
    ax.set_xlabel(_words(len(kept), count, total, order))
    ax.set_ylabel("value")
    if count <= MANY:
        ax.set_xticks([])


def _words(shown: int, count: int, total: int, order: str) -> str:
    by = "sorted by median" if order == "median" else "in order of number"
    words = [f"{count} neurons, {by}" if count > 1 else "one neuron"]
    if shown < count:
        words.append(f"{shown} evenly chosen ones are drawn")
    if count < total:
        words.append(f"{total - count} of {total} not measured")
    return "; ".join(words)

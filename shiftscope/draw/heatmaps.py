"""Kutsuna 2019, Figure 1: W, A and Z = W A as heat maps.

Where activation shift is present Z shows horizontal stripes: rows (neurons) differ from each other
more than they vary along a row (samples).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from shiftscope.draw.decades import value_axis
from shiftscope.draw.names import display_names
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import drawing, empty_figure, new_figure, not_measured, title
from shiftscope.draw.tables import Array
from shiftscope.errors import UsageError
from shiftscope.given import expect
from shiftscope.snapshot import Snapshot

__all__ = ["DIVERGING", "heat_map", "sequential", "stripes"]

DIVERGING = "vlag"
"""Colour map of signed quantities, white at zero (seaborn's; told apart by the colour-blind)."""

DARKEST = "#10130F"


def sequential(color: str) -> Colormap:
    """Colour map of amounts: white at nothing, then the colour, then nearly black."""
    return sns.blend_palette(["#FFFFFF", color, DARKEST], as_cmap=True)


MISSING = "#C9CDD1"

_AXES = {
    "W": ("Weights W", "input", "neuron"),
    "A": ("Inputs A", "sample", "input"),
    "Z": ("Preactivations Z = W A", "sample", "neuron"),
}

Pictures = Mapping[str, Mapping[str, Any]]


@drawing()
def stripes(
    source: Snapshot | Pictures,
    sites: str | Sequence[str] | None = None,
    limit: float | None = None,
) -> Figure:
    """Draw weights, inputs and preactivations of a site as heat maps; shift shows as stripes.

    Kutsuna 2019 (ECML PKDD), Figure 1.

    Args:
        source: A snapshot with pictures, or a mapping of site to
            ``{"W": [out, in], "A": [in, n], "Z": [out, n]}``.
        sites: One name, or several to be compared, a row each; None takes the first.
        limit: Largest absolute value on the colour scale of Z; None takes that of the data. All
            rows share it.

    Returns:
        A figure of one row of three panels for each site.

    Raises:
        UsageError: It is neither, or a named site has no picture.
    """
    expect("the source", source, Snapshot, Mapping)
    pictures = source.pictures if isinstance(source, Snapshot) else source
    names = _chosen(pictures, sites)
    if not names:
        return empty_figure("Weights, inputs, preactivations", "no picture was kept of any site")
    figure = new_figure(3.3 * len(names))
    rows = figure.subfigures(len(names), 1, squeeze=False)[:, 0]
    reach = limit or _reach([pictures[name].get("Z") for name in names])
    labels = dict(zip(pictures, display_names(list(pictures), 70), strict=True))
    for row, name in zip(rows, names, strict=True):
        row.suptitle(f"Site {labels[name]}", x=0.01, ha="left")
        _row(row.subplots(1, 3), pictures[name], reach)
    return figure


@drawing()
def heat_map(ax: Axes, values: Array, limit: float | None, label: str = "") -> AxesImage:
    """Draw a matrix as an image with its colour bar, one scale about zero for signed values.

    Args:
        ax: The panel.
        values: ``[rows, columns]``; NaN is drawn grey.
        limit: Largest absolute value on the scale; None takes that of the data.
        label: What the colour says.

    Returns:
        The image.
    """
    reach = limit or _reach([values])
    signed = bool(np.nanmin(values, initial=0.0) < 0) or limit is not None
    diverging = sns.color_palette(DIVERGING, as_cmap=True)
    palette = diverging if signed else sequential(COLORS["forward"])
    image = ax.imshow(
        values,
        cmap=palette.with_extremes(bad=MISSING),
        vmin=-reach if signed else 0.0,
        vmax=reach,
        aspect="auto",
        interpolation="nearest",
    )
    ax.grid(visible=False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.06, aspect=28, pad=0.02, label=label)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    value_axis(bar.ax.yaxis)
    return image


def _chosen(pictures: Pictures, sites: str | Sequence[str] | None) -> list[str]:
    if sites is None:
        return list(pictures)[:1]
    names = [sites] if isinstance(sites, str) else list(sites)
    for name in names:
        if name not in pictures:
            raise UsageError(
                f"no picture of site {name!r} was kept; there are {len(pictures)} others",
                "choose one of snapshot.pictures, or measure again with pictures of this site",
            )
    return names


def _row(panels: Any, picture: Mapping[str, Any], reach: float) -> None:
    for ax, key in zip(panels, _AXES, strict=True):
        heading, x, y = _AXES[key]
        values = np.asarray(picture.get(key, ()), dtype=np.float64)
        title(ax, heading)
        if values.ndim != 2 or not np.isfinite(values).any():
            not_measured(ax, f"no finite crop of {key}")
            continue
        heat_map(ax, values, reach if key == "Z" else None)
        ax.set_xlabel(f"{x} (first {values.shape[1]})")
        ax.set_ylabel(f"{y} (first {values.shape[0]})")


def _reach(matrices: Sequence[Any]) -> float:
    finite = [_largest(matrix) for matrix in matrices if matrix is not None]
    return max(finite, default=0.0) or 1.0


def _largest(matrix: Any) -> float:
    values = np.abs(np.asarray(matrix, dtype=np.float64))
    return float(np.max(values, initial=0.0, where=np.isfinite(values)))

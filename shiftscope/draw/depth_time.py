"""Depth against step: how shift, gradients and gains spread through a network while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import Colormap
from matplotlib.figure import Figure

from shiftscope.draw.course import Course, shade_cells, step_axis
from shiftscope.draw.decades import decade_axis, decades
from shiftscope.draw.heatmaps import DIVERGING, MISSING, sequential
from shiftscope.draw.names import display_names, strided
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import (
    drawing,
    legend_above,
    new_axes,
    new_figure,
    not_measured,
    span,
    title,
)
from shiftscope.draw.tables import Array
from shiftscope.errors import UsageError

if TYPE_CHECKING:
    from shiftscope.trace import Trace

__all__ = ["QUANTITIES", "evolution", "evolution_map"]

_PANEL = 2.5
_NAMES = 9
_GAIN = 0.3
"""Least reach of the colours of a gain: a factor of two either way."""


@dataclass(frozen=True)
class _Quantity:
    """What a panel shows."""

    heading: str
    kind: str
    color: str
    scale: str  # "share": 0 to 1; "decades": log10 of an amount; "gain": log10 about 1


QUANTITIES = {
    "shift_share": _Quantity("Shift share of z", "judged", "shift", "share"),
    "grad_z_var": _Quantity("Gradient variance V(∇z)", "linear", "backward", "decades"),
    "within_var": _Quantity("Variance of z within neurons", "judged", "within", "decades"),
    "eta_measured": _Quantity("Forward gain η of linear maps", "linear", "forward", "gain"),
    "xi_measured": _Quantity("Backward gain ξ of linear maps", "linear", "backward", "gain"),
    "phi_fw": _Quantity("Forward gain φ of activations", "activation", "forward", "gain"),
    "phi_bw": _Quantity("Backward gain φ of activations", "activation", "backward", "gain"),
}
"""Columns of the site table that can be drawn over depth and step."""

_SHOWN = ("shift_share", "grad_z_var", "eta_measured", "xi_measured", "phi_fw", "phi_bw")


@drawing()
def evolution(trace: Trace, quantities: Sequence[str] = _SHOWN) -> Figure:
    """Draw several quantities over depth (downwards, input at the top) and step (to the right).

    Args:
        trace: A run.
        quantities: Which of :data:`QUANTITIES`; those that were not measured are left out.

    Returns:
        A figure of small multiples, two in a row.

    Raises:
        UsageError: A quantity is not known, or the run has no finished window.
    """
    course = Course.of(trace)
    kept = [name for name in quantities if _measured(course, name)] or list(quantities[:1])
    rows = -(-len(kept) // 2)
    figure = new_figure(_PANEL * rows)
    panels = figure.subplots(rows, 2 if len(kept) > 1 else 1, squeeze=False).ravel()
    for ax, name in zip(panels, kept, strict=False):
        _draw(ax, course, name)
    hatched = [ax for ax in panels[: len(kept)] if ax.get_legend_handles_labels()[0]]
    for ax in hatched[:1]:
        legend_above(ax)
    for ax in panels[len(kept) :]:
        ax.remove()
    return figure


@drawing()
def evolution_map(trace: Trace, quantity: str = "shift_share", ax: Axes | None = None) -> Axes:
    """Draw one quantity over depth and step.

    Args:
        trace: A run.
        quantity: One of :data:`QUANTITIES`.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: The quantity is not known, or the run has no finished window.
    """
    ax = new_axes(ax)
    _draw(ax, Course.of(trace), quantity)
    legend_above(ax)
    return ax


def _draw(ax: Axes, course: Course, name: str) -> None:
    what, sites, values = _values(course, name)
    title(ax, what.heading)
    if not np.isfinite(values).any():
        not_measured(ax, course.missing(name))
        return
    palette, low, high = _scale(what, values)
    image = ax.pcolormesh(
        course.edges,
        np.arange(len(sites) + 1) - 0.5,
        np.ma.masked_invalid(values),
        cmap=palette.with_extremes(bad=MISSING),
        vmin=low,
        vmax=high,
    )
    ax.grid(visible=False)
    ax.set_ylim(len(sites) - 0.5, -0.5)
    shade_cells(ax, course, sites)
    places = strided(len(sites), _NAMES)
    ax.set_yticks(places, display_names([sites[p] for p in places], 16), fontsize=7.5)
    step_axis(ax, course, ticks=6)
    bar = ax.figure.colorbar(image, ax=ax, fraction=0.06, aspect=22, pad=0.02)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=7, length=2)
    if what.scale != "share":
        decade_axis(bar.ax.yaxis, 5)


def _values(course: Course, name: str) -> tuple[_Quantity, list[str], Array]:
    what = QUANTITIES.get(name)
    if what is None:
        raise UsageError(f"no quantity {name!r}", f"choose among {', '.join(QUANTITIES)}")
    sites = course.judged() if what.kind == "judged" else course.sites(what.kind)
    values = course.matrix(name, sites)
    return what, sites, values if what.scale == "share" else decades(values)


def _measured(course: Course, name: str) -> bool:
    return bool(np.isfinite(_values(course, name)[2]).any())


def _scale(what: _Quantity, values: Array) -> tuple[Colormap, float, float]:
    if what.scale == "share":
        return sequential(COLORS[what.color]), 0.0, 1.0
    if what.scale == "gain":
        reach = max(_GAIN, float(np.nanmax(np.abs(values))))
        return sns.color_palette(DIVERGING, as_cmap=True), -reach, reach
    return sequential(COLORS[what.color]), *span(values, least=1.0)

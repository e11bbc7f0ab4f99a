"""Curves over the steps of a run: loss, shift and gradient of each site, and quantile bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shiftscope.draw.course import Course
from shiftscope.draw.decades import decade_axis, decades
from shiftscope.draw.heatmaps import sequential
from shiftscope.draw.names import display_name, thinned
from shiftscope.draw.palette import COLORS
from shiftscope.draw.pooling import mixture
from shiftscope.draw.style import (
    drawing,
    legend_above,
    new_axes,
    new_figure,
    not_measured,
    span,
    stack_panels,
    title,
)
from shiftscope.draw.tables import Array
from shiftscope.errors import UsageError

if TYPE_CHECKING:
    from shiftscope.trace import Trace

__all__ = ["quantile_course", "run_curves", "site_curves"]

_PANEL = 1.9
_NAMED = 5
_STREAMS = {"z": ("z", "within"), "a": ("a", "forward"), "grad_z": ("∇z", "backward")}


@drawing()
def run_curves(trace: Trace) -> Figure:
    """Draw the loss, the shift share and the gradient of every site over the steps of a run.

    Args:
        trace: A run.

    Returns:
        A figure of panels that share the steps; the loss is left out where it was not kept.

    Raises:
        UsageError: The run has no finished window.
    """
    course = Course.of(trace)
    loss = course.manifest("loss")
    told = bool(np.isfinite(loss).any())
    figure = new_figure(3 * _PANEL)
    panels = list(figure.subplots(3 if told else 2, 1, sharex=True))
    if told:
        _loss(panels[0], course, loss)
    _lines(panels[-2], course, "shift_share")
    _lines(panels[-1], course, "grad_z_var")
    panels[-2].set_xlabel("")
    _whole_steps(panels[-1])
    stack_panels(figure, panels, _PANEL, 0.5)
    return figure


@drawing()
def site_curves(trace: Trace, quantity: str = "shift_share", ax: Axes | None = None) -> Axes:
    """Draw a quantity over the steps, one line a site, light at the input and dark at the output.

    Args:
        trace: A run.
        quantity: ``"shift_share"``, ``"grad_z_var"`` or ``"within_var"``.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: The quantity has no curves, or the run has no finished window.
    """
    if quantity not in ("shift_share", "grad_z_var", "within_var"):
        raise UsageError(
            f"no curves of {quantity!r}", "choose shift_share, grad_z_var or within_var"
        )
    ax = new_axes(ax)
    _lines(ax, Course.of(trace), quantity)
    _whole_steps(ax)
    return ax


@drawing()
def quantile_course(trace: Trace, sites: Sequence[str] | None = None, stream: str = "z") -> Figure:
    """Draw how the distribution of a stream moves: its pooled quantiles over the steps.

    Light band 1 to 99 %, dark band 25 to 75 %, line: median, over all neurons of a site.

    Args:
        trace: A run with row samples.
        sites: Which sites, a panel each; None for the first, a middle and the last one.
        stream: ``"z"``, ``"a"`` or ``"grad_z"``.

    Returns:
        A figure of panels that share both axes.

    Raises:
        UsageError: A stream or a site is not known, or the run has no finished window.
    """
    if stream not in _STREAMS:
        raise UsageError(f"no stream {stream!r}", f"choose among {', '.join(_STREAMS)}")
    course = Course.of(trace)
    names = list(sites) if sites is not None else _ends(course.judged())
    known = set(course.sites())
    for name in names:
        if name not in known:
            raise UsageError(f"no site {name!r} in this run", "choose one of its sites")
    tables = [_pooled(course, name, stream) for name in names]
    figure = new_figure(_PANEL * max(1, len(names)))
    panels = list(figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)[:, 0])
    limits = span(*tables, least=1e-3) if tables else (0.0, 1.0)
    for ax, name, table in zip(panels, names, tables, strict=False):
        title(ax, f"{_STREAMS[stream][0]} of {display_name(name, 60)}")
        _bands(ax, course, table, _STREAMS[stream][1], limits)
    panels[-1].set_xlabel("step")
    _whole_steps(panels[-1])
    stack_panels(figure, panels, _PANEL, 0.5)
    return figure


def _loss(ax: Axes, course: Course, loss: Array) -> None:
    title(ax, "Loss of each window")
    ax.plot(course.steps, loss, color=COLORS["theory"], linewidth=1.2, marker="o", markersize=2.5)
    ax.set_ylim(*span(loss, least=0.1))


def _lines(ax: Axes, course: Course, name: str) -> None:
    sites = course.sites("linear") if name == "grad_z_var" else course.judged()
    values = course.matrix(name, sites)
    headings = {
        "shift_share": ("Shift share of z", "shift"),
        "grad_z_var": ("Gradient variance V(∇z)", "backward"),
        "within_var": ("Variance of z within neurons", "within"),
    }
    heading, color = headings[name]
    title(ax, heading)
    values = values if name == "shift_share" else decades(values)
    if not np.isfinite(values).any():
        not_measured(ax, f"no window has {name}")
        return
    named = set(thinned(len(sites), _NAMED))
    shades = sequential(COLORS[color])
    for k, (site, row) in enumerate(zip(sites, values, strict=True)):
        share = 0.25 + 0.7 * k / max(1, len(sites) - 1)
        label = display_name(site, 18) if k in named else None
        mark = "o" if len(course.steps) <= 2 else None
        ax.plot(course.steps, row, color=shades(share), linewidth=1.1, label=label, marker=mark)
    legend_above(ax, _NAMED)
    if name == "shift_share":
        ax.set_ylim(-0.04, 1.04)
    else:
        ax.set_ylim(*span(values, least=1.0))
        decade_axis(ax.yaxis)
    ax.set_xlabel("step")


def _bands(ax: Axes, course: Course, table: Array, color: str, limits: tuple[float, float]) -> None:
    seen = np.isfinite(table).all(axis=0)
    if not seen.any():
        not_measured(ax, "no window has row samples of it")
        return
    where, shown = np.asarray(course.steps)[seen], table[:, seen]
    shade = COLORS[color]
    ax.fill_between(where, shown[0], shown[4], color=shade, alpha=0.22, linewidth=0)
    ax.fill_between(where, shown[1], shown[3], color=shade, alpha=0.45, linewidth=0)
    ax.plot(where, shown[2], color=shade, linewidth=1.3)
    ax.set_ylim(*limits)


def _whole_steps(ax: Axes) -> None:
    ax.xaxis.set_major_locator(MaxNLocator(10, integer=True))


def _pooled(course: Course, site: str, stream: str) -> Array:
    tables = [snapshot.quantiles.get(site, {}).get(stream) for snapshot in course.snapshots]
    columns = [np.full(5, np.nan) if table is None else mixture(table) for table in tables]
    return np.stack(columns, axis=1)


def _ends(sites: Sequence[str]) -> list[str]:
    return [sites[place] for place in thinned(len(sites), 3)] if sites else []

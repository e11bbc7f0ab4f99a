"""Curves over the steps of a run: loss, shift and gradient of each site, and quantile bands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.draw.course import Course, shade_windows, step_axis
from shiftscope.draw.decades import decade_axis, decades
from shiftscope.draw.heatmaps import sequential
from shiftscope.draw.marks import BAD, hatch_stretches
from shiftscope.draw.names import display_names, thinned
from shiftscope.draw.palette import COLORS
from shiftscope.draw.pooling import mixture
from shiftscope.draw.quantiles import draw_bands
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

__all__ = ["evaluation", "has_loss", "quantile_course", "run_curves", "site_curves"]

_PANEL = 1.9
_NAMED = 5
_FEW = 12
"""Windows that are marked one by one."""

_DASHES = (0, (3, 2))
_LINES = {
    "shift_share": ("Shift share of z", "shift", ""),
    "grad_z_var": ("Gradient variance V(∇z)", "backward", "linear"),
    "within_var": ("Variance of z within neurons", "within", ""),
}
"""Quantity -> heading, colour, kind of the sites (those where shift counts if empty)."""

_STREAMS = {"z": ("z", "within"), "a": ("a", "forward"), "grad_z": ("∇z", "backward")}


@drawing()
def run_curves(trace: Trace) -> Figure:
    """Draw the loss, the shift share and the gradient of every site over the steps of a run.

    Windows of evaluation are dashed, of the sites that the legend names; windows with values that
    are not finite are hatched.

    Args:
        trace: A run.

    Returns:
        A figure of panels that share the steps; the loss is left out where it was not kept.

    Raises:
        UsageError: The run has no finished window.
    """
    course, beside = Course.of(trace), evaluation(trace)
    told = has_loss(course)
    figure = new_figure(3 * _PANEL)
    panels = list(figure.subplots(3 if told else 2, 1, sharex=True))
    if told:
        _loss(panels[0], course, beside)
    _lines(panels[-2], course, "shift_share", beside)
    _lines(panels[-1], course, "grad_z_var", beside)
    for ax in panels:
        _finish(ax, course, beside, first=ax is panels[0])
    panels[-2].set_xlabel("")
    stack_panels(figure, panels, _PANEL, 0.5)
    return figure


def has_loss(course: Course) -> bool:
    """Whether any window knows its loss, so that the curves have a panel of it."""
    return bool(np.isfinite(course.manifest("loss")).any())


def evaluation(trace: Trace) -> Course | None:
    """The windows of evaluation that stand beside those of training.

    Args:
        trace: A run.

    Returns:
        The windows; None where there are none, or none that could be seen in the curves.
    """
    if not {"train", "eval"} <= {window.phase for window in trace}:
        return None
    course, beside = Course.of(trace), Course.of(trace, "eval")
    sites = course.judged()
    named = [sites[k] for k in thinned(len(sites), _NAMED)]
    seen = np.isfinite(beside.matrix("shift_share", named)).any() or beside.bad.any()
    return beside if seen or (has_loss(course) and has_loss(beside)) else None


@drawing()
def site_curves(trace: Trace, quantity: str = "shift_share", ax: Axes | None = None) -> Axes:
    """Draw a quantity over the steps, one line a site, light at the input and dark at the output.

    Args:
        trace: A run.
        quantity: ``"shift_share"``, ``"grad_z_var"`` or ``"within_var"``.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes; windows of evaluation are dashed, of the sites that the legend names.

    Raises:
        UsageError: The quantity has no curves, or the run has no finished window.
    """
    if quantity not in _LINES:
        raise UsageError(f"no curves of {quantity!r}", f"choose among {', '.join(_LINES)}")
    ax = new_axes(ax)
    course, beside = Course.of(trace), evaluation(trace)
    _lines(ax, course, quantity, beside)
    _finish(ax, course, beside)
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
    bad = course.bad_at(names)
    first = int(np.argmax(bad.any(axis=1))) if bad.any() else 0
    for k, (shown, table) in enumerate(zip(display_names(names, 60), tables, strict=True)):
        ax = panels[k]
        title(ax, f"{_STREAMS[stream][0]} of {shown}")
        _bands(ax, course, table, _STREAMS[stream][1], limits)
        step_axis(ax, course)
        hatch_stretches(ax, course.edges, bad[k], BAD if k == first else None)
        legend_above(ax)
        ax.set_xlabel("step" if ax is panels[-1] else "")
    stack_panels(figure, panels, _PANEL, 0.5)
    return figure


def _loss(ax: Axes, course: Course, beside: Course | None) -> None:
    title(ax, "Loss of each window")
    shown = [course] if beside is None or not has_loss(beside) else [course, beside]
    for windows in shown:
        _curve(ax, windows, windows.manifest("loss"), COLORS["theory"], dashed=windows is beside)
    _name_dashes(ax, len(shown) > 1)
    ax.set_ylim(*span(*(windows.manifest("loss") for windows in shown), least=0.1))


def _lines(ax: Axes, course: Course, name: str, beside: Course | None) -> None:
    heading, color, kind = _LINES[name]
    title(ax, heading)
    sites = course.sites(kind) if kind else course.judged()
    values = _values(course, name, sites)
    if not np.isfinite(values).any():
        not_measured(ax, course.missing(name))
        return
    named = thinned(len(sites), _NAMED)
    labels = dict(zip(named, display_names([sites[k] for k in named], 18), strict=True))
    shades = [sequential(COLORS[color])(share) for share in np.linspace(0.25, 0.95, len(sites))]
    for k, row in enumerate(values):
        _curve(ax, course, row, shades[k], labels.get(k))
    drawn = [values]
    if beside is not None:
        drawn.append(_values(beside, name, [sites[k] for k in named]))
        for k, row in zip(named, drawn[1], strict=True):
            _curve(ax, beside, row, shades[k], dashed=True)
        _name_dashes(ax, bool(np.isfinite(drawn[1]).any()))
    if name == "shift_share":
        ax.set_ylim(-0.04, 1.04)
    else:
        ax.set_ylim(*span(*drawn, least=1.0))
        decade_axis(ax.yaxis)


def _values(course: Course, name: str, sites: Sequence[str]) -> Array:
    values = course.matrix(name, sites)
    return values if name == "shift_share" else decades(values)


def _curve(
    ax: Axes,
    course: Course,
    values: Array,
    color: Any,
    label: str | None = None,
    *,
    dashed: bool = False,
) -> None:
    """A line through the middles of the windows; where they are few, each with its steps."""
    few = len(values) <= _FEW
    known = np.concatenate([[False], np.isfinite(values), [False]])
    alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a line takes two points
    ax.plot(
        *(course.middles, values),
        color=color,
        linewidth=1.1,
        linestyle=_DASHES if dashed else "-",
        label=label,
        marker="o",
        markersize=3.0,
        markerfacecolor="white" if dashed else color,
        markevery=np.flatnonzero(known[1:-1] if few else alone).tolist(),
    )
    if few:
        known = np.isfinite(values) & (np.diff([course.steps, course.lasts], axis=0)[0] > 0)
        ends = (np.asarray(steps)[known] for steps in (course.steps, course.lasts))
        ax.hlines(values[known], *ends, color=color, linewidth=2.6, alpha=0.4)


def _name_dashes(ax: Axes, drawn: bool) -> None:
    if drawn:
        ax.plot(
            *([], []),
            label="evaluation",
            color=COLORS["measured"],
            linestyle=_DASHES,
            marker="o",
            markersize=3.0,
            markerfacecolor="white",
        )


def _bands(ax: Axes, course: Course, table: Array, color: str, limits: tuple[float, float]) -> None:
    if not np.isfinite(table).all(axis=0).any():
        few = "in no window were the values of half the neurons finite"
        not_measured(ax, few if course.bad.any() else "no window has row samples of it")
        return
    draw_bands(ax, course.edges, table, COLORS[color])
    ax.set_ylim(*limits)


def _finish(ax: Axes, course: Course, beside: Course | None, *, first: bool = True) -> None:
    """Steps along the axis, hatching where values are not finite, and the legend."""
    step_axis(ax, course, beside)
    shade_windows(ax, course, beside, BAD if first else None)
    legend_above(ax, _NAMED + 2)


def _pooled(course: Course, site: str, stream: str) -> Array:
    tables = [snapshot.quantiles.get(site, {}).get(stream) for snapshot in course.snapshots]
    columns = [np.full(5, np.nan) if table is None else mixture(table) for table in tables]
    return np.stack(columns, axis=1)


def _ends(sites: Sequence[str]) -> list[str]:
    return [sites[place] for place in thinned(len(sites), 3)] if sites else []

"""Pictures of activation boundaries: lines in the plane, points on a line, moves of any kind.

What is drawn comes from ``shiftscope.theory.locate`` and ``shiftscope.theory.move``, given as
arrays: unit normals, signed offsets, displacements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection

from shiftscope.draw.decades import decade_axis, decades
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import drawing, legend_above, new_axes, not_measured, span, title
from shiftscope.errors import UsageError
from shiftscope.given import expect

__all__ = ["boundary_lines", "boundary_moves", "boundary_points"]

Array = npt.NDArray[np.float64]

_MOVES = "give a mapping such as {site: tracker.displacements(site)}"
_TICK = 0.035
"""Length of the ticks on the active side, as a share of the picture's width."""


@drawing()
def boundary_lines(
    directions: npt.ArrayLike,
    offsets: npt.ArrayLike,
    data: npt.ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the boundaries of units with two inputs: lines, locations and active sides.

    Args:
        directions: Unit normals, ``[units, 2]``; rows with NaN have no boundary.
        offsets: Signed offsets λ, ``[units]``.
        data: Inputs ``[samples, 2]`` shown behind; None for none.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes, as wide as data and locations need.

    Raises:
        UsageError: Not two inputs, or one offset per unit missing.
    """
    ax = new_axes(ax, 5.0)
    normals, shifts, missing = _usable(directions, offsets, 2)
    title(ax, "Activation boundaries")
    points = np.empty((0, 2)) if data is None else np.asarray(data, dtype=np.float64)
    if not len(normals) and not len(points):
        not_measured(ax, "no unit has a weight, so none has a boundary")
        return ax
    places = -shifts[:, None] * normals
    low, high = _view(points, places)
    if len(points):
        ax.plot(*points.T, ".", color=COLORS["measured"], markersize=3, alpha=0.6, label="data")
    reach = 2.0 * float(np.hypot(*(high - low))) + float(np.abs(shifts).max(initial=0.0))
    along = np.stack([-normals[:, 1], normals[:, 0]], axis=1)
    ends = np.stack([places - reach * along, places + reach * along], axis=1)
    ax.add_collection(
        LineCollection(list(ends), colors=COLORS["within"], linewidths=0.9, label="boundary"),
        autolim=False,
    )
    step = _TICK * float((high - low).max())
    ticks = np.stack([places, places + step * normals], axis=1)
    ax.add_collection(
        LineCollection(list(ticks), colors=COLORS["forward"], linewidths=2.0, label="active side"),
        autolim=False,
    )
    ax.plot(*places.T, "o", color=COLORS["within"], markersize=4, label="location φ", zorder=4)
    ax.plot(0.0, 0.0, "+", color=COLORS["theory"], markersize=8, label="origin", zorder=5)
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal")
    ax.set(xlabel="input 1", ylabel="input 2")
    _tell(ax, missing, int(((places < low) | (places > high)).any(1).sum()))
    # beside it: a square panel is too narrow for title and legend in one line
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0.0)
    return ax


@drawing()
def boundary_points(
    directions: npt.ArrayLike,
    offsets: npt.ArrayLike,
    data: npt.ArrayLike | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the boundaries of units with one input: a point each, pointing to its active side.

    Args:
        directions: Signs ±1 of the weights, ``[units, 1]``; NaN for a zero weight.
        offsets: Signed offsets λ, ``[units]``.
        data: Inputs ``[samples]`` or ``[samples, 1]`` shown below; None for none.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes: units from bottom to top in the order of their points.

    Raises:
        UsageError: Not one input, or one offset per unit missing.
    """
    ax = new_axes(ax, 3.2)
    normals, shifts, missing = _usable(directions, offsets, 1)
    title(ax, "Activation boundaries")
    points = np.empty(0) if data is None else np.asarray(data, dtype=np.float64).ravel()
    if not len(normals) and not len(points):
        not_measured(ax, "no unit has a weight, so none has a boundary")
        return ax
    places = -shifts * normals[:, 0]
    order = np.argsort(places, kind="stable")
    places, signs = places[order], normals[order, 0]
    height = np.arange(len(places)) + 0.5
    low, high = (float(end[0]) for end in _view(points[:, None], places[:, None]))
    if len(points):
        ax.plot(
            *(points, np.zeros_like(points)),
            "|",
            transform=ax.get_xaxis_transform(),
            color=COLORS["measured"],
            markersize=12,
            label="data",
        )
    for sign, end, marker in ((1, high, ">"), (-1, low, "<")):
        mine = signs == sign
        ax.hlines(height[mine], places[mine], end, color=COLORS["forward"], linewidth=0.6)
        ax.plot(
            *(places[mine], height[mine], marker),
            color=COLORS["within"],
            markersize=5,
            label=f"active {'right' if sign > 0 else 'left'} of it",
        )
    ax.axvline(0.0, color=COLORS["theory"], linewidth=0.8)
    ax.set(xlim=(low, high), ylim=(0.0, max(len(places), 1)), xlabel="input", yticks=[])
    ax.set_ylabel("units, sorted")
    _tell(ax, missing, int(((places < low) | (places > high)).sum()))
    legend_above(ax)
    return ax


@drawing()
def boundary_moves(displacements: Mapping[str, npt.ArrayLike], ax: Axes | None = None) -> Axes:
    """Draw how far boundaries move per optimisation step, in decades, for inputs of any dimension.

    Lines are means over units, bands reach up to the largest (cf. Chen and Ge, NeurIPS 2024,
    arXiv 2305.15912, Fig. 2).

    Args:
        displacements: Distances ‖Δφ‖, ``[steps, units]``, by the name of layer or parametrisation;
            NaN where a unit has no boundary. Three names at most are told apart by their lines.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: It is no mapping, or an array in it is not ``[steps, units]``.
    """
    expect("displacements", displacements, Mapping, remedy=_MOVES)
    ax, drawn = new_axes(ax), []
    title(ax, "Moves of activation boundaries per step")
    colours = ("within", "forward", "backward")
    for k, (name, values) in enumerate(displacements.items()):
        table = np.asarray(values, dtype=np.float64)
        if table.ndim != 2:
            raise UsageError(
                f"displacements of {name!r} have shape {table.shape}, not [steps, units]",
                "Stack the displacements of successive steps.",
            )
        mean, largest = _reduced(table, np.mean), _reduced(table, np.max)
        colour, steps = COLORS[colours[k % 3]], np.arange(1, len(table) + 1)
        ax.fill_between(steps, mean, largest, color=colour, alpha=0.18, linewidth=0)
        ax.plot(steps, mean, color=colour, linestyle=("-", "--", ":")[k % 3], label=name)
        drawn += [mean, largest]
    if not drawn or not np.isfinite(np.concatenate(drawn)).any():
        not_measured(ax, "no step moved a boundary")
        return ax
    ax.set_ylim(*span(*drawn, least=1.0))
    decade_axis(ax.yaxis)
    ax.set(xlabel="step", ylabel="distance moved: mean to largest")
    legend_above(ax)
    return ax


def _usable(
    directions: npt.ArrayLike, offsets: npt.ArrayLike, inputs: int
) -> tuple[Array, Array, int]:
    """Normals and offsets of the units that have a boundary, and how many have none."""
    normals = np.asarray(directions, dtype=np.float64)
    shifts = np.asarray(offsets, dtype=np.float64)
    if normals.ndim != 2 or normals.shape[1] != inputs or shifts.shape != normals.shape[:1]:
        raise UsageError(
            f"expected directions [units, {inputs}] and offsets [units], got {normals.shape} "
            f"and {shifts.shape}",
            "Only layers with one or two inputs have such a picture; draw the moves of others.",
        )
    known = np.isfinite(normals).all(1) & np.isfinite(shifts)
    return normals[known], shifts[known], int((~known).sum())


def _view(points: Array, places: Array) -> tuple[Array, Array]:
    """Corners that hold the data and nine tenths of the locations, which may lie far out."""
    seen = [points, np.zeros((1, places.shape[1]))]
    if len(places):
        far = np.linalg.norm(places, axis=1)
        seen.append(places[far <= np.quantile(far, 0.9)])
    limits = np.array([span(column, least=1e-9) for column in np.concatenate(seen).T])
    return limits[:, 0], limits[:, 1]


def _reduced(table: Array, how: Callable[[Array], np.float64]) -> Array:
    """log10 of the mean or maximum over units that have a boundary, NaN where none has."""
    rows = [row[np.isfinite(row)] for row in table]
    logs: Array = decades(np.array([how(row) if row.size else np.nan for row in rows]))
    return logs


def _tell(ax: Axes, missing: int, outside: int) -> None:
    """Say what the picture does not show."""
    told = [f"outside the picture: {outside}"] if outside else []
    told += [f"without boundary (zero weight): {missing}"] if missing else []
    if told:
        # inside the panel the words could hide what they speak of
        ax.set_xlabel(f"{ax.get_xlabel()}\nunits " + "; ".join(told))

"""Two measurements of one network over each other, and between them what was predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.comparison import Comparison
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import (
    drawing,
    empty_figure,
    label_sites,
    legend_above,
    new_figure,
    not_measured,
    span,
    stack_panels,
    title,
)
from shiftscope.given import expect

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["comparison_profile"]

_PANEL = 2.3
_QUANTITIES = (
    ("shift_share", "Shift share of z", "between / total", "shift"),
    ("log10_within_var", "Variance of z within neurons", "log10 variance", "within"),
    ("log10_grad_z_var", "Variance of ∇z", "log10 variance", "backward"),
)


_OF_WEIGHTS = (
    ("log10_eta", "Squared norm of the rows", "log10 mean ‖w‖²", "within"),
    ("lcw_residual", "Component of the rows along 1", "largest |cos(w, 1)|", "shift"),
)
"""What is drawn where weights alone were read."""


@drawing()
def comparison_profile(
    comparison: Comparison, predicted: Mapping[str, float] | None = None
) -> Figure:
    """Draw shift, signal and gradient of both measurements over the depth, after over before.

    Args:
        comparison: What :func:`shiftscope.compare` returned.
        predicted: Shift share that was predicted, by site; drawn as crosses.

    Returns:
        A figure of three panels (two, of the weights, where nothing else was read in both), one
        column a site in order of execution.

    Raises:
        UsageError: It is no comparison.
    """
    expect("comparison", comparison, Comparison)
    frame = comparison.frame
    if frame.empty:
        return empty_figure("Before and after", "the snapshots have no sites")
    sides = (comparison.before, comparison.after)
    alone = any(snapshot.manifest.get("weights_only") for snapshot in sides)
    quantities = _OF_WEIGHTS if alone else _QUANTITIES
    figure = new_figure(len(quantities) * _PANEL)
    panels = list(figure.subplots(len(quantities), 1, sharex=True))
    for ax, (name, heading, unit, colour) in zip(panels, quantities, strict=True):
        title(ax, heading)
        ax.set_ylabel(unit)
        _draw(ax, frame, name, COLORS[colour])
        if name == "shift_share":
            _add_predicted(ax, frame, predicted or {})
            ax.set_ylim(-0.04, 1.04)
        label_sites(ax, list(frame["site"]))
    legend_above(panels[0])
    stack_panels(figure, panels, _PANEL, 0.8)
    return figure


def _draw(ax: Axes, frame: pd.DataFrame, name: str, colour: str) -> None:
    places = np.arange(len(frame))
    old, new = (frame[f"{name}_{side}"].to_numpy(dtype=np.float64) for side in ("before", "after"))
    if not np.isfinite(np.concatenate([old, new])).any():
        not_measured(ax, "neither snapshot has it; gradients need a loss")
        return
    moved = np.isfinite(old) & np.isfinite(new)
    ax.vlines(places[moved], old[moved], new[moved], color="#C9CED3", linewidth=1.2, zorder=1)
    _points(ax, places, old, colour, "before", filled=False)
    _points(ax, places, new, colour, "after", filled=True)
    ax.set_ylim(*span(old, new, least=0.5))


def _points(
    ax: Axes,
    places: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    colour: str,
    label: str,
    *,
    filled: bool,
) -> None:
    ax.plot(
        *(places, values),
        linestyle="",
        marker="o",
        markersize=5.0,
        color=colour,
        markerfacecolor=colour if filled else "white",
        label=label,
        zorder=3 if filled else 2,
    )


def _add_predicted(ax: Axes, frame: pd.DataFrame, predicted: Mapping[str, float]) -> None:
    values = np.array([predicted.get(site, np.nan) for site in frame["site"]], dtype=np.float64)
    if np.isfinite(values).any():
        ax.plot(
            *(np.arange(len(values)), values),
            linestyle="",
            marker="x",
            markersize=6.0,
            color=COLORS["theory"],
            label="predicted",
            zorder=4,
        )

"""The predicted course of shift share and gradients over depth, drawn over the measured one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.draw.decades import decade_axis
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import (
    drawing,
    label_sites,
    legend_above,
    new_axes,
    new_figure,
    not_measured,
    span,
    stack_panels,
    title,
)
from shiftscope.errors import UsageError

__all__ = ["Profile", "gradients_over_depth", "profile_over_depth", "shares_over_depth"]

Array = npt.NDArray[np.float64]

_PANEL = 2.3
_DASHES = ("-", "--", ":", "-.")


class Profile(Protocol):
    """What a prediction has to offer: both kinds of profiles of ``shiftscope.theory`` do."""

    @property
    def shift_share(self) -> Array:
        """Shift share of every layer, ``[layers]``."""

    @property
    def log10_grad_var(self) -> Array:
        """log10 of the gradient variance of every layer, up to a constant."""


@drawing()
def profile_over_depth(
    shift_share: npt.ArrayLike,
    log10_grad_var: npt.ArrayLike,
    predicted: Mapping[str, Profile],
    names: Sequence[str] | None = None,
    chain: Sequence[int] | None = None,
) -> Figure:
    """Draw measured shift share and gradient variance with their predictions, layer by layer.

    Args:
        shift_share: Measured shift share of z, ``[layers]``, input side first; NaN where missing.
        log10_grad_var: Measured log10 of the variance of ∇z, ``[layers]``.
        predicted: Predictions by what they are called in the legend.
        names: Names of the layers; None numbers them from 1.
        chain: Number of the chain that each layer belongs to; lines of predictions end with it.
            None for one chain.

    Returns:
        A figure of two panels.

    Raises:
        UsageError: A prediction of another number of layers.
    """
    figure = new_figure(2 * _PANEL)
    panels = figure.subplots(2, 1, sharex=True)
    shares_over_depth(shift_share, predicted, names, chain, ax=panels[0])
    gradients_over_depth(log10_grad_var, predicted, names, chain, ax=panels[1])
    panels[0].set_xlabel("")
    stack_panels(figure, list(panels), _PANEL, 0.6)
    return figure


@drawing()
def shares_over_depth(
    shift_share: npt.ArrayLike,
    predicted: Mapping[str, Profile],
    names: Sequence[str] | None = None,
    chain: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the measured shift share of z with its predictions, layer by layer.

    Args:
        shift_share: Measured share, ``[layers]``; NaN where missing.
        predicted: Predictions by what they are called in the legend.
        names: Names of the layers; None numbers them from 1.
        chain: Number of the chain that each layer belongs to; lines of predictions end with it.
            None for one chain.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: A prediction of another number of layers.
    """
    ax, measured = new_axes(ax), np.asarray(shift_share, dtype=np.float64)
    title(ax, "Shift share of z")
    lines = {label: _fitting(label, p.shift_share, measured) for label, p in predicted.items()}
    _draw(ax, measured, lines, "shift", names, chain)
    ax.set_ylim(-0.04, 1.04)
    ax.set_ylabel("between / total")
    return ax


@drawing()
def gradients_over_depth(
    log10_grad_var: npt.ArrayLike,
    predicted: Mapping[str, Profile],
    names: Sequence[str] | None = None,
    chain: Sequence[int] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Draw the measured variance of ∇z with its predictions, layer by layer, in decades.

    A prediction fixes the course, not the level: each is moved to meet the last measured layer.

    Args:
        log10_grad_var: Measured log10 of the variance, ``[layers]``; NaN where missing.
        predicted: Predictions by what they are called in the legend.
        names: Names of the layers; None numbers them from 1.
        chain: Number of the chain that each layer belongs to; lines of predictions end with it.
            None for one chain.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: A prediction of another number of layers.
    """
    ax, measured = new_axes(ax), np.asarray(log10_grad_var, dtype=np.float64)
    title(ax, "Gradient variance V(∇z)")
    lines = {
        label: _anchored(_fitting(label, p.log10_grad_var, measured), measured)
        for label, p in predicted.items()
    }
    _draw(ax, measured, lines, "backward", names, chain)
    ax.set_ylim(*span(measured, *lines.values(), least=1.0))
    decade_axis(ax.yaxis)
    return ax


def _draw(
    ax: Axes,
    measured: Array,
    lines: Mapping[str, Array],
    quantity: str,
    names: Sequence[str] | None,
    chain: Sequence[int] | None,
) -> None:
    """Theory as black lines, what was measured as coloured dots on top."""
    drawn = [measured, *lines.values()]
    if not any(np.isfinite(values).any() for values in drawn):
        not_measured(ax, "neither a measured nor a predicted value is known")
        return
    where = np.arange(len(measured), dtype=np.float64)
    for k, (label, values) in enumerate(lines.items()):
        style = _DASHES[k % len(_DASHES)]
        ax.plot(
            *_cut(where, values, chain),
            style,
            color=COLORS["theory"],
            linewidth=1.1,
            marker="_",
            markersize=9.0,
            label=label,
        )
    ax.plot(
        *(where, measured),
        color=COLORS[quantity],
        linestyle="",
        marker="o",
        markersize=5.0,
        label="measured",
        zorder=4,
    )
    label_sites(ax, names if names is not None else [str(k + 1) for k in where])
    if names is None:
        ax.set_xlabel("layer")
    legend_above(ax)


def _cut(where: Array, values: Array, chain: Sequence[int] | None) -> tuple[Array, Array]:
    """The line with a gap behind every chain."""
    if chain is None:
        return where, values
    ends = np.flatnonzero(np.diff(np.asarray(chain))) + 1
    return np.insert(where, ends, np.nan), np.insert(values, ends, np.nan)


def _fitting(label: str, values: npt.ArrayLike, measured: Array) -> Array:
    line = np.asarray(values, dtype=np.float64)
    if line.shape != measured.shape:
        raise UsageError(
            f"{label!r} predicts {line.size} layers, measured were {measured.size}",
            "Predict the layers that were measured, in the same order.",
        )
    return line


def _anchored(line: Array, measured: Array) -> Array:
    """The prediction moved to meet what was measured in the last layer where both are known."""
    both = np.flatnonzero(np.isfinite(line) & np.isfinite(measured))
    return line + (measured[both[-1]] - line[both[-1]]) if both.size else line

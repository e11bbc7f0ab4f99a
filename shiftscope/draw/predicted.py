"""Prediction against measurement: the shift of each neuron, the gains of each activation."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from shiftscope.draw.decades import decade_axis, decade_text, decades, value_axis, value_text
from shiftscope.draw.names import display_name, thinned
from shiftscope.draw.palette import COLORS
from shiftscope.draw.style import (
    drawing,
    new_axes,
    new_figure,
    not_measured,
    span,
    title,
)
from shiftscope.draw.tables import Array, Source, column, neurons_of, sites_of
from shiftscope.snapshot import Snapshot

__all__ = ["activation_gains", "predicted_against_measured", "predicted_shift"]

_POINTS = 6000
_FLAT = 1e-6


@drawing()
def predicted_against_measured(snapshot: Snapshot, site: str) -> Figure:
    """Draw prediction against measurement: shift of one site, of all sites, and gains.

    Args:
        snapshot: What was measured.
        site: The linear site of the first panel.

    Returns:
        A figure of three panels.
    """
    figure = new_figure(3.4)
    one, all_sites, gains = figure.subplots(1, 3)
    predicted_shift(snapshot, site, ax=one)
    predicted_shift(snapshot, ax=all_sites)
    activation_gains(snapshot, ax=gains)
    return figure


@drawing()
def predicted_shift(source: Source, site: str | None = None, ax: Axes | None = None) -> Axes:
    """Draw the mean of each preactivation against its prediction from weights and mean input.

    Kutsuna 2019, Proposition 2: E(z) - b = w . E(a) = ||w|| ||E(a)|| cos(angle). The text gives the
    largest difference, in units of ||w|| ||E(a)||, since the prediction itself may be zero.

    Args:
        source: A snapshot or its neuron table.
        site: One linear site, drawn in its own units; None draws all of them, in units of
            ||w|| ||E(a)||, so that both axes are cosines.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.

    Raises:
        UsageError: There is no such site.
    """
    ax = new_axes(ax, 4.0)
    frame = neurons_of(source, site)
    heading = "Shift at all linear sites" if site is None else f"Shift at {display_name(site, 18)}"
    title(ax, heading)
    predicted, measured, scale = _shifts(frame, _mean_norms(source))
    known = np.isfinite(predicted) & np.isfinite(measured)
    known &= np.isfinite(scale) if site is None else True
    if not known.any():
        not_measured(ax, "no mean input was measured for these weights")
        return ax
    predicted, measured, scale = predicted[known], measured[known], scale[known]
    told = _largest_difference(predicted, measured, scale)
    if site is None:
        predicted, measured = predicted / scale, measured / scale
    _scatter(ax, predicted, measured, "shift")
    _identity(ax, *span(predicted, measured, least=1e-30 if site else 0.02))
    # Words inside the panel could hide the very points they speak of.
    unit = "" if site else " / ‖w‖‖E(a)‖"
    ax.set_xlabel(f"predicted w·E(a){unit}\n{len(predicted)} neurons, {told}")
    ax.set_ylabel("measured E(z) − b" if site else f"measured (E(z) − b){unit}")
    return ax


@drawing()
def activation_gains(source: Source, ax: Axes | None = None) -> Axes:
    """Draw the gains of each activation against the theory at its measured mean and deviation.

    Forward V(a)/V(z) and backward V(∇z)/V(∇a) (Kutsuna 2019, Section 4.2), both axes in decades.

    Args:
        source: A snapshot or its site table.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax = new_axes(ax, 4.0)
    title(ax, "Gains of activations")
    sites = sites_of(source)
    pairs = {
        name: (decades(column(sites, f"{name}_theory")), decades(column(sites, name)))
        for name in ("phi_fw", "phi_bw")
    }
    if not any((np.isfinite(x) & np.isfinite(y)).any() for x, y in pairs.values()):
        not_measured(ax, "no activation has both a measured gain and a theory")
        return ax
    for (x, y), quantity, marker in zip(
        pairs.values(), ("forward", "backward"), ("o", "s"), strict=True
    ):
        if np.isfinite(x + y).any():
            _scatter(ax, x, y, quantity, marker, label=f"{quantity} φ")
    known = [
        np.where(np.isfinite(x + y), part, np.nan) for x, y in pairs.values() for part in (x, y)
    ]
    _identity(ax, *span(*known, least=0.3))
    for axis in (ax.xaxis, ax.yaxis):
        decade_axis(axis, 4)
    ax.set_xlabel(f"theory at the measured (μ, σ)\n{_farthest(sites, pairs)}")
    ax.set_ylabel("measured")
    ax.legend(loc="upper left", handletextpad=0.2, borderaxespad=0.2)
    return ax


def _mean_norms(source: Source) -> dict[str, float]:
    """Norms of the mean input by site, where the source knows them."""
    if not isinstance(source, Snapshot):
        return {}
    return dict(zip(source.sites["site"], column(source.sites, "mu_norm"), strict=True))


def _shifts(frame: pd.DataFrame, norms: Mapping[str, float]) -> tuple[Array, Array, Array]:
    """Predicted and measured shifts, and ||w|| ||E(a)|| of each neuron (NaN where unknown)."""
    predicted, bias = column(frame, "shift_predicted"), column(frame, "bias")
    measured = column(frame, "shift_measured")
    average = column(frame, "z_mean") - np.nan_to_num(bias)
    measured = np.where(np.isnan(measured), average, measured)
    cosine, weight = np.cos(column(frame, "theta_mean")), column(frame, "weight_norm")
    scale = np.full(len(frame), np.nan)
    np.divide(predicted, cosine, out=scale, where=np.abs(cosine) > _FLAT)
    # A neuron at a right angle does not tell the norm of its mean input; its site does.
    of_site = frame["site"].map(norms).to_numpy(dtype=np.float64) if norms else np.nan
    scale = np.where(np.isfinite(scale), scale, weight * of_site)
    return predicted, measured, np.where(scale > 0, scale, np.nan)


def _largest_difference(predicted: Array, measured: Array, scale: Array) -> str:
    off = np.abs(measured - predicted)
    relative = np.isfinite(scale).all()
    worst = float(np.max(off / scale if relative else off))
    return (
        f"largest difference\n{value_text(float(f'{worst:.2g}'))}{' ‖w‖‖E(a)‖' if relative else ''}"
    )


def _scatter(
    ax: Axes, x: Array, y: Array, quantity: str, marker: str = "o", label: str = ""
) -> None:
    known = np.isfinite(x) & np.isfinite(y)
    kept = thinned(int(known.sum()), _POINTS)
    ax.plot(
        *(x[known][kept], y[known][kept]),
        linestyle="",
        marker=marker,
        markersize=4.0 if len(kept) <= 300 else 2.2,
        markerfacecolor=f"{COLORS[quantity]}90",
        markeredgewidth=0.0,
        color=COLORS[quantity],
        rasterized=True,
        label=label,
    )


def _identity(ax: Axes, low: float, high: float) -> None:
    ax.plot([low, high], [low, high], color=COLORS["theory"], linewidth=0.9, linestyle="--")
    ax.set_xlim(low, high)
    ax.set_ylim(low, high)
    ax.set_aspect("equal", adjustable="box")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(4))
        value_axis(axis)


def _farthest(sites: pd.DataFrame, pairs: dict[str, tuple[Array, Array]]) -> str:
    off = {
        (site, name): abs(value)
        for name, (x, y) in pairs.items()
        for site, value in zip(sites["site"], y - x, strict=True)
        if np.isfinite(value)
    }
    (site, name), gap = max(off.items(), key=lambda item: item[1])
    word = "forward" if name == "phi_fw" else "backward"
    return f"farthest: {word}, factor {decade_text(gap)},\nat {display_name(site, 22)}"

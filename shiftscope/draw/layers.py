"""Kutsuna 2019, Figure 4: one box a layer of z (top) and of its gradient (bottom)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.columns import QUANTILES
from shiftscope.draw.decades import decade_axis, decades, value_axis
from shiftscope.draw.pooling import pooled_quantiles, stands_for_all
from shiftscope.draw.quantiles import draw_quantiles
from shiftscope.draw.reasons import gradient_reason, unless_lost
from shiftscope.draw.style import (
    drawing,
    label_sites,
    new_axes,
    new_figure,
    not_measured,
    span,
    stack_panels,
    title,
)
from shiftscope.draw.tables import Array, Source, by_site, column, neurons_of, quantiles_of
from shiftscope.snapshot import Snapshot

__all__ = [
    "boxes_by_layer",
    "gradient_boxes",
    "layer_boxes",
    "pooled_gradient_boxes",
    "preactivation_boxes",
]

_PANEL = 2.3
_LEAST = 1e-290
_NONE = np.zeros((5, 0))

Kind = Literal["linear", "activation"]


@drawing()
def layer_boxes(source: Source, kind: Kind = "linear") -> Figure:
    """Draw z of every layer above, its gradient below, one box a layer.

    Kutsuna 2019 (ECML PKDD), Figure 4, and the variance of the gradient in decades below it, since
    on a linear axis a gradient that is gone looks like one that is small. Beyond 64 layers the
    boxes become bands.

    Args:
        source: A snapshot or its neuron table.
        kind: Which sites are drawn (a table alone does not tell kinds: all of its sites are).

    Returns:
        A figure of panels that share the layers; the pooled gradient is left out where the
        gradients were not sampled.
    """
    pooled = bool(_tables(source, kind, "grad_z"))
    figure = new_figure(_PANEL)
    panels = list(figure.subplots(3 if pooled else 2, 1, sharex=True))
    preactivation_boxes(source, kind, ax=panels[0])
    if pooled:
        pooled_gradient_boxes(source, kind, ax=panels[1])
    gradient_boxes(source, kind, ax=panels[-1])
    stack_panels(figure, panels, _PANEL, 0.5)
    return figure


@drawing()
def preactivation_boxes(source: Source, kind: Kind = "linear", ax: Axes | None = None) -> Axes:
    """Draw the pooled distribution of z, one box a layer (top of Kutsuna 2019, Figure 4).

    Args:
        source: A snapshot or its neuron table.
        kind: Which sites of a snapshot are drawn.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    title(ax, "Preactivation z, all neurons of a layer pooled")
    return _pooled(ax, source, _tables(source, kind, "z"), "z")


@drawing()
def pooled_gradient_boxes(source: Source, kind: Kind = "linear", ax: Axes | None = None) -> Axes:
    """Draw the pooled distribution of ∇z, one box a layer (bottom of Kutsuna 2019, Figure 4).

    Args:
        source: A snapshot whose gradients were sampled.
        kind: Which sites are drawn.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    title(ax, "Gradient ∇z, all neurons of a layer pooled")
    return _pooled(ax, source, _tables(source, kind, "grad_z"), "grad_z")


@drawing()
def gradient_boxes(source: Source, kind: Kind = "linear", ax: Axes | None = None) -> Axes:
    """Draw the variance of the gradient of z over the neurons of each layer, in decades.

    The box spans the neurons: its quantiles are those of log10 V(∇z_i) over i.

    Args:
        source: A snapshot or its neuron table.
        kind: Which sites of a snapshot are drawn.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    title(ax, "Gradient variance V(∇z), spread over the neurons of a layer")
    neurons = _narrowed(source, kind)
    names, table = _gradient_table(neurons)
    if not np.isfinite(table).any():
        not_measured(ax, gradient_reason(source, column(neurons, "grad_z_var")))
        return ax
    boxes_by_layer(names, table, "backward", ax)
    ax.set_ylim(*span(table, least=0.5))
    decade_axis(ax.yaxis)
    ax.set_ylabel("V(∇z)")
    return ax


@drawing()
def boxes_by_layer(
    names: Sequence[str],
    quantiles: npt.ArrayLike,
    quantity: str = "forward",
    ax: Axes | None = None,
) -> Axes:
    """Draw one box a layer from quantiles that are given; bands beyond 64 layers.

    Args:
        names: One name a layer, in order.
        quantiles: Quantiles 1, 25, 50, 75 and 99 %, ``[5, layers]``; NaN where not measured.
        quantity: Whose colour is used: ``"forward"`` or ``"backward"``.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax = new_axes(ax)
    table = np.asarray(quantiles, dtype=np.float64)
    draw_quantiles(ax, np.arange(table.shape[1], dtype=np.float64), table, quantity)
    label_sites(ax, names)
    ax.set_ylim(*span(table, least=_LEAST))
    value_axis(ax.yaxis)
    return ax


def _pooled(ax: Axes, source: Source, tables: dict[str, Array], stream: str) -> Axes:
    label, quantity = ("z", "forward") if stream == "z" else ("∇z", "backward")
    table = pooled_quantiles(tables)
    if not np.isfinite(table).any():
        not_measured(ax, unless_lost(source, stream, f"no quantiles of {label} were sampled"))
        return ax
    boxes_by_layer(list(tables), table, quantity, ax)
    ax.set_ylabel(label)
    return ax


def _tables(source: Source, kind: Kind, stream: str) -> dict[str, Array]:
    """Quantiles of each neuron of each site; of ∇z only a snapshot has them."""
    if stream == "z":
        return {n: quantiles_of(p, "z") for n, p in by_site(_narrowed(source, kind))}
    if not isinstance(source, Snapshot):
        return {}
    names = [name for name, _ in by_site(_narrowed(source, kind))]
    found = {name: source.quantiles.get(name, {}).get(stream, _NONE) for name in names}
    return found if any(table.size for table in found.values()) else {}


def _narrowed(source: Source, kind: Kind) -> pd.DataFrame:
    frame = neurons_of(source)
    if not isinstance(source, Snapshot):
        return frame
    sites = source.sites
    chosen = set(sites["site"][sites["kind"] == kind])
    return frame[frame["site"].isin(chosen)] if chosen else frame


def _gradient_table(neurons: pd.DataFrame) -> tuple[list[str], Array]:
    names, columns = [], []
    for name, part in by_site(neurons):
        variances = column(part, "grad_z_var")
        logs = decades(variances)
        logs = logs[np.isfinite(logs)] if stands_for_all(np.isfinite(variances)) else logs[:0]
        names.append(name)
        columns.append(np.quantile(logs, QUANTILES) if logs.size else np.full(5, np.nan))
    return names, np.stack(columns, axis=1) if columns else np.zeros((5, 0))

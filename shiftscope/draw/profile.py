"""Profiles along the depth: shift share, variances, gains against prediction, gradients, units.

All panels share one x axis, the sites in the order of execution, so that a jump in one can be
followed through the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from shiftscope.draw.decades import decades
from shiftscope.draw.marks import BAD, hatch_stretches
from shiftscope.draw.reasons import gradient_reason, unless_lost
from shiftscope.draw.site_lines import (
    error_band,
    finish,
    in_decades,
    main_places,
    places,
    predicted_line,
    relative_thresholds,
    site_line,
    without_data,
)
from shiftscope.draw.style import (
    drawing,
    label_sites,
    legend_above,
    new_axes,
    new_figure,
    stack_panels,
    title,
)
from shiftscope.draw.tables import Array, Source, column, sites_of

if TYPE_CHECKING:
    from shiftscope.findings import Finding

__all__ = [
    "depth_profile",
    "gain_profile",
    "gradient_profile",
    "shift_profile",
    "unit_profile",
    "variance_profile",
]

_PANEL = 1.55


@drawing()
def depth_profile(source: Source, findings: Sequence[Finding] = ()) -> Figure:
    """Draw everything that changes along the depth, one panel below the other.

    Args:
        source: A snapshot or its site table.
        findings: Findings whose sites and thresholds are marked.

    Returns:
        A figure of panels that share the sites; the one of saturated and dead units is left out
        where there are none.
    """
    sites = sites_of(source)
    units = np.nan_to_num(np.concatenate(_unit_shares(sites))).any()
    figure = new_figure(_PANEL)
    panels = figure.subplots(6 if units else 5, 1, sharex=True)
    shift_profile(source, findings, ax=panels[0])
    variance_profile(source, findings, ax=panels[1])
    gradient_profile(source, findings, ax=panels[2])
    gain_profile(source, "activation", ax=panels[3])
    gain_profile(source, "linear", ax=panels[4])
    if units:
        unit_profile(source, findings, ax=panels[5])
    _hatch(list(panels), column(sites, "nonfinite") > 0)
    stack_panels(figure, list(panels), _PANEL, 0.9)
    return figure


@drawing()
def shift_profile(source: Source, findings: Sequence[Finding] = (), ax: Axes | None = None) -> Axes:
    """Draw the shift share: how much of the variance of z lies between neurons.

    The band is two standard errors wide on either side. Where both are measured, what enters
    activations counts: a normalisation layer may stand between.

    Args:
        source: A snapshot or its site table.
        findings: Findings of activation shift, whose sites and threshold are marked.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax, sites = new_axes(ax), sites_of(source)
    title(ax, "Shift share of z")
    share, error = column(sites, "shift_share"), column(sites, "shift_share_se")
    if not np.isfinite(share).any():
        return without_data(ax, sites, unless_lost(source, "z", "no preactivation was recorded"))
    for kind, label, weak in (
        ("linear", "leaving linear maps", True),
        ("activation", "entering activations", False),
    ):
        where = places(sites, kind)
        error_band(ax, where, share[where], error[where])
        site_line(ax, where, share[where], "shift", label, weak=weak)
    label_sites(ax, list(sites["site"]))
    ax.set_ylim(-0.04, 1.04)
    ax.set_ylabel("between / total")
    finish(ax, sites, findings, {"activation_shift"})
    return ax


@drawing()
def variance_profile(
    source: Source, findings: Sequence[Finding] = (), ax: Axes | None = None
) -> Axes:
    """Draw the two parts of the variance of z, between neurons and within them, in decades.

    Of what enters the activations where there are any: a normalisation layer may stand before them.

    Args:
        source: A snapshot or its site table.
        findings: Findings of variance collapse, whose sites and threshold are marked.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax, sites = new_axes(ax), sites_of(source)
    where = places(sites, "activation")
    entering = bool(np.isfinite(column(sites, "within_var")[where]).any())
    title(ax, "Variance of z entering activations" if entering else "Variance of z")
    where = where if entering else main_places(sites)
    within, between = (decades(column(sites, f"{p}_var"))[where] for p in ("within", "between"))
    if not np.isfinite(within).any() and not np.isfinite(between).any():
        return without_data(ax, sites, unless_lost(source, "z", "no preactivation was recorded"))
    site_line(ax, where, between, "shift", "between neurons")
    site_line(ax, where, within, "within", "within a neuron (mean)")
    in_decades(ax, sites, within, between)
    start = within[np.isfinite(within)]
    if start.size:
        relative_thresholds(ax, findings, "collapse", float(start[0]), "below the first site")
    finish(ax, sites, findings, {"variance_collapse", "weight_scale"})
    return ax


@drawing()
def gradient_profile(
    source: Source, findings: Sequence[Finding] = (), ax: Axes | None = None
) -> Axes:
    """Draw the variance of the gradient of z along the depth, in decades.

    Thresholds of decay count from the last linear site before the head.

    Args:
        source: A snapshot or its site table.
        findings: Findings of vanishing or exploding gradients, whose sites and threshold are
            marked.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax, sites = new_axes(ax), sites_of(source)
    title(ax, "Gradient variance V(∇z)")
    where = main_places(sites)
    logs = column(sites, "log10_grad_z_var")[where]
    if not np.isfinite(logs).any():
        return without_data(ax, sites, gradient_reason(source, column(sites, "grad_z_var")))
    site_line(ax, where, logs, "backward", "mean over neurons")
    in_decades(ax, sites, logs)
    known = logs[np.isfinite(logs)]
    hidden = float(known[-2] if len(known) > 1 else known[-1])  # the head is the task's, not hidden
    relative_thresholds(ax, findings, "decay", hidden, "below the last hidden layer")
    relative_thresholds(ax, findings, "growth", hidden, "above the last hidden layer", sign=1.0)
    finish(ax, sites, findings, {"vanishing_gradient", "exploding_gradient"})
    return ax


_GAINS = {
    "activation": (
        ("phi_fw", "forward", "forward V(a)/V(z)", "phi_fw_theory", "theory, forward"),
        ("phi_bw", "backward", "backward V(∇z)/V(∇a)", "phi_bw_theory", "theory, backward"),
    ),
    "linear": (
        ("eta_measured", "forward", "forward V(z)/V(a)", "eta", "η of the weights"),
        ("xi_measured", "backward", "backward V(∇a)/V(∇z)", "xi", "ξ of the weights"),
    ),
}
"""Kind -> (measured column, quantity, label, predicted column, label), forward then backward."""


@drawing()
def gain_profile(
    source: Source, kind: Literal["activation", "linear"] = "activation", ax: Axes | None = None
) -> Axes:
    """Draw the gains of activations or linear maps, measured (colour) and predicted (black).

    Predicted: for activations under normal z of the measured mean and standard deviation; for
    linear maps from the weights alone (Kutsuna 2019, Propositions 4 to 6), whose premises a real
    layer may violate.

    Args:
        source: A snapshot or its site table.
        kind: Which gains.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax, sites = new_axes(ax), sites_of(source)
    title(ax, "Gains of activations" if kind == "activation" else "Gains of linear maps")
    where, drawn = places(sites, kind), []
    for measured, quantity, label, predicted, source_label in _GAINS[kind]:
        gain, theory = (decades(column(sites, name))[where] for name in (measured, predicted))
        site_line(ax, where, gain, quantity, label, wide=True)
        predicted_line(ax, where, theory, quantity, source_label)
        drawn += [gain, theory]
    if not np.isfinite(np.concatenate(drawn)).any():
        reason = f"no gain of {kind} sites is known"
        return without_data(ax, sites, unless_lost(source, "z", reason))
    in_decades(ax, sites, *drawn)
    ax.set_ylabel("gain")
    legend_above(ax)
    return ax


@drawing()
def unit_profile(source: Source, findings: Sequence[Finding] = (), ax: Axes | None = None) -> Axes:
    """Draw the share of saturated rows and of dead units of each activation.

    Args:
        source: A snapshot or its site table.
        findings: Findings of saturation or dead units, whose sites are marked.
        ax: Axes to draw on; None makes a new figure.

    Returns:
        The axes.
    """
    ax, sites = new_axes(ax), sites_of(source)
    title(ax, "Saturated and dead")
    saturated, dead = _unit_shares(sites)
    if not np.isfinite(np.concatenate([saturated, dead])).any():
        return without_data(ax, sites, "no activation was counted")
    where = places(sites, "activation")
    site_line(ax, where, saturated[where], "saturated", "saturated rows")
    site_line(ax, where, dead[where], "dead", "units never active")
    label_sites(ax, list(sites["site"]))
    ax.set_ylim(-0.04, 1.04)
    ax.set_ylabel("share")
    finish(ax, sites, findings, {"saturation", "dead_units"})
    return ax


def _hatch(panels: Sequence[Axes], bad: npt.NDArray[np.bool_]) -> None:
    """Hatch the sites with values that are not finite, named in the first panel with data."""
    filled = [ax for ax in panels if ax.has_data()]
    edges = np.arange(len(bad) + 1, dtype=np.float64) - 0.5
    for ax in filled:
        hatch_stretches(ax, edges, bad, BAD if ax is filled[0] else None)
    if filled and bad.any():
        legend_above(filled[0])


def _unit_shares(sites: pd.DataFrame) -> tuple[Array, Array]:
    widths = column(sites, "neurons")
    dead = np.full(len(sites), np.nan)
    np.divide(column(sites, "dead"), widths, out=dead, where=widths > 0)
    return column(sites, "saturated"), dead
